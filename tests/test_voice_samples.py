"""Samples of voices are spoken by the worker's own text to speech, and say so where it has no words."""

import json
from pathlib import Path

import soundfile
import torch

from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.media.tts import VOICES_FOLDER, SpeechSynthesiser, make_tiny_kokoro
from tools.voice_samples import INDEX, SENTENCES, make_samples


def test_each_voice_speaks_a_sentence_of_its_language_or_is_left_out_with_the_reason(tmp_path: Path) -> None:
    make_tiny_kokoro(tmp_path / "kokoro")
    voices = tmp_path / "kokoro" / VOICES_FOLDER
    for file in voices.iterdir():
        if file.stem != "ef_dora":
            file.unlink()
    (voices / "jf_alpha.pt").write_bytes((voices / "ef_dora.pt").read_bytes())
    made = make_samples(SpeechSynthesiser(tmp_path / "kokoro", torch.device("cpu")), tmp_path / "made")
    assert made == json.loads((tmp_path / "made" / INDEX).read_text(encoding="utf-8"))
    assert made["samples"] == {"ef_dora": "ef_dora.wav"}
    assert 'no sentence in the language "j"' in made["left_out"]["jf_alpha"]
    assert "no words can be heard" in made["warnings"][0]
    sound = soundfile.info(tmp_path / "made/ef_dora.wav")
    assert (sound.samplerate, sound.channels) == (SAMPLING_RATE, 1)
    assert sound.duration > len(SENTENCES["e"]) / 40

"""A sample of each voice, spoken by the worker's own text to speech; the page plays them.

    python -m tools.voice_samples [FOLDER]      (make voices)

Weights are found as the worker finds them: KOKORO_DIR, the network volume or weights/ of the checkout. Without any, the
embedded model with random weights speaks: the samples then have no words, and say so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import soundfile

from infinitetalk.errors import SynthesisError, SynthesisSetupError
from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.media.tts import SpeechSynthesiser
from infinitetalk.worker.settings import Settings, default_environment

FOLDER = Path("outputs/voices")
INDEX = "voices.json"
SENTENCES = {
    "a": "Hello. This is how a video sounds in my voice.",
    "b": "Hello. This is how a video sounds in my voice.",
    "e": "Hola. Así suena un vídeo con mi voz.",
    "f": "Bonjour. Voici comment sonne une vidéo avec ma voix.",
    "h": "नमस्ते। मेरी आवाज़ में वीडियो ऐसा सुनाई देता है।",
    "i": "Ciao. Così suona un video con la mia voce.",
    "p": "Olá. É assim que um vídeo soa com a minha voz.",
    "z": "你好。这是我的声音。",
}
"""First letter of a voice, its language → what it says."""


def make_samples(synthesiser: SpeechSynthesiser, folder: Path) -> dict[str, Any]:
    """Writes a WAV file for each voice, and an index of them.

    Returns:
        The index: `samples` (file by voice), `left_out` (reason by voice), `warnings` (what is wrong with all of them).
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples, left_out = {}, {}
    for voice in synthesiser.voices:
        try:
            if voice[0] not in SENTENCES:
                raise SynthesisError(f'there is no sentence in the language "{voice[0]}"')
            (track,) = synthesiser.speak(SENTENCES[voice[0]], [voice])
        except (SynthesisError, SynthesisSetupError) as error:
            left_out[voice] = str(error)
            continue
        samples[voice] = f"{voice}.wav"
        soundfile.write(folder / samples[voice], track, SAMPLING_RATE)
    index = {"samples": samples, "left_out": left_out, "warnings": synthesiser.warnings}
    (folder / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return index


def main(folder: Path) -> None:
    """Makes the samples of the worker's voices."""
    default_environment()
    from infinitetalk.worker.engine import Engine

    made = make_samples(Engine(Settings()).synthesiser, folder)
    for voice, reason in made["left_out"].items():
        print(f"no sample of {voice}: {reason}")
    print(f"{len(made['samples'])} samples in {folder}", *made["warnings"], sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)

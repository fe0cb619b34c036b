"""The speech gate: speech is told from music and noise, and only speech moves a mouth and counts for the loudness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from infinitetalk.errors import GenerationStopped
from infinitetalk.media.decode import read_waveform
from infinitetalk.media.speech import SAMPLING_RATE, TARGET_LUFS, measure_loudness, normalise_loudness
from infinitetalk.media.speech_gate import Spoken, find_speech, only_speech, silence_between
from infinitetalk.worker.job.advice import NO_SPEECH
from infinitetalk.worker.job.inputs import make_voice
from infinitetalk.worker.job.resume import request_fingerprint
from schemas import parse_input
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker
from tools.talker.music import random_music

SPEECH = Path(__file__).parents[1] / "examples/media/speech.wav"


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """2.5 s, with a pause from 1.9 s to 2.1 s."""
    return read_waveform(SPEECH, 2.5)


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    """2.5 s."""
    return random_music(np.random.default_rng(5), round(2.5 * SAMPLING_RATE))


def share_found(waveform: np.ndarray) -> float:
    return sum(stretch.end - stretch.start for stretch in find_speech(waveform)) / len(waveform)


@pytest.mark.parametrize("amplitude", [0.01, 0.5])
def test_speech_of_any_loudness_is_found(speech: np.ndarray, amplitude: float) -> None:
    assert share_found(speech * np.float32(amplitude / np.abs(speech).max())) >= 0.8


def test_speech_over_music_is_found(speech: np.ndarray, music: np.ndarray) -> None:
    assert share_found(normalise_loudness(speech) + 0.5 * normalise_loudness(music)) >= 0.7


@pytest.mark.parametrize("seconds", [0.01, 2.5])
def test_music_and_noise_are_no_speech(music: np.ndarray, seconds: float) -> None:
    count = round(seconds * SAMPLING_RATE)
    noise = 0.1 * np.random.default_rng(6).standard_normal(count)
    assert find_speech(music[:count]) == []
    assert find_speech(noise.astype(np.float32)) == []


def test_the_search_stops_when_it_is_told_to(speech: np.ndarray) -> None:
    with pytest.raises(GenerationStopped):
        find_speech(speech, lambda: True)


def test_speech_stays_as_it_is_and_what_is_around_it_fades_to_silence() -> None:
    waveform = np.ones(16_000, dtype=np.float32)
    gated = silence_between(waveform, [Spoken(0, 3000), Spoken(3100, 5000), Spoken(12_000, 12_500)])
    assert (gated[:3000] == 1).all()
    assert (gated[3100:5000] == 1).all()
    assert (gated[3000:3100] > 0.9).all(), "a short pause is not heard as one"
    assert (np.diff(gated[5000:6600]) <= 0).all()
    assert not gated[6600:10_400].any()
    assert (np.diff(gated[10_400:12_000]) >= 0).all()
    assert not silence_between(waveform, []).any()


def test_the_loudness_is_that_of_the_speech_and_the_sound_keeps_its_music(
    speech: np.ndarray, music: np.ndarray
) -> None:
    pause = np.zeros(SAMPLING_RATE // 2, dtype=np.float32)
    waveform = np.concatenate([normalise_loudness(speech), pause, 4 * normalise_loudness(music)])
    voice, warnings = make_voice(waveform, True, never)
    assert warnings == []
    assert measure_loudness(only_speech(voice.sound, find_speech(speech))) == pytest.approx(TARGET_LUFS, abs=0.5)
    assert np.corrcoef(voice.sound, waveform)[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert not voice.spoken[len(speech) + len(pause) :].any()
    ungated, _ = make_voice(waveform, False, never)
    assert np.array_equal(ungated.sound, normalise_loudness(waveform))
    assert ungated.spoken is ungated.sound


def test_music_alone_is_told_of_and_heard(local_worker: LocalWorker, music: np.ndarray) -> None:
    soundfile.write(local_worker.volume / "music.wav", music, SAMPLING_RATE)
    results = {}
    for gate in ("off", "auto"):
        job = small_job(cond_audio={"person1": "music.wav"}, speech={"gate": gate})
        results[gate] = local_worker.run({"id": gate, "input": job})
        plan = local_worker.run({"id": gate, "input": job | {"dry_run": True}})
        told = [text for text in plan["warnings"] if text.startswith("cond_audio")]
        assert told == [f"cond_audio.person1: {NO_SPEECH}"] * (gate == "auto")
    sounds = [read_waveform(local_worker.volume / results[gate]["video"]["path"]) for gate in ("off", "auto")]
    assert np.array_equal(*sounds)
    assert f"cond_audio.person1: {NO_SPEECH}" in results["auto"]["warnings"]


def test_the_gate_has_no_effect_on_a_spoken_text(local_worker: LocalWorker) -> None:
    text = {"text": "Hello, how are you?", "human1_voice": "am_adam"}
    job = small_job(cond_audio=None, tts_audio=text, speech={"gate": "auto"}, dry_run=True)
    plan = local_worker.run({"id": "text", "input": job})
    assert "speech has no effect with tts_audio: all of it is speech" in plan["warnings"]


@pytest.mark.parametrize(("speech", "is_same"), [(None, True), ({"gate": "off"}, True), ({"gate": "auto"}, False)])
def test_a_job_without_the_gate_keeps_its_fingerprint(speech: Any, is_same: bool) -> None:
    plain, other = (parse_input(small_job(**changes)) for changes in ({}, {"speech": speech}))
    fingerprints = {request_fingerprint("id", job, "weights", {}) for job in (plain, other)}
    assert (len(fingerprints) == 1) == is_same


def test_the_detector_brings_no_torchaudio_and_leaves_torch_its_threads() -> None:
    program = (
        "import json, sys, torch; torch.set_num_threads(3)\n"
        "from infinitetalk.media.speech_gate import find_speech\n"
        "import numpy; find_speech(numpy.zeros(16000, numpy.float32))\n"
        "print(json.dumps([torch.get_num_threads(), 'torchaudio' in sys.modules, 'silero_vad' in sys.modules]))"
    )
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert json.loads(finished.stdout.splitlines()[-1]) == [3, False, True]

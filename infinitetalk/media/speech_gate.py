"""Tells speech from music and noise, and silences what is not speech, so that mouths rest there.

The detector is silero-vad, whose weights are inside its package. It runs on the CPU, in 1.7 s for 100 s of sound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from infinitetalk.errors import GenerationStopped
from infinitetalk.media.speech import SAMPLING_RATE, normalise_loudness

#: Time before and after speech in which its sound comes and goes.
FADE_S = 0.1


@dataclass(frozen=True)
class Spoken:
    """A stretch of a waveform in which somebody speaks: samples `start` to `end`, the last not included."""

    start: int
    end: int


def find_speech(waveform: np.ndarray, should_stop: Callable[[], bool] = lambda: False) -> list[Spoken]:
    """The stretches of a mono 16 kHz waveform (samples,) in which somebody speaks or sings, in order.

    Its loudness does not matter: the detector gets it at the loudness of speech.

    Raises:
        GenerationStopped: `should_stop` returned true.
    """
    timestamps, network = _detector()

    def check(percent: float) -> None:
        if should_stop():
            raise GenerationStopped

    found = timestamps(
        torch.from_numpy(normalise_loudness(waveform)),
        network,
        sampling_rate=SAMPLING_RATE,
        progress_tracking_callback=check,
    )
    return [Spoken(stretch["start"], stretch["end"]) for stretch in found]


def only_speech(waveform: np.ndarray, speech: Sequence[Spoken]) -> np.ndarray:
    """The speech of a waveform (samples,) without what is between: float32 (samples of speech,)."""
    parts = [waveform[stretch.start : stretch.end] for stretch in speech]
    return np.concatenate(parts) if parts else waveform[:0]


def silence_between(waveform: np.ndarray, speech: Sequence[Spoken]) -> np.ndarray:
    """A waveform (samples,) that is silent where nobody speaks, float32 (samples,).

    Speech itself is unchanged; what is around it fades in and out within `FADE_S`.
    """
    ramp = np.linspace(0.0, 1.0, round(FADE_S * SAMPLING_RATE) + 1, dtype=np.float32)[1:-1]
    gain = np.zeros(len(waveform), dtype=np.float32)
    for stretch in speech:
        gain[stretch.start : stretch.end] = 1.0
        before = gain[max(stretch.start - len(ramp), 0) : stretch.start]
        np.maximum(before, ramp[len(ramp) - len(before) :], out=before)
        after = gain[stretch.end : stretch.end + len(ramp)]
        np.maximum(after, ramp[::-1][: len(after)], out=after)
    return (waveform * gain).astype(np.float32)


@cache
def _detector() -> tuple[Callable[..., list[dict[str, int]]], Any]:
    """silero-vad's function and its network."""
    num_threads = torch.get_num_threads()
    # Only jobs with the gate pay for the import.
    from silero_vad import get_speech_timestamps, load_silero_vad

    # Its import leaves the whole process one thread.
    torch.set_num_threads(num_threads)
    return get_speech_timestamps, load_silero_vad()

"""Waveforms of the speakers: loudness, one track for each speaker, and their mix."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyloudnorm

#: Samples of a waveform in a second.
SAMPLING_RATE = 16_000
#: Frames of the video in a second.
VIDEO_FPS = 25
#: Loudness that speech is brought to.
TARGET_LUFS = -23.0
#: A loudness below minus this is that of silence, which no gain makes louder.
SILENCE_LUFS = 100.0
#: Floating-point files may count in any unit. From here on, beyond that of 16 bits, squares could leave float32.
LARGEST_PEAK = 32768.0
#: BS.1770 measures in blocks of this many seconds.
LOUDNESS_BLOCK_S = 0.4


def measure_loudness(waveform: np.ndarray) -> float:
    """Integrated loudness (ITU-R BS.1770) in LUFS of a mono 16 kHz waveform (samples,); -inf for silence.

    A waveform shorter than one block of 0.4 s is repeated to that length.
    """
    block = round(LOUDNESS_BLOCK_S * SAMPLING_RATE)
    measured = np.resize(waveform, block) if len(waveform) < block else waveform
    # The logarithm of an empty sum is the answer for silence, not a mistake.
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(SAMPLING_RATE, block_size=LOUDNESS_BLOCK_S).integrated_loudness(measured))


def normalise_loudness(waveform: np.ndarray) -> np.ndarray:
    """Bring a mono 16 kHz waveform (samples,) to -23 LUFS; silence is left as it is. Returns float32 (samples,)."""
    peak = np.abs(waveform).max(initial=0.0)
    if peak > LARGEST_PEAK:
        waveform = waveform / peak
    loudness = measure_loudness(waveform)
    if loudness < -SILENCE_LUFS:
        return waveform.astype(np.float32)
    gain = 10.0 ** ((TARGET_LUFS - loudness) / 20.0)
    return (waveform * gain).astype(np.float32)


def arrange_tracks(waveforms: Sequence[np.ndarray | None], audio_type: Literal["para", "add"]) -> list[np.ndarray]:
    """One track for each speaker, float32 (samples,), all of the length of the mix.

    `waveforms` holds one waveform (samples,) for each speaker, or None for a speaker who stays silent. "para": all
    speak from the start, and the shorter ones are padded with silence (the published code fails there). "add": one
    after the other in the given order, each silent during the others.

    Raises `ValueError` when no speaker speaks.
    """
    lengths = [0 if waveform is None else len(waveform) for waveform in waveforms]
    if not any(lengths):
        raise ValueError("every speaker is silent; give at least one of them a sound")
    if audio_type == "para":
        starts, total = [0] * len(lengths), max(lengths)
    else:
        starts, total = [sum(lengths[:index]) for index in range(len(lengths))], sum(lengths)
    tracks = [np.zeros(total, dtype=np.float32) for _ in waveforms]
    for track, start, waveform in zip(tracks, starts, waveforms, strict=True):
        if waveform is not None:
            track[start : start + len(waveform)] = waveform
    return tracks


def mix_tracks(tracks: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of tracks of equal length, float32 (samples,): what the listener hears."""
    return np.stack(tracks).sum(axis=0, dtype=np.float32)

"""Waveforms of the speakers: loudness, one track for each speaker, and their mix."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyloudnorm
from scipy.ndimage import uniform_filter1d

#: Samples of a waveform in a second.
SAMPLING_RATE = 16_000
#: Frames of the video in a second.
VIDEO_FPS = 25
#: Loudness that speech is brought to.
TARGET_LUFS = -23.0
#: A loudness below minus this is that of silence, which no gain makes louder.
SILENCE_LUFS = 100.0
#: Speech below this is mostly noise once it is brought to the target.
QUIET_LUFS = -50.0
#: Samples beyond this are of another scale than -1 to 1.
LARGEST_SAMPLE = 1000.0
#: Of their energy, what channels leave in their mean that do not cancel each other out.
SMALLEST_SHARE_LEFT = 0.5
#: What does not change within so many seconds, eight periods of the lowest voices, is no sound.
OFFSET_WINDOW_S = 0.1
#: BS.1770 measures in blocks of this many seconds.
LOUDNESS_BLOCK_S = 0.4


def mix_channels(samples: np.ndarray, rate: int) -> tuple[np.ndarray, bool]:
    """One channel of several, without the offset that none of them should have.

    It is their mean, or the loudest one where they cancel each other out, as a microphone's two wires do that are taken
    for two channels. Samples of a scale that no recording has (integers saved as floats) are brought to full scale.

    Args:
        samples: float32 (samples, channels).
        rate: samples in a second.

    Returns:
        float32 (samples,), and whether the channels cancelled out.

    Raises:
        ValueError: a sample is not finite.
    """
    peak = max(float(samples.max()), -float(samples.min()))
    if not np.isfinite(peak):
        raise ValueError("a sample is not finite")
    if peak > LARGEST_SAMPLE:
        samples = samples / np.float32(peak)
    means = samples.mean(axis=0, dtype=np.float64)
    energies = np.einsum("ij,ij->j", samples, samples, dtype=np.float64) / len(samples) - means**2
    mixed = samples.mean(axis=1, dtype=np.float32)
    energy = np.dot(mixed, mixed) / len(mixed) - means.mean() ** 2
    # Channels that have nothing to do with each other leave all of it.
    cancelled = bool(energy < SMALLEST_SHARE_LEFT * energies.sum() / len(energies) ** 2)
    if cancelled:
        mixed = samples[:, energies.argmax()].copy()
    return remove_offset(mixed, rate), cancelled


def remove_offset(waveform: np.ndarray, rate: int) -> np.ndarray:
    """A waveform (samples,) without what moves slower than sound: the loudness's measure does not hear it, and its gain
    would make it as loud as the speech is quiet. Returns float32 (samples,)."""
    window = max(round(OFFSET_WINDOW_S * rate), 1)
    if window == 1:
        return waveform
    # Twice, so that little of the lowest voices is taken along.
    offset = uniform_filter1d(uniform_filter1d(waveform, window, mode="reflect"), window, mode="reflect")
    return waveform - offset


def measure_loudness(waveform: np.ndarray) -> float:
    """Integrated loudness (ITU-R BS.1770) in LUFS of a mono 16 kHz waveform (samples,); -inf for silence.

    A waveform shorter than one block of 0.4 s is repeated to that length.
    """
    block = round(LOUDNESS_BLOCK_S * SAMPLING_RATE)
    measured = np.resize(waveform, block) if len(waveform) < block else waveform
    # The logarithm of an empty sum is the answer for silence, not a mistake.
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(SAMPLING_RATE, block_size=LOUDNESS_BLOCK_S).integrated_loudness(measured))


def normalise_loudness(waveform: np.ndarray, loudness: float | None = None) -> np.ndarray:
    """Bring a mono 16 kHz waveform (samples,) to -23 LUFS; silence is left as it is. Returns float32 (samples,).

    `loudness` is that of the waveform where it has been measured.
    """
    loudness = measure_loudness(waveform) if loudness is None else loudness
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

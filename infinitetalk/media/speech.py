"""Waveforms of the speakers: loudness, one track for each speaker, and their mix."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyloudnorm
from scipy.ndimage import uniform_filter1d

#: Samples per second of a waveform.
SAMPLING_RATE = 16_000
#: Frames per second of the video.
VIDEO_FPS = 25
#: Loudness to which speech is normalised.
TARGET_LUFS = -23.0
#: A waveform with a loudness below minus this value is silent, and no gain makes it louder.
SILENCE_LUFS = 100.0
#: Speech quieter than this is mostly noise after normalisation.
QUIET_LUFS = -50.0
#: Samples above this have another scale than -1 to 1.
LARGEST_SAMPLE = 1000.0
#: Channels cancel each other out if less than this share of their energy is left in their mean.
SMALLEST_SHARE_LEFT = 0.5
#: A component that does not change within this time, eight periods of the lowest voices, is not sound.
OFFSET_WINDOW_S = 0.1
#: Block length of BS.1770, in seconds.
LOUDNESS_BLOCK_S = 0.4


def mix_channels(samples: np.ndarray, rate: int) -> tuple[np.ndarray, bool]:
    """Mixes channels to one and removes its offset.

    The result is their mean, or the loudest one if they cancel each other out, as the two wires of a balanced
    microphone do when recorded as two channels. Samples with a scale that no recording has (integers saved as floats)
    are scaled to full scale.

    Args:
        samples: float32 (samples, channels).
        rate: samples per second.

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
    # The mean of unrelated channels keeps all of this energy.
    cancelled = bool(energy < SMALLEST_SHARE_LEFT * energies.sum() / len(energies) ** 2)
    if cancelled:
        mixed = samples[:, energies.argmax()].copy()
    return remove_offset(mixed, rate), cancelled


def remove_offset(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Removes components slower than sound from a waveform (samples,): loudness does not measure them, and the gain for
    quiet speech would amplify them. Returns float32 (samples,)."""
    window = max(round(OFFSET_WINDOW_S * rate), 1)
    if window == 1:
        return waveform
    # Twice, so that little of the lowest voices is removed.
    offset = uniform_filter1d(uniform_filter1d(waveform, window, mode="reflect"), window, mode="reflect")
    return waveform - offset


def measure_loudness(waveform: np.ndarray) -> float:
    """Integrated loudness (ITU-R BS.1770) in LUFS of a mono 16 kHz waveform (samples,); -inf for silence.

    A waveform shorter than one block of 0.4 s is repeated to that length.
    """
    block = round(LOUDNESS_BLOCK_S * SAMPLING_RATE)
    measured = np.resize(waveform, block) if len(waveform) < block else waveform
    # For silence, the logarithm of an empty sum is the right answer and not an error.
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(SAMPLING_RATE, block_size=LOUDNESS_BLOCK_S).integrated_loudness(measured))


def normalise_loudness(waveform: np.ndarray, loudness: float | None = None) -> np.ndarray:
    """Bring a mono 16 kHz waveform (samples,) to -23 LUFS; silence is left as it is. Returns float32 (samples,).

    `loudness` is the waveform's loudness, if it has been measured already.
    """
    loudness = measure_loudness(waveform) if loudness is None else loudness
    if loudness < -SILENCE_LUFS:
        return waveform.astype(np.float32)
    gain = 10.0 ** ((TARGET_LUFS - loudness) / 20.0)
    return (waveform * gain).astype(np.float32)


def arrange_tracks(
    waveforms: Sequence[np.ndarray | None], audio_type: Literal["para", "add"], delays: Sequence[int] | None = None
) -> list[np.ndarray]:
    """One track for each speaker, float32 (samples,), all of the length of the mix.

    `waveforms` holds one waveform (samples,) for each speaker, or None for a silent one. "para": all speak from the
    start, each after its `delays` in samples if there are any, and shorter waveforms are padded with silence (the
    published code fails there). "add": they speak one after another in the given order, each silent during the others'
    turns.

    Raises `ValueError` if all speakers are silent.
    """
    lengths = [0 if waveform is None else len(waveform) for waveform in waveforms]
    if not any(lengths):
        raise ValueError("every speaker is silent; give at least one of them a sound")
    if audio_type == "para":
        starts = [0] * len(lengths) if delays is None else list(delays)
        total = max(start + length for start, length in zip(starts, lengths, strict=True) if length)
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

"""What speech does at each frame of a video, 25 a second."""

from __future__ import annotations

import librosa
import numpy as np
from scipy.ndimage import binary_opening

from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS

SAMPLES_A_FRAME = SAMPLING_RATE // VIDEO_FPS

NUM_BANDS = 10
LOWEST_HZ, HIGHEST_HZ = 80.0, 6000.0
WINDOW = 1024
"""Samples of a spectrum: 64 ms."""

FLOOR = 1e-5
"""Energies below this share of the loudest count as this share: 50 dB."""

QUIET_DB = -30.0
"""Speech this far below its loud frames is a pause."""

SHORTEST_PAUSE = 8
"""Frames: lips need a moment to close, and stops within words are no pauses."""


def bands(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """Log energies of speech in mel bands: float64 (num_frames, NUM_BANDS); silence where the speech has ended.

    Args:
        waveform: float32 (samples,), mono, 16 kHz.
    """
    padded = np.pad(waveform, (0, max(0, num_frames * SAMPLES_A_FRAME - len(waveform))))
    energies = librosa.feature.melspectrogram(
        y=padded,
        sr=SAMPLING_RATE,
        n_fft=WINDOW,
        hop_length=SAMPLES_A_FRAME,
        n_mels=NUM_BANDS,
        fmin=LOWEST_HZ,
        fmax=HIGHEST_HZ,
    )[:, :num_frames]
    most = float(energies.max())
    if most == 0:
        return np.zeros((num_frames, NUM_BANDS))
    return np.log(np.maximum(energies, FLOOR * most)).T.astype(np.float64)


def envelope(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """The speech's loudness: the mean of its bands, 0 (silent) to 1 (its loudest frame); float64 (num_frames,)."""
    loudness = bands(waveform, num_frames).mean(axis=1)
    spread = np.ptp(loudness)
    return (loudness - loudness.min()) / spread if spread else np.zeros(num_frames)


def pauses(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """Whether each frame lies in a pause: bool (num_frames,). A pause lasts at least `SHORTEST_PAUSE` frames."""
    padded = np.pad(waveform, (0, max(0, num_frames * SAMPLES_A_FRAME - len(waveform))))
    blocks = padded[: num_frames * SAMPLES_A_FRAME].reshape(num_frames, SAMPLES_A_FRAME).astype(np.float64)
    levels = np.sqrt(np.square(blocks).mean(axis=1))
    loud = float(np.quantile(levels, 0.9))
    quiet = levels <= loud * 10 ** (QUIET_DB / 20)
    return np.asarray(binary_opening(quiet, np.ones(SHORTEST_PAUSE, dtype=bool)))

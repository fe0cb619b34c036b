"""The rule of the drawn mouths: opening and width of the mouth in every video frame, a pure function of the speech.

The renderer draws by this rule, and the quality measurement compares the worker's videos with it.
"""

from dataclasses import dataclass

import numpy as np

from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS, normalise_loudness

SAMPLES_A_FRAME = SAMPLING_RATE // VIDEO_FPS
#: Spectral centroids in Hz of the narrowest and of the widest mouth.
NARROW_HZ, WIDE_HZ = 400.0, 2400.0


@dataclass(frozen=True)
class Manner:
    """Parameters of a mouth's movement.

    Attributes:
        window: number of samples for one frame, around its middle, under a Hann window.
        loudest: root mean square, at the worker's -23 LUFS, at which the mouth is fully open.
        compression: below one, quiet speech moves the mouth more.
    """

    window: int
    loudest: float
    compression: float


#: The rule: 0.32 s, because lips and jaws are slow, and each latent of the VAE holds four frames.
MANNER = Manner(window=8 * SAMPLES_A_FRAME, loudest=0.12, compression=0.85)
#: Quicker than any mouth of the rule, for the training of the VAE.
QUICK_MANNER = Manner(window=3 * SAMPLES_A_FRAME, loudest=0.16, compression=0.7)


@dataclass(frozen=True)
class MouthTrack:
    """A mouth's movement, one value in 0…1 per video frame.

    Attributes:
        opening: 0 closed, 1 fully open; float64 (frames,).
        width: 0 rounded, 1 wide; float64 (frames,).
    """

    opening: np.ndarray
    width: np.ndarray


def follow_speech(waveform: np.ndarray, manner: Manner = MANNER) -> MouthTrack:
    """The mouth's movement, samples // 640 frames, for a mono 16 kHz waveform (samples,) of any loudness."""
    num_frames = len(waveform) // SAMPLES_A_FRAME
    margin = (manner.window - SAMPLES_A_FRAME) // 2
    padded = np.pad(normalise_loudness(waveform).astype(np.float64), margin)
    starts = np.arange(num_frames) * SAMPLES_A_FRAME
    windows = padded[starts[:, None] + np.arange(manner.window)]
    hann = np.hanning(manner.window)
    loudness = np.sqrt((windows**2 * hann).sum(axis=1) / hann.sum())
    power = np.abs(np.fft.rfft(windows * hann, axis=1)) ** 2
    frequencies = np.fft.rfftfreq(manner.window, 1 / SAMPLING_RATE)
    total = power.sum(axis=1)
    centroid = (power @ frequencies) / np.where(total > 0, total, 1.0)
    return MouthTrack(
        opening=np.minimum(loudness / manner.loudest, 1.0) ** manner.compression,
        width=np.clip((centroid - NARROW_HZ) / (WIDE_HZ - NARROW_HZ), 0.0, 1.0),
    )

"""What the drawn mouths do: opening and width of the mouth in every video frame, a pure function of the speech.

The renderer draws by this rule, and the measure of quality compares what the worker's videos show with it.
"""

from dataclasses import dataclass

import numpy as np

from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS, normalise_loudness

SAMPLES_A_FRAME = SAMPLING_RATE // VIDEO_FPS
#: Spectral centroids in Hz of the narrowest and of the widest mouth.
NARROW_HZ, WIDE_HZ = 400.0, 2400.0


@dataclass(frozen=True)
class Manner:
    """How a mouth moves.

    Attributes:
        window: samples that one frame listens to, around its middle, under a Hann window.
        loudest: root mean square, at the worker's -23 LUFS, at which the mouth is fully open.
        compression: below one, quiet speech moves the mouth more.
    """

    window: int
    loudest: float
    compression: float


#: The rule: 0.32 s, for lips and jaws are slow, and the VAE's latents hold four frames each.
MANNER = Manner(window=8 * SAMPLES_A_FRAME, loudest=0.12, compression=0.85)
#: Quicker than any mouth of the rule: what the VAE practises on.
QUICK_MANNER = Manner(window=3 * SAMPLES_A_FRAME, loudest=0.16, compression=0.7)


@dataclass(frozen=True)
class MouthTrack:
    """A mouth's movement, one value a video frame, each in 0…1.

    Attributes:
        opening: 0 closed, 1 fully open; float64 (frames,).
        width: 0 rounded, 1 wide; float64 (frames,).
    """

    opening: np.ndarray
    width: np.ndarray


def follow_speech(waveform: np.ndarray, manner: Manner = MANNER) -> MouthTrack:
    """The mouth's movement, samples // 640 frames, for one speaker's mono 16 kHz waveform (samples,), however loud."""
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

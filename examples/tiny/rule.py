"""What the drawn mouths do: opening and width of the mouth in every video frame, a pure function of the speech.

The renderer draws by this rule, and the measure of quality compares what the worker's videos show with it.
"""

from dataclasses import dataclass

import numpy as np

from infinitetalk.speech import SAMPLING_RATE, VIDEO_FPS, normalise_loudness

SAMPLES_A_FRAME = SAMPLING_RATE // VIDEO_FPS
#: Samples that one frame listens to, around its middle: 0.12 s under a Hann window.
WINDOW = 3 * SAMPLES_A_FRAME
#: Root mean square, at the worker's -23 LUFS, at which a mouth is fully open.
LOUDEST = 0.16
#: Below one, quiet speech moves the mouth too.
COMPRESSION = 0.7
#: Spectral centroids in Hz of the narrowest and of the widest mouth.
NARROW_HZ, WIDE_HZ = 400.0, 2400.0


@dataclass(frozen=True)
class MouthTrack:
    """A mouth's movement, one value a video frame, each in 0…1.

    Attributes:
        opening: 0 closed, 1 fully open; float64 (frames,).
        width: 0 rounded, 1 wide; float64 (frames,).
    """

    opening: np.ndarray
    width: np.ndarray


def follow_speech(waveform: np.ndarray) -> MouthTrack:
    """The mouth's movement for a waveform (samples,) of one speaker, mono 16 kHz, at any loudness.

    It has samples // 640 frames.
    """
    num_frames = len(waveform) // SAMPLES_A_FRAME
    margin = (WINDOW - SAMPLES_A_FRAME) // 2
    padded = np.pad(normalise_loudness(waveform).astype(np.float64), margin)
    starts = np.arange(num_frames) * SAMPLES_A_FRAME
    windows = padded[starts[:, None] + np.arange(WINDOW)]
    hann = np.hanning(WINDOW)
    loudness = np.sqrt((windows**2 * hann).sum(axis=1) / hann.sum())
    power = np.abs(np.fft.rfft(windows * hann, axis=1)) ** 2
    frequencies = np.fft.rfftfreq(WINDOW, 1 / SAMPLING_RATE)
    total = power.sum(axis=1)
    centroid = (power @ frequencies) / np.where(total > 0, total, 1.0)
    return MouthTrack(
        opening=np.minimum(loudness / LOUDEST, 1.0) ** COMPRESSION,
        width=np.clip((centroid - NARROW_HZ) / (WIDE_HZ - NARROW_HZ), 0.0, 1.0),
    )

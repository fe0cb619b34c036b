"""A photograph whose mouth is moved by hand: a talking video of which it is known when the mouth opens.

It looks like a puppet. It is for checking the measures where no filmed person may be shipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d, map_coordinates

from infinitetalk.media.faces import CHIN, EYE_CORNERS, MOUTH_CORNERS, UPPER_LIP, FaceDetector
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS
from tools.measures.speech import envelope

WIDEST = 0.18
"""Opening of the mouth at the loudest frame, in distances of the eyes."""

SLOWNESS = 1.2
"""Standard deviation in frames by which the mouth is smoother than the speech."""

INSIDE = np.array([60.0, 25.0, 25.0])
"""Colour of an open mouth."""


def puppet(picture: np.ndarray, waveform: np.ndarray, num_frames: int, late: int = 0) -> Iterable[np.ndarray]:
    """Frames of a photograph that opens its mouth with the speech, uint8 (height, width, 3).

    Args:
        picture: uint8 (height, width, 3), with one face.
        waveform: float32 (samples,), 16 kHz.
        late: frames by which the mouth is late.

    Raises:
        FacesSetupError: the networks that find faces are not installed.
        ValueError: the picture has no face.
    """
    detector = FaceDetector()
    faces = detector.find(picture)
    mesh = detector.landmarks(picture, faces[0]) if faces else None
    if mesh is None:
        raise ValueError("the picture shows no face")
    points = mesh.points[:, :2]
    eyes = float(np.linalg.norm(points[EYE_CORNERS[0]] - points[EYE_CORNERS[1]]))
    loudness = envelope(waveform, num_frames)
    openings = WIDEST * eyes * np.roll(gaussian_filter1d(loudness, SLOWNESS), late)
    height, width = picture.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    middle = float(points[list(MOUTH_CORNERS), 0].mean())
    half = float(np.abs(np.diff(points[list(MOUTH_CORNERS), 0]))[0]) / 2
    line, chin = float(points[UPPER_LIP, 1]), float(points[CHIN, 1])
    # The opening is an ellipse; below it everything moves down, less and less towards the neck.
    across = np.sqrt(np.clip(1 - ((columns - middle) / half) ** 2, 0, 1))
    for opening in openings:
        gap = opening * across
        fade = np.clip((2 * chin - line - rows) / (2 * (chin - line)), 0, 1)
        moved = map_coordinates_of(picture, rows - np.where(rows > line + gap, gap * fade, 0), columns)
        inside = (rows > line) & (rows <= line + gap) & (gap > 0.5)
        moved[inside] = INSIDE
        yield moved.astype(np.uint8)


def map_coordinates_of(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A picture read at other places: float64 (height, width, 3)."""
    channels = [
        map_coordinates(picture[:, :, channel], [rows, columns], order=1, mode="nearest") for channel in (0, 1, 2)
    ]
    return np.stack(channels, axis=2).astype(np.float64)


def write_video(path: Path, frames: Iterable[np.ndarray], waveform: np.ndarray | None = None) -> None:
    """Writes frames, uint8 (height, width, 3), as an MP4 of 25 frames a second, with a sound of 16 kHz if one is given.

    Sides that are odd lose a row or a column.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "18", "preset": "veryfast"})
        video.pix_fmt = "yuv420p"
        sound = None if waveform is None else container.add_stream("aac", rate=SAMPLING_RATE, layout="mono")
        for number, frame in enumerate(frames):
            even = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
            if number == 0:
                video.height, video.width = even.shape[:2]
            container.mux(video.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(video.encode())
        if sound is not None and waveform is not None:
            samples = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.time_base = SAMPLING_RATE, Fraction(1, SAMPLING_RATE)
            samples.pts = 0
            container.mux(sound.encode(samples))
            container.mux(sound.encode())


def read_photograph(path: Path) -> np.ndarray:
    """A picture's pixels, uint8 (height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))

"""The frames of a finished video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """A video's frames, one after the other: uint8 (height, width, 3)."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def read_frames(path: Path) -> np.ndarray:
    """All frames of a video: uint8 (T, height, width, 3)."""
    return np.stack(list(frames_of(path)))

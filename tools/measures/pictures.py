"""What the pictures of a video do over time: identity of a face, drift, borders of chunks, flicker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import laplace

from infinitetalk.media.faces import EYE_CORNERS
from infinitetalk.media.speech import VIDEO_FPS

PATCH = 64
"""Side in pixels of the patch that stands for a face."""

ANCHORS = {EYE_CORNERS[0]: (0.12, 0.42), EYE_CORNERS[1]: (0.88, 0.42), 2: (0.5, 0.9)}
"""Landmark → its place in the patch, 0 to 1 from the left upper corner: the eyes' outer corners and the base of the
nose. The patch reaches from the forehead to the upper lip, because the mouth is meant to change."""

SMALL_SIDE = 32
"""Side in pixels to which frames are made smaller for flicker: noise and small movements average out."""


def face_patch(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A face's patch in grey, turned and scaled to its place: float32 (PATCH, PATCH), mean 0, length 1.

    Args:
        frame: uint8 (height, width, 3).
        landmarks: (468, 3) in pixels.
    """
    source = np.array([landmarks[index, :2] for index in ANCHORS], dtype=np.float64)
    target = np.array(list(ANCHORS.values())) * PATCH
    # From the patch to the frame: a turn, a scale and a shift, by least squares (complex numbers turn and scale).
    given, wanted = target @ [1, 1j], source @ [1, 1j]
    turn = np.vdot(given - given.mean(), wanted - wanted.mean()) / np.vdot(given - given.mean(), given - given.mean())
    shift = wanted.mean() - turn * given.mean()
    affine = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    grey = Image.fromarray(frame).convert("L")
    patch = np.asarray(
        grey.transform((PATCH, PATCH), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR), np.float32
    )
    patch = patch - patch.mean()
    length = float(np.linalg.norm(patch))
    return patch / length if length else patch


def identity(patches: np.ndarray) -> tuple[float, float]:
    """How alike a face stays: correlation of the mean patch of each second with that of the first second.

    Args:
        patches: (T, PATCH, PATCH), NaN in frames without a face.

    Returns:
        The lowest of all seconds, and that of the last one; 1 is the same picture.

    Raises:
        ValueError: fewer than two seconds show a face.
    """
    seconds = [patches[begin : begin + VIDEO_FPS] for begin in range(0, len(patches) - VIDEO_FPS + 1, VIDEO_FPS)]
    means = [_mean_patch(second) for second in seconds]
    seen = [mean for mean in means if mean is not None]
    if len(seen) < 2:
        raise ValueError("fewer than two seconds show a face")
    found = [likeness(seen[0], mean) for mean in seen[1:]]
    return min(found), found[-1]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two patches."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _mean_patch(patches: np.ndarray) -> np.ndarray | None:
    seen = patches[np.isfinite(patches[:, 0, 0])]
    return seen.mean(axis=0) if len(seen) else None


def sharpness(luma: np.ndarray) -> float:
    """Mean absolute Laplacian of a frame's luma, (height, width)."""
    return float(np.abs(laplace(luma)).mean())


def colour_drift(colours: np.ndarray) -> float:
    """How far the mean colour moves from the first to the last second, in levels of 255; of red, green and blue the
    farthest.

    Args:
        colours: (T, 3), each frame's mean colour.
    """
    return float(np.abs(colours[-VIDEO_FPS:].mean(axis=0) - colours[:VIDEO_FPS].mean(axis=0)).max())


def sharpness_drift(found: np.ndarray) -> float:
    """Sharpness of the last second over that of the first."""
    first = float(found[:VIDEO_FPS].mean())
    return float(found[-VIDEO_FPS:].mean()) / first if first else 1.0


def border_ratio(change: np.ndarray, borders: Sequence[int]) -> float:
    """Mean change at the first frames of chunks, over the mean change elsewhere.

    Args:
        change: (T - 1,), of each frame but the first from the one before.
        borders: numbers of frames, from 1.
    """
    at_border = np.isin(np.arange(1, len(change) + 1), list(borders))
    # The first frame is the input image, with its mouth shut.
    elsewhere = ~at_border
    elsewhere[0] = False
    usual = float(change[elsewhere].mean())
    return float(change[at_border].mean()) / usual if usual else 1.0


def flicker(small: np.ndarray) -> float:
    """Brightness that goes to and fro from frame to frame: the median over places of the mean distance of a frame from
    the mean of its neighbours, in levels of 255.

    Args:
        small: luma (T, SMALL_SIDE, SMALL_SIDE).
    """
    swing = np.abs(small[1:-1] - (small[:-2] + small[2:]) / 2)
    return float(np.median(swing.mean(axis=0)))

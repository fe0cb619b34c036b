"""Joins two chunks where both have made the same frames."""

import numpy as np


def cross_fade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """From one decoding of some frames to another of the same frames.

    A chunk's first frames show what the last ones of the chunk before show, but encoded and decoded once more. Where
    the video changed from one to the other at once, what that altered would be seen as a jump.

    Args:
        before, after: uint8 (n, height, width, 3), of the same instants.

    Returns:
        uint8 (n, height, width, 3); of the first frame 1 / (n + 1) is from `after`, of the last n / (n + 1).
    """
    faded = np.empty_like(before)
    # Frame by frame: one in floating point is held at a time.
    for index, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        share = np.float32(index / (len(before) + 1))
        faded[index - 1] = (old + (new.astype(np.float32) - old) * share).round()
    return faded

"""Joins two chunks in the frames that both have generated."""

import numpy as np


def cross_fade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Fades from one decoding of some frames to another decoding of the same frames.

    A chunk's first frames repeat the last ones of the previous chunk, but encoded and decoded once more. A cut from one
    to the other would show the difference as a jump.

    Args:
        before, after: uint8 (n, height, width, 3), at the same times.

    Returns:
        uint8 (n, height, width, 3); the weight of `after` is 1 / (n + 1) in the first frame, n / (n + 1) in the last.
    """
    faded = np.empty_like(before)
    # Frame by frame, so that only one is held in floating point.
    for index, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        share = np.float32(index / (len(before) + 1))
        faded[index - 1] = (old + (new.astype(np.float32) - old) * share).round()
    return faded

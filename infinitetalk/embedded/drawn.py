"""Whether a picture looks drawn, as the pictures are that the tiny talker learned from."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

SIDE = 256
"""Longest side in pixels at which a picture is looked at."""

BACKGROUND_REACH = 8
"""Largest difference in levels to the most common colour of what counts as background."""

DRAWN_FROM = 1 / 3
"""Least share of a drawn picture's pixels outside its background that equal their neighbours.

Measured: of 120 of the talker's own drawings at 384 pixels at least 0.77, saved as JPEG of quality 60 or 80 at least
0.35; of 17 photographs, also as JPEG, at most 0.26, and of 14 of them at most 0.06.
"""


def drawn_share(pixels: np.ndarray) -> float:
    """Share of the pixels outside the background that have exactly the colour of the pixels to the right and below.

    Areas of one colour are what a drawing has and a camera never makes: noise and light change every pixel. A wall of
    one colour, which a photograph may have, is left out.

    Args:
        pixels: uint8 (height, width, 3), RGB.
    """
    picture = Image.fromarray(pixels)
    if max(picture.size) > SIDE:
        picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.BOX)
    levels = np.asarray(picture).astype(np.int16)
    colours, counts = np.unique((levels >> 3).reshape(-1, 3), axis=0, return_counts=True)
    is_common = ((levels >> 3) == colours[counts.argmax()]).all(axis=2)
    is_background = (np.abs(levels - levels[is_common].mean(axis=0)) <= BACKGROUND_REACH).all(axis=2)[:-1, :-1]
    equals_right = (np.diff(levels, axis=1) == 0).all(axis=2)[:-1]
    equals_below = (np.diff(levels, axis=0) == 0).all(axis=2)[:, :-1]
    shown = ~is_background
    return float((equals_right & equals_below)[shown].mean()) if shown.any() else 1.0


def looks_drawn(pixels: np.ndarray) -> bool:
    """Whether a picture, uint8 (height, width, 3), looks drawn; small drawings saved as JPEG may not."""
    return drawn_share(pixels) >= DRAWN_FROM

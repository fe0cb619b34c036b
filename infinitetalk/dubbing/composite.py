"""Lays a generated frame over a frame of the film, with a soft edge that lies within the speaker's region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from infinitetalk.dubbing.motion import Motion
from infinitetalk.media.faces import Face

FEATHER_SHARE = 0.125
"""Width of the soft edge, in shorter sides of the region's box, where a job does not say."""

FACE_MARGINS = (0.04, 0.1, 0.04, 0.16)
"""What belongs to a talking face beyond the box from its brows to its chin: to the left, above, to the right and below,
in sides of the box."""

FACE_ROUNDNESS = 3.0
"""Exponent of the superellipse in that box: 2 is an ellipse, more is rounder in the corners."""

EDGE_LEVELS = (0.02, 0.9)
"""Between these weights of the generated frame lies the edge in which its colours are compared with the film's."""

FEWEST_COMPARED = 50
"""Pixels of the edge below which colours are left as they are."""


@dataclass(frozen=True)
class Placement:
    """Puts a small picture into a large one: its point (`origin_x`, `origin_y`) lies at (`x`, `y`), and each of its
    pixels is `scale` pixels there."""

    x: float
    y: float
    scale: float
    origin_x: float
    origin_y: float

    def inverse(self) -> Placement:
        """Puts the large one into the small one."""
        return Placement(self.origin_x, self.origin_y, 1 / self.scale, self.x, self.y)

    def within(self, left: int, top: int) -> Placement:
        """Puts the small picture into the part of the large one that begins at a pixel."""
        return replace(self, x=self.x - left, y=self.y - top)


@dataclass(frozen=True)
class Region:
    """What is generated of one speaker.

    Attributes:
        weights: float32 (h, w), 0 to 1, of the generated picture, in the film's first frame; 0 at its edges.
        left, top: its place in the first frame.
        motion: how it moves.
    """

    weights: np.ndarray
    left: int
    top: int
    motion: Motion

    def placement(self, frame: int) -> Placement:
        """Where `weights` lie in a frame of the film."""
        motion = self.motion
        (x, y), (first_x, first_y) = motion.centres[frame], motion.centres[0]
        return Placement(float(x), float(y), float(motion.scales[frame]), first_x - self.left, first_y - self.top)


def soft_region(mask: np.ndarray, feather: float | None, motion: Motion) -> Region:
    """A region whose weight grows from 0 at its edge to 1 within.

    Args:
        mask: bool (height, width) of the film's first frame, not empty.
        feather: width of the soft edge in pixels; None: `FEATHER_SHARE` of the region.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    inner = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    width = FEATHER_SHARE * min(inner.shape) if feather is None else feather
    # A frame of nothing around it, so that the picture's own edge is an edge, too.
    depth = distance_transform_edt(np.pad(inner, 2))
    share = np.clip((depth - 0.5) / max(width, 1), 0, 1)
    weights = share * share * (3 - 2 * share)
    return Region(weights.astype(np.float32), left - 2, top - 2, motion)


def face_mask(face: Face, height: int, width: int) -> np.ndarray:
    """The pixels of a talking face, bool (height, width): a rounded box around it, with room for the jaw."""
    x_min, y_min, x_max, y_max = face.box
    left, above, right, below = (margin * face.side for margin in FACE_MARGINS)
    x_min, y_min, x_max, y_max = x_min - left, y_min - above, x_max + right, y_max + below
    y, x = np.ogrid[:height, :width]
    across = np.abs((x + 0.5 - (x_min + x_max) / 2) / ((x_max - x_min) / 2))
    down = np.abs((y + 0.5 - (y_min + y_max) / 2) / ((y_max - y_min) / 2))
    return across**FACE_ROUNDNESS + down**FACE_ROUNDNESS <= 1


def lay_over(film: np.ndarray, generated: np.ndarray, placed: Placement, regions: Sequence[Region], frame: int) -> None:
    """Lays a generated frame over a frame of the film, in place; nothing outside the regions changes.

    Args:
        film: uint8 (height, width, 3).
        generated: uint8 (h, w, 3).
        placed: where the generated frame lies in the film's.
        frame: number of the film's frame.
    """
    for region in regions:
        presence = float(region.motion.presence[frame])
        bounds = _bounds(region, frame, film.shape[:2])
        if presence == 0 or bounds is None:
            continue
        left, top, right, bottom = bounds
        height, width = bottom - top, right - left
        weights = drawn_from(region.weights, region.placement(frame).within(left, top), height, width, beyond=0)
        inside = placed.within(left, top)
        # What lies beyond the generated frame stays the film's.
        seen = drawn_from(np.ones(generated.shape[:2], np.float32), inside, height, width, beyond=0)
        weights = np.minimum(weights, seen)
        patch = film[top:bottom, left:right].astype(np.float32)
        picture = drawn_from(generated, inside, height, width).astype(np.float32)
        picture += colour_shift(patch, picture, weights)
        blended = patch + presence * weights[..., None] * (picture - patch)
        film[top:bottom, left:right] = (blended + 0.5).clip(0, 255).astype(np.uint8)


def colour_shift(film: np.ndarray, generated: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What the generated picture lacks to the film's colours in the soft edge: float32 (3,), levels.

    Args:
        film, generated: float32 (height, width, 3).
        weights: float32 (height, width), of the generated picture.
    """
    edge = (weights > EDGE_LEVELS[0]) & (weights < EDGE_LEVELS[1])
    if edge.sum() < FEWEST_COMPARED:
        return np.zeros(3, np.float32)
    return (film[edge] - generated[edge]).mean(axis=0)


def drawn_from(
    picture: np.ndarray, placed: Placement, height: int, width: int, beyond: float | None = None
) -> np.ndarray:
    """A picture as it is placed in an empty one of `height` × `width` pixels; made smaller, it is averaged first.

    Memory does not grow with how much smaller it is made: what lies beyond it is added after averaging.

    Args:
        picture: uint8 (h, w, 3), or float32 (h, w) of weights, which are not averaged.
        beyond: the value beyond weights; None: the edges of a picture go on.
    """
    step = 1 / placed.scale
    x, y = placed.origin_x - placed.x * step, placed.origin_y - placed.y * step
    # One pixel more than is seen on each side, for the filter.
    left, top = int(np.floor(x)) - 2, int(np.floor(y)) - 2
    right, bottom = int(np.ceil(x + width * step)) + 2, int(np.ceil(y + height * step)) + 2
    rows = np.arange(top, bottom).clip(0, picture.shape[0] - 1)
    columns = np.arange(left, right).clip(0, picture.shape[1] - 1)
    part = np.ascontiguousarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    factor = max(1, int(step)) if beyond is None else 1
    lacking = np.array([[rows[0] - top, bottom - 1 - rows[-1]], [columns[0] - left, right - 1 - columns[-1]]])
    # Of a picture that lies wholly on one side, none is lacking on the other.
    lacking = lacking.clip(min=0)
    # A value is all that lies beyond two pixels, which is as far as the filter reaches.
    around = -(-lacking // factor) if beyond is None else lacking.clip(max=2)
    (above, _), (before, _) = around
    if beyond is None:
        part = _averaged(part, factor, around)
    elif around.any():
        part = np.pad(part, around, constant_values=beyond)
    x, y = (x - columns[0]) / factor + before, (y - rows[0]) / factor + above
    affine = (step / factor, 0, x, 0, step / factor, y)
    kernel = Image.Resampling.BICUBIC if beyond is None else Image.Resampling.BILINEAR
    image = Image.fromarray(part)
    return np.asarray(image.transform((width, height), Image.Transform.AFFINE, affine, kernel, fillcolor=beyond))


def _averaged(part: np.ndarray, factor: int, around: np.ndarray) -> np.ndarray:
    """A picture, uint8 (height, width, 3), of which each `factor` × `factor` pixels become one, and around it its edge.

    Args:
        around: pixels of the result above and below, and to the left and right.
    """

    def reduced(piece: np.ndarray, across: int, down: int) -> np.ndarray:
        return np.asarray(Image.fromarray(np.ascontiguousarray(piece)).reduce((across, down)))

    if not around.any():
        return reduced(part, factor, factor)
    # What goes on is the outermost pixels, not their mean with those within.
    ringed = np.concatenate(
        [
            np.concatenate(
                [reduced(band[:, :1], 1, down), reduced(band, factor, down), reduced(band[:, -1:], 1, down)], axis=1
            )
            for band, down in ((part[:1], 1), (part, factor), (part[-1:], 1))
        ]
    )
    (above, below), (before, after) = around
    rows = np.arange(1 - above, ringed.shape[0] - 1 + below).clip(0, ringed.shape[0] - 1)
    columns = np.arange(1 - before, ringed.shape[1] - 1 + after).clip(0, ringed.shape[1] - 1)
    return ringed[rows[:, None], columns]


def _bounds(region: Region, frame: int, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of a region in a frame of this height and width; None: it is beyond."""
    at, (high, wide) = region.placement(frame), region.weights.shape
    left, top = at.x - at.origin_x * at.scale, at.y - at.origin_y * at.scale
    bounds = (
        max(int(np.floor(left)), 0),
        max(int(np.floor(top)), 0),
        min(int(np.ceil(left + wide * at.scale)), shape[1]),
        min(int(np.ceil(top + high * at.scale)), shape[0]),
    )
    return bounds if bounds[0] < bounds[2] and bounds[1] < bounds[3] else None

"""The part of a film that is generated: a rectangle around the speakers that moves with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infinitetalk.dubbing.clock import frame_at
from infinitetalk.dubbing.composite import Placement, drawn_from
from infinitetalk.dubbing.motion import Motion, mean_scales

if TYPE_CHECKING:
    from infinitetalk.media.decode import Source


@dataclass(frozen=True)
class Window:
    """A rectangle of the film's first frame, in pixels; it may reach beyond the frame."""

    x: float
    y: float
    height: float
    width: float


def window_around(
    boxes: Sequence[Sequence[int]], margin: float | None, shape: tuple[int, int], bucket: tuple[int, int]
) -> Window:
    """The rectangle that is generated: of the bucket's shape, around all boxes with a margin, within the film.

    Args:
        boxes: x_min, y_min, x_max, y_max of each speaker's region.
        margin: on each side, in sides of the boxes' common box; None: the largest rectangle in the middle of the film.
        shape: height and width of the film.
        bucket: height and width of the generated video.

    Returns:
        `x` and `y` are its centre.
    """
    height, width = shape
    ratio = bucket[1] / bucket[0]
    if margin is None:
        tall = min(height, width / ratio)
        return Window(width / 2, height / 2, tall, tall * ratio)
    corners = np.array(boxes, float)
    (x_min, y_min), (x_max, y_max) = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    tall = max((y_max - y_min), (x_max - x_min) / ratio) * (1 + 2 * margin)
    # A window larger than the film would show black beside it.
    tall = min(tall, height, width / ratio)
    wide = tall * ratio
    x = float(np.clip((x_min + x_max) / 2, wide / 2, width - wide / 2))
    y = float(np.clip((y_min + y_max) / 2, tall / 2, height - tall / 2))
    return Window(x, y, tall, wide)


@dataclass(frozen=True)
class View:
    """What is generated of a film.

    Attributes:
        window: in the first frame.
        height, width: of the generated video.
        motions: the speakers' movements; the window follows their mean.
    """

    window: Window
    height: int
    width: int
    motions: Sequence[Motion]

    @cached_property
    def scales(self) -> np.ndarray:
        """Pixels of the film to a pixel of the generated video, float64 (frames,)."""
        return mean_scales(self.motions) * self.window.height / self.height

    @cached_property
    def centres(self) -> np.ndarray:
        """The window's centre in each frame of the film, float64 (frames, 2)."""
        start = np.array([self.window.x, self.window.y])
        grown = mean_scales(self.motions)[:, None]
        return np.mean(
            [motion.centres + grown * (start - motion.centres[0]) for motion in self.motions], axis=0, dtype=float
        )

    def placement(self, frame: int) -> Placement:
        """Where the generated video lies in a frame of the film."""
        x, y = self.centres[frame]
        return Placement(float(x), float(y), float(self.scales[frame]), self.width / 2, self.height / 2)

    def cut(self, picture: np.ndarray, frame: int) -> np.ndarray:
        """The window of a frame of the film, uint8 (height, width, 3); beyond the film, its edge goes on."""
        return drawn_from(picture, self.placement(frame).inverse(), self.height, self.width).copy()

    def cut_regions(self, regions: Tensor) -> Tensor:
        """Regions of the film's first frame, bool (speakers, film's height, width), in the generated video's pixels."""
        cut = [
            self.cut(np.repeat(region.numpy().astype(np.uint8)[..., None] * 255, 3, axis=2), 0) for region in regions
        ]
        return torch.stack([torch.from_numpy(region[..., 0] > 127) for region in cut])


@dataclass(frozen=True)
class ViewedFilm:
    """The window of a film, as a `Source`.

    Attributes:
        frames: the film's frames, or a picture.
        view: the window.
        times: seconds at which the film's frames begin.
        start_s: the film's time at which `frames` begin.
    """

    frames: Source
    view: View
    times: Sequence[float]
    start_s: float

    @property
    def height(self) -> int:
        return self.view.height

    @property
    def width(self) -> int:
        return self.view.width

    def frame_at(self, seconds: float) -> Tensor:
        """The window at `seconds`: uint8 (3, height, width)."""
        picture = self.frames.frame_at(seconds).permute(1, 2, 0).numpy()
        cut = self.view.cut(picture, frame_at(self.times, self.start_s + seconds))
        return torch.from_numpy(cut).permute(2, 0, 1).contiguous()

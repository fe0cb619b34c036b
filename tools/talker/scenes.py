"""Random scenes of people: the portrait, and the video of the people speaking."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tools.talker.faces import (
    Colour,
    Face,
    Place,
    Pose,
    draw,
    eye_boxes,
    mouth_boxes,
    poses,
    random_background,
    random_face,
)
from tools.talker.rule import MouthTrack

#: Height, width and people, with the share of each: sizes that the worker chooses for such images, 480 and 720.
SHAPES: tuple[tuple[int, int, int], ...] = ((128, 128, 1), (96, 192, 2), (160, 96, 1), (192, 192, 1), (128, 288, 2))
SHAPE_SHARES = (0.5, 0.32, 0.06, 0.07, 0.05)
#: Share of people who fill the image as in the drawn portraits; the others are slightly smaller, larger or off-centre.
USUAL_PLACE_SHARE = 0.5
LARGEST_SHIFT = 0.06
SIZES = (0.82, 1.08)


@dataclass(frozen=True)
class Scene:
    """People side by side in front of a wall.

    Attributes:
        height, width: in pixels.
        faces, places: one for each person.
        background: the wall's colour.
    """

    height: int
    width: int
    faces: Sequence[Face]
    places: Sequence[Place]
    background: Colour

    def draw(self, told: Sequence[Pose]) -> np.ndarray:
        """The people, each in a given pose: uint8 (height, width, 3)."""
        people = list(zip(self.faces, told, self.places, strict=True))
        return draw(people, self.background, self.height, self.width)

    def portrait(self) -> np.ndarray:
        """The people with their mouths shut: uint8 (height, width, 3)."""
        return self.draw([Pose()] * len(self.faces))

    def clip(self, tracks: Sequence[MouthTrack], start: int, num_frames: int) -> np.ndarray:
        """The people speaking, from frame `start` of their tracks: uint8 (num_frames, height, width, 3)."""
        told = [poses(face, track) for face, track in zip(self.faces, tracks, strict=True)]
        return np.stack([self.draw([pose[i] for pose in told]) for i in range(start, start + num_frames)])

    def feature_weights(self, weight: float) -> Tensor:
        """The weight of each pixel, `weight` at mouths and eyes: float32 (height, width)."""
        weights = self.mouth_weights(weight)
        for left, top, right, bottom in eye_boxes(self.places, self.height, self.width):
            weights[max(top, 0) : bottom, max(left, 0) : right] = weight
        return weights

    def mouth_weights(self, weight: float) -> Tensor:
        """The weight of each pixel, `weight` at mouths: float32 (height, width)."""
        weights = torch.ones(self.height, self.width)
        for left, top, right, bottom in mouth_boxes(self.places, self.height, self.width):
            half = (right - left) // 2
            weights[top:bottom, max(left - half, 0) : right + half] = weight
        return weights


def scaled(scene: Scene, numerator: int, denominator: int) -> Scene:
    """The same scene, `numerator` / `denominator` times as large."""
    height, width = (side * numerator // denominator for side in (scene.height, scene.width))
    return replace(scene, height=height, width=width)


def random_shape(generator: np.random.Generator) -> tuple[int, int, int]:
    """One of `SHAPES`."""
    return SHAPES[generator.choice(len(SHAPES), p=SHAPE_SHARES)]


def random_scene(generator: np.random.Generator, shape: tuple[int, int, int]) -> Scene:
    """A random scene with this height, width and number of people."""
    height, width, people = shape
    faces = [random_face(generator) for _ in range(people)]
    places = [_random_place(generator) for _ in range(people)]
    return Scene(height, width, faces, places, random_background(generator))


def _random_place(generator: np.random.Generator) -> Place:
    if generator.random() < USUAL_PLACE_SHARE:
        return Place()
    x, y = generator.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, size=2)
    return Place(float(x), float(y), float(generator.uniform(*SIZES)))


def to_video(frames: np.ndarray) -> Tensor:
    """uint8 (T, height, width, 3) to float (1, 3, T, height, width) in [-1, 1]."""
    return (torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1.0)[None]

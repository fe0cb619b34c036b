"""Draws talking heads: a face from a seed, with its mouth, eyes and a slow sway in every frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tools.talker.rule import MouthTrack

#: Images are drawn this many times larger, then averaged down, for smooth edges.
OVERSAMPLING = 4
INTERIOR = (42, 6, 14)

# Positions and sizes in units of the side of a person's square.
MOUTH_CENTRE = (0.5, 0.69)
MOUTH_HALF_WIDTH = (0.13, 0.21)
MOUTH_HALF_HEIGHT = (0.008, 0.125)
LIP = 0.026
#: A box around both eyes, their brows and glasses, whatever the sway.
EYES = (0.21, 0.28, 0.79, 0.50)

Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = ((244, 210, 184), (228, 182, 148), (206, 152, 116), (176, 124, 92), (150, 104, 78))
HAIRS: tuple[Colour, ...] = ((54, 38, 30), (96, 62, 38), (198, 158, 92), (150, 74, 40), (120, 120, 124), (32, 32, 40))
BACKGROUNDS: tuple[Colour, ...] = ((110, 160, 190), (150, 180, 140), (190, 160, 180), (200, 185, 140), (140, 140, 170))
SHIRTS: tuple[Colour, ...] = ((60, 90, 150), (160, 60, 60), (70, 130, 90), (120, 80, 140), (210, 130, 50), (80, 80, 90))
LIPS: tuple[Colour, ...] = ((196, 82, 84), (182, 70, 88), (206, 104, 94))


@dataclass(frozen=True)
class Face:
    """The look and movement of one person.

    Attributes:
        skin, hair, shirt, lips: colours.
        long_hair, glasses: whether the person has them.
        size: size of the head, about 1.
        sway: amplitude in units of the person's side; sway_period in frames; sway_phase in radians.
        blinks: first frames of the blinks, which repeat every `blink_period` frames.
    """

    skin: Colour
    hair: Colour
    shirt: Colour
    lips: Colour
    long_hair: bool
    glasses: bool
    size: float
    sway: float
    sway_period: float
    sway_phase: float
    blink_start: int
    blink_period: int


@dataclass(frozen=True)
class Pose:
    """One frame of one person: the mouth's opening and width in 0…1, the sway in units of the side, the eyes."""

    opening: float = 0.0
    width: float = 0.5
    shift: float = 0.0
    eyes_closed: bool = False


@dataclass(frozen=True)
class Place:
    """A person's place in their square, the middle of their column of the image.

    Attributes:
        x, y: offset from the middle of the square, in units of its side.
        size: size of the person; 1 fills the square.
    """

    x: float = 0.0
    y: float = 0.0
    size: float = 1.0

    def square(self, index: int, num_people: int, height: int, width: int) -> tuple[float, float, float]:
        """Left, top and side, in pixels, of the square that person number `index` of `num_people` fills."""
        column = width / num_people
        largest = min(column, height)
        side = self.size * largest
        centre_x = column * (index + 0.5) + self.x * largest
        centre_y = height / 2 + self.y * largest
        return centre_x - side / 2, centre_y - side / 2, side


def random_face(generator: np.random.Generator) -> Face:
    """A random person."""

    def pick(colours: tuple[Colour, ...]) -> Colour:
        colour = np.array(colours[generator.integers(len(colours))]) + generator.integers(-10, 11, size=3)
        return tuple(int(value) for value in colour.clip(0, 255))  # type: ignore[return-value]

    return Face(
        skin=pick(SKINS),
        hair=pick(HAIRS),
        shirt=pick(SHIRTS),
        lips=pick(LIPS),
        long_hair=bool(generator.random() < 0.5),
        glasses=bool(generator.random() < 0.2),
        size=float(generator.uniform(0.94, 1.04)),
        sway=float(generator.uniform(0.0, 0.012)),
        sway_period=float(generator.uniform(80, 160)),
        sway_phase=float(generator.uniform(0, 2 * math.pi)),
        blink_start=int(generator.integers(10, 90)),
        blink_period=int(generator.integers(70, 130)),
    )


def random_background(generator: np.random.Generator) -> Colour:
    """A random colour of the wall."""
    colour = np.array(BACKGROUNDS[generator.integers(len(BACKGROUNDS))]) + generator.integers(-15, 16, size=3)
    return tuple(int(value) for value in colour.clip(0, 255))  # type: ignore[return-value]


def poses(face: Face, mouth: MouthTrack) -> list[Pose]:
    """A person's pose in each frame, with this movement of the mouth."""
    return [
        Pose(
            opening=float(opening),
            width=float(width),
            shift=face.sway
            * (math.sin(2 * math.pi * index / face.sway_period + face.sway_phase) - math.sin(face.sway_phase)),
            eyes_closed=index >= face.blink_start and (index - face.blink_start) % face.blink_period < 4,
        )
        for index, (opening, width) in enumerate(zip(mouth.opening, mouth.width, strict=True))
    ]


def draw(people: Sequence[tuple[Face, Pose, Place]], background: Colour, height: int, width: int) -> np.ndarray:
    """People side by side: uint8 (height, width, 3)."""
    large = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), background)
    canvas = ImageDraw.Draw(large)
    darker = tuple(int(0.86 * value) for value in background)
    canvas.rectangle((0, large.height * 0.8, large.width, large.height), fill=darker)
    for index, (face, pose, place) in enumerate(people):
        _draw_person(canvas, face, pose, *place.square(index, len(people), large.height, large.width))
    return np.array(large.reduce(OVERSAMPLING))


def mouth_boxes(places: Sequence[Place], height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom), in pixels, of a box in the middle of each person's mouth. The box is as wide as the
    narrowest mouth, and as tall as the widest open one with its lips and the sway."""
    boxes = []
    for index, place in enumerate(places):
        left, top, side = place.square(index, len(places), height, width)
        centre_x, centre_y = left + MOUTH_CENTRE[0] * side, top + MOUTH_CENTRE[1] * side
        half_width, half_height = 0.10 * side, 0.155 * side
        boxes.append(
            (
                round(centre_x - half_width),
                round(centre_y - half_height),
                round(centre_x + half_width),
                round(centre_y + half_height),
            )
        )
    return boxes


def eye_boxes(places: Sequence[Place], height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom), in pixels, of a box around each person's eyes."""
    boxes = []
    for index, place in enumerate(places):
        left, top, side = place.square(index, len(places), height, width)
        begin_x, begin_y, end_x, end_y = EYES
        boxes.append(
            (
                round(left + begin_x * side),
                round(top + begin_y * side),
                round(left + end_x * side),
                round(top + end_y * side),
            )
        )
    return boxes


def _draw_person(canvas: ImageDraw.ImageDraw, face: Face, pose: Pose, left: float, top: float, side: float) -> None:
    def ellipse(x: float, y: float, half_width: float, half_height: float, fill: Colour) -> None:
        x, y = left + x * side, top + y * side
        half_width, half_height = half_width * side, half_height * side
        canvas.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=fill)

    x = 0.5 + pose.shift
    shade: Colour = (int(face.skin[0] * 0.85), int(face.skin[1] * 0.82), int(face.skin[2] * 0.8))
    ellipse(0.5, 1.13, 0.46, 0.22, face.shirt)
    if face.long_hair:
        ellipse(x, 0.55, 0.43 * face.size, 0.5, face.hair)
    canvas.rectangle(
        (left + 0.41 * side, top + 0.82 * side, left + 0.59 * side, top + 0.97 * side),
        fill=shade,
    )
    ellipse(x, 0.36, 0.39 * face.size, 0.34 * face.size, face.hair)
    ellipse(x, 0.52, 0.36 * face.size, 0.42 * face.size, face.skin)
    ellipse(x, 0.12, 0.27 * face.size, 0.10, face.hair)
    for side_of_face in (-1, 1):
        eye = x + 0.155 * side_of_face
        if pose.eyes_closed:
            ellipse(eye, 0.40, 0.075, 0.014, shade)
        else:
            ellipse(eye, 0.40, 0.078, 0.052, (246, 246, 244))
            ellipse(eye, 0.40, 0.036, 0.042, (44, 60, 84))
        ellipse(eye, 0.315, 0.085, 0.018, face.hair)
        if face.glasses:
            box = (eye - 0.115, 0.40 - 0.085, eye + 0.115, 0.40 + 0.085)
            placed = tuple(offset + value * side for offset, value in zip((left, top, left, top), box, strict=True))
            canvas.ellipse(placed, outline=(60, 60, 70), width=max(1, round(0.018 * side)))
    ellipse(x, 0.505, 0.034, 0.028, shade)
    half_width = MOUTH_HALF_WIDTH[0] + (MOUTH_HALF_WIDTH[1] - MOUTH_HALF_WIDTH[0]) * pose.width
    half_height = MOUTH_HALF_HEIGHT[0] + (MOUTH_HALF_HEIGHT[1] - MOUTH_HALF_HEIGHT[0]) * pose.opening
    ellipse(x, MOUTH_CENTRE[1], half_width + LIP, half_height + LIP, face.lips)
    ellipse(x, MOUTH_CENTRE[1], half_width, half_height, INTERIOR)

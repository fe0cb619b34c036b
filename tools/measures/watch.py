"""Reads a finished video once, frame by frame, and keeps what the measures need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from infinitetalk.media.faces import NUM_LANDMARKS, Face, FaceDetector
from tools.measures.pictures import PATCH, SMALL_SIDE, face_patch, sharpness

LUMA = np.array([0.299, 0.587, 0.114])

SEARCH_EVERY = 25
"""Frames after which a face that was lost is looked for in the whole picture again."""


@dataclass(frozen=True)
class Watched:
    """What was seen in a video.

    Attributes:
        landmarks: of each face, from left to right: float32 (T, 468, 3), NaN in frames without it.
        patches: of each face: float32 (T, PATCH, PATCH), NaN likewise.
        colours: mean colour of each frame: (T, 3), 0 to 255.
        sharpness: of each frame: (T,).
        change: mean absolute change of luma from the frame before: (T - 1,), levels of 255.
        small: luma of each frame, made smaller: float32 (T, SMALL_SIDE, SMALL_SIDE).
        shown: three frames, the first, the middle and the last one: uint8 (height, width, 3).
    """

    landmarks: list[np.ndarray]
    patches: list[np.ndarray]
    colours: np.ndarray
    sharpness: np.ndarray
    change: np.ndarray
    small: np.ndarray
    shown: list[np.ndarray]

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.colours)


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """A video's frames, uint8 (height, width, 3)."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


class FaceFollower:
    """Follows so many faces from frame to frame, those that are largest when they are found.

    Args:
        num_faces: number of faces to follow.

    Raises:
        FacesSetupError: the networks that find faces are not installed.
    """

    def __init__(self, num_faces: int) -> None:
        self._detector = FaceDetector()
        self._num_faces = num_faces
        self._faces: list[Face | None] = []
        self._waits = 0

    def landmarks(self, frame: np.ndarray) -> list[np.ndarray | None]:
        """The faces' landmarks in the next frame, float32 (468, 3), from left to right; None for a lost face."""
        detector = self._detector
        self._faces = [None if face is None else detector.find_near(frame, face) for face in self._faces]
        if not self._faces or (None in self._faces and self._waits == 0):
            self._find(frame)
            self._waits = SEARCH_EVERY
        self._waits = max(self._waits - 1, 0)
        meshes = [None if face is None else detector.landmarks(frame, face) for face in self._faces]
        return [None if mesh is None else mesh.points for mesh in meshes]

    def _find(self, frame: np.ndarray) -> None:
        found = sorted(self._detector.find(frame), key=lambda face: -face.side)[: self._num_faces]
        if len(found) < self._num_faces and self._faces:
            return
        known: list[Face | None] = sorted(found, key=lambda face: face.centre[0])
        self._faces = known + [None] * (self._num_faces - len(known))


def watch(path: Path, num_faces: int) -> Watched:
    """Looks at a video and at so many of its faces; with 0, at none.

    Raises:
        FacesSetupError: the networks that find faces are not installed.
        ValueError: the video has fewer than three frames.
    """
    follower = FaceFollower(num_faces) if num_faces else None
    meshes: list[list[np.ndarray]] = [[] for _ in range(num_faces)]
    patches: list[list[np.ndarray]] = [[] for _ in range(num_faces)]
    colours, sharp, change, small = [], [], [], []
    before: np.ndarray | None = None
    first = frame = None
    for frame in frames_of(path):
        first = frame if first is None else first
        luma = frame.astype(np.float32) @ LUMA.astype(np.float32)
        colours.append(frame.reshape(-1, 3).mean(axis=0))
        sharp.append(sharpness(luma))
        small.append(np.asarray(Image.fromarray(luma).resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX)))
        if before is not None:
            change.append(float(np.abs(luma - before).mean()))
        before = luma
        for face, mesh in enumerate([] if follower is None else follower.landmarks(frame)):
            meshes[face].append(np.full((NUM_LANDMARKS, 3), np.nan, np.float32) if mesh is None else mesh)
            patches[face].append(
                np.full((PATCH, PATCH), np.nan, np.float32) if mesh is None else face_patch(frame, mesh)
            )
    if first is None or frame is None or len(colours) < 3:
        raise ValueError(f"{path} has {len(colours)} frames: nothing can be measured over time")
    return Watched(
        landmarks=[np.stack(found) for found in meshes],
        patches=[np.stack(found) for found in patches],
        colours=np.array(colours),
        sharpness=np.array(sharp),
        change=np.array(change),
        small=np.stack(small),
        shown=[first, _frame_at(path, len(colours) // 2), frame],
    )


def _frame_at(path: Path, number: int) -> np.ndarray:
    return next(frame for index, frame in enumerate(frames_of(path)) if index == number)

"""Reads a finished video once, frame by frame, and keeps what the measures need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from infinitetalk.media.face_tracks import FaceTracker
from infinitetalk.media.faces import NUM_LANDMARKS, FaceDetector
from tools.frames import frames_of
from tools.measures.pictures import PATCH, SMALL_SIDE, face_patch, sharpness

LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Watched:
    """What was seen in a video.

    Attributes:
        landmarks: of each face that was asked for and found, from left to right: float32 (T, 468, 3), NaN in frames
            without it.
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


class Watcher:
    """Follows all faces of a video, and keeps their landmarks and patches.

    Raises:
        FacesSetupError: the networks that find faces are not installed.
    """

    def __init__(self) -> None:
        self._detector = FaceDetector()
        self._tracker = FaceTracker(self._detector)
        #: Track → frame → landmarks, float32 (468, 3), and patch.
        self._seen: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, frame: np.ndarray) -> None:
        """Looks at the next frame, uint8 (height, width, 3)."""
        number = self._tracker.num_frames
        self._tracker.add(frame)
        for track in self._tracker.tracks:
            face = track.faces.get(number)
            mesh = None if face is None else self._detector.landmarks(frame, face)
            if mesh is not None:
                seen = self._seen.setdefault(track.number, {})
                seen[number] = mesh.points, face_patch(frame, mesh.points)

    def largest(self, num_faces: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Landmarks (T, 468, 3) and patches (T, PATCH, PATCH) of the faces that were seen longest and largest, from
        left to right, NaN in frames without the face; fewer if there are fewer."""
        length = self._tracker.num_frames

        def weight(track: int) -> float:
            return sum(float(np.ptp(points[:, 0])) for points, _ in self._seen[track].values())

        def place(track: int) -> float:
            return float(np.mean([points[:, 0].mean() for points, _ in self._seen[track].values()]))

        chosen = sorted(sorted(self._seen, key=weight, reverse=True)[:num_faces], key=place)
        found = []
        for track in chosen:
            landmarks = np.full((length, NUM_LANDMARKS, 3), np.nan, np.float32)
            patches = np.full((length, PATCH, PATCH), np.nan, np.float32)
            for number, (points, patch) in self._seen[track].items():
                landmarks[number], patches[number] = points, patch
            found.append((landmarks, patches))
        return found


def watch(path: Path, num_faces: int) -> Watched:
    """Looks at a video and at so many of its faces; with 0, at none.

    Raises:
        FacesSetupError: the networks that find faces are not installed.
        ValueError: the video has fewer than three frames.
    """
    watcher = Watcher() if num_faces else None
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
        if watcher is not None:
            watcher.add(frame)
    if first is None or frame is None or len(colours) < 3:
        raise ValueError(f"{path} has {len(colours)} frames: nothing can be measured over time")
    faces = [] if watcher is None else watcher.largest(num_faces)
    return Watched(
        landmarks=[landmarks for landmarks, _ in faces],
        patches=[patches for _, patches in faces],
        colours=np.array(colours),
        sharpness=np.array(sharp),
        change=np.array(change),
        small=np.stack(small),
        shown=[first, _frame_at(path, len(colours) // 2), frame],
    )


def _frame_at(path: Path, number: int) -> np.ndarray:
    return next(frame for index, frame in enumerate(frames_of(path)) if index == number)

"""Faces over time: which face of a frame is the one of the frame before; lost and found again; smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from infinitetalk.media.faces import Face, FaceDetector, overlap

SEARCH_EVERY = 25
"""Frames from one search of the whole frame to the next; between them, known faces are looked for near their places."""

SEARCH_EVERY_WHILE_LOST = 5
"""The same while a face is lost."""

PATIENCE = 50
"""Frames after which a lost face is a new one when it comes back."""

LEAST_OVERLAP = 0.15
"""Share of the union of the boxes of a face in one frame and in the next."""

FOUND_AGAIN = 1.5
"""A lost face is found again within this distance of its place, in sides of its box."""

LARGEST_CHANGE = 1.8
"""A lost face is found again at no more than this many times its size, and no less than its inverse."""

SMOOTHING_S = 0.12
"""Standard deviation of the smoothing of a face's place over time."""

FADE_S = 0.2
"""Seconds in which a face that appears or is lost fades in or out."""


@dataclass
class FaceTrack:
    """One face through a film.

    Attributes:
        number: of the track, in the order of appearance.
        faces: frame number → the face, where it was seen.
    """

    number: int
    faces: dict[int, Face] = field(default_factory=dict)

    @property
    def last(self) -> tuple[int, Face]:
        """The frame in which it was seen last, and how."""
        return next(reversed(self.faces.items()))

    def boxes(self, num_frames: int, fps: float) -> np.ndarray:
        """Its box in every frame, float64 (num_frames, 4): smoothed over time without delay, between frames where it
        was seen on a straight line, before the first and after the last where it was then."""
        seen = np.array(list(self.faces))
        boxes = np.array([face.box for face in self.faces.values()])
        frames = np.arange(num_frames)
        filled = np.stack([np.interp(frames, seen, column) for column in boxes.T], axis=1)
        return smoothed(filled, SMOOTHING_S * fps)

    def presence(self, num_frames: int, fps: float) -> np.ndarray:
        """How much of it there is in every frame, float64 (num_frames,), 0 to 1: gaps of up to `PATIENCE` frames count
        as seen if it was not lost for longer than a fade, and it fades at the ends of longer ones."""
        seen = np.zeros(num_frames)
        numbers = [number for number in self.faces if number < num_frames]
        seen[numbers] = 1
        longest = round(2 * FADE_S * fps)
        for before, after in pairwise(numbers):
            if after - before <= longest:
                seen[before:after] = 1
        if numbers and numbers[0] <= longest:
            seen[: numbers[0]] = 1
        if numbers and num_frames - numbers[-1] <= longest:
            seen[numbers[-1] :] = 1
        return np.clip(uniform_filter1d(seen, max(round(FADE_S * fps), 1), mode="nearest"), 0, 1)


def smoothed(values: np.ndarray, deviation: float) -> np.ndarray:
    """Values over time, float64 (frames,) or (frames, n), smoothed without delay; a steady movement stays as it is.

    Args:
        deviation: standard deviation of the filter, in frames.
    """
    reach = int(np.ceil(3 * deviation))
    beyond = [(reach, reach)] + [(0, 0)] * (values.ndim - 1)
    padded = (
        np.pad(values, beyond, "reflect", reflect_type="odd") if len(values) > 1 else np.pad(values, beyond, "edge")
    )
    return gaussian_filter1d(padded, deviation, axis=0)[reach : reach + len(values)]


class FaceTracker:
    """Follows the faces of a film, frame by frame.

    Args:
        detector: finds them.
        search_every: frames from one search of the whole frame to the next; None: only the faces of the first frame are
            followed.

    Attributes:
        tracks: all faces so far, in the order of their appearance, from left to right within a frame.
        num_frames: frames so far.
    """

    def __init__(self, detector: FaceDetector, search_every: int | None = SEARCH_EVERY) -> None:
        self._search_every = search_every
        self.tracks: list[FaceTrack] = []
        self.num_frames = 0
        self._detector = detector

    def add(self, picture: np.ndarray) -> None:
        """Looks at the next frame, uint8 (height, width, 3)."""
        number = self.num_frames
        self.num_frames += 1
        known = [track for track in self.tracks if number - track.last[0] <= PATIENCE]
        is_lost = any(track.last[0] < number - 1 for track in known)
        every = SEARCH_EVERY_WHILE_LOST if is_lost else self._search_every
        if number == 0 or (every is not None and number % every == 0):
            self._match(number, known, self._detector.find(picture))
            return
        for track in known:
            seen, face = track.last
            if seen != number - 1:
                continue
            found = self._detector.find_near(picture, face)
            if found is not None and overlap(face.box, found.box) > LEAST_OVERLAP and not self._is_taken(found, number):
                track.faces[number] = found

    def _match(self, number: int, known: Sequence[FaceTrack], found: Sequence[Face]) -> None:
        """Gives each face of a frame to the track that it fits best, or to a new one."""
        pairs = [
            (_fit(track, face, number), order, track, face)
            for track in known
            for order, face in enumerate(found)
            if _fit(track, face, number) > 0
        ]
        given: set[int] = set()
        for _, order, track, face in sorted(pairs, key=lambda pair: -pair[0]):
            if order not in given and number not in track.faces:
                track.faces[number] = face
                given.add(order)
        for order, face in enumerate(found):
            if order not in given and (number == 0 or self._search_every is not None):
                self.tracks.append(FaceTrack(len(self.tracks), {number: face}))

    def _is_taken(self, face: Face, number: int) -> bool:
        """Whether another track has this face in this frame."""
        return any(
            number in track.faces and overlap(track.faces[number].box, face.box) > LEAST_OVERLAP
            for track in self.tracks
        )


def _fit(track: FaceTrack, face: Face, number: int) -> float:
    """How well a face continues a track: 0, not at all, to 2."""
    seen, last = track.last
    shared = overlap(last.box, face.box)
    if shared > LEAST_OVERLAP:
        return 1 + shared
    ratio = face.side / last.side
    if seen == number - 1 or not 1 / LARGEST_CHANGE < ratio < LARGEST_CHANGE:
        return 0.0
    distance = float(np.hypot(face.centre[0] - last.centre[0], face.centre[1] - last.centre[1])) / last.side
    return max(0.0, 1 - distance / FOUND_AGAIN)

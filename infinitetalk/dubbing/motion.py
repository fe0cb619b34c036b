"""Where a speaker is in each frame of a film, as a change from the first one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from infinitetalk.media.face_tracks import FaceTrack, smoothed

SIZE_SMOOTHING_S = 0.6
"""Standard deviation of the smoothing of a face's size over time: boxes change their size more than faces do."""


@dataclass(frozen=True)
class Motion:
    """The movement of a speaker's place.

    Attributes:
        centres: float64 (frames, 2), x and y of the face's centre in pixels.
        scales: float64 (frames,), its size as a multiple of that in the first frame.
        presence: float64 (frames,), 0 where the face is not to be seen, 1 where it is.
    """

    centres: np.ndarray
    scales: np.ndarray
    presence: np.ndarray

    @classmethod
    def still(cls, centre: tuple[float, float], num_frames: int) -> Motion:
        """A place that stays where it is."""
        return cls(np.tile(np.array(centre, float), (num_frames, 1)), np.ones(num_frames), np.ones(num_frames))

    @classmethod
    def of_masks(cls, masks: Iterable[np.ndarray]) -> Motion:
        """What is white in each frame of a mask, bool (height, width) each: its centre and its size. Where nothing is
        white, the speaker is not to be seen.

        Args:
            masks: one for each frame of the film; the first is not empty.
        """
        found = []
        for mask in masks:
            rows, columns = mask.nonzero()
            area = len(rows)
            found.append((columns.mean() + 0.5, rows.mean() + 0.5, area**0.5) if area else (0.0, 0.0, 0.0))
        places = np.array(found)
        seen = places[:, 2] > 0
        frames = np.arange(len(places))
        x, y, sides = (np.interp(frames, frames[seen], column[seen]) for column in places.T)
        return cls(np.stack([x, y], axis=1), sides / sides[0], seen.astype(float))

    @classmethod
    def of_track(cls, track: FaceTrack, num_frames: int, fps: float) -> Motion:
        """A face that was followed; `fps` are the film's frames a second, on average."""
        boxes = track.boxes(num_frames, fps)
        sides = smoothed((boxes[:, 2:] - boxes[:, :2]).max(axis=1), SIZE_SMOOTHING_S * fps)
        return cls((boxes[:, :2] + boxes[:, 2:]) / 2, sides / sides[0], track.presence(num_frames, fps))


def mean_scales(motions: Sequence[Motion]) -> np.ndarray:
    """The common change of size of several speakers, float64 (frames,)."""
    return np.exp(np.mean([np.log(motion.scales) for motion in motions], axis=0))

"""How a mouth follows speech: correlation with its loudness, prediction from its sound, lag, and rest in pauses.

The plain correlation with loudness is what one would look at first, but it tells little (docs/measures.md). So the
figure that decides is another one, `follows`: how well the opening can be predicted from ten bands of the speech. The
prediction is linear, fitted to four fifths of the video and compared with the rest, so it needs no trained weights, and
speech that has nothing to do with the mouth predicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from infinitetalk.media.faces import EYE_CORNERS
from tools.measures.speech import bands, envelope, pauses
from tools.talker.measure import correlation

UPPER_LIPS, LOWER_LIPS = (13, 82, 312), (14, 87, 317)
"""Landmarks of the lips' inner edges, in pairs."""

SMOOTH, TREND = 1.0, 25.0
"""Standard deviations in frames: jitter of landmarks below the first and slow changes above the second do not count."""

CONTEXT = (-2, 0, 2)
"""Frames of speech around a frame that predict its opening."""

FOLDS, GAP, RIDGE = 5, 12, 100.0
"""Parts of a video, each predicted from the others; frames beside a part that are not learned from; the fit's ridge."""

FEWEST_FRAMES = 200
"""Frames (8 s) below which a fit says too little: wrong speech then predicts as much by chance."""

NEAR, FAR = 4, 25
"""Lags in frames, either way: those that count as on time, and those among which the best one is looked for."""

CLOSING = 5
"""Frames at the beginning of a pause in which lips may still close."""

FEWEST_REST = 10
"""Frames in pauses, without those, below which nothing is said of rest."""


@dataclass(frozen=True)
class Mouth:
    """A mouth against the speech that it should speak.

    Attributes:
        opening: distance of the lips in distances of the eyes (or pixels of a drawn face), float64 (T,).
        loudness: the speech's, 0 to 1, float64 (T,).
        movement: standard deviation of the opening.
        correlation: of opening and loudness at `loudness_lag`, -1 to 1.
        loudness_lag: the lag in frames at which they correlate best; positive if the mouth is late.
        follows: correlation of the opening with its prediction from the speech, the best of the lags within `NEAR`;
            None if the video is too short for a fit.
        lag: the lag in frames, of those within `FAR`, at which the prediction is best; None likewise.
        rest: mean movement from frame to frame in pauses, over that in speech; None without pauses or speech.
    """

    opening: np.ndarray
    loudness: np.ndarray
    movement: float
    correlation: float
    loudness_lag: int
    follows: float | None
    lag: int | None
    rest: float | None


def opening_of(landmarks: np.ndarray) -> np.ndarray:
    """The opening of a mouth in distances of the eyes: float64 (T,). Frames without a face take the nearest one's.

    Args:
        landmarks: (T, 468, 3), NaN in frames without a face.

    Raises:
        ValueError: no frame has a face.
    """
    points = landmarks[:, :, :2].astype(np.float64)
    lips = np.linalg.norm(points[:, UPPER_LIPS] - points[:, LOWER_LIPS], axis=2).mean(axis=1)
    right, left = (points[:, corner] for corner in EYE_CORNERS)
    opening = lips / np.linalg.norm(right - left, axis=1)
    seen = np.isfinite(opening)
    if not seen.any():
        raise ValueError("no frame shows a face")
    frames = np.arange(len(opening))
    return np.interp(frames, frames[seen], opening[seen])


def compare(opening: np.ndarray, waveform: np.ndarray) -> Mouth:
    """Compares an opening, (T,), with speech: float32 (samples,), 16 kHz."""
    num_frames = len(opening)
    loudness = envelope(waveform, num_frames)
    smooth_opening, smooth_loudness = without_trend(opening), without_trend(loudness)
    loudness_lag = max(range(-FAR, FAR + 1), key=lambda lag: correlation(smooth_opening, smooth_loudness, lag))
    scores = _scores(opening, waveform)
    return Mouth(
        opening=opening,
        loudness=loudness,
        movement=float(opening.std()),
        correlation=correlation(smooth_opening, smooth_loudness, loudness_lag),
        loudness_lag=loudness_lag,
        follows=None if scores is None else max(scores[lag] for lag in range(-NEAR, NEAR + 1)),
        lag=None if scores is None else max(scores, key=lambda lag: scores[lag]),
        rest=rest_of(opening, waveform),
    )


def _scores(opening: np.ndarray, waveform: np.ndarray) -> dict[int, float] | None:
    """How well speech predicts an opening, by lag; None if the video is too short."""
    if len(opening) < FEWEST_FRAMES:
        return None
    speech = without_trend(bands(waveform, len(opening)))
    target = without_trend(opening)
    return {lag: predicted(target, speech, lag) for lag in range(-FAR, FAR + 1)}


def without_trend(series: np.ndarray) -> np.ndarray:
    """A series, (T,) or (T, features), smoothed and without its slow changes."""
    smooth: np.ndarray = gaussian_filter1d(series, SMOOTH, axis=0) - gaussian_filter1d(series, TREND, axis=0)
    return smooth


def predicted(target: np.ndarray, speech: np.ndarray, lag: int) -> float:
    """Correlation of an opening, (T,), with what the speech, (T, features), `lag` frames earlier predicts of it."""
    if target.std() < 1e-9 or speech.std() < 1e-9:
        return 0.0
    features = np.concatenate([_moved(speech, lag + shift) for shift in CONTEXT], axis=1)
    frames = np.arange(len(target))
    prediction = np.zeros(len(target))
    for fold in range(FOLDS):
        begin, end = fold * len(target) // FOLDS, (fold + 1) * len(target) // FOLDS
        learned = (frames < begin - GAP) | (frames >= end + GAP)
        mean, scale = features[learned].mean(axis=0), features[learned].std(axis=0) + 1e-9
        given, level = (features - mean) / scale, target[learned].mean()
        products = given[learned].T @ given[learned] + RIDGE * np.eye(given.shape[1])
        weights = np.linalg.solve(products, given[learned].T @ (target[learned] - level))
        prediction[begin:end] = given[begin:end] @ weights + level
    return correlation(target, prediction)


def _moved(series: np.ndarray, frames: int) -> np.ndarray:
    """A series, (T, features), that happens so many frames later; its ends are repeated."""
    places = np.clip(np.arange(len(series)) - frames, 0, len(series) - 1)
    return series[places]


def rest_of(opening: np.ndarray, waveform: np.ndarray) -> float | None:
    """How much a mouth moves in pauses, over how much it moves in speech; None without enough of both."""
    quiet = pauses(waveform, len(opening))
    rests = quiet.copy()
    for frames in range(1, CLOSING + 1):
        rests[frames:] &= quiet[:-frames]
    rests, speaks = rests[1:], ~quiet[1:]
    if min(rests.sum(), speaks.sum()) < FEWEST_REST:
        return None
    speed = np.abs(np.diff(gaussian_filter1d(opening, SMOOTH)))
    spoken = float(speed[speaks].mean())
    return float(speed[rests].mean()) / spoken if spoken > 1e-9 else None

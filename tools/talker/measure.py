"""Measures finished videos: how far mouths are open, and how much frames differ."""

from collections.abc import Sequence

import numpy as np

from tools.talker.faces import Place, mouth_boxes

#: Luma (0…255) up to which a pixel is inside a mouth, and from which it is not; in between, it counts in part.
INSIDE_LUMA, OUTSIDE_LUMA = 45.0, 80.0
#: Candidate lags in frames.
LAGS = range(-5, 6)


def read_openings(frames: np.ndarray, num_people: int = 1, places: Sequence[Place] | None = None) -> np.ndarray:
    """The opening of each person's mouth, from the pixels alone: mean height, in pixels, of the dark part in the middle
    columns of the mouth; float64 (people, T).

    Dark is defined by the tones of the first frame, the portrait. The worker's colour correction shifts all tones of a
    frame when a mouth opens, because a drawn mouth is a tenth of the image; the pixels outside mouths show the shift.

    Args:
        frames: uint8 (T, height, width, 3).
        places: of the people; None: side by side, each in the middle of their column.
    """
    places = [Place()] * num_people if places is None else places
    luma = _luma_as_in_first(frames, places)
    darkness = ((OUTSIDE_LUMA - luma) / (OUTSIDE_LUMA - INSIDE_LUMA)).clip(0.0, 1.0)
    boxes = mouth_boxes(places, *frames.shape[1:3])
    return np.stack(
        [darkness[:, top:bottom, left:right].sum(axis=1).mean(axis=1) for left, top, right, bottom in boxes]
    )


def read_openings_as_shown(frames: np.ndarray) -> np.ndarray:
    """Like `read_openings` of one person, by the tones of each frame itself: of frames whose colours are a film's."""
    luma = frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    darkness = ((OUTSIDE_LUMA - luma) / (OUTSIDE_LUMA - INSIDE_LUMA)).clip(0.0, 1.0)
    ((left, top, right, bottom),) = mouth_boxes([Place()], *frames.shape[1:3])
    return darkness[:, top:bottom, left:right].sum(axis=1).mean(axis=1)


def read_lips(frames: np.ndarray, num_people: int = 1) -> np.ndarray:
    """The darkest tone of each person's mouth, which lies between the lips if it is closed: luma (people, T)."""
    places = [Place()] * num_people
    luma = _luma_as_in_first(frames, places)
    boxes = mouth_boxes(places, *frames.shape[1:3])
    return np.stack([luma[:, top:bottom, left:right].min(axis=(1, 2)) for left, top, right, bottom in boxes])


def _luma_as_in_first(frames: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    """Luma (T, height, width); each frame is scaled and shifted to match the first one outside mouths."""
    luma = frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    outside = luma[:, _outside_mouths(places, *luma.shape[1:])]
    centred = outside - outside.mean(axis=1, keepdims=True)
    gain = centred @ centred[0] / np.square(centred).sum(axis=1)
    level = outside.mean(axis=1)
    return (luma - level[:, None, None]) * gain[:, None, None] + level[0]


def _outside_mouths(places: Sequence[Place], height: int, width: int) -> np.ndarray:
    """Bool (height, width): the pixels outside mouths."""
    kept = np.ones((height, width), dtype=bool)
    for left, top, right, bottom in mouth_boxes(places, height, width):
        reach = right - left
        kept[top - 2 : bottom + 2, left - reach : right + reach] = False
    return kept


def correlation(opening: np.ndarray, rule: np.ndarray, lag: int = 0) -> float:
    """Pearson's correlation of a mouth, (T,), with the rule's: its frame t is compared with the rule's t - `lag`."""
    length = min(len(opening), len(rule))
    opening, rule = opening[:length], rule[:length]
    shown, told = opening[max(lag, 0) : length + min(lag, 0)], rule[max(-lag, 0) : length - max(lag, 0)]
    if shown.std() == 0 or told.std() == 0:
        return 0.0
    return float(np.corrcoef(shown, told)[0, 1])


def best_lag(opening: np.ndarray, rule: np.ndarray) -> int:
    """The lag in frames at which a mouth follows the rule best; positive if the mouth is late."""
    return max(LAGS, key=lambda lag: correlation(opening, rule, lag))


def psnr_outside_mouths(first: np.ndarray, second: np.ndarray, num_people: int = 1) -> float:
    """Peak signal-to-noise ratio in dB between the mean frames of two stretches, each uint8 (T, height, width, 3),
    outside mouths."""
    kept = _outside_mouths([Place()] * num_people, *first.shape[1:3])
    difference = first.astype(np.float64).mean(axis=0) - second.astype(np.float64).mean(axis=0)
    return float(10 * np.log10(255.0**2 / np.square(difference[kept]).mean()))


def border_change(frames: np.ndarray, borders: list[int]) -> float:
    """Mean change from the previous frame at `borders`, the first frames of chunks, over the mean change elsewhere."""
    change = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
    at_border = np.isin(np.arange(1, len(frames)), borders)
    # The first frame is the input image, with its mouth shut.
    elsewhere = ~at_border
    elsewhere[0] = False
    return float(change[at_border].mean() / change[elsewhere].mean())


def read_head_places(frames: np.ndarray) -> np.ndarray:
    """The position of one head: the mean column of its pixels above the mouth; float64 (T,), in pixels."""
    above = frames[:, : mouth_boxes([Place()], *frames.shape[1:3])[0][1]].astype(np.float64)
    difference = np.abs(above - above[:, :1, :1]).sum(axis=3)
    return (difference * np.arange(frames.shape[2])).sum(axis=(1, 2)) / difference.sum(axis=(1, 2))


def color_change(frames: np.ndarray) -> float:
    """How far frames' mean colours, in levels of 255, are from those of the first, the portrait: of red, green and blue
    the farthest, in the mean over frames."""
    means = frames.astype(np.float64).mean(axis=(1, 2))
    return float(np.abs(means[1:] - means[0]).mean(axis=0).max())

"""Reads what a finished video shows: how far mouths are open, and how pictures differ."""

from pathlib import Path

import av
import numpy as np

from tools.talker.faces import Place, mouth_boxes

#: Luma (0…255) of a mouth's inside, and of what is surely not: between them, a pixel counts in part.
INSIDE_LUMA, OUTSIDE_LUMA = 45.0, 80.0
#: Lags in frames among which the best is sought.
LAGS = range(-5, 6)


def read_frames(path: Path) -> np.ndarray:
    """A video's frames, uint8 (T, height, width, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_openings(frames: np.ndarray, num_people: int = 1) -> np.ndarray:
    """How far each person's mouth is open, from the pixels alone: mean height, in pixels, of what is dark in the middle
    columns of the mouth; float64 (people, T).

    Dark is told by the tones of the first frame, the portrait. The worker's colour correction moves all tones of a
    frame when a mouth opens, for a drawn one is a tenth of the picture; how, is seen where no mouth is.
    """
    luma = _luma_as_in_first(frames, num_people)
    darkness = ((OUTSIDE_LUMA - luma) / (OUTSIDE_LUMA - INSIDE_LUMA)).clip(0.0, 1.0)
    boxes = mouth_boxes([Place()] * num_people, *frames.shape[1:3])
    return np.stack(
        [darkness[:, top:bottom, left:right].sum(axis=1).mean(axis=1) for left, top, right, bottom in boxes]
    )


def read_lips(frames: np.ndarray, num_people: int = 1) -> np.ndarray:
    """The darkest tone of each person's mouth, which is between the lips where it is closed: luma (people, T)."""
    luma = _luma_as_in_first(frames, num_people)
    boxes = mouth_boxes([Place()] * num_people, *frames.shape[1:3])
    return np.stack([luma[:, top:bottom, left:right].min(axis=(1, 2)) for left, top, right, bottom in boxes])


def _luma_as_in_first(frames: np.ndarray, num_people: int) -> np.ndarray:
    """Luma (T, height, width), each frame's scaled and shifted so that it is nearest to the first's outside mouths."""
    luma = frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    outside = luma[:, _outside_mouths(num_people, *luma.shape[1:])]
    centred = outside - outside.mean(axis=1, keepdims=True)
    gain = centred @ centred[0] / np.square(centred).sum(axis=1)
    level = outside.mean(axis=1)
    return (luma - level[:, None, None]) * gain[:, None, None] + level[0]


def _outside_mouths(num_people: int, height: int, width: int) -> np.ndarray:
    """Bool (height, width): where no mouth is."""
    kept = np.ones((height, width), dtype=bool)
    for left, top, right, bottom in mouth_boxes([Place()] * num_people, height, width):
        reach = right - left
        kept[top - 2 : bottom + 2, left - reach : right + reach] = False
    return kept


def correlation(opening: np.ndarray, rule: np.ndarray, lag: int = 0) -> float:
    """Pearson's correlation of a mouth, (T,), with the rule's, of which it shows frame t - `lag` at frame t."""
    length = min(len(opening), len(rule))
    opening, rule = opening[:length], rule[:length]
    shown, told = opening[max(lag, 0) : length + min(lag, 0)], rule[max(-lag, 0) : length - max(lag, 0)]
    if shown.std() == 0 or told.std() == 0:
        return 0.0
    return float(np.corrcoef(shown, told)[0, 1])


def best_lag(opening: np.ndarray, rule: np.ndarray) -> int:
    """The lag in frames at which a mouth follows the rule best; positive where the mouth is late."""
    return max(LAGS, key=lambda lag: correlation(opening, rule, lag))


def psnr_outside_mouths(first: np.ndarray, second: np.ndarray, num_people: int = 1) -> float:
    """Peak signal to noise ratio in dB of two stretches' mean pictures, each uint8 (T, height, width, 3), where no
    mouth is."""
    kept = _outside_mouths(num_people, *first.shape[1:3])
    difference = first.astype(np.float64).mean(axis=0) - second.astype(np.float64).mean(axis=0)
    return float(10 * np.log10(255.0**2 / np.square(difference[kept]).mean()))


def border_change(frames: np.ndarray, borders: list[int]) -> float:
    """Mean change from the frame before at `borders`, frames that open a chunk, over the mean change elsewhere."""
    change = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
    at_border = np.isin(np.arange(1, len(frames)), borders)
    # The first frame is the picture that was given, with its mouth shut.
    elsewhere = ~at_border
    elsewhere[0] = False
    return float(change[at_border].mean() / change[elsewhere].mean())


def read_head_places(frames: np.ndarray) -> np.ndarray:
    """Where one head is: the mean column of what is not background, above the mouth; float64 (T,), in pixels."""
    above = frames[:, : mouth_boxes([Place()], *frames.shape[1:3])[0][1]].astype(np.float64)
    difference = np.abs(above - above[:, :1, :1]).sum(axis=3)
    return (difference * np.arange(frames.shape[2])).sum(axis=(1, 2)) / difference.sum(axis=(1, 2))


def color_change(frames: np.ndarray) -> float:
    """How far frames' mean colours, in levels of 255, are from those of the first, the portrait: of red, green and blue
    the farthest, in the mean over frames."""
    means = frames.astype(np.float64).mean(axis=(1, 2))
    return float(np.abs(means[1:] - means[0]).mean(axis=0).max())

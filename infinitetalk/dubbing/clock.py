"""Which frame of a film and which generated frame are shown when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

from infinitetalk.media.encode import EVEN, Timing
from infinitetalk.media.speech import VIDEO_FPS

FILM_TIME_BASE = Fraction(1, 90_000)
"""Seconds of a tick: 24, 25, 30, 50 and 60 frames a second, and 1001/1000 of them, are whole numbers of ticks."""

LONGEST_STILL_S = 0.1
"""Where the film shows a frame for longer, it is repeated 25 times a second, so that mouths go on moving."""

MOST_FRAMES_A_SECOND = 120
"""Of a film that is dubbed."""


@dataclass(frozen=True)
class FilmClock:
    """The frames of a dubbed video, in order.

    Attributes:
        film: the film's frame that each of them shows.
        generated: the generated frame that each of them shows.
        timing: when they are shown.
    """

    film: tuple[int, ...]
    generated: tuple[int, ...]
    timing: Timing

    def shown_during(self, first: int, after: int) -> range:
        """The video's frames that show the generated frames from `first` to before `after`."""
        begin = bisect_right(self.generated, first - 1)
        return range(begin, bisect_right(self.generated, after - 1))


def own_times(film_times: Sequence[float], num_generated: int, ends: Sequence[int]) -> FilmClock:
    """The film's own frames at their own times, each with the generated frame that is nearest in time.

    Of frames closer together than half of the shortest of `MOST_FRAMES_A_SECOND`, the last is shown, from the first
    one's time. At 29.97 frames a second every sixth frame shows the same generated frame as the one before; none is
    more than 20 ms from its time. The film's last frame stays if the film ends first.

    Args:
        film_times: seconds at which the film's frames begin, from 0, not descending.
        num_generated: number of generated frames, 25 a second.
        ends: for each chunk, the number of generated frames until its end; each has a frame of its own.
    """
    length = Fraction(num_generated, VIDEO_FPS)
    step, shortest = (round(1 / (rate * FILM_TIME_BASE)) for rate in (VIDEO_FPS, MOST_FRAMES_A_SECOND))
    shown: dict[int, int] = {}
    last = 0
    for index, time in enumerate(film_times):
        if time < length:
            start = round(time / FILM_TIME_BASE)
            # Times that a container rounds to milliseconds may be closer together than the shortest frame.
            last = last if start - last < shortest / 2 else start
            shown[last] = index
    starts, end = list(shown), round(length / FILM_TIME_BASE)
    longest = round(LONGEST_STILL_S / FILM_TIME_BASE)
    usual = min(max(median_low([after - start for start, after in pairwise(starts)] or [step]), shortest), step)
    filled: list[tuple[int, int]] = []
    for (start, index), after in zip(shown.items(), [*starts[1:], end], strict=True):
        filled.append((start, index))
        # Players take the last frame to be as long as the others: it must end with the sound, to half a frame.
        every = usual if after == end else step
        if after - start > (1.5 * usual if after == end else longest):
            filled += [(start + tick, index) for tick in range(every, after - start - every // 2, every)]
    if len(filled) > 1 and end - filled[-1][0] < usual / 2:
        filled.pop()
    generated = [min((start + step // 2) // step, num_generated - 1) for start, _ in filled]
    for before, after in zip([0, *ends], ends, strict=False):
        if not any(before <= shown < after for shown in generated):
            # A chunk too short for a frame of the film gets one.
            place = bisect_right(generated, before - 1)
            filled.insert(place, (before * step, filled[place - 1][1]))
            generated.insert(place, before)
    timing = Timing(FILM_TIME_BASE, (*(start for start, _ in filled), end))
    return FilmClock(tuple(index for _, index in filled), tuple(generated), timing)


def even_times(film_times: Sequence[float], num_generated: int) -> FilmClock:
    """25 frames a second, each with the film's frame that is shown then."""
    film = tuple(frame_at(film_times, number / VIDEO_FPS) for number in range(num_generated))
    return FilmClock(film, tuple(range(num_generated)), EVEN)


def mean_rate(film_times: Sequence[float]) -> float:
    """A film's frames a second, on average, at most `MOST_FRAMES_A_SECOND`; of frames at one time, 25."""
    span = film_times[-1] - film_times[0]
    return min((len(film_times) - 1) / span, MOST_FRAMES_A_SECOND) if span > 0 else VIDEO_FPS


def frame_at(film_times: Sequence[float], seconds: float) -> int:
    """The film's frame that is shown at a time: the last one that begins no later."""
    # Rounding must not make a frame late that begins at this very time.
    return max(bisect_right(film_times, seconds + 1e-6) - 1, 0)

"""Whether peak memory grows with the length of the input."""

import multiprocessing
from collections.abc import Callable, Sequence

DURATIONS_S = (10, 120)
ALLOWED = 0.05
"""Growth from the shorter to the longer one, as a share."""


def peaks_of(measure: Callable[[int], float], lengths: Sequence[int]) -> list[float]:
    """What `measure` returns for each length, each in a new interpreter, so that none inherits another's peak."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(measure, lengths, chunksize=1)


def compare_durations(peak_memory_mb: Callable[[int], float]) -> int:
    """Prints one line for each duration of speech, and the difference; returns 1 if it is as large as `ALLOWED`."""
    peaks = peaks_of(peak_memory_mb, DURATIONS_S)
    for duration_s, peak in zip(DURATIONS_S, peaks, strict=True):
        print(f"{duration_s:4d} s of speech: {peak:.0f} MB")
    difference = peaks[-1] / peaks[0] - 1.0
    print(f"difference {difference:+.1%}")
    return int(difference >= ALLOWED)

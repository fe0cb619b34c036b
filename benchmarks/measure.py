"""Measurements: a ratio from a single run, its goal, and the row that compares them."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

#: Time of an evaluation at 640×640, 81 frames, on an H100: the lower bound by arithmetic, at 790 TFLOP/s in bfloat16.
EVALUATION_S = 2.4
NO_GPU = "no GPU here"


@dataclass(frozen=True)
class Goal:
    """A bound on a figure.

    Attributes:
        bound: the figure to reach.
        at_least: whether larger figures are better.
        unit: printed after the figures.
    """

    bound: float
    at_least: bool = False
    unit: str = "×"

    def is_met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Attributes:
        what, against: the measured thing, and the thing that it is compared with.
        goal: the goal of the figure.
        value: the figure; None if it could not be measured here.
        detail: sizes and seconds behind the figure, or why there is none.
    """

    what: str
    against: str
    goal: Goal
    value: float | None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """PASS or NOT; UNMEASURED without a figure."""
        if self.value is None:
            return "UNMEASURED"
        return "PASS" if self.goal.is_met(self.value) else "NOT"

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        value = "–" if self.value is None else f"{self.value:.3g}{self.goal.unit}"
        return self.what, self.against, value, str(self.goal), self.verdict, self.detail


HEADINGS = ("what", "against", "measured", "goal", "", "how")


def as_table(rows: Iterable[tuple[str, ...]], headings: tuple[str, ...] = HEADINGS) -> str:
    """Rows as a Markdown table with aligned columns."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def processor_seconds_of(function: Callable[[], object]) -> float:
    """Processor time of one call, including child processes: on a busy machine wall time says little."""
    before = os.times()
    function()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


@dataclass(frozen=True)
class Comparison:
    """Two functions measured in turn: the median of each pair's ratio first / second, and each one's median seconds."""

    ratio: float
    first_s: float
    second_s: float

    def __str__(self) -> str:
        return f"{self.first_s:.1f} s / {self.second_s:.1f} s of one core"


def compare(first: Callable[[], object], second: Callable[[], object], repeats: int) -> Comparison:
    """Measures the processor time of two functions in turn, `repeats` times after one call of each."""
    first()
    second()
    pairs = [(processor_seconds_of(first), processor_seconds_of(second)) for _ in range(repeats)]
    return Comparison(
        ratio=statistics.median(one / other for one, other in pairs),
        first_s=statistics.median(one for one, _ in pairs),
        second_s=statistics.median(other for _, other in pairs),
    )


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far, without that of the process that it was forked from."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def machine() -> str:
    """The machine in words: cores, CPU, accelerator, torch."""
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{torch.get_num_threads()} of {torch.multiprocessing.cpu_count()} cores of {model}, {accelerator}, "
        f"torch {torch.__version__}"
    )

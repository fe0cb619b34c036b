"""What a row is, and how a group of rows runs."""

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

State = TypeVar("State")


@dataclass(frozen=True)
class Figure:
    """What a row found.

    Attributes:
        name: what was measured.
        value: the figure; None where it was not measured.
        unit: of the figure: "s", "GiB", "TFLOP/s", "relative error" …
        detail: what the figure stands on, or why there is none.
        table: lines behind it, for the file alone.
    """

    name: str
    value: float | None
    unit: str = "s"
    detail: str = ""
    table: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        value = "UNMEASURED" if self.value is None else f"{self.value:.4g} {self.unit}"
        return f"{self.name}: {value}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Row(Generic[State]):
    """One thing to measure, which may give several figures."""

    name: str
    measure: Callable[[State], Iterator[Figure]]


@dataclass(frozen=True)
class Group(Generic[State]):
    """Rows that share what is expensive to make.

    Attributes:
        prepare: makes what the rows work on, given whether the sizes are the small ones that test the benchmark.
    """

    name: str
    prepare: Callable[[bool], State]
    rows: tuple[Row[State], ...]

    def run(self, small: bool, wanted: Sequence[str]) -> None:
        """Measures the rows whose name holds one of `wanted`, all where it is empty, and prints what happens as lines
        of JSON.

        A row that fails is a figure without a value. The next one runs all the same.
        """
        try:
            state = self.prepare(small)
        except Exception as error:
            tell("figure", **asdict(Figure(self.name, None, detail=reason_of(error))))
            return
        for row in self.rows:
            if wanted and not any(part in row.name for part in wanted):
                continue
            tell("row", name=row.name)
            try:
                with torch.no_grad():
                    for figure in row.measure(state):
                        tell("figure", **asdict(figure))
            except Exception as error:  # A row stands for itself: whatever it meets is its result.
                tell("figure", **asdict(Figure(row.name, None, detail=reason_of(error))))
            release()


def reason_of(error: Exception) -> str:
    """Its kind, its first line, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]} ({where})"


def tell(kind: str, **content: Any) -> None:
    """A line of JSON for the process that started this one."""
    print(json.dumps({"kind": kind, **content}), flush=True)


def release() -> None:
    """Gives memory that the last row left back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def device() -> torch.device:
    """Where the rows run."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def synchronise() -> None:
    """Waits until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, what it left in the device's queue included."""
    synchronise()
    begin = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - begin


def timed(function: Callable[[], object], repeats: int = 2) -> float:
    """Least seconds of `repeats` calls, after one that is not counted."""
    function()
    return min(seconds(function) for _ in range(repeats))


def allocated_gib() -> float:
    """Memory that tensors take on the device now."""
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def memory_figure(name: str, before_gib: float = 0.0, detail: str = "") -> Figure:
    """The most memory that tensors took since the last `release`, less `before_gib`."""
    if not torch.cuda.is_available():
        return Figure(name, None, detail="no GPU here")
    return Figure(name, torch.cuda.max_memory_allocated() / 2**30 - before_gib, "GiB", detail)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||, in float32."""
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm())


def wait_for_word() -> None:
    """Returns when the process that started this one says so: imports are done meanwhile."""
    sys.stdin.readline()

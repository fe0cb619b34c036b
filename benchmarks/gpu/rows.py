"""Rows, and groups of rows that run in one process."""

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
    """The result of a row.

    Attributes:
        name: the measured quantity.
        value: the figure; None if it was not measured.
        unit: the figure's unit: "s", "GiB", "TFLOP/s", "relative error" …
        detail: the basis of the figure, or why there is none.
        table: further lines, only for the file.
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
    """One measurement, which may give several figures."""

    name: str
    measure: Callable[[State], Iterator[Figure]]


@dataclass(frozen=True)
class Group(Generic[State]):
    """Rows that share expensive objects.

    Attributes:
        prepare: makes the shared objects; its argument says whether to use the small sizes that test the benchmark.
    """

    name: str
    prepare: Callable[[bool], State]
    rows: tuple[Row[State], ...]

    def run(self, small: bool, wanted: Sequence[str]) -> None:
        """Measures the rows with names that contain one of `wanted` (all if empty), and prints events as JSON lines.

        A row that fails gives a figure without a value, and the next row still runs.
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
            except Exception as error:  # Rows are independent: any error is the row's result.
                tell("figure", **asdict(Figure(row.name, None, detail=reason_of(error))))
            release()


def reason_of(error: Exception) -> str:
    """The error's type, its first line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]} ({where})"


def tell(kind: str, **content: Any) -> None:
    """Sends a line of JSON to the parent process."""
    print(json.dumps({"kind": kind, **content}), flush=True)


def release() -> None:
    """Releases the device memory that the last row has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def device() -> torch.device:
    """The device on which the rows run: this process's GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def synchronise() -> None:
    """Waits until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, including the work that it queued on the device."""
    synchronise()
    begin = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - begin


def timed(function: Callable[[], object], repeats: int = 2) -> float:
    """The shortest time of `repeats` calls, in seconds, after an uncounted one."""
    function()
    return min(seconds(function) for _ in range(repeats))


def allocated_gib() -> float:
    """The current memory of tensors on the device."""
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def memory_figure(name: str, before_gib: float = 0.0, detail: str = "") -> Figure:
    """The peak memory of tensors since the last `release`, minus `before_gib`."""
    if not torch.cuda.is_available():
        return Figure(name, None, detail="no GPU here")
    return Figure(name, torch.cuda.max_memory_allocated() / 2**30 - before_gib, "GiB", detail)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||, in float32."""
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm())


def wait_for_word() -> None:
    """Waits for the parent process's signal, after the imports are done."""
    sys.stdin.readline()

"""The job's current stage, the duration of each stage, and the remaining time of sampling."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from infinitetalk.worker.progress import ProgressEvent, Report
from schemas import Stage

if TYPE_CHECKING:
    from infinitetalk.generation.pipeline import Step

AFTER_SAMPLING = (Stage.DECODE, Stage.MUX, Stage.UPLOAD, Stage.COMPLETED)
"""Short stages, which report 0 seconds left."""


class StageClock:
    """Measures the stages of one video and reports its progress.

    Any thread may use it: the thread that samples ahead, the download threads, and the job's own. Events are reported
    in the order in which they happen.

    Args:
        report: takes each event; must return quickly, since it is called under the clock's lock.

    Attributes:
        stage: the current stage.
        eta_s: remaining seconds of sampling, counted from the last step.
    """

    def __init__(self, report: Report) -> None:
        self.stage = Stage.VALIDATION
        self.eta_s = 0.0
        self._report = report
        self._lock = threading.Lock()
        self._has_more = True
        self._preview: dict[str, str] = {}
        self._begin = self._since = time.monotonic()
        self._seconds: dict[Stage, float] = {stage: 0.0 for stage in Stage if stage is not Stage.COMPLETED}
        report(ProgressEvent(self.stage))

    def has_preview(self, field: str, value: str) -> None:
        """Adds the preview's address, a field of `schemas.Progress`, to all later events."""
        with self._lock:
            self._preview = {field: value}

    def enter(self, stage: Stage) -> None:
        """Changes to another stage and reports it."""
        with self._lock:
            self._enter(stage)

    def begin_sampling(self, num_done: int = 0) -> None:
        """Enters sampling; its steps give the remaining time. `num_done` chunks exist already."""
        with self._lock:
            self._enter(Stage.SAMPLING)
            self._sampling_since = self._since
            self._chunks_before = num_done

    def end_step(self, step: Step) -> None:
        """Counts a sampling step. After the last step of a chunk, its frames are decoded."""
        with self._lock:
            done = (step.chunk - 1) * step.num_steps + step.step
            total = step.num_chunks * step.num_steps
            done_here = done - self._chunks_before * step.num_steps
            self.eta_s = (time.monotonic() - self._sampling_since) / done_here * (total - done)
            details = {
                "chunk": step.chunk,
                "num_chunks": step.num_chunks,
                "step": step.step,
                "num_steps": step.num_steps,
            }
            self._tell(Stage.SAMPLING, done / total, round(self.eta_s, 1), details)
            if step.step < step.num_steps:
                return
            self._has_more = step.chunk < step.num_chunks
            if self._has_more:
                # Decoding between two chunks is timed, but the client still sees the sampling stage.
                self._count_towards(Stage.DECODE)
            else:
                self._enter(Stage.DECODE)

    def next_chunk(self) -> None:
        """Returns to sampling after a chunk was decoded, unless it was the last."""
        with self._lock:
            if self._has_more:
                self._count_towards(Stage.SAMPLING)

    def count_bytes(self, done: int, total: int | None) -> None:
        """Reports the number of bytes downloaded or stored so far, and the total if it is known."""
        details = {"bytes": done} | ({} if total is None else {"total_bytes": total})
        fraction = min(done / total, 1.0) if total else 0.0
        with self._lock:
            self._tell(self.stage, fraction, 0.0 if self.stage in AFTER_SAMPLING else None, details)

    def timings(self) -> dict[str, int]:
        """Milliseconds of each stage so far, the current one included, and their total."""
        with self._lock:
            now = time.monotonic()
            seconds = dict(self._seconds)
            if self.stage in seconds:
                seconds[self.stage] += now - self._since
            milliseconds = {f"{stage}_ms": round(value * 1000) for stage, value in seconds.items()}
            return milliseconds | {"total_ms": round((now - self._begin) * 1000)}

    def _enter(self, stage: Stage) -> None:
        self._count_towards(stage)
        self._tell(stage, eta_s=0.0 if stage in AFTER_SAMPLING else None)

    def _count_towards(self, stage: Stage) -> None:
        now = time.monotonic()
        self._seconds[self.stage] += now - self._since
        self.stage, self._since = stage, now

    def _tell(
        self, stage: Stage, fraction: float = 0.0, eta_s: float | None = None, details: dict[str, Any] | None = None
    ) -> None:
        self._report(ProgressEvent(stage, fraction, eta_s, details or {}, self._preview))

"""Sends a job's progress: in order, at most once per interval, and never after the result.

The SDK's `progress_update` starts a thread for each call, so that messages overtake one another and the result. Here a
single task sends messages by the SDK's own request, one at a time, and only the latest one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result

from infinitetalk.worker.logs import job_logger
from schemas import Progress, Stage

REQUEST_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 4.0
"""Long enough for the current request: the queue might read an abandoned one after the result."""

STAGE_PERCENTAGES: dict[Stage, tuple[float, float]] = {
    Stage.VALIDATION: (0, 1),
    Stage.DOWNLOAD: (1, 4),
    Stage.EMBEDDING: (4, 7),
    Stage.LOAD: (7, 10),
    Stage.SAMPLING: (10, 90),
    Stage.DECODE: (90, 93),
    Stage.MUX: (93, 95),
    Stage.UPLOAD: (95, 99),
    Stage.COMPLETED: (100, 100),
}
"""A job's percentage at the beginning and end of each stage, roughly proportional to the stages' durations."""

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class ItemPosition:
    """The current item of a batch; `index` counts from 0."""

    item_id: str
    index: int
    num_items: int


@dataclass(frozen=True)
class ProgressEvent:
    """The state of a job's progress.

    Attributes:
        stage: the current stage.
        fraction: finished part of the stage, 0 to 1.
        eta_s: seconds left, if known.
        details: more about the stage, as JSON types.
        preview: the preview's address, as fields of `schemas.Progress`.
        item: for a batch, the current item; items have equal shares of the percentage.
    """

    stage: Stage
    fraction: float = 0.0
    eta_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    preview: Mapping[str, str] = field(default_factory=dict)
    item: ItemPosition | None = None


Report = Callable[[ProgressEvent], None]
"""Takes a job's progress; may be called from any thread."""


class ProgressReporter:
    """A context manager that sends a job's progress; `report` may be called from any thread.

    Args:
        job_id: id of the job.
        send: sends one message.
        interval_s: least number of seconds between two messages.
    """

    def __init__(self, job_id: str, send: Send, interval_s: float) -> None:
        self.job_id = job_id
        self.send = send
        self.interval_s = interval_s
        self._lock = threading.Lock()
        self._latest: dict[str, Any] | None = None
        self._pct = 0.0
        self._seq = 0
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(flush=error is None)

    def report(self, event: ProgressEvent) -> None:
        """Takes an event; the next message is about the latest event."""
        begin, end = STAGE_PERCENTAGES[event.stage]
        pct = begin + (end - begin) * event.fraction
        message = {"stage": event.stage, "eta_s": event.eta_s, "details": dict(event.details), **event.preview}
        if event.item is not None:
            pct = (100 * event.item.index + pct) / event.item.num_items
            message |= {"item_id": event.item.item_id, "item_index": event.item.index}
        with self._lock:
            self._pct = max(self._pct, round(pct, 1))
            self._latest = message | {"pct": self._pct}
        self._loop.call_soon_threadsafe(self._changed.set)

    async def close(self, flush: bool) -> None:
        """Ends sending; no message is sent afterwards.

        Args:
            flush: whether a waiting last message is sent first, within a limited time.
        """
        try:
            if flush:
                self._closing.set()
                self._changed.set()
                await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)
        finally:
            self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while not (self._closing.is_set() and self._latest is None):
            await self._changed.wait()
            self._changed.clear()
            if (message := self._take()) is not None:
                await self.send(message)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), timeout=self.interval_s)

    def _take(self) -> dict[str, Any] | None:
        with self._lock:
            latest, self._latest = self._latest, None
        if latest is None:
            return None
        self._seq += 1
        return Progress(job_id=self.job_id, seq=self._seq, **latest).model_dump(mode="json")


class QueueSender:
    """Posts progress to Runpod's queue, which shows it as the job's output while the job is IN_PROGRESS."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job

    async def __aenter__(self) -> Self:
        self._session = AsyncClientSession()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def __call__(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await send_result(self._session, {"status": "IN_PROGRESS", "output": message}, self.job)
        except TimeoutError:
            # A lost message does no harm: the next one is newer.
            job_logger(self.job["id"]).warning("progress.unanswered", details={"seq": message["seq"]})


class LogSender:
    """Logs progress if there is no queue."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    async def __call__(self, message: dict[str, Any]) -> None:
        job_logger(message["job_id"]).info("job.progress", details=message)

"""One job in the worker, from the moment it is taken until its result is delivered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from infinitetalk.worker.errors import CODES, WorkerError
from infinitetalk.worker.logs import job_logger
from infinitetalk.worker.queue.checked import failure_of
from infinitetalk.worker.queue.ending import end_process
from infinitetalk.worker.stop import Stop
from schemas import ErrorCode

Work = asyncio.Future[dict[str, Any]]
"""The result of the job's thread."""


@dataclass
class JobRun:
    """One job in the worker.

    Attributes:
        job_id: id of the job.
        stop: tells the job's thread when to end.
        stop_timeout_s: seconds that the thread may take to end after a stop.
        keeps_state: whether the job's saved state is kept once the queue has its result.
        is_stuck: whether the thread did not end in time and still runs.
    """

    job_id: str
    stop: Stop
    stop_timeout_s: float
    keeps_state: bool = False
    is_stuck: bool = False

    async def result_of(self, work: Work) -> dict[str, Any]:
        """The result of the job's thread, or a failure if the thread exceeds its time limit and does not stop.

        Raises:
            asyncio.CancelledError: the wait was cancelled; the thread still runs.
            GenerationStopped: the thread was stopped.
        """
        limit_s = self.stop.time_limit_s
        patience_s = None if limit_s is None else limit_s + self.stop_timeout_s
        # Cancelling this wait does not cancel `work`, so that the caller can still wait for the thread to end.
        await asyncio.wait([work], timeout=patience_s)
        if work.done():
            return work.result()
        job_logger(self.job_id).error("job.stuck", details={"seconds": patience_s})
        self.is_stuck = True
        facts = CODES[ErrorCode.TIMEOUT]
        return failure_of(self.job_id, WorkerError(ErrorCode.TIMEOUT, f"{facts.message}: {facts.hint}"))

    async def wait_for_end(self, work: Work) -> None:
        """Waits until the job's thread has ended, even if the wait is cancelled.

        If the thread does not end in time, the process is ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.stop_timeout_s
        while not work.done():
            if loop.time() > deadline:
                job_logger(self.job_id).error("job.stuck", details={"seconds": self.stop_timeout_s})
                end_process()
            try:
                await asyncio.wait([work], timeout=deadline - loop.time() + 0.1)
            except asyncio.CancelledError:
                continue
        if error := work.exception():
            let_go(error)


def let_go(error: BaseException) -> None:
    """Drops the traceback of a stopped job, so that its frames and their tensors can be freed: asyncio keeps the task
    alive until the next job."""
    error.with_traceback(None)

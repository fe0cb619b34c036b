"""The async handler: one job at a time in one thread, stopped when the queue says so, its result checked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

import structlog

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.ending import end_process
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.errors import CODES, WorkerError, is_machine_error, job_error
from infinitetalk.worker.job.video import run_job
from infinitetalk.worker.logs import job_logger, loggable
from infinitetalk.worker.policy import timeout_s
from infinitetalk.worker.progress import LogSender, ProgressReporter, QueueSender
from infinitetalk.worker.resume import JobStates
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.stop import Stop
from schemas import ErrorCode, Failure, Stage, sendable

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Runner:
    """Takes jobs as the SDK hands them over.

    Args:
        settings: the worker's settings.
        engine: already loading its model.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.states = JobStates(settings)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job")
        self._stop: Stop | None = None
        self._gone_at: float | None = None
        self._keeps_state = False
        self._is_stuck = False

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Runs one job to its result, a `schemas.Success`, `Failure` or `BatchResult` as a dict.

        Raises:
            asyncio.CancelledError: the job was stopped, by then its thread has ended; or it is left to the next worker.
        """
        job_id = str(job["id"])
        has_queue = self.settings.webhook_post_output is not None
        try:
            job_logger(job_id).info("job.taken", details={"input": loggable(job.get("input"))})
            async with (
                QueueSender(job) if has_queue else LogSender() as send,
                ProgressReporter(job_id, send, self.settings.progress_interval_s) as progress,
            ):
                result = await self._run(job, progress)
        except Exception as error:
            # The SDK would send the traceback, and with it paths and the host's name, to the client.
            job_logger(job_id).error("job.failed", exc_info=error)
            self.engine.is_broken |= is_machine_error(error)
            result = failure_of(job_id, error)
        # What a client may send again under the same id goes on where it ended.
        self._keeps_state = "error" in result and result["error"]["retryable"]
        result = checked_result(job_id, result, self.settings.max_result_bytes)
        if self.engine.is_broken or self._is_stuck:
            job_logger(job_id).error("worker.replaced")
            result["refresh_worker"] = True
        if not has_queue:
            self.states.close(job_id, self._keeps_state)
        return result

    async def after_delivery(self, job: dict[str, Any], is_delivered: bool) -> None:
        """What remains to be done once the queue has a job's result, or does not want it; the next job is taken
        afterwards."""
        try:
            await asyncio.to_thread(self.states.close, str(job["id"]), self._keeps_state or not is_delivered)
        finally:
            if self._is_stuck:
                end_process()

    def is_unfit(self) -> bool:
        """Whether the worker is to be replaced: until it is, it would take, and lose, other jobs."""
        return self.engine.is_broken

    def drain(self) -> None:
        """The worker goes within its grace: the job in hand is told, and any that still comes."""
        grace_s = self.settings.shutdown_grace_s
        structlog.get_logger().info("worker.draining", details={"grace_s": grace_s})
        self._gone_at = time.monotonic() + grace_s
        if self._stop is not None:
            self._stop.drain(grace_s)

    def end(self) -> None:
        """The platform takes the worker for lost, and gives its job to another one: this one must not go on."""
        structlog.get_logger().error("ping.ended")
        end_process()

    async def _run(self, job: dict[str, Any], progress: ProgressReporter) -> dict[str, Any]:
        """The result of a job's thread.

        Raises:
            asyncio.CancelledError: as `__call__`.
        """
        job_id = str(job["id"])
        time_limit_s = time_limit(job, self.settings)
        self._stop = stop = Stop(time_limit_s)
        if self._gone_at is not None:
            stop.drain(self._gone_at - time.monotonic())
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, run_job, job, self.settings, self.engine, self.states, progress.report, stop
        )
        patience_s = None if time_limit_s is None else time_limit_s + self.settings.stop_timeout_s
        try:
            # A wait that is cancelled leaves the thread alone; nothing else may, or it would go on beside the next job.
            await asyncio.wait([work], timeout=patience_s)
        except asyncio.CancelledError:
            stop.cancel()
            await progress.close(flush=False)
            await self._wait_for_end(job_id, work)
            self.states.close(job_id, keep=True)
            raise
        finally:
            self._stop = None
        if not work.done():
            job_logger(job_id).error("job.stuck", details={"seconds": patience_s})
            self._is_stuck = True
            facts = CODES[ErrorCode.TIMEOUT]
            return failure_of(job_id, WorkerError(ErrorCode.TIMEOUT, f"{facts.message}: {facts.hint}"))
        try:
            return work.result()
        except GenerationStopped as stopped:
            let_go(stopped)
            # Without a result the job stays with the queue, which gives it to another worker once this one is gone.
            self.states.close(job_id, keep=True)
            raise asyncio.CancelledError from None

    async def _wait_for_end(self, job_id: str, work: asyncio.Future[dict[str, Any]]) -> None:
        """Waits until the job's thread has ended, whatever it ended with and however often the wait is cancelled.

        A thread that does not end takes the process with it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.stop_timeout_s
        while not work.done():
            if loop.time() > deadline:
                job_logger(job_id).error("job.stuck", details={"seconds": self.settings.stop_timeout_s})
                end_process()
            try:
                await asyncio.wait([work], timeout=deadline - loop.time() + 0.1)
            except asyncio.CancelledError:
                continue
        if error := work.exception():
            let_go(error)


def let_go(error: BaseException) -> None:
    """Forgets a stopped job's frames, and what they hold, tensors and files: its task is kept until the next job."""
    error.with_traceback(None)


def time_limit(job: dict[str, Any], settings: Settings) -> float | None:
    """Seconds that a job may take: the worker's JOB_TIMEOUT_S or those of the job's policy, whichever are fewer; None
    where neither is set."""
    limits = [settings.job_timeout_s, timeout_s(job.get("policy"))]
    return min((limit for limit in limits if limit is not None), default=None)


def failure_of(job_id: str, error: Exception) -> dict[str, Any]:
    """The failure of a job whose stage is not known."""
    return Failure(job_id=sendable(job_id), error=job_error(error, Stage.SAMPLING)).model_dump(mode="json")


def checked_result(job_id: str, result: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """The result, or a failure in its place where the queue would drop it: not JSON, NaN, or too large."""
    try:
        size = len(json.dumps(result, allow_nan=False, ensure_ascii=False).encode())
        if size <= max_bytes:
            return result
        message = (
            f"the result is too large ({size / MEGABYTE:.1f} MB, at most {max_bytes / MEGABYTE:g} MB); use "
            'output_config.store "s3" or "volume"'
        )
    except (TypeError, ValueError):
        message = "the result is not valid JSON"
    job_logger(job_id).error("job.result_refused", details={"message": message})
    error = job_error(WorkerError(ErrorCode.UPLOAD, message, retryable=False), Stage.UPLOAD)
    return Failure(job_id=sendable(job_id), error=error).model_dump(mode="json")


def with_error_as_text(handler: Handler) -> Handler:
    """A handler for the SDK's local API, which takes an error as text only and else answers with status 500."""

    async def put_error_as_text(job: dict[str, Any]) -> dict[str, Any]:
        result = await handler(job)
        return result | {"error": json.dumps(result["error"])} if "error" in result else result

    return put_error_as_text


def printing(handler: Handler, output: TextIO) -> Handler:
    """A handler that prints its result as JSON: what `--test_input` is for."""

    async def print_result(job: dict[str, Any]) -> dict[str, Any]:
        result = await handler(job)
        print(json.dumps(result, indent=2, ensure_ascii=False), file=output, flush=True)
        return result

    return print_result

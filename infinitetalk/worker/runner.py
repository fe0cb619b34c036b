"""The async handler: one job at a time in one thread, stopped when the queue says so, its result checked."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infinitetalk.worker.engine import Engine
from infinitetalk.worker.errors import WorkerError, job_error
from infinitetalk.worker.job import run_job
from infinitetalk.worker.logs import job_logger, loggable
from infinitetalk.worker.progress import LogSender, ProgressReporter, QueueSender
from infinitetalk.worker.settings import MEGABYTE, Settings
from schemas import ErrorCode, Failure, Stage

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
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job")

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Runs one job to its result, a `schemas.Success` or `schemas.Failure` as a dict.

        Raises:
            asyncio.CancelledError: the job was stopped; by then its thread has ended.
        """
        job_id = str(job["id"])
        logger = job_logger(job_id)
        logger.info("job.taken", details={"input": loggable(job.get("input"))})
        has_queue = self.settings.webhook_post_output is not None
        async with (
            QueueSender(job) if has_queue else LogSender() as send,
            ProgressReporter(job_id, send, self.settings.progress_interval_s) as progress,
        ):
            stop = threading.Event()
            work = asyncio.get_running_loop().run_in_executor(
                self._executor, run_job, job, self.settings, self.engine, progress.report, stop.is_set
            )
            try:
                # Without the shield a cancel would leave the thread at work beside the next job.
                result = await asyncio.shield(work)
            except asyncio.CancelledError:
                stop.set()
                await progress.close(flush=False)
                await _wait_for_end(work)
                logger.info("job.stopped")
                raise
        return checked_result(job_id, result, self.settings.max_result_bytes)


async def _wait_for_end(work: asyncio.Future[dict[str, Any]]) -> None:
    """Waits until the job's thread has ended, whatever it ended with and however often the wait is cancelled."""
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            continue
    work.exception()


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
    return Failure(job_id=job_id, error=error).model_dump(mode="json")


def with_error_as_text(handler: Handler) -> Handler:
    """A handler for the SDK's local API, which takes an error as text only and else answers with status 500."""

    async def put_error_as_text(job: dict[str, Any]) -> dict[str, Any]:
        result = await handler(job)
        return result | {"error": json.dumps(result["error"])} if "error" in result else result

    return put_error_as_text


def printing(handler: Handler) -> Handler:
    """A handler that prints its result as JSON on stdout: what `--test_input` is for."""

    async def print_result(job: dict[str, Any]) -> dict[str, Any]:
        result = await handler(job)
        print(json.dumps(result, indent=2, ensure_ascii=False), flush=True)
        return result

    return print_result

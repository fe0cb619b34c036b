"""The async handler: runs one job at a time in a thread, stops it when the queue says so, and checks its result."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TextIO

import structlog

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import is_machine_error
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.logs import job_logger, loggable
from infinitetalk.worker.policy import time_limit
from infinitetalk.worker.progress import LogSender, ProgressReporter, QueueSender
from infinitetalk.worker.queue.checked import checked_result, failure_of
from infinitetalk.worker.queue.ending import end_process
from infinitetalk.worker.queue.job_run import JobRun, let_go
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop, wait_for

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Runner:
    """Takes jobs from the SDK.

    Args:
        settings: the worker's settings.
        resources: the resources that jobs need; refused jobs do not wait for them.
    """

    def __init__(self, settings: Settings, resources: Future[Resources]) -> None:
        self.settings = settings
        self._resources = resources
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job")
        self._runs: dict[str, JobRun] = {}
        self._gone_at: float | None = None
        self._has_failed = False

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Runs one job to its result, a `schemas.Success`, `Failure` or `BatchResult` as a dict.

        Raises:
            asyncio.CancelledError: the job was stopped or is left to the next worker; its thread has ended.
        """
        job_id = str(job["id"])
        has_queue = self.settings.webhook_post_output is not None
        run = self._runs[job_id] = self._begin(job)
        try:
            job_logger(job_id).info("job.taken", details={"input": loggable(job.get("input"))})
            async with (
                QueueSender(job) if has_queue else LogSender() as send,
                ProgressReporter(job_id, send, self.settings.progress_interval_s) as progress,
            ):
                result = await self._run(run, job, progress)
        except asyncio.CancelledError:
            # A job without a result stays in the queue, which gives it to another worker once this one is gone.
            del self._runs[job_id]
            self._close_states(job_id, keep=True)
            raise
        except Exception as error:
            # The SDK would send the traceback, with paths and the host's name, to the client.
            job_logger(job_id).error("job.failed", exc_info=error)
            self._has_failed |= is_machine_error(error)
            result = failure_of(job_id, error)
        # A job that is sent again under the same id continues from the saved state.
        run.keeps_state = "error" in result and result["error"]["retryable"]
        result = checked_result(job_id, result, self.settings.max_result_bytes)
        if self.is_unfit() or run.is_stuck:
            job_logger(job_id).error("worker.replaced")
            result["refresh_worker"] = True
        if not has_queue:
            del self._runs[job_id]
            self._close_states(job_id, run.keeps_state)
        return result

    async def after_delivery(self, job: dict[str, Any], is_delivered: bool) -> None:
        """Cleans up once the queue has taken or refused a job's result, before the next job is taken."""
        run = self._runs.pop(str(job["id"]))
        try:
            await asyncio.to_thread(self._close_states, run.job_id, run.keeps_state or not is_delivered)
        finally:
            if run.is_stuck:
                end_process()

    def is_unfit(self) -> bool:
        """Whether the worker must be replaced, since it would take and lose other jobs."""
        return self._has_failed or (self._resources.done() and self._resources.result().engine.health.is_broken)

    def drain(self) -> None:
        """Tells the current job, and any job still to come, that the worker ends after its grace period."""
        grace_s = self.settings.shutdown_grace_s
        structlog.get_logger().info("worker.draining", details={"grace_s": grace_s})
        self._gone_at = time.monotonic() + grace_s
        for run in self._runs.values():
            run.stop.drain(grace_s)

    def end(self) -> None:
        """Ends the process at once: the platform considers the worker lost and gives its job to another one."""
        structlog.get_logger().error("ping.ended")
        end_process()

    def _begin(self, job: dict[str, Any]) -> JobRun:
        stop = Stop(time_limit(job.get("policy"), self.settings.job_timeout_s))
        if self._gone_at is not None:
            stop.drain(self._gone_at - time.monotonic())
        return JobRun(str(job["id"]), stop, self.settings.stop_timeout_s)

    async def _run(self, run: JobRun, job: dict[str, Any], progress: ProgressReporter) -> dict[str, Any]:
        """The result of a job's thread.

        Raises:
            asyncio.CancelledError: as for `__call__`.
        """
        get_resources = partial(wait_for, self._resources, run.stop)
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, run_job, job, self.settings, get_resources, progress.report, run.stop
        )
        try:
            return await run.result_of(work)
        except asyncio.CancelledError:
            run.stop.cancel()
            await progress.close(flush=False)
            await run.wait_for_end(work)
            raise
        except GenerationStopped as stopped:
            let_go(stopped)
            raise asyncio.CancelledError from None

    def _close_states(self, job_id: str, keep: bool) -> None:
        """Closes a job's saved states; without resources none can have been saved."""
        if self._resources.done():
            self._resources.result().states.close(job_id, keep)


def with_error_as_text(handler: Handler) -> Handler:
    """A handler for the SDK's local API, which answers with status 500 unless an error is a text."""

    async def put_error_as_text(job: dict[str, Any]) -> dict[str, Any]:
        result = await handler(job)
        return result | {"error": json.dumps(result["error"])} if "error" in result else result

    return put_error_as_text


def printing(handler: Handler, output: TextIO) -> Handler:
    """A handler that prints its result as JSON, for `--test_input`."""

    async def print_result(job: dict[str, Any]) -> dict[str, Any]:
        result = await handler(job)
        print(json.dumps(result, indent=2, ensure_ascii=False), file=output, flush=True)
        return result

    return print_result

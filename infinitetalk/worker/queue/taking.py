"""Jobs from the queue, one after the other, each of them answered.

The SDK's loop loses jobs: one that an open request brings after SIGTERM is never started, and one whose JSON Python
refuses, or that lacks its input, is dropped with a line in the log. It has no setting for that, so its class is
replaced.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import aiohttp
import structlog
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_job, rp_scale

from infinitetalk.worker.logs import job_logger

REQUEST_TIMEOUT_S = 90.0
NO_JOB_STATUSES = (204, 400)
"""400 is what a worker gets that FlashBoot is about to freeze."""

PAUSE_S = 1.0
"""Seconds between two requests of which the first failed, or came back at once without a job."""

TOO_MANY_REQUESTS_PAUSE_S = 5.0

DEEPEST = 100
"""Levels of nesting that are read: more than any job that is not refused has, and few enough for Python."""

LONGEST_INTEGER = 4000
"""Digits; Python refuses to read more than 4,300."""

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]+|[\]}]+', re.DOTALL)
"""A string, which may lack its end, or brackets."""


class JobLoop(rp_scale.JobScaler):
    """What the SDK calls JobScaler, for one job at a time.

    Args:
        config: the SDK's.
        drain: called once, when the worker is told to go.
        is_unfit: whether no other job must be taken, asked after each.
        grace_s: seconds that it stays then, if no job keeps it.
    """

    def __init__(
        self, config: dict[str, Any], drain: Callable[[], None], is_unfit: Callable[[], bool], grace_s: float
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._is_unfit = is_unfit
        self._grace_s = grace_s
        self._is_over = asyncio.Event()

    def start(self) -> None:
        """Serves until the worker is told to go, and its last job has ended."""
        asyncio.run(self.run())

    async def run(self) -> None:
        """As `start`."""
        loop = asyncio.get_running_loop()
        # Called by the loop, and not wherever a signal happens to interrupt: in a call to the log, say.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.kill_worker)
        async with AsyncClientSession() as session:
            stops = asyncio.create_task(self.monitor_stop_signals(session))
            try:
                while self.is_alive():
                    if (job := await self._next_job(session)) is not None:
                        await self._serve(session, job)
                        if self._is_unfit():
                            break
            finally:
                stops.cancel()

    def kill_worker(self) -> None:
        """The worker goes; the first call counts."""
        if self.is_alive():
            super().kill_worker()
            asyncio.get_running_loop().call_later(self._grace_s, self._is_over.set)
            self._drain()

    async def _next_job(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """The next job, if one comes. A request that is open when the worker is told to go may still bring one, and is
        waited for as long as the worker stays."""
        begin = time.monotonic()
        request = asyncio.create_task(take_job(session))
        over = asyncio.create_task(self._is_over.wait())
        await asyncio.wait([request, over], return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if not request.done():
            request.cancel()
            return None
        pause_s = PAUSE_S
        try:
            job = request.result()
        except Exception as error:
            # An address or a key may be in its words; who runs the worker finds out by its type.
            reason = str(error) if isinstance(error, NoJobError) else type(error).__name__
            structlog.get_logger().warning("queue.no_answer", details={"reason": reason})
            pause_s = error.pause_s if isinstance(error, NoJobError) else PAUSE_S
        else:
            if job is not None or time.monotonic() - begin > PAUSE_S:
                return job
        with suppress(TimeoutError):
            await asyncio.wait_for(self._shutdown_event.wait(), timeout=pause_s)
        return None

    async def _serve(self, session: aiohttp.ClientSession, job: dict[str, Any]) -> None:
        """Runs a job to its end, whatever that is."""
        job_id = job["id"]
        self.job_progress.add(job_id)
        self.jobs_tasks[job_id] = asyncio.create_task(self.jobs_handler(session, self.config, job))
        try:
            await asyncio.wait([self.jobs_tasks[job_id]])
            task = self.jobs_tasks[job_id]
            if not task.cancelled() and (error := task.exception()) is not None:
                job_logger(job_id).error("job.unanswered", exc_info=error)
        finally:
            del self.jobs_tasks[job_id]
            self.job_progress.remove(job_id)


class NoJobError(Exception):
    """The queue's answer is neither a job nor that there is none.

    Args:
        pause_s: seconds to wait before it is asked again.
    """

    def __init__(self, reason: str, pause_s: float = PAUSE_S) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def install(drain: Callable[[], None], is_unfit: Callable[[], bool], grace_s: float) -> None:
    """Lets the SDK take jobs by a `JobLoop`."""
    rp_scale.JobScaler = partial(JobLoop, drain=drain, is_unfit=is_unfit, grace_s=grace_s)


async def take_job(session: aiohttp.ClientSession) -> dict[str, Any] | None:
    """Asks the queue for a job once; None where it has none.

    Raises:
        NoJobError: the answer is something else.
        aiohttp.ClientError, TimeoutError: there is none.
    """
    async with (
        asyncio.timeout(REQUEST_TIMEOUT_S),
        session.get(rp_job._job_get_url(), allow_redirects=False) as response,
    ):
        status, body = response.status, await response.read()
    if status in NO_JOB_STATUSES:
        return None
    if status != 200:
        pause_s = TOO_MANY_REQUESTS_PAUSE_S if status == 429 else PAUSE_S
        raise NoJobError(f"status {status}", pause_s)
    # Go's JSON, which the queue is written in, reads bytes that are no UTF-8 likewise.
    text = body.decode("utf-8", "replace")
    try:
        job = json.loads(text)
    except (ValueError, RecursionError):
        job = await asyncio.to_thread(read_refused, text)
    if not isinstance(job, dict) or not isinstance(job.get("id"), str):
        raise NoJobError("no job, or one without an id")
    return job


def read_refused(text: str) -> Any:
    """JSON that Python refuses to read, though it is valid: what is nested deeper than `DEEPEST` is null, and an
    integer of more than `LONGEST_INTEGER` digits infinite. A field that is affected is refused by its name.

    Raises:
        NoJobError: it is no JSON at all.
    """
    try:
        return json.loads(without_depths(text), parse_int=_integer)
    except ValueError as error:
        raise NoJobError("no JSON") from error


def without_depths(text: str) -> str:
    """JSON whose objects and lists below `DEEPEST` levels are null. Takes time in proportion to the text."""
    kept = []
    depth = end = 0
    for token in _TOKEN.finditer(text):
        begin, length = token.start(), token.end() - token.start()
        if text[begin] in "[{":
            if depth <= DEEPEST < depth + length:
                kept += [text[end : begin + DEEPEST - depth], "null"]
            depth += length
        elif text[begin] in "]}":
            if depth - length <= DEEPEST < depth:
                end = begin + depth - DEEPEST
            depth -= length
    return "".join([*kept, text[end:]])


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)

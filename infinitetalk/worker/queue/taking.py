"""Takes jobs from the queue one after the other and answers each of them.

The SDK's loop loses jobs. If an open request brings a job after SIGTERM, the job is never started. If Python refuses a
job's JSON, or its input is missing, the job is dropped with a line in the log. The SDK has no setting for this, so its
class is replaced.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import aiohttp
import structlog
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_job, rp_scale

from infinitetalk.worker.logs import job_logger

REQUEST_TIMEOUT_S = 90.0
NO_JOB_STATUSES = (204, 400)
"""A worker that FlashBoot is about to freeze gets 400."""

PAUSE_S = 1.0
"""Seconds to wait after a request that failed or returned at once without a job."""

TOO_MANY_REQUESTS_PAUSE_S = 5.0

END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WAKE_BYTES = 4096

DEEPEST = 100
"""Levels of nesting that are read: more than any valid job has, and few enough for Python."""

LONGEST_INTEGER = 4000
"""Digits of the longest integer that is read; Python refuses more than 4,300."""

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]+|[\]}]+', re.DOTALL)
"""Matches a string, which may be unterminated, or brackets."""


class JobLoop(rp_scale.JobScaler):
    """Replaces the SDK's JobScaler; takes one job at a time.

    Args:
        config: the SDK's configuration.
        drain: called once, when the worker is told to end.
        is_unfit: returns whether no further job must be taken; asked after each job.
        grace_s: seconds that the worker then keeps an open request for a job.
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
        """Serves until the worker is told to end and its last job has ended."""
        asyncio.run(self.run())

    async def run(self) -> None:
        """Implements `start`."""
        with told_to_end(self.kill_worker):
            await self._serve_all()

    async def _serve_all(self) -> None:
        """Serves one job after another."""
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
        """Tells the worker to end; only the first call has an effect."""
        if self.is_alive():
            super().kill_worker()
            asyncio.get_running_loop().call_later(self._grace_s, self._is_over.set)
            self._drain()

    async def _next_job(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """The next job, if one comes. A request that is open when the worker is told to end may still bring a job, so
        it is kept open for the grace period."""
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
            # Only the type is logged: the message may contain an address or a key.
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
        """Runs a job until it has ended in any way."""
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


@contextmanager
def told_to_end(callback: Callable[[], None]) -> Iterator[None]:
    """Lets the running event loop call `callback` at each SIGTERM and SIGINT. Afterwards, they are ignored: the loop's
    own handlers would be removed with it, and another signal would kill the process in the middle of its end.

    A plain signal handler could interrupt any code, such as a log call.
    """
    loop = asyncio.get_running_loop()
    reader, writer = socket.socketpair()

    def answer() -> None:
        # One byte for each signal, with its number.
        if set(END_SIGNALS).intersection(reader.recv(WAKE_BYTES)):
            callback()

    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        loop.add_reader(reader, answer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in END_SIGNALS:
            signal.signal(number, lambda *_: None)
        try:
            yield
        finally:
            for number in END_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            loop.remove_reader(reader)


class NoJobError(Exception):
    """The queue's answer is neither a job nor a statement that there is none.

    Args:
        pause_s: seconds to wait before the next request.
    """

    def __init__(self, reason: str, pause_s: float = PAUSE_S) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def install(drain: Callable[[], None], is_unfit: Callable[[], bool], grace_s: float) -> None:
    """Makes the SDK take jobs by a `JobLoop`."""
    rp_scale.JobScaler = partial(JobLoop, drain=drain, is_unfit=is_unfit, grace_s=grace_s)


async def take_job(session: aiohttp.ClientSession) -> dict[str, Any] | None:
    """Asks the queue for a job once; None if it has none.

    Raises:
        NoJobError: the answer is something else.
        aiohttp.ClientError, TimeoutError: there was no answer.
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
    # Bytes that are not UTF-8 are replaced, as in the JSON package of Go, the queue's language.
    text = body.decode("utf-8", "replace")
    try:
        job = json.loads(text)
    except (ValueError, RecursionError):
        job = await asyncio.to_thread(read_refused, text)
    if not isinstance(job, dict) or not isinstance(job.get("id"), str):
        raise NoJobError("not a job, or a job without an id")
    return job


def read_refused(text: str) -> Any:
    """Reads valid JSON that Python refuses: values nested deeper than `DEEPEST` become null, and integers of more than
    `LONGEST_INTEGER` digits become infinite. Validation then refuses the affected field by name.

    Raises:
        NoJobError: the text is not JSON.
    """
    try:
        return json.loads(without_depths(text), parse_int=_integer)
    except ValueError as error:
        raise NoJobError("no JSON") from error


def without_depths(text: str) -> str:
    """JSON with null in place of objects and lists below `DEEPEST` levels. Takes time proportional to the text."""
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

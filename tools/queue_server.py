"""The local endpoint with faults and waits for tests.

    with LocalQueue() as queue:
        worker = subprocess.Popen([sys.executable, "handler.py"], env=os.environ | queue.environment())
        job_id = queue.post({...})
        job = queue.wait(job_id, timeout_s=60)

Runs in its own thread and ends with the `with` block, or by itself after its lifetime.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from aiohttp import web

from tools.local_endpoint import POLL_S, JobQueue, LocalEndpoint, QueuedJob

__all__ = ["API_KEY", "LocalQueue", "QueuedJob"]

MAX_LIFETIME_S = 900
API_KEY = "test-key"


Fault = int | Literal["drop", "drop after", "login", "page"]
"""The answer to an offered result: a status, a dropped connection before or after the result is stored, a redirect to
an address that answers with 200, or an HTML page."""


class FaultyEndpoint(LocalEndpoint):
    """An endpoint with prescribed faults in its answers to results and progress.

    Attributes:
        faults: faults of the next offered results, in order.
        progress_delay_s: time that each progress message waits for its answer.
        results: bodies of all offers of a job's result.
        take_faults: faults of the next requests for a job: a status, or "page".
        texts: by job id, the text that a worker gets in place of the job's JSON.
    """

    def __init__(self, queue: JobQueue, key: str, files: Path | None, lifetime_s: float) -> None:
        super().__init__(queue, key, files=files, lifetime_s=lifetime_s)
        self.faults: deque[Fault] = deque()
        self.progress_delay_s = 0.0
        self.results: defaultdict[str, list[bytes]] = defaultdict(list)
        self.take_faults: deque[Fault] = deque()
        self.texts: dict[str, str] = {}

    async def job_take(self, request: web.Request) -> web.Response:
        if self.take_faults:
            return self._refusal(self.take_faults.popleft())
        response = await super().job_take(request)
        if response.status == 200 and (text := self.texts.get(json.loads(response.text or "")["id"])):
            return web.Response(text=text, content_type="application/json")
        return response

    async def job_done(self, request: web.Request) -> web.Response:
        body = await request.read()
        if json.loads(body).get("status") == "IN_PROGRESS":
            await asyncio.sleep(self.progress_delay_s)
            return await super().job_done(request)
        self.results[request.match_info["job"]].append(body)
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, int) or fault in ("login", "page"):
            return self._refusal(fault)
        answer = web.Response() if fault == "drop" else await super().job_done(request)
        if fault is not None and request.transport is not None:
            request.transport.abort()
        return answer

    def _refusal(self, fault: Fault) -> web.Response:
        """A status, a redirect, or a page."""
        if isinstance(fault, int):
            return web.Response(status=fault)
        if fault == "login":
            return web.Response(status=302, headers={"Location": f"{self.url}/health"})
        return web.Response(text="<html>Who are you?</html>", content_type="text/html")


class LocalQueue(JobQueue):
    """A queue and the endpoint that serves it."""

    def __init__(self, files: Path | None = None, lifetime_s: float = MAX_LIFETIME_S) -> None:
        super().__init__()
        self.endpoint = FaultyEndpoint(self, API_KEY, files, lifetime_s)

    def __enter__(self) -> Self:
        self.endpoint.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.endpoint.__exit__(None, None, None)

    @property
    def pings(self) -> int:
        """Number of the worker's pings."""
        return self.endpoint.pings

    @property
    def unauthorised(self) -> int:
        """Number of requests without the key."""
        return self.endpoint.unauthorised

    def environment(self) -> dict[str, str]:
        """The environment that Runpod sets for a worker, pointing here."""
        return self.endpoint.environment()

    def post_text(self, text: str) -> str:
        """Queues a job that the worker gets as this text, with its id in place of "ID". Returns its id."""
        job_id = uuid.uuid4().hex
        self.endpoint.texts[job_id] = text.replace("ID", job_id)
        return self.post(None, job_id=job_id)

    def give_again(self, job_id: str) -> None:
        """Queues the job again as if its worker were lost, and drops all that the worker has reported."""
        with self._lock:
            self._requeue(self.jobs[job_id])

    def wait(self, job_id: str, timeout_s: float) -> QueuedJob:
        """Waits until the job is COMPLETED or FAILED, and returns it."""
        return self.wait_until(job_id, lambda job: job.status in ("COMPLETED", "FAILED"), timeout_s)

    def wait_until(self, job_id: str, condition: Callable[[QueuedJob], bool], timeout_s: float) -> QueuedJob:
        """Waits until `condition(job)` holds, and returns the job; after `timeout_s`, an AssertionError shows it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.jobs[job_id]
            if condition(job):
                return job
            time.sleep(POLL_S)
        raise AssertionError(f"after {timeout_s} s: {self.jobs[job_id]}")

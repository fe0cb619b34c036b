"""A small queue that speaks Runpod's worker protocol on the loopback address, for tests.

    with LocalQueue() as queue:
        worker = subprocess.Popen([sys.executable, "handler.py"], env=os.environ | queue.environment())
        job_id = queue.post({...})
        job = queue.wait(job_id, timeout_s=60)

Runs in a thread of its own and ends with the `with` block, or by itself after `MAX_LIFETIME_S`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

MAX_LIFETIME_S = 900
POLL_S = 0.02
LONG_POLL_S = 1.0
WORKER_ID = "worker-1"
API_KEY = "test-key"


@dataclass
class QueuedJob:
    """A job and all that its worker has said of it; times are of the monotonic clock, in seconds."""

    id: str
    payload: dict[str, Any]
    status: str = "IN_QUEUE"
    taken_at: float | None = None
    ended_at: float | None = None
    progress: list[dict[str, Any]] = field(default_factory=list)
    output: Any = None
    error: Any = None
    posts_after_end: int = 0

    @property
    def seconds(self) -> float:
        """From being taken to the result."""
        assert self.taken_at is not None and self.ended_at is not None
        return self.ended_at - self.taken_at


class LocalQueue:
    """Hands jobs to a worker in order and keeps what it answers."""

    def __init__(self) -> None:
        self.jobs: dict[str, QueuedJob] = {}
        self.pings = 0
        self.unauthorised = 0
        self._waiting: list[str] = []
        self._stops: list[str] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(10), "the queue did not start"
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def environment(self) -> dict[str, str]:
        """What Runpod sets for a worker, pointing here, without the checks of its machines."""
        base = f"http://127.0.0.1:{self.port}/v2/endpoint"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": WORKER_ID,
            "RUNPOD_AI_API_KEY": API_KEY,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def post(self, job_input: Any, job_id: str | None = None, **envelope: Any) -> str:
        """Queues a job; `envelope` is what lies beside `input`, such as s3Config. Returns its id."""
        job_id = job_id or uuid.uuid4().hex
        with self._lock:
            self.jobs[job_id] = QueuedJob(job_id, {"id": job_id, "input": job_input, **envelope})
            self._waiting.append(job_id)
        return job_id

    def cancel(self, job_id: str) -> None:
        """Tells the worker to stop a job."""
        with self._lock:
            self.jobs[job_id].status = "CANCELLED"
            self._stops.append(job_id)

    def wait(self, job_id: str, timeout_s: float) -> QueuedJob:
        """The job once it is COMPLETED or FAILED."""
        return self.wait_until(job_id, lambda job: job.status in ("COMPLETED", "FAILED"), timeout_s)

    def wait_until(self, job_id: str, condition: Any, timeout_s: float) -> QueuedJob:
        """The job once `condition(job)` holds; an AssertionError with what is known when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.jobs[job_id]
            if condition(job):
                return job
            time.sleep(POLL_S)
        raise AssertionError(f"after {timeout_s} s: {self.jobs[job_id]}")

    async def _serve(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v2/endpoint/job-take/{worker}", self._take)
        app.router.add_get("/v2/endpoint/job-stop/{worker}", self._stop)
        app.router.add_post("/v2/endpoint/job-done/{worker}/{job}", self._done)
        app.router.add_get("/v2/endpoint/ping/{worker}", self._ping)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._started.set()
        deadline = time.monotonic() + MAX_LIFETIME_S
        while not self._ended.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self._check_key(request)
        deadline = time.monotonic() + LONG_POLL_S
        while time.monotonic() < deadline and not self._ended.is_set():
            with self._lock:
                if self._waiting:
                    job = self.jobs[self._waiting.pop(0)]
                    job.status, job.taken_at = "IN_PROGRESS", time.monotonic()
                    return web.json_response(job.payload)
            await asyncio.sleep(POLL_S)
        return web.Response(status=204)

    async def _stop(self, request: web.Request) -> web.Response:
        self._check_key(request)
        deadline = time.monotonic() + LONG_POLL_S
        while time.monotonic() < deadline and not self._ended.is_set():
            with self._lock:
                if self._stops:
                    stops, self._stops = self._stops, []
                    return web.json_response({"jobsToStop": stops})
            await asyncio.sleep(POLL_S)
        return web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        self._check_key(request)
        message = json.loads(await request.read())
        with self._lock:
            job = self.jobs[request.match_info["job"]]
            if job.ended_at is not None:
                job.posts_after_end += 1
            elif message.get("status") == "IN_PROGRESS":
                job.progress.append(message["output"])
            else:
                job.output, job.error = message.get("output"), message.get("error")
                job.status = "FAILED" if job.error else "COMPLETED"
                job.ended_at = time.monotonic()
        return web.Response(text="{}")

    async def _ping(self, request: web.Request) -> web.Response:
        self._check_key(request)
        self.pings += 1
        return web.Response(text="{}")

    def _check_key(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != API_KEY:
            self.unauthorised += 1

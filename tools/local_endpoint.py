"""An endpoint on the loopback address: a queue that speaks Runpod's API to clients and to a worker.

    python -m tools.local_endpoint      (make serve)

starts it with one worker. A client of http://127.0.0.1:8000/v2/local works with https://api.runpod.ai/v2/ENDPOINT after
a change of address and key. `/files/`, the worker's output folder, exists only here and not at Runpod: clients read
results in store "volume" from it and put inputs there that are too large for a request. Previews need no key, because
players send none.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from infinitetalk.media.hls import SEGMENT_TYPE
from infinitetalk.worker.policy import checked_seconds
from infinitetalk.worker.settings import CHECKOUT, MEGABYTE, Settings
from schemas import check_safe_name
from schemas.envelope import JobStatus

ENDPOINT_ID = "local"
WORKER_ID = "worker-1"
POLL_S = 0.02
LONG_POLL_S = 1.0
START_TIMEOUT_S = 10.0

MAX_RUN_BYTES = 10 * MEGABYTE
MAX_RUNSYNC_BYTES = 20 * MEGABYTE
MAX_UPLOAD_BYTES = 1000 * MEGABYTE
RUN_RESULT_KEPT_S = 30 * 60.0
RUNSYNC_RESULT_KEPT_S = 60.0
RUNSYNC_WAIT_S = 90.0
DEFAULT_TTL_S = 24 * 3600.0
"""The constants above from `MAX_RUN_BYTES` on are Runpod's limits."""

MAX_LOST_WORKERS = 2
"""Number of lost workers after which a job is still queued again; after one more it fails."""

WEBHOOK_TRIES, WEBHOOK_PAUSE_S = 3, 10.0


@dataclass
class QueuedJob:
    """A job and all messages of its worker; times are from the monotonic clock, in seconds."""

    id: str
    payload: dict[str, Any]
    webhook: str | None = None
    execution_timeout_s: float | None = None
    ttl_s: float = DEFAULT_TTL_S
    kept_s: float = RUN_RESULT_KEPT_S
    status: JobStatus = JobStatus.IN_QUEUE
    created_at: float = field(default_factory=time.monotonic)
    taken_at: float | None = None
    ended_at: float | None = None
    progress: list[Any] = field(default_factory=list)
    output: Any = None
    error: Any = None
    posts_after_end: int = 0
    workers_lost: int = 0

    @property
    def seconds(self) -> float:
        """Time from taking the job to its result."""
        assert self.taken_at is not None and self.ended_at is not None
        return self.ended_at - self.taken_at

    def end(self, status: JobStatus) -> None:
        """Ends the job; later messages of a worker are ignored."""
        self.status, self.ended_at = status, time.monotonic()

    def as_status(self) -> dict[str, Any]:
        """The answer of /status; while the job is IN_PROGRESS, the output is its progress."""
        answer: dict[str, Any] = {"id": self.id, "status": self.status}
        if self.taken_at is not None:
            answer |= {"delayTime": _milliseconds(self.taken_at - self.created_at), "workerId": WORKER_ID}
        if self.taken_at is not None and self.ended_at is not None:
            answer["executionTime"] = _milliseconds(self.seconds)
        output = self.progress[-1] if self.status is JobStatus.IN_PROGRESS and self.progress else self.output
        if output is not None:
            answer["output"] = output
        if self.error is not None:
            answer["error"] = self.error
        return answer


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


class JobQueue:
    """Jobs in order; safe to use from the server's event loop and from any thread.

    Args:
        execution_timeout_s: time limit of jobs without one in their policy.
    """

    def __init__(self, execution_timeout_s: float | None = None) -> None:
        self.jobs: dict[str, QueuedJob] = {}
        self.taken = 0
        self.retried = 0
        self._execution_timeout_s = execution_timeout_s
        self._waiting: list[str] = []
        self._stops: list[str] = []
        self._unannounced: list[str] = []
        self._lock = threading.Lock()

    def post(
        self, job_input: Any, job_id: str | None = None, kept_s: float = RUN_RESULT_KEPT_S, **envelope: Any
    ) -> str:
        """Queues a job; `envelope` has the fields beside `input`, such as s3Config, policy and webhook. Returns its id.

        Raises:
            policy.PolicyError: Runpod would refuse its policy.
        """
        job_id = job_id or uuid.uuid4().hex
        policy = envelope.get("policy") or {}
        job = QueuedJob(
            job_id,
            {"id": job_id, "input": job_input, **envelope},
            webhook=envelope.get("webhook"),
            execution_timeout_s=checked_seconds(policy, "executionTimeout") or self._execution_timeout_s,
            ttl_s=checked_seconds(policy, "ttl") or DEFAULT_TTL_S,
            kept_s=kept_s,
        )
        with self._lock:
            self.jobs[job_id] = job
            self._waiting.append(job_id)
        return job_id

    def take(self) -> dict[str, Any] | None:
        """The next job, in the form that a worker gets; None if none is waiting."""
        with self._lock:
            if not self._waiting:
                return None
            job = self.jobs[self._waiting.pop(0)]
            job.status, job.taken_at = JobStatus.IN_PROGRESS, time.monotonic()
            self.taken += 1
            return job.payload

    def take_stops(self) -> list[str]:
        """Jobs that the worker must stop."""
        with self._lock:
            stops, self._stops = self._stops, []
            return stops

    def take_unannounced(self) -> list[QueuedJob]:
        """Ended jobs whose webhooks have not been called yet."""
        with self._lock:
            job_ids, self._unannounced = self._unannounced, []
            return [self.jobs[job_id] for job_id in job_ids if job_id in self.jobs]

    def report(self, job_id: str, message: dict[str, Any]) -> None:
        """Stores a worker's progress or result; messages after the job's end are ignored."""
        with self._lock:
            job = self.jobs.get(job_id)
            if job is None:
                return
            if job.ended_at is not None:
                job.posts_after_end += 1
            elif message.get("status") == "IN_PROGRESS":
                job.progress.append(message["output"])
            else:
                job.output, job.error = message.get("output"), message.get("error")
                self._end(job, JobStatus.FAILED if job.error else JobStatus.COMPLETED)

    def cancel(self, job_id: str) -> QueuedJob:
        """Cancels a job unless it has ended, and returns it.

        Raises:
            KeyError: there is no such job.
        """
        with self._lock:
            job = self.jobs[job_id]
            if job.ended_at is None:
                self._stop(job, JobStatus.CANCELLED)
            return job

    def retry(self, job_id: str) -> QueuedJob:
        """Puts a job into the queue again under its id, and returns it.

        Raises:
            KeyError: there is no such job.
            ValueError: it has neither failed nor timed out.
        """
        with self._lock:
            job = self.jobs[job_id]
            if job.status not in (JobStatus.FAILED, JobStatus.TIMED_OUT):
                raise ValueError(f"the job is {job.status}: only one that is FAILED or TIMED_OUT can be tried again")
            self.retried += 1
            self._requeue(job)
            return job

    def lose_worker(self) -> None:
        """Handles a worker's death: its job goes to the next worker, unless the job seems to be the cause."""
        with self._lock:
            for job in self.jobs.values():
                if job.status is not JobStatus.IN_PROGRESS:
                    continue
                job.workers_lost += 1
                if job.workers_lost > MAX_LOST_WORKERS:
                    job.error = "the worker ended while it ran this job"
                    self._end(job, JobStatus.FAILED)
                else:
                    self._requeue(job)

    def expire(self) -> None:
        """Stops jobs that have exceeded their time, and deletes ended ones that have been kept long enough."""
        now = time.monotonic()
        with self._lock:
            for job in list(self.jobs.values()):
                if job.ended_at is not None:
                    if now > job.ended_at + job.kept_s:
                        del self.jobs[job.id]
                elif (
                    job.taken_at is not None
                    and job.execution_timeout_s is not None
                    and now > job.taken_at + job.execution_timeout_s
                ):
                    job.error = "job timed out: its executionTimeout is over"
                    self._stop(job, JobStatus.TIMED_OUT)
                elif now > job.created_at + job.ttl_s:
                    self._stop(job, JobStatus.CANCELLED)
                    del self.jobs[job.id]

    def health(self) -> dict[str, Any]:
        """The answer of /health."""
        with self._lock:
            statuses = [job.status for job in self.jobs.values()]
        running = statuses.count(JobStatus.IN_PROGRESS)
        return {
            "jobs": {
                "completed": statuses.count(JobStatus.COMPLETED),
                "failed": statuses.count(JobStatus.FAILED) + statuses.count(JobStatus.TIMED_OUT),
                "inProgress": running,
                "inQueue": statuses.count(JobStatus.IN_QUEUE),
                "retried": self.retried,
            },
            "workers": {"idle": 1 - min(running, 1), "running": min(running, 1)},
        }

    def _end(self, job: QueuedJob, status: JobStatus) -> None:
        job.end(status)
        if job.webhook:
            self._unannounced.append(job.id)

    def _stop(self, job: QueuedJob, status: JobStatus) -> None:
        if job.id in self._waiting:
            self._waiting.remove(job.id)
        else:
            self._stops.append(job.id)
        self._end(job, status)

    def _requeue(self, job: QueuedJob) -> None:
        job.status, job.taken_at, job.ended_at = JobStatus.IN_QUEUE, None, None
        job.progress, job.output, job.error = [], None, None
        self._waiting.append(job.id)


class LocalEndpoint:
    """Serves a queue on 127.0.0.1 in its own thread, inside a `with` block.

    Args:
        queue: the jobs.
        key: the key of clients and the worker.
        port: 0 for any free port; the attribute then has its number.
        files: the worker's output folder, served below /files/; None: not served.
        lifetime_s: time after which it ends by itself.
    """

    def __init__(
        self, queue: JobQueue, key: str, port: int = 0, files: Path | None = None, lifetime_s: float | None = None
    ) -> None:
        self.queue = queue
        self.key = key
        self.port = port
        self.files = files
        self.lifetime_s = lifetime_s
        self.pings = 0
        self.unauthorised = 0
        self._ended = threading.Event()
        self._started = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begins to serve.

        Raises:
            OSError: the port is in use, or not allowed.
        """
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listener)), daemon=True)
        self._thread.start()
        self._started.wait(START_TIMEOUT_S)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join(START_TIMEOUT_S)

    @property
    def url(self) -> str:
        """The address that replaces https://api.runpod.ai/v2/ENDPOINT."""
        return f"http://127.0.0.1:{self.port}/v2/{ENDPOINT_ID}"

    def environment(self) -> dict[str, str]:
        """The environment that Runpod sets for a worker, pointing here, without the checks of Runpod's machines."""
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": WORKER_ID,
            "RUNPOD_AI_API_KEY": self.key,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def application(self) -> web.Application:
        """All routes: the clients', the worker's, and /files/."""
        base = f"/v2/{ENDPOINT_ID}"
        app = web.Application(client_max_size=MAX_UPLOAD_BYTES, middlewares=[self._check_key])
        app.add_routes(
            [
                web.post(f"{base}/run", self.run),
                web.post(f"{base}/runsync", self.runsync),
                web.get(f"{base}/status/{{job}}", self.status),
                web.post(f"{base}/cancel/{{job}}", self.cancel),
                web.post(f"{base}/retry/{{job}}", self.retry),
                web.get(f"{base}/health", self.health),
                web.get(f"{base}/job-take/{{worker}}", self.job_take),
                web.get(f"{base}/job-stop/{{worker}}", self.job_stop),
                web.post(f"{base}/job-done/{{worker}}/{{job}}", self.job_done),
                web.get(f"{base}/ping/{{worker}}", self.ping),
            ]
        )
        if self.files is not None:
            self.files.mkdir(parents=True, exist_ok=True)
            app.router.add_put("/files/uploads/{name}", self.upload)
            app.router.add_static("/files/", self.files)
            app.on_response_prepare.append(_name_segment)
        return app

    async def run(self, request: web.Request) -> web.Response:
        """POST /run: queues a job."""
        job_id = await self._post(request, MAX_RUN_BYTES, RUN_RESULT_KEPT_S)
        return web.json_response({"id": job_id, "status": JobStatus.IN_QUEUE})

    async def runsync(self, request: web.Request) -> web.Response:
        """POST /runsync: queues a job and waits a limited time for its end."""
        job_id = await self._post(request, MAX_RUNSYNC_BYTES, RUNSYNC_RESULT_KEPT_S)
        job = self.queue.jobs[job_id]
        await self._long_poll(lambda: job.ended_at is not None, RUNSYNC_WAIT_S)
        return web.json_response(job.as_status())

    async def status(self, request: web.Request) -> web.Response:
        """GET /status/ID."""
        return web.json_response(self._job(request).as_status())

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /cancel/ID."""
        return web.json_response(self.queue.cancel(self._job(request).id).as_status())

    async def retry(self, request: web.Request) -> web.Response:
        """POST /retry/ID: puts a job that has failed or timed out into the queue again, under the same id."""
        try:
            return web.json_response(self.queue.retry(self._job(request).id).as_status())
        except ValueError as error:
            return _refusal(400, str(error))

    async def health(self, request: web.Request) -> web.Response:
        """GET /health."""
        return web.json_response(self.queue.health())

    async def upload(self, request: web.Request) -> web.Response:
        """PUT /files/uploads/NAME: stores an input, and answers with its path for a job."""
        assert self.files is not None
        try:
            name = check_safe_name(request.match_info["name"])
        except ValueError as error:
            return _refusal(400, f"the name {error}")
        folder = self.files / "uploads"
        folder.mkdir(exist_ok=True)
        with (folder / name).open("wb") as file:
            async for block in request.content.iter_chunked(1 << 16):
                file.write(block)
        return web.json_response({"path": f"uploads/{name}"})

    async def job_take(self, request: web.Request) -> web.Response:
        """A worker asks for a job."""
        payloads: list[dict[str, Any]] = []

        def take() -> bool:
            if request.transport is None:
                # The worker has disconnected: a job handed over now would be lost.
                return True
            payload = self.queue.take()
            payloads.extend([payload] if payload else [])
            return bool(payloads)

        await self._long_poll(take, LONG_POLL_S)
        return web.json_response(payloads[0]) if payloads else web.Response(status=204)

    async def job_stop(self, request: web.Request) -> web.Response:
        """A worker asks which jobs it must stop."""
        stops: list[str] = []

        def take() -> bool:
            stops.extend(self.queue.take_stops())
            return bool(stops)

        await self._long_poll(take, LONG_POLL_S)
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def job_done(self, request: web.Request) -> web.Response:
        """A worker reports progress or a result."""
        self.queue.report(request.match_info["job"], json.loads(await request.read()))
        return web.Response(text="{}")

    async def ping(self, request: web.Request) -> web.Response:
        """A worker is alive."""
        self.pings += 1
        return web.Response(text="{}")

    async def _serve(self, listener: socket.socket) -> None:
        runner = web.AppRunner(self.application(), access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        self._started.set()
        deadline = None if self.lifetime_s is None else time.monotonic() + self.lifetime_s
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as webhooks:
            while not self._ended.is_set() and (deadline is None or time.monotonic() < deadline):
                self.queue.expire()
                for job in self.queue.take_unannounced():
                    webhooks.create_task(self._announce(session, job))
                await asyncio.sleep(POLL_S)
        await runner.cleanup()

    async def _announce(self, session: aiohttp.ClientSession, job: QueuedJob) -> None:
        """Reports a job's end to its webhook, and tries again if the answer is not 200."""
        assert job.webhook is not None
        for attempt in range(WEBHOOK_TRIES):
            if attempt:
                await self._long_poll(lambda: False, WEBHOOK_PAUSE_S)
            if self._ended.is_set():
                return
            try:
                timeout = aiohttp.ClientTimeout(total=WEBHOOK_PAUSE_S)
                async with session.post(job.webhook, json=job.as_status(), timeout=timeout) as response:
                    if response.status == 200:
                        return
                    outcome = f"status {response.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome = type(error).__name__
            print(f"webhook of job {job.id}: {outcome}", file=sys.stderr)

    async def _long_poll(self, is_done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_done() and time.monotonic() < deadline and not self._ended.is_set():
            await asyncio.sleep(POLL_S)

    async def _post(self, request: web.Request, max_bytes: int, kept_s: float) -> str:
        body = await request.read()
        if len(body) > max_bytes:
            message = f"the request is larger than {max_bytes // MEGABYTE} MB: name large media by address"
            raise _http_error(web.HTTPRequestEntityTooLarge(max_bytes, len(body)), message)
        try:
            payload = _json_of(body)
            if not isinstance(payload, dict) or "input" not in payload:
                raise ValueError('the request must be JSON: {"input": {…}}')
            payload.pop("id", None)
            return self.queue.post(payload.pop("input"), kept_s=kept_s, **payload)
        except (ValueError, TypeError) as error:
            raise _http_error(web.HTTPBadRequest(), str(error)) from None

    def _job(self, request: web.Request) -> QueuedJob:
        try:
            return self.queue.jobs[request.match_info["job"]]
        except KeyError:
            raise _http_error(web.HTTPNotFound(), "there is no such job, or its result is no longer kept") from None

    @web.middleware
    async def _check_key(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        is_allowed = request.headers.get("Authorization", "").removeprefix("Bearer ") == self.key
        if not is_allowed and not _is_preview(request):
            self.unauthorised += 1
            return _refusal(401, "the header Authorization must be: Bearer KEY")
        if (error := request.match_info.http_exception) is not None:
            return _refusal(error.status, f"{request.method} {request.path} does not exist; the endpoint is {self.url}")
        return await handler(request)


def _is_preview(request: web.Request) -> bool:
    """Whether a request reads a file of a job's preview; players send no key."""
    path = PurePosixPath(request.path)
    return (
        request.method == "GET"
        and path.parts[:2] == ("/", "files")
        and path.parent.suffix == ".preview"
        and ".." not in path.parts
    )


async def _name_segment(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.endswith(".ts"):
        response.content_type = SEGMENT_TYPE


def _json_of(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise ValueError(f"the request is not valid JSON: {error}") from None


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _http_error(error: web.HTTPError, message: str) -> web.HTTPError:
    error.text, error.content_type = json.dumps({"error": message}), "application/json"
    return error


def run_workers(endpoint: LocalEndpoint, output_dir: Path) -> int:
    """Keeps one worker running, and replaces it when it ends; returns when a worker ends without having taken a job.

    Returns that worker's exit status.
    """
    environment = os.environ | endpoint.environment()
    environment |= {"OUTPUT_DIR": str(output_dir), "SERVE_EXAMPLES": "true"}
    while True:
        taken_before = endpoint.queue.taken
        command = [sys.executable, "-u", "handler.py"]
        worker = subprocess.Popen(command, cwd=CHECKOUT, env=environment, start_new_session=True)
        try:
            status = worker.wait()
        finally:
            worker.terminate()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(START_TIMEOUT_S)
            # Like the end of a container, this ends the process that a crashed worker leaves behind: the SDK's ping.
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
        endpoint.queue.lose_worker()
        if endpoint.queue.taken == taken_before:
            return status
        print(f"the worker has ended with status {status}; starting another one", file=sys.stderr)


def main() -> int:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description="Runpod's API and one worker, on this machine.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--key", default="local", help="that clients give (%(default)s)")
    parser.add_argument(
        "--execution-timeout-s", type=float, default=3600.0, help="of jobs without a policy (%(default)g)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    output_dir = (CHECKOUT / Settings().output_dir).resolve()
    try:
        with LocalEndpoint(JobQueue(options.execution_timeout_s), options.key, options.port, output_dir) as endpoint:
            print(f"endpoint {endpoint.url}, key {options.key}; Ctrl-C ends it", file=sys.stderr, flush=True)
            return run_workers(endpoint, output_dir)
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        print(
            f"port {options.port} is in use, perhaps by another `make serve`: end that one, or run "
            f".venv/bin/python -m tools.local_endpoint --port {options.port + 1}",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())

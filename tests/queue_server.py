"""The local endpoint with what tests ask of it.

    with LocalQueue() as queue:
        worker = subprocess.Popen([sys.executable, "handler.py"], env=os.environ | queue.environment())
        job_id = queue.post({...})
        job = queue.wait(job_id, timeout_s=60)

Runs in a thread of its own and ends with the `with` block, or by itself after `MAX_LIFETIME_S`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from infinitetalk.worker.local_endpoint import POLL_S, JobQueue, LocalEndpoint, QueuedJob

__all__ = ["API_KEY", "LocalQueue", "QueuedJob"]

MAX_LIFETIME_S = 900
API_KEY = "test-key"


class LocalQueue(JobQueue):
    """A queue and the endpoint that serves it."""

    def __init__(self, files: Path | None = None) -> None:
        super().__init__()
        self.endpoint = LocalEndpoint(self, API_KEY, files=files, lifetime_s=MAX_LIFETIME_S)

    def __enter__(self) -> Self:
        self.endpoint.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.endpoint.__exit__(None, None, None)

    @property
    def pings(self) -> int:
        """Signs of life of the worker."""
        return self.endpoint.pings

    @property
    def unauthorised(self) -> int:
        """Requests without the key."""
        return self.endpoint.unauthorised

    def environment(self) -> dict[str, str]:
        """What Runpod sets for a worker, pointing here."""
        return self.endpoint.environment()

    def wait(self, job_id: str, timeout_s: float) -> QueuedJob:
        """The job once it is COMPLETED or FAILED."""
        return self.wait_until(job_id, lambda job: job.status in ("COMPLETED", "FAILED"), timeout_s)

    def wait_until(self, job_id: str, condition: Callable[[QueuedJob], bool], timeout_s: float) -> QueuedJob:
        """The job once `condition(job)` holds; an AssertionError with what is known when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.jobs[job_id]
            if condition(job):
                return job
            time.sleep(POLL_S)
        raise AssertionError(f"after {timeout_s} s: {self.jobs[job_id]}")

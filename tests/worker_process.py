"""A worker process under the SDK, its jobs from a local queue, for tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from schemas import Failure, Success
from tests.queue_server import LocalQueue, QueuedJob

CHECKOUT = Path(__file__).parents[1]
START_TIMEOUT_S = 120
JOB_TIMEOUT_S = 400


class Worker:
    """A worker process, its volume and its log."""

    def __init__(self, queue: LocalQueue, folder: Path) -> None:
        self.queue = queue
        self.volume = folder / "volume"
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.log = folder / "log"
        environment = os.environ | queue.environment()
        environment |= {
            "OUTPUT_DIR": str(self.volume),
            "TMPDIR": str(self.temporary),
            "PROGRESS_INTERVAL_S": "0",
            "INFINITETALK_MODEL": "tiny",
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "handler.py"], cwd=CHECKOUT, env=environment, stdout=log, stderr=log
            )

    def run(self, job_input: object, **envelope: object) -> QueuedJob:
        """The job at its end."""
        job_id = self.queue.post(job_input, **envelope)
        return self.queue.wait(job_id, JOB_TIMEOUT_S)

    def refusal(self, job_input: object, **envelope: object) -> tuple[QueuedJob, Failure]:
        """A job that fails, and its failure put together again as the handler returned it."""
        job = self.run(job_input, **envelope)
        assert job.status == "FAILED", job
        return job, Failure.model_validate(job.output | {"error": job.error}, strict=False)

    def success(self, job_input: object, **envelope: object) -> tuple[QueuedJob, Success]:
        """A job that succeeds, and its result."""
        job = self.run(job_input, **envelope)
        assert job.status == "COMPLETED", job
        return job, Success.model_validate(job.output, strict=False)

    def frames(self, result: Success) -> np.ndarray:
        """The video of a result decoded back: uint8 (T, H, W, 3)."""
        assert result.video.path is not None
        with av.open(str(self.volume / result.video.path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    def stop(self) -> None:
        """Drains the worker."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def running_worker(folder: Path) -> Iterator[Worker]:
    """A worker with a queue of its own, which has taken its first job; its log is printed at the end."""
    with LocalQueue() as queue:
        worker = Worker(queue, folder)
        try:
            queue.wait(queue.post({}), START_TIMEOUT_S)
            yield worker
        finally:
            worker.stop()
            print(worker.log.read_text()[-20_000:])

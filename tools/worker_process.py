"""A worker process under the SDK that takes jobs from a local queue, for tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from schemas import Failure, Success
from tools.frames import read_frames
from tools.queue_server import LocalQueue, QueuedJob

CHECKOUT = Path(__file__).parents[1]
HANDLER = CHECKOUT / "handler.py"
START_TIMEOUT_S = 400
JOB_TIMEOUT_S = 400
UNREADABLE = {"prompt": "none", "cond_video": "nowhere.png", "cond_audio": {"person1": "nowhere.wav"}}
"""A job that a worker refuses as soon as it has imported all libraries, when it looks for the job's files."""


class Worker:
    """A worker process, its volume and its log.

    Args:
        queue: the queue from which it takes jobs.
        folder: a new folder, or an earlier worker's; the worker then uses that one's volume.
        script: the script to run.
        settings: environment variables beside the queue's.
        outputs: file descriptors of its standard output and error; by default, both go to the log.
    """

    def __init__(
        self,
        queue: LocalQueue,
        folder: Path,
        script: Path,
        settings: dict[str, str],
        outputs: tuple[int, int] | None = None,
    ) -> None:
        self.queue = queue
        self.volume = folder / "volume"
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        environment = os.environ | queue.environment()
        environment |= {
            "OUTPUT_DIR": str(self.volume),
            "TMPDIR": str(self.temporary),
            "PROGRESS_INTERVAL_S": "0",
            "INFINITETALK_MODEL": "tiny",
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("wb") as log:
            stdout, stderr = outputs or (log.fileno(), log.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(script)],
                cwd=CHECKOUT,
                env=environment | settings,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Waits until it has answered its first job."""
        self.queue.wait(self.queue.post(UNREADABLE), START_TIMEOUT_S)

    def wait_for_event(self, event: str, **fields: object) -> dict[str, Any]:
        """Waits for a line of the log with this event and these fields, and returns the first one."""
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while time.monotonic() < deadline:
            if lines := self.events(event, **fields):
                return lines[0]
            time.sleep(0.02)
        raise AssertionError(f"no {event} {fields} in the log")

    def events(self, event: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """The worker's own lines in the log, or those with this event and these fields."""
        # The last line may still be incomplete.
        written = [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        lines = [json.loads(line) for line in written if line.startswith("{")]
        return [
            line
            for line in lines
            if event in (None, line.get("event")) and all(line.get(key) == value for key, value in fields.items())
        ]

    def resources(self) -> dict[str, int]:
        """The process's resources: resident bytes, threads, open files, entries of its temporary folder."""
        process = psutil.Process(self.process.pid)
        return {
            "resident_bytes": process.memory_info().rss,
            "threads": process.num_threads(),
            "open_files": process.num_fds(),
            "temporary_files": len(list(self.temporary.iterdir())),
        }

    def run(self, job_input: object, **envelope: Any) -> QueuedJob:
        """Runs a job and returns it at its end."""
        job_id = self.queue.post(job_input, **envelope)
        return self.queue.wait(job_id, JOB_TIMEOUT_S)

    def refusal(self, job_input: object, **envelope: object) -> tuple[QueuedJob, Failure]:
        """Runs a job that must fail; returns it and its failure as the handler returned it."""
        job = self.run(job_input, **envelope)
        assert job.status == "FAILED", job
        return job, Failure.model_validate(job.output | {"error": job.error}, strict=False)

    def success(self, job_input: object, **envelope: object) -> tuple[QueuedJob, Success]:
        """Runs a job that must succeed; returns it and its result."""
        job = self.run(job_input, **envelope)
        assert job.status == "COMPLETED", job
        return job, Success.model_validate(job.output, strict=False)

    def frames(self, result: Success) -> np.ndarray:
        """The decoded video of a result: uint8 (T, H, W, 3)."""
        assert result.video.path is not None
        return read_frames(self.volume / result.video.path)

    def kill(self) -> None:
        """Kills the worker like the loss of its machine; its job goes back to the queue."""
        self._kill_all()
        self.queue.lose_worker()

    def stop(self) -> None:
        """Lets the worker drain, then ends it."""
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self._kill_all()

    def _kill_all(self) -> None:
        """Ends the process and those that it has started, like the end of a container."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running_worker(folder: Path, script: Path = HANDLER, **settings: str) -> Iterator[Worker]:
    """A worker with its own queue, after its first job; its log is printed at the end."""
    with LocalQueue() as queue, worker_of(queue, folder, script, **settings) as worker:
        worker.wait_until_ready()
        yield worker


@contextmanager
def worker_of(queue: LocalQueue, folder: Path, script: Path = HANDLER, **settings: str) -> Iterator[Worker]:
    """A worker of a queue; its log is printed at the end."""
    worker = Worker(queue, folder, script, settings)
    try:
        yield worker
    finally:
        worker.stop()
        print(worker.log.read_text()[-20_000:])

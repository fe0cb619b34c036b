"""The worker as Runpod runs it: `handler.py` under the SDK, its jobs from a local queue."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import Failure
from tests.job_inputs import data_uri, small_job
from tests.queue_server import LocalQueue, QueuedJob

CHECKOUT = Path(__file__).parents[1]
START_TIMEOUT_S = 120
JOB_TIMEOUT_S = 120


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
            "OMP_NUM_THREADS": "2",
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

    def stop(self) -> None:
        """Drains the worker."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with LocalQueue() as queue:
        worker = Worker(queue, tmp_path_factory.mktemp("worker"))
        try:
            # The first job is taken as soon as the worker has started.
            queue.wait(queue.post({}), START_TIMEOUT_S)
            yield worker
        finally:
            worker.stop()
            print(worker.log.read_text()[-20_000:])


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"cond_audio": None}, "E_INPUT_VALIDATION", "give exactly one of cond_audio"),
        (
            {"cond_video": data_uri(b"only words, which are neither a picture nor a video", "image/png")},
            "E_INPUT_VALIDATION",
            "cond_video: ",
        ),
        ({"frame_num": 80}, "E_INPUT_VALIDATION", "frame_num must be 4n+1, e.g. 77 or 81"),
    ],
    ids=["no speech", "no picture", "80 frames"],
)
def test_a_broken_input_is_answered_within_a_second(worker, changes, code, words):
    job, failure = worker.refusal(small_job(**changes))
    assert job.seconds < 1.0
    assert failure.error.code == code
    assert failure.error.retryable is False
    assert words in failure.error.message


@pytest.mark.parametrize("job_input", ["text", [], {"batch": []}, {"frames": 81}])
def test_an_input_of_another_shape_is_a_coded_failure(worker, job_input):
    _, failure = worker.refusal(job_input)
    assert failure.error.code == "E_INPUT_VALIDATION"

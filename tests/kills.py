"""A streaming job whose workers are killed at random moments, each followed by a fresh one.

    make kills
    python -m tests.kills [KILLS [SEED]]

Prints what each kill cost and whether the frames are those of a job that was never interrupted. A short form is among
the tests.
"""

import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas import Success
from tests.job_inputs import small_job, speech_uri
from tools.queue_server import LocalQueue
from tools.worker_process import JOB_TIMEOUT_S, Worker, worker_of

LIFETIME_S = 3600
NUM_CHUNKS = 6
JOB = small_job(
    mode="streaming", frame_num=9, motion_frame=5, cond_audio={"person1": speech_uri(1.16)}, sample_steps=20
)
"""Six chunks, 29 frames."""


def uninterrupted(queue: LocalQueue, folder: Path) -> tuple[np.ndarray, float]:
    """The frames, and the seconds that a warm worker takes."""
    with worker_of(queue, folder) as worker:
        worker.wait_until_ready()
        worker.success(JOB)
        job, result = worker.success(JOB)
        return worker.frames(result), job.seconds


@dataclass(frozen=True)
class Interruption:
    """What came of a kill.

    Attributes:
        frames: the video, uint8 (T, H, W, 3).
        num_stored: chunks that the killed worker had stored.
        num_found: chunks that the next one went on from.
        seconds_after: between the next one's taking the job and the result.
    """

    frames: np.ndarray
    num_stored: int
    num_found: int
    seconds_after: float


def interrupted(queue: LocalQueue, folder: Path, after_s: float) -> Interruption:
    """A job whose worker is killed so many seconds after it took the job."""
    with worker_of(queue, folder) as worker:
        worker.wait_until_ready()
        worker.success(JOB)
        job_id = queue.post(JOB)
        queue.wait_until(job_id, lambda job: job.taken_at is not None, JOB_TIMEOUT_S)
        time.sleep(after_s)
        kill_in_job(worker)
        num_stored = len(worker.events("resume.stored", job_id=job_id))
    with worker_of(queue, folder) as worker:
        worker.wait_until_ready()
        job = queue.wait(job_id, JOB_TIMEOUT_S)
        result = Success.model_validate(job.output, strict=False)
        resumed = worker.events("job.resumed", job_id=job_id)
        num_found = resumed[0]["details"]["chunks"] if resumed else 0
        return Interruption(worker.frames(result), num_stored, num_found, job.seconds)


def kill_in_job(worker: Worker) -> None:
    """Kills a worker whose job has not ended."""
    running = [job for job in worker.queue.jobs.values() if job.ended_at is None]
    assert running, "the job had ended before its worker was killed"
    worker.kill()


def main(num_kills: int = 5, seed: int = 2026) -> int:
    """Runs all; returns 1 if any frame differs."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as name, LocalQueue(lifetime_s=LIFETIME_S) as queue:
        folder = Path(name)
        expected, seconds = uninterrupted(queue, folder)
        print(f"never killed: {len(expected)} frames, {NUM_CHUNKS} chunks, {seconds:.1f} s", flush=True)
        num_different = 0
        for number in range(1, num_kills + 1):
            after_s = moments.uniform(0.1, 0.95) * seconds
            kill = interrupted(queue, folder, after_s)
            is_equal = np.array_equal(kill.frames, expected)
            num_different += not is_equal
            lost_s = after_s + kill.seconds_after - seconds
            print(
                f"kill {number} after {after_s:.1f} s: {kill.num_stored} of {NUM_CHUNKS} chunks were stored, "
                f"{kill.num_found} found, the next worker took {kill.seconds_after:.1f} s, {lost_s:.1f} s were lost; "
                f"frames {'equal' if is_equal else 'DIFFERENT'}",
                flush=True,
            )
    return min(num_different, 1)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

"""A worker whose videos are made by two processes, as on two GPUs."""

import numpy as np
import psutil
import pytest

from tests.hostile import movie
from tests.job_inputs import data_uri, small_job, speech_uri
from tools.worker_process import JOB_TIMEOUT_S, running_worker

VOICES = {"person1": speech_uri(0.2), "person2": speech_uri(0.2, 220)}
CHANGING = {
    "mode": "streaming",
    "cond_audio": {"person1": speech_uri(0.36)},
    "prompt": [{"from_s": 0, "prompt": "A woman talks"}, {"from_s": 0.1, "prompt": "She laughs"}],
    "negative_prompt": "blur",
    "nag": {},
}
"""Two chunks, each with its own prompt and with normalised attention guidance."""
DUBBED = {
    "cond_video": data_uri(movie(), "video/mp4"),
    "bbox": {"person1": [8, 8, 56, 56]},
    "dub": {"strength": 0.5, "keep": "all", "margin": 0},
    "sample_steps": 4,
}
"""Sampling starts from the film's own frames, which stay around what is generated."""


def follower_of(worker) -> psutil.Process:
    """The worker's second process: the child that has loaded torch."""
    children = psutil.Process(worker.process.pid).children()
    return max(children, key=lambda child: child.memory_info().rss)


def difference(frames: np.ndarray, others: np.ndarray) -> float:
    """Mean of 255 levels; sums in another order are rounded otherwise, which the encoder makes a little larger."""
    return float(np.abs(frames.astype(int) - others).mean())


@pytest.mark.slow
def test_two_processes_make_the_video_of_one_and_outlive_the_loss_of_one_of_them(tmp_path_factory):
    jobs = [small_job(), small_job(cond_audio=VOICES), small_job(**CHANGING), small_job(**DUBBED)]
    is_new = small_job(**DUBBED | {"dub": DUBBED["dub"] | {"strength": 1}})
    with running_worker(tmp_path_factory.mktemp("one")) as worker:
        alone = [worker.frames(worker.success(job)[1]) for job in jobs]
        assert difference(alone[0], alone[1]) > 2
        assert difference(alone[3], worker.frames(worker.success(is_new)[1])) > 1
    with running_worker(tmp_path_factory.mktemp("two"), GPUS_PER_JOB="2") as worker:
        for job, expected in zip(jobs, alone, strict=True):
            _, result = worker.success(job)
            assert difference(worker.frames(result), expected) <= 0.2

        job_id = worker.queue.post(small_job(sample_steps=200))
        worker.queue.wait_until(job_id, lambda job: len(job.progress) > 6, JOB_TIMEOUT_S)
        follower_of(worker).kill()
        failed = worker.queue.wait(job_id, JOB_TIMEOUT_S)
        assert failed.status == "FAILED"
        assert "E_GENERATION_RUNTIME" in str(failed.error) and "GPUs does not answer" in str(failed.error)

        _, result = worker.success(jobs[0])
        assert difference(worker.frames(result), alone[0]) <= 0.2
        assert worker.process.poll() is None

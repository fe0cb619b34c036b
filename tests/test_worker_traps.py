"""What breaks workers on Runpod, one trap after the other, under the real SDK and a local queue.

A test that costs the worker its life leaves the queue to the next one.
"""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import Progress
from tests.faulty_handler import NAN_RESULT
from tests.job_inputs import small_job, speech_uri
from tools.queue_server import LocalQueue
from tools.worker_process import JOB_TIMEOUT_S, START_TIMEOUT_S, Worker, worker_of

FAULTY_HANDLER = Path(__file__).with_name("faulty_handler.py")

SETTINGS = {
    "STOP_TIMEOUT_S": "3",
    "JOB_TIMEOUT_S": "60",
    "SHUTDOWN_GRACE_S": "60",
    "MAX_RESULT_BYTES": "5000",
    "S3_ENDPOINT": "http://127.0.0.1:9",
    "S3_BUCKET": "videos",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "secret",
}
"""A worker with little patience, and a store that does not answer."""


class Workers:
    """One worker after the other, on one queue and one volume."""

    def __init__(self, queue: LocalQueue, folder: Path) -> None:
        self.queue = queue
        self.folder = folder
        self.workers: list[Worker] = []

    def current(self) -> Worker:
        """The worker that runs, a new one if the last has ended."""
        if not self.workers or self.workers[-1].process.poll() is not None:
            self.workers.append(Worker(self.queue, self.folder, FAULTY_HANDLER, SETTINGS))
            self.workers[-1].wait_until_ready()
        return self.workers[-1]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with LocalQueue() as queue:
        workers = Workers(queue, tmp_path_factory.mktemp("workers"))
        yield workers
        for worker in workers.workers:
            worker.stop()
            print(worker.log.read_text()[-10_000:])


@pytest.fixture
def worker(workers: Workers) -> Worker:
    return workers.current()


def long_job(seconds: float = 8.0, **changes: object) -> dict:
    """A streaming job of a chunk for every four video frames."""
    return small_job(mode="streaming", cond_audio={"person1": speech_uri(seconds)}, **changes)


def test_a_result_arrives_although_the_queue_drops_it_and_answers_408_429_and_500(worker):
    worker.queue.endpoint.faults.extend(["drop", 408, 429, 500, "drop after"])
    job, _ = worker.success(small_job())
    worker.wait_for_event("result.delivered", job_id=job.id)
    offers = worker.queue.endpoint.results[job.id]
    assert len(offers) == 6
    assert len(set(offers)) == 1
    # What was offered again after it had arrived.
    assert job.posts_after_end == 1


def test_an_answer_that_is_final_ends_the_offers_and_the_next_job_is_served(worker):
    worker.queue.endpoint.faults.append(404)
    job_id = worker.queue.post(small_job())
    assert worker.wait_for_event("result.undelivered", job_id=job_id)["details"] == {"status": 404}
    assert len(worker.queue.endpoint.results[job_id]) == 1
    worker.success(small_job())


def test_a_cancelled_jobs_thread_has_ended_before_the_next_job_is_taken(worker):
    def cancel_one() -> tuple[str, str]:
        job_id = worker.queue.post(long_job(sample_steps=50))
        worker.queue.wait_until(job_id, lambda job: len(job.progress) > 6, JOB_TIMEOUT_S)
        next_id = worker.queue.post(small_job())
        worker.queue.cancel(job_id)
        worker.queue.wait(next_id, JOB_TIMEOUT_S)
        worker.wait_for_event("result.delivered", job_id=next_id)
        return job_id, next_id

    # Pools start a thread now and then, up to their size: only growth with each job is a leak.
    num_jobs = 3
    cancel_one()
    before = worker.resources()
    for _ in range(num_jobs):
        job_id, next_id = cancel_one()
    events = [(line["event"], line.get("job_id")) for line in worker.events()]
    assert events.index(("job.stopped", job_id)) < events.index(("job.taken", next_id))
    after = worker.resources()
    assert after["threads"] < before["threads"] + num_jobs
    assert after["temporary_files"] == before["temporary_files"]
    assert (worker.queue.jobs[job_id].output, worker.queue.endpoint.results[job_id]) == (None, [])


def test_progress_keeps_its_order_before_a_slow_queue_and_none_comes_after_the_result(worker):
    worker.queue.endpoint.progress_delay_s = 0.3
    try:
        job, _ = worker.success(small_job(sample_steps=20))
    finally:
        worker.queue.endpoint.progress_delay_s = 0.0
    messages = [Progress.model_validate(message, strict=False) for message in job.progress]
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
    assert [message.pct for message in messages] == sorted(message.pct for message in messages)
    assert len(messages) < 20
    assert job.posts_after_end == 0


def test_a_result_that_is_no_json_becomes_a_coded_failure(worker):
    _, failure = worker.refusal(small_job(prompt=NAN_RESULT))
    assert (failure.error.code, failure.error.message) == ("E_UPLOAD", "the result is not valid JSON")


def test_a_lone_surrogate_in_a_job_is_answered(worker):
    _, failure = worker.refusal(small_job(prompt="\ud800"))
    assert failure.error.code == "E_INPUT_VALIDATION"


def test_a_result_larger_than_the_platform_takes_becomes_a_coded_failure(worker):
    _, failure = worker.refusal(small_job(prompt="A woman talks. " * 300))
    assert failure.error.code == "E_UPLOAD"
    assert "too large" in failure.error.message


def test_a_store_that_does_not_answer_ends_no_worker_and_fails_the_jobs_that_need_it(worker):
    assert worker.events("store.unreachable")
    worker.success(small_job())
    _, failure = worker.refusal(small_job(output_config={"store": "s3"}))
    assert failure.error.code == "E_UPLOAD"


def test_the_ping_process_does_not_load_the_model_again(worker):
    pings = worker.queue.pings
    deadline = time.monotonic() + 30
    while worker.queue.pings == pings and time.monotonic() < deadline:
        time.sleep(0.1)
    assert worker.queue.pings > pings
    assert len(worker.events("model.loaded")) == 1


def test_a_failure_is_a_failed_job_and_shows_nothing_of_the_worker(worker):
    job, failure = worker.refusal(small_job(prompt="fault: memory"))
    assert (failure.error.code, failure.error.retryable) == ("E_OOM", False)
    told = json.dumps([job.output, job.error])
    for secret in ("Traceback", "GiB", "/", str(worker.volume), "site-packages"):
        assert secret not in told
    worker.success(small_job())


def test_sigterm_lets_a_short_job_end_and_delivers_its_result(worker):
    job_id = worker.queue.post(small_job(sample_steps=20))
    worker.queue.wait_until(job_id, lambda job: len(job.progress) > 4, JOB_TIMEOUT_S)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.queue.wait(job_id, JOB_TIMEOUT_S).status == "COMPLETED"
    worker.process.wait(START_TIMEOUT_S)
    assert worker.events("worker.draining")


def test_a_broken_gpu_fails_its_job_and_has_the_worker_replaced(worker, workers):
    job, failure = worker.refusal(small_job(prompt="fault: GPU"))
    assert (failure.error.code, failure.error.retryable) == ("E_GENERATION_RUNTIME", True)
    assert "this worker is being replaced" in failure.error.message
    assert json.loads(worker.queue.endpoint.results[job.id][0])["stopPod"] is True
    # Nothing else is taken with a GPU that answers no longer.
    next_id = worker.queue.post(small_job())
    worker.process.wait(START_TIMEOUT_S)
    assert worker.queue.jobs[next_id].status == "IN_QUEUE"
    workers.current()
    assert worker.queue.wait(next_id, JOB_TIMEOUT_S).status == "COMPLETED"


def test_a_cancelled_job_that_hangs_takes_its_worker_along(worker):
    speech = {"person1": speech_uri(0.4)}
    # The last chunk would be finished by what hangs.
    job_id = worker.queue.post(small_job(mode="streaming", max_frame_num=9, cond_audio=speech, prompt="fault: hang"))
    worker.wait_for_event("resume.stored", job_id=job_id)
    worker.queue.cancel(job_id)
    assert worker.process.wait(60) == 1
    assert worker.events("job.stuck", job_id=job_id)


def test_a_job_that_hangs_beyond_its_time_is_answered_and_its_worker_ends(worker):
    _, failure = worker.refusal(small_job(prompt="fault: hang"))
    assert (failure.error.code, failure.error.retryable) == ("E_TIMEOUT", True)
    assert worker.process.wait(60) == 1


def test_a_worker_that_hangs_ends_although_the_queue_does_not_want_its_answer(worker):
    worker.queue.endpoint.faults.append(404)
    job_id = worker.queue.post(small_job(prompt="fault: hang"))
    next_id = worker.queue.post(small_job())
    assert worker.process.wait(JOB_TIMEOUT_S) == 1
    assert worker.events("result.undelivered", job_id=job_id)
    assert worker.queue.jobs[next_id].status == "IN_QUEUE"


def test_a_job_that_crashes_the_process_costs_no_other_job(worker):
    poison_id = worker.queue.post(small_job(prompt="fault: crash"))
    other_id = worker.queue.post(small_job())
    assert worker.process.wait(JOB_TIMEOUT_S) == -signal.SIGABRT
    worker.queue.lose_worker()
    # The one behind it was never taken; the poison comes after it, until the queue gives it up.
    assert worker.queue.jobs[other_id].status == "IN_QUEUE"
    queued = [job["id"] for job in iter(worker.queue.take, None)]
    assert queued[0] == other_id
    assert poison_id in queued


def test_an_unfit_worker_ends_before_it_takes_a_job(tmp_path):
    with LocalQueue() as queue, worker_of(queue, tmp_path, MIN_TEMPORARY_BYTES=str(10**18)) as worker:
        job_id = queue.post(small_job())
        assert worker.process.wait(START_TIMEOUT_S) != 0
        assert "MIN_TEMPORARY_BYTES" in worker.log.read_text()
        assert queue.jobs[job_id].status == "IN_QUEUE"


def test_a_job_is_refused_while_torch_is_still_being_imported(tmp_path):
    with LocalQueue() as queue, worker_of(queue, tmp_path) as worker:
        job_id = queue.post({"frames": 81})
        assert queue.wait(job_id, START_TIMEOUT_S).status == "FAILED"
        worker.wait_for_event("model.loaded")
        events = [line["event"] for line in worker.events()]
        assert events.index("result.delivered") < events.index("libraries.imported") < events.index("model.loaded")
        assert worker.events("job.failed", job_id=job_id)[0]["details"]["code"] == "E_INPUT_VALIDATION"


def test_a_worker_without_weights_ends_and_leaves_its_job_to_the_queue(tmp_path):
    with LocalQueue() as queue, worker_of(queue, tmp_path, INFINITETALK_MODEL="published") as worker:
        job_id = queue.post(small_job())
        assert worker.process.wait(START_TIMEOUT_S) == 1
        (unfit,) = worker.events("worker.unfit")
        assert "or set CKPT_DIR" in unfit["details"]["reason"]
        queue.lose_worker()
        assert queue.jobs[job_id].status == "IN_QUEUE"
        assert queue.endpoint.results[job_id] == []

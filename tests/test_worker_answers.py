"""Every job is answered, whatever becomes of the queue's answers and the worker's log, and whenever it is told to go.

Under the real SDK and a local queue, as `handler.py` runs on Runpod.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from schemas import Failure
from tests.job_inputs import small_job, speech_uri
from tools import local_endpoint
from tools.queue_server import LocalQueue
from tools.worker_process import HANDLER, JOB_TIMEOUT_S, START_TIMEOUT_S, Worker, running_worker

FAULTY_HANDLER = Path(__file__).with_name("faulty_handler.py")
DEEP = 5_000
SECRETS = ("hush-1", "hush-2", "hush-3", "hush-4", "hush-5", "hush-6", "hush-7", "hush-8")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with running_worker(tmp_path_factory.mktemp("worker"), SHUTDOWN_GRACE_S="60") as worker:
        yield worker


@pytest.mark.parametrize("fault", [302, 304, 401, 403, "login", "page"])
def test_only_the_queues_own_thanks_mean_that_it_has_a_result(worker, fault):
    worker.queue.endpoint.faults.append(fault)
    job, _ = worker.success(small_job())
    assert len(worker.queue.endpoint.results[job.id]) == 2
    # Not before the queue had it was it given up, nor anything of it removed.
    assert len(worker.events("result.delivered", job_id=job.id)) <= 1


DEEP_LIST = "[" * DEEP + "]" * DEEP
DEEP_OBJECT = '{"a":' * DEEP + "1" + "}" * DEEP


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{{"id": "ID", "input": {{"prompt": {DEEP_LIST}}}}}', "prompt.0 must be an object"),
        (f'{{"input": {DEEP_OBJECT}, "id": "ID"}}', 'the input has an unknown field "a"'),
        (f'{{"input": {DEEP_LIST}, "id": "ID"}}', "the input must be an object"),
        (f'{{"id": "ID", "input": {{"base_seed": {"9" * 5_000}}}}}', "base_seed must be"),
        (f'{{"id": "ID", "input": {{"bbox": {{"person1": [-{"9" * 5_000}]}}}}}}', "bbox.person1"),
        ('{"id": "ID"}', "the input must be an object"),
        ('{"id": "ID", "input": null, "self": 1, "__class__": 2}', "the input must be an object"),
    ],
    ids=[
        "deep prompt",
        "deep object",
        "deep list",
        "long integer",
        "long integer in a list",
        "no input",
        "odd envelope",
    ],
)
def test_json_that_python_refuses_is_answered(worker, text, words):
    job = worker.queue.wait(worker.queue.post_text(text), JOB_TIMEOUT_S)
    failure = Failure.model_validate(job.output | {"error": job.error}, strict=False)
    assert (failure.job_id, failure.error.code, failure.error.retryable) == (job.id, "E_INPUT_VALIDATION", False)
    assert words in failure.error.message
    worker.success(small_job())


def test_what_is_no_job_is_asked_for_again(worker):
    worker.queue.endpoint.take_faults.extend([500, "login", "page"])
    worker.success(small_job())
    # A question that was open when the job came may meet the rest of them.
    deadline = time.monotonic() + 60
    while len(reasons := [line["details"]["reason"] for line in worker.events("queue.no_answer")]) < 3:
        assert time.monotonic() < deadline, reasons
        time.sleep(0.1)
    assert reasons == ["status 500", "status 302", "no JSON"]


def test_a_policy_in_seconds_is_taken_so_and_says_so(worker):
    job, result = worker.success(small_job(), policy={"executionTimeout": 1800, "ttl": 86400})
    assert job.execution_timeout_s == 1800
    (warning,) = result.warnings
    assert "policy was taken in seconds" in warning
    assert "1800000" in warning


def test_nothing_secret_is_logged_or_echoed(worker):
    s3_config = {"endpointUrl": "hush-1", "accessId": "hush-2", "accessSecret": 5, "bucketName": "hush-3 is none"}
    _, failure = worker.refusal(small_job(), s3Config=s3_config)
    assert failure.error.message.startswith("s3Config.")
    _, in_input = worker.refusal(small_job(s3Config={"accessSecret": "hush-4"}))
    assert 'belongs beside "input"' in in_input.error.message
    output = {"store": "put", "accessSecret": "hush-5", "video_url": "https://example.com/hush-6/x?sig=hush-7"}
    worker.refusal(small_job(output_config=output, headers={"Authorization": "hush-8"}))
    worker.refusal(
        small_job(prompt="see https://a.blob.core.windows.net/c/x?sig=hush-7", cond_video="https://hush-8@/")
    )
    told = json.dumps([[job.output, job.error] for job in worker.queue.jobs.values()])
    assert not [secret for secret in SECRETS if secret in told]
    assert not [secret for secret in SECRETS if secret in worker.log.read_text()]
    taken = worker.events("job.taken")[-1]["details"]["input"]
    assert (taken["frame_num"], taken["cond_video"], taken["output_config"]) == (5, "https:///…", {"store": "volume"})


def test_the_sdks_own_lines_show_no_secret_and_no_video(tmp_path):
    with running_worker(tmp_path, RUNPOD_LOG_LEVEL="DEBUG") as worker:
        s3_config = {
            "endpointUrl": "https://store.invalid",
            "accessId": "hush-2",
            "accessSecret": "hush-3",
            "bucketName": "bucket",
        }
        worker.refusal(small_job(output_config={"store": "s3"}), s3Config=s3_config)
        address = "https://store.invalid/hush-5/video.mp4?X-Amz-Credential=hush-6&X-Amz-Signature=hush-7"
        urls = {"video_url": address, "thumbnail_url": address}
        worker.refusal(small_job(output_config={"store": "put"} | urls, cond_video=address))
        _, result = worker.success(small_job(output_config={"store": "inline"}))
        log = worker.log.read_text()
        # The SDK does write what a job returns.
        assert "Handler output: " in log
        assert not [secret for secret in SECRETS if secret in log]
        data = result.video.data
        assert data is not None
        assert not [begin for begin in range(0, len(data) - 100, 100) if data[begin : begin + 100] in log]


def test_a_job_that_an_open_request_brings_after_sigterm_is_run(worker, monkeypatch):
    """Last but one of this worker's."""
    monkeypatch.setattr(local_endpoint, "LONG_POLL_S", 10.0)
    worker.success(small_job())
    time.sleep(1.5)
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for_event("worker.draining")
    time.sleep(1)
    job_id = worker.queue.post(small_job())
    assert worker.queue.wait(job_id, JOB_TIMEOUT_S).status == "COMPLETED"
    assert worker.process.wait(START_TIMEOUT_S) == 0


def test_a_worker_whose_ping_process_is_gone_ends(tmp_path):
    with running_worker(tmp_path) as worker:
        queue = worker.queue
        children = psutil.Process(worker.process.pid).children()
        (ping,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        job_id = queue.post(small_job(mode="streaming", cond_audio={"person1": speech_uri(8)}, sample_steps=50))
        queue.wait_until(job_id, lambda job: len(job.progress) > 6, JOB_TIMEOUT_S)
        ping.kill()
        assert worker.process.wait(START_TIMEOUT_S) == 1
        assert worker.events("ping.ended")
        assert queue.jobs[job_id].status == "IN_PROGRESS"


def test_a_log_that_cannot_be_written_and_a_sigterm_cost_no_job(tmp_path):
    """Its standard output is a full disk, its standard error a pipe without a reader."""
    reader, broken = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    with LocalQueue() as queue:
        worker = Worker(queue, tmp_path, FAULTY_HANDLER, {"SHUTDOWN_GRACE_S": "60"}, outputs=(full, broken))
        os.close(broken)
        os.close(full)
        try:
            worker.wait_until_ready()
            worker.success(small_job())
            _, failure = worker.refusal(small_job(frame_num=80))
            assert failure.error.message.startswith("frame_num must be 4n+1")
            # Its traceback is for the log.
            job, failure = worker.refusal(small_job(prompt="fault: memory"))
            assert failure.error.code == "E_OOM"
            assert "Traceback" not in json.dumps([job.output, job.error])
            # A job that comes just as the worker is told to go is run as well.
            job_id = queue.post(small_job())
            while queue.jobs[job_id].taken_at is None:
                time.sleep(0.001)
            worker.process.send_signal(signal.SIGTERM)
            assert queue.wait(job_id, JOB_TIMEOUT_S).status == "COMPLETED"
            assert worker.process.wait(START_TIMEOUT_S) == 0
        finally:
            worker.stop()


@pytest.mark.parametrize("has_job", [False, True], ids=["idle", "in a job"])
def test_thousands_of_sigterms_end_the_worker_once(has_job: bool, tmp_path: Path):
    with running_worker(tmp_path, SHUTDOWN_GRACE_S="60") as worker:
        if has_job:
            job_id = worker.queue.post(small_job(sample_steps=50))
            worker.queue.wait_until(job_id, lambda job: len(job.progress) > 4, JOB_TIMEOUT_S)
        for _ in range(3000):
            worker.process.send_signal(signal.SIGTERM)
            time.sleep(0.0001)
        if has_job:
            assert worker.queue.wait(job_id, JOB_TIMEOUT_S).status == "COMPLETED"
        end = time.monotonic() + 60
        # To the last moment of the process.
        while worker.process.poll() is None and time.monotonic() < end:
            worker.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert worker.process.poll() == 0
        assert len(worker.events("worker.draining")) == 1
        assert "RecursionError" not in worker.log.read_text()


def test_two_sigterms_while_the_log_stalls_do_not_make_the_worker_deaf(tmp_path: Path):
    """Nobody reads its log, whose pipe is full from the beginning."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(4096))
    with LocalQueue() as queue:
        worker = Worker(queue, tmp_path, HANDLER, {"SHUTDOWN_GRACE_S": "30"}, outputs=(writer, writer))
        os.close(writer)
        try:
            worker.wait_until_ready()
            job_id = queue.post(small_job(sample_steps=50))
            queue.wait_until(job_id, lambda job: len(job.progress) > 4, JOB_TIMEOUT_S)
            for _ in range(2):
                worker.process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            assert queue.wait(job_id, JOB_TIMEOUT_S).status == "COMPLETED"
            assert worker.process.wait(START_TIMEOUT_S) == 0
        finally:
            worker.stop()
            os.close(reader)

"""The example receiver fetches the videos of the jobs that it is told of, and is fooled by nobody."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.local_queue import DONE, queue_with_video, work
from tools.queue_server import API_KEY, LocalQueue

CHECKOUT = Path(__file__).parents[1]
SECRET = "a-secret-for-tests-only"
WAIT_S = 30.0


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[LocalQueue]:
    with queue_with_video(tmp_path) as queue:
        yield queue


def test_a_port_that_is_taken_is_a_sentence(queue: LocalQueue, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "examples/webhook.py", "--url", queue.endpoint.url, "--port", port]
        environment = os.environ | {"WEBHOOK_SECRET": SECRET}
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"port {port} is taken: choose another one with --port\n")


@pytest.fixture
def webhook(queue: LocalQueue, tmp_path: Path) -> Iterator[str]:
    """Address of a receiver that fetches into tmp_path/videos."""
    command = [sys.executable, "examples/webhook.py", "--url", queue.endpoint.url, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    environment |= {"WEBHOOK_SECRET": SECRET, "RUNPOD_API_KEY": API_KEY}
    process = subprocess.Popen(
        [*command, "--folder", str(tmp_path / "videos")],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("wb"),
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("webhook: ")
    yield line.removeprefix("webhook: ").strip().replace("$WEBHOOK_SECRET", SECRET)
    process.terminate()
    process.wait(WAIT_S)


def until(condition) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_finished_job_is_fetched(queue, webhook, tmp_path):
    work(queue, DONE)
    job_id = queue.post({}, webhook=webhook)
    video = tmp_path / f"videos/{job_id}.mp4"
    until(video.exists)
    assert video.read_bytes() == b"video"


def test_a_job_that_is_told_again_is_not_fetched_again(queue, webhook, tmp_path):
    work(queue, DONE)
    job_id = queue.post({}, webhook=webhook)
    video = tmp_path / f"videos/{job_id}.mp4"
    until(video.exists)
    video.write_bytes(b"edited")
    assert requests.post(webhook, json={"id": job_id}, timeout=5).status_code == 200
    time.sleep(1)
    assert video.read_bytes() == b"edited"


def test_a_failed_job_is_told(queue, webhook, tmp_path):
    work(queue, {"error": {"code": "E_OOM", "message": "too large", "retryable": False}})
    job_id = queue.post({}, webhook=webhook)
    until(lambda: f"job {job_id}: E_OOM: too large" in (tmp_path / "errors").read_text())
    assert not list((tmp_path / "videos").iterdir())


def test_a_posted_result_is_not_believed(queue, webhook, tmp_path):
    forged = {"id": "forged", "status": "COMPLETED", "output": {"status": "success", "video": {"data": "QUJD"}}}
    assert requests.post(webhook, json=forged, timeout=5).status_code == 200
    until(lambda: "has no job forged" in (tmp_path / "errors").read_text())
    assert not list((tmp_path / "videos").iterdir())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("wrong-secret", b'{"id": "x"}', 404),
        (SECRET, b"no JSON", 400),
        (SECRET, b'{"id": "../../etc/passwd"}', 400),
        (SECRET, b'{"id": 5}', 400),
        (SECRET, b"[]", 400),
    ],
)
def test_a_post_that_is_no_webhook_is_refused(webhook, path, body, status):
    address = webhook.replace(SECRET, path)
    assert requests.post(address, data=body, timeout=5).status_code == status


def test_the_webhook_is_answered_before_its_job_has_ended(queue, webhook):
    job_id = queue.post({})
    assert requests.post(webhook, json={"id": job_id}, timeout=5).status_code == 200
    queue.cancel(job_id)


def test_a_secret_that_can_be_guessed_is_refused(tmp_path):
    environment = os.environ | {"WEBHOOK_SECRET": "secret"}
    command = [sys.executable, "examples/webhook.py", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2
    assert "set WEBHOOK_SECRET to at least 16 letters" in done.stderr

"""The local endpoint answers clients as Runpod does; the worker's side is tested with the real worker elsewhere."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from infinitetalk.worker import policy
from tests.local_queue import work
from tools import local_endpoint
from tools.queue_server import API_KEY, LocalQueue

CHECKOUT = Path(__file__).parents[1]
DONE = {"output": {"status": "success", "video": {"path": "made/talk.mp4"}}}


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[LocalQueue]:
    with LocalQueue(tmp_path) as queue:
        yield queue


def call(queue: LocalQueue, method: str, path: str, **options: object) -> requests.Response:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    return requests.request(method, f"{queue.endpoint.url}/{path}", headers=headers, timeout=20, **options)  # type: ignore[arg-type]


def test_a_job_goes_from_queue_through_progress_to_its_result(queue):
    job_id = call(queue, "POST", "run", json={"input": {"prompt": "x"}, "s3Config": {"bucketName": "b"}}).json()["id"]
    assert call(queue, "GET", f"status/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert queue.take() == {"id": job_id, "input": {"prompt": "x"}, "s3Config": {"bucketName": "b"}}
    queue.report(job_id, {"status": "IN_PROGRESS", "output": {"stage": "sampling", "pct": 40}})
    running = call(queue, "GET", f"status/{job_id}").json()
    assert (running["status"], running["output"]["pct"]) == ("IN_PROGRESS", 40)
    queue.report(job_id, {"output": {"status": "success"}})
    ended = call(queue, "GET", f"status/{job_id}").json()
    assert (ended["status"], ended["output"]) == ("COMPLETED", {"status": "success"})
    assert {"delayTime", "executionTime", "workerId"} <= ended.keys()


def test_runsync_answers_with_the_result(queue):
    worker = work(queue, DONE)
    answer = call(queue, "POST", "runsync", json={"input": {}}).json()
    worker.join(10)
    assert (answer["status"], answer["output"]) == ("COMPLETED", DONE["output"])


def test_a_cancelled_job_stops_and_nothing_said_later_counts(queue):
    job_id = queue.post({})
    queue.take()
    assert call(queue, "POST", f"cancel/{job_id}").json()["status"] == "CANCELLED"
    assert queue.take_stops() == [job_id]
    queue.report(job_id, DONE)
    assert call(queue, "GET", f"status/{job_id}").json()["status"] == "CANCELLED"


def test_a_cancelled_job_that_waits_is_never_taken(queue):
    call(queue, "POST", f"cancel/{queue.post({})}")
    assert queue.take() is None
    assert queue.take_stops() == []


def test_a_failed_job_is_tried_again_under_its_id_and_a_completed_one_is_not(queue):
    job_id = queue.post({"prompt": "x"})
    queue.take()
    queue.report(job_id, {"error": {"code": "E_OOM"}})
    assert call(queue, "GET", f"status/{job_id}").json()["status"] == "FAILED"
    assert call(queue, "POST", f"retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert queue.take() == {"id": job_id, "input": {"prompt": "x"}}
    queue.report(job_id, DONE)
    assert call(queue, "POST", f"retry/{job_id}").status_code == 400
    assert call(queue, "GET", "health").json()["jobs"] == {
        "completed": 1,
        "failed": 0,
        "inProgress": 0,
        "inQueue": 0,
        "retried": 1,
    }


def test_a_job_is_stopped_when_its_execution_timeout_is_over(queue, monkeypatch):
    monkeypatch.setitem(policy.SHORTEST_MS, "executionTimeout", 50)
    job_id = queue.post({}, policy={"executionTimeout": 50})
    queue.take()
    job = queue.wait_until(job_id, lambda job: job.status == "TIMED_OUT", 5)
    assert "executionTimeout" in job.error
    assert queue.take_stops() == [job_id]


@pytest.mark.parametrize(
    "refused",
    [
        {"executionTimeout": -1},
        {"executionTimeout": 4},
        {"executionTimeout": True},
        {"executionTimeout": 1800, "ttl": 86400 * 365},
        {"ttl": 86400 * 365_000},
        {"ttl": 9_999},
        {"ttl": "1 h"},
        "30 min",
        [1800],
    ],
)
def test_a_policy_that_runpod_would_refuse_is_refused(queue, refused):
    answer = call(queue, "POST", "run", json={"input": {}, "policy": refused})
    assert answer.status_code == 400
    assert "milliseconds" in answer.json()["error"]


@pytest.mark.parametrize(
    ("given", "timeout_s", "ttl_s"),
    [
        # As a client's own example has it.
        ({"executionTimeout": 1800, "ttl": 86400}, 1800, 86400),
        ({"executionTimeout": 1_800_000, "ttl": 86_400_000}, 1800, 86400),
        ({"executionTimeout": 4_999}, 4_999, local_endpoint.DEFAULT_TTL_S),
        ({"executionTimeout": 5_000}, 5, local_endpoint.DEFAULT_TTL_S),
        ({"ttl": 86400}, None, 86.4),
    ],
)
def test_an_execution_timeout_below_runpods_least_means_seconds(queue, given, timeout_s, ttl_s):
    job = queue.jobs[call(queue, "POST", "run", json={"input": {}, "policy": given}).json()["id"]]
    assert (job.execution_timeout_s, job.ttl_s) == (timeout_s, ttl_s)


def test_a_worker_that_has_gone_gets_no_job(queue, monkeypatch):
    monkeypatch.setattr(local_endpoint, "LONG_POLL_S", 30.0)
    with pytest.raises(requests.ReadTimeout):
        requests.get(
            queue.endpoint.url + "/job-take/worker-1", headers={"Authorization": API_KEY}, timeout=0.5, stream=True
        )
    time.sleep(0.5)
    job_id = queue.post({})
    time.sleep(0.5)
    assert queue.jobs[job_id].status == "IN_QUEUE"


def test_requests_that_are_too_large_or_no_job_are_refused(queue):
    assert call(queue, "POST", "run", data=b"x" * 10_000_001).status_code == 413
    broken = call(queue, "POST", "run", data=b"not json")
    assert (broken.status_code, broken.json()["error"][:29]) == (400, "the request is not valid JSON")
    assert call(queue, "POST", "run", json={"prompt": "x"}).status_code == 400
    assert call(queue, "GET", "status/unknown").status_code == 404


def test_a_wrong_address_is_answered_with_the_endpoints_own(queue):
    headers = {"Authorization": f"Bearer {API_KEY}"}
    answer = requests.post(f"http://127.0.0.1:{queue.endpoint.port}/v2/other/run", headers=headers, json={}, timeout=5)
    message = f"POST /v2/other/run does not exist; the endpoint is {queue.endpoint.url}"
    assert (answer.status_code, answer.json()) == (404, {"error": message})


def test_a_port_in_use_is_named_with_the_way_out(queue):
    command = [sys.executable, "-m", "tools.local_endpoint", "--port", str(queue.endpoint.port)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"port {queue.endpoint.port} is in use")
    assert f"--port {queue.endpoint.port + 1}" in done.stderr


def test_nothing_is_answered_without_the_key(queue):
    for path in ("v2/local/health", "files/uploads/x", "v2/local/job-take/w"):
        assert requests.get(f"http://127.0.0.1:{queue.endpoint.port}/{path}", timeout=5).status_code == 401


def test_a_preview_alone_is_read_without_the_key(queue, tmp_path):
    preview = tmp_path / "infinitetalk/jobs/talk.preview"
    preview.mkdir(parents=True)
    (preview / "segment-00000.ts").write_bytes(b"segment")
    (preview.parent / "talk.mp4").write_bytes(b"video")

    def answer(method: str, path: str) -> requests.Response:
        # As it is written: requests would resolve "..".
        request = requests.Request(method, f"http://127.0.0.1:{queue.endpoint.port}/").prepare()
        request.url = f"http://127.0.0.1:{queue.endpoint.port}/files/infinitetalk/jobs/{path}"
        with requests.Session() as session:
            return session.send(request, timeout=5)

    segment = answer("GET", "talk.preview/segment-00000.ts")
    assert (segment.content, segment.headers["Content-Type"]) == (b"segment", "video/mp2t")
    for path in ("talk.mp4", "talk.preview/../talk.mp4", "talk.preview/%2e%2e/talk.mp4", "talk.preview/..%2ftalk.mp4"):
        assert answer("GET", path).status_code in (401, 403, 404), path
    assert answer("PUT", "talk.preview/segment-00000.ts").status_code == 401


def test_a_job_outlives_two_lost_workers_and_fails_with_the_third(queue):
    job_id = queue.post({})
    for _ in range(3):
        assert queue.take() is not None
        queue.lose_worker()
    assert queue.jobs[job_id].status == "FAILED"
    assert queue.take() is None


def test_a_webhook_is_told_until_it_answers_with_200(queue, monkeypatch):
    monkeypatch.setattr(local_endpoint, "WEBHOOK_PAUSE_S", 0.5)
    received: list[dict] = []

    class Site(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(received) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Site) as site:
        thread = threading.Thread(target=site.serve_forever, daemon=True)
        thread.start()
        job_id = queue.post({}, webhook=f"http://127.0.0.1:{site.server_port}/")
        queue.take()
        queue.report(job_id, DONE)
        deadline = time.monotonic() + 10
        while len(received) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        site.shutdown()
    assert [(message["id"], message["status"]) for message in received] == [(job_id, "COMPLETED")] * 2


def test_an_upload_cannot_climb_out_of_its_folder(queue, tmp_path):
    address = f"http://127.0.0.1:{queue.endpoint.port}/files/uploads"
    headers = {"Authorization": f"Bearer {API_KEY}"}
    for name in ("..%2Foutside", ".hidden", "a%00b"):
        assert requests.put(f"{address}/{name}", data=b"x", headers=headers, timeout=5).status_code in (400, 404)
    assert requests.get(f"{address}/..%2F..%2F..%2Fetc%2Fpasswd", headers=headers, timeout=5).status_code in (403, 404)
    assert not (tmp_path / "outside").exists()

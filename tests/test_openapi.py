"""The OpenAPI document is valid, and describes what the endpoint takes, answers and posts."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.openapi_contract import DOCUMENT, answer_schema, request_schema, schema_named
from tools.queue_server import API_KEY, LocalQueue

JOB = {"prompt": "A woman sings", "cond_video": "face.jpg", "cond_audio": {"person1": "voice.wav"}}
PROGRESS = {"stage": "sampling", "pct": 40.0, "job_id": "x", "seq": 3, "details": {}}
VIDEO = {"mime": "video/mp4", "bytes": 1, "width": 8, "height": 8, "fps": 25.0, "num_frames": 5, "duration_s": 0.2}
SUCCESS = {
    "job_id": "x",
    "status": "success",
    "video": VIDEO | {"path": "a.mp4", "thumbnail_path": "a.jpg"},
    "timings": {"total_ms": 5},
    "params": {},
    "model": "tiny-random",
    "memory_mode": "float32",
    "evaluations": 1,
    "evaluations_skipped": 0,
    "speakers": [{"speaker": "person1", "box": [0, 0, 8, 8], "told_by": "whole"}],
    "worker": "0.1.0",
    "warnings": [],
}
ERROR = {"code": "E_OOM", "message": "too large", "retryable": False, "at_stage": "sampling"}


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[LocalQueue]:
    with LocalQueue(tmp_path) as queue:
        yield queue


def ask(queue: LocalQueue, path: str, job_id: str = "", **options: Any) -> tuple[int, Any]:
    """The status and the body of an answer, which is checked against the document."""
    (method,) = DOCUMENT["paths"][path]
    if "json" in options:
        request_schema(path).validate(options["json"])
    answer = requests.request(
        method,
        queue.endpoint.url + path.replace("{id}", job_id),
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=20,
        **options,
    )
    answer_schema(path, answer.status_code).validate(answer.json())
    return answer.status_code, answer.json()


def test_the_document_is_openapi():
    validate(DOCUMENT)


def test_a_job_has_the_documented_answers_in_each_of_its_states(queue):
    _, taken = ask(queue, "/run", json={"input": JOB, "policy": {"executionTimeout": 600_000, "lowPriority": True}})
    job_id = taken["id"]
    assert ask(queue, "/status/{id}", job_id)[1]["status"] == "IN_QUEUE"
    queue.take()
    assert "output" not in ask(queue, "/status/{id}", job_id)[1]
    queue.report(job_id, {"status": "IN_PROGRESS", "output": PROGRESS})
    assert ask(queue, "/status/{id}", job_id)[1]["output"] == PROGRESS
    queue.report(job_id, {"error": ERROR, "output": {"job_id": "x", "status": "error"}})
    assert ask(queue, "/status/{id}", job_id)[1]["error"] == ERROR
    assert ask(queue, "/retry/{id}", job_id)[1]["status"] == "IN_QUEUE"
    queue.take()
    queue.report(job_id, {"output": SUCCESS})
    assert ask(queue, "/status/{id}", job_id)[1]["output"] == SUCCESS
    ask(queue, "/health")


def test_a_stopped_job_has_the_documented_answers(queue):
    _, taken = ask(queue, "/run", json={"input": JOB})
    assert ask(queue, "/cancel/{id}", taken["id"])[1]["status"] == "CANCELLED"
    assert ask(queue, "/status/{id}", taken["id"])[1]["status"] == "CANCELLED"


def test_runsync_has_the_documented_answer(queue):
    def work() -> None:
        while (payload := queue.take()) is None:
            time.sleep(0.01)
        queue.report(payload["id"], {"output": SUCCESS})

    threading.Thread(target=work, daemon=True).start()
    assert ask(queue, "/runsync", json={"input": JOB})[1]["output"] == SUCCESS


def test_refusals_have_the_documented_form(queue):
    assert ask(queue, "/status/{id}", "absent")[0] == 404
    assert ask(queue, "/cancel/{id}", "absent")[0] == 404
    assert ask(queue, "/run", data=b"no JSON")[0] == 400
    assert ask(queue, "/run", data=b"x" * 10_000_001)[0] == 413


def test_a_webhook_gets_the_documented_body(queue):
    received: list[Any] = []

    class Site(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{site.server_port}/"
        for report in ({"output": SUCCESS}, {"error": ERROR}, {"error": "worker exited with code 1"}):
            _, taken = ask(queue, "/run", json={"input": JOB, "webhook": address})
            queue.take()
            queue.report(taken["id"], report)
        queue.cancel(ask(queue, "/run", json={"input": JOB, "webhook": address})[1]["id"])
        deadline = time.monotonic() + 20
        while len(received) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        site.shutdown()
    content = DOCUMENT["webhooks"]["ended"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith("/JobState")
    for body in received:
        schema_named("JobState").validate(body)
    assert sorted(body["status"] for body in received) == ["CANCELLED", "COMPLETED", "FAILED", "FAILED"]


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"input": JOB | {"frame_num": 80}},
        {"input": JOB, "policy": {"executionTimeout": 1800}},
        {"input": JOB, "policy": {"ttl": 10**12}},
        {"input": JOB, "s3Config": {"bucketName": "b"}},
        {"input": {"batch": [JOB]}},
    ],
    ids=str,
)
def test_a_request_that_would_be_refused_breaks_the_document(request_body):
    assert not request_schema("/run").is_valid(request_body)


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "x", "status": "DONE"},
        {"id": "x", "status": "COMPLETED"},
        {"id": "x", "status": "COMPLETED", "output": SUCCESS | {"video": VIDEO}},
        {"id": "x", "status": "FAILED"},
        {"id": "x", "status": "IN_PROGRESS", "output": SUCCESS},
        {"id": "x", "status": "FAILED", "error": ERROR | {"code": "E_OTHER"}},
    ],
    ids=str,
)
def test_an_answer_of_another_form_breaks_the_document(answer):
    assert not schema_named("JobState").is_valid(answer)


def test_the_documents_schemas_are_valid_themselves():
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_the_n8n_recipe_sends_a_job_of_the_interface_and_leads_from_its_start_to_both_ends():
    recipe = json.loads((Path(__file__).parents[1] / "examples/n8n/infinitetalk.json").read_text(encoding="utf-8"))
    nodes = {node["name"]: node["parameters"] for node in recipe["nodes"]}
    reached, waiting = set(), ["Start"]
    while waiting:
        reached.add(name := waiting.pop())
        outputs = recipe["connections"].get(name, {"main": []})["main"]
        waiting.extend(place["node"] for output in outputs for place in output)
    assert reached == set(nodes)
    job = json.loads(nodes["Job"]["jsonOutput"])
    request_schema("/run").validate({"input": job["input"], "webhook": "https://n8n.example.com/webhook-waiting/1"})
    assert "input: $json.input, webhook: $execution.resumeUrl" in nodes["Send the job"]["jsonBody"]
    named = {name for node in nodes.values() for name in re.findall(r"\$\('([^']+)'\)", json.dumps(node))}
    assert named == {"Job", "Send the job"}

"""The worker without a queue: one job from the command line, and the SDK's local API."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from schemas import Failure, Success
from tests.job_inputs import small_job

CHECKOUT = Path(__file__).parents[1]
START_TIMEOUT_S = 120


def local_environment(volume: Path) -> dict[str, str]:
    """An environment without a queue."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    return environment | {"OUTPUT_DIR": str(volume), "INFINITETALK_MODEL": "tiny", "OMP_NUM_THREADS": "2"}


def run_test_input(job: dict, volume: Path) -> tuple[subprocess.CompletedProcess, dict]:
    """`handler.py --test_input`, ended, and the result that it printed."""
    finished = subprocess.run(
        [sys.executable, "handler.py", "--test_input", json.dumps(job)],
        cwd=CHECKOUT,
        env=local_environment(volume),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    assert "{\n" in finished.stdout, finished.stderr[-2000:]
    begin = finished.stdout.index("{\n")
    return finished, json.JSONDecoder().raw_decode(finished.stdout[begin:])[0]


def test_a_job_from_the_command_line_leaves_its_files_and_prints_its_result(tmp_path):
    finished, printed = run_test_input({"id": "demo", "input": small_job()}, tmp_path)
    result = Success.model_validate(printed, strict=False)
    assert finished.returncode == 0
    assert (result.job_id, result.video.path) == ("demo", "infinitetalk/jobs/demo.mp4")
    assert sorted(path.name for path in (tmp_path / "infinitetalk/jobs").iterdir()) == [
        "demo.jpg",
        "demo.json",
        "demo.mp4",
    ]


def test_a_failed_job_from_the_command_line_ends_with_code_1(tmp_path):
    finished, printed = run_test_input({"id": "demo", "input": small_job(frame_num=80)}, tmp_path)
    assert finished.returncode == 1
    assert Failure.model_validate(printed, strict=False).error.code == "E_INPUT_VALIDATION"
    # What was still being loaded has not failed by that.
    assert "Traceback" not in finished.stderr
    assert "model.not_loaded" not in finished.stderr


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the SDK's local API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "handler.py", "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)],
        cwd=CHECKOUT,
        env=local_environment(tmp_path_factory.mktemp("volume")),
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_the_local_api_runs_a_job_and_gives_its_result(api):
    posted = requests.post(
        f"{api}/run", json={"input": small_job(output_config={"store": "inline"})}, timeout=30
    ).json()
    status = requests.post(f"{api}/status/{posted['id']}", timeout=120).json()
    assert status["status"] == "COMPLETED"
    assert Success.model_validate(status["output"], strict=False).video.data


def test_the_local_api_tells_a_failure(api):
    posted = requests.post(f"{api}/run", json={"input": small_job(frame_num=80)}, timeout=30).json()
    status = requests.post(f"{api}/status/{posted['id']}", timeout=120).json()
    assert status["status"] == "FAILED"
    assert json.loads(status["error"])["code"] == "E_INPUT_VALIDATION"

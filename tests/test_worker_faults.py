"""What breaks under a job: each fault has its code, and the next job is served."""

import errno
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from infinitetalk.errors import CheckpointError
from infinitetalk.runtime.memory import GIB, model_sizes
from infinitetalk.runtime.models import Models
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.engine.placement import MemoryBudget
from infinitetalk.worker.policy import TIMEOUT_MARGIN_S, time_limit
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from schemas import Stage
from tests.job_inputs import data_uri, scenes_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker
from tools.queue_server import LocalQueue
from tools.worker_process import HANDLER, START_TIMEOUT_S, worker_of

JOB = {"id": "job-1", "input": small_job()}


def test_an_encoder_that_cannot_write_is_a_coded_failure(local_worker: LocalWorker, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def take_folder_away() -> bool:
        if Stage.SAMPLING in local_worker.stages:
            for folder in tmp_path.glob("infinitetalk-*"):
                shutil.rmtree(folder)
        return False

    error = local_worker.run(JOB, take_folder_away)["error"]
    assert (error["code"], error["retryable"], error["at_stage"]) == ("E_FFMPEG", True, "decode")
    assert str(tmp_path) not in error["message"]
    assert local_worker.run(JOB)["status"] == "success"


def test_a_job_that_runs_out_of_memory_is_told_what_would_fit_and_gets_it_when_sent_again(tmp_path: Path):
    settings = Settings(output_dir=tmp_path, infinitetalk_model="tiny")
    # As on a GPU that has room for everything, by the estimate.
    engine = Engine(settings, lambda _, paths: MemoryBudget(64 * GIB, model_sizes(paths)))
    engine.start()
    worker = LocalWorker(settings, engine, tmp_path)
    assert worker.run(JOB)["memory_mode"] == "float32"

    def run_out() -> bool:
        if Stage.SAMPLING in worker.stages:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return False

    error = worker.run(JOB, run_out)["error"]
    assert (error["code"], error["retryable"]) == ("E_OOM", True)
    assert "for the mode float32: send the job again, this worker will run it in the mode float32" in error["message"]
    again = worker.run(JOB)
    assert again["status"] == "success"
    assert again["memory_mode"] in error["message"]
    assert again["memory_mode"] != "float32"


@pytest.mark.parametrize(
    "reader",
    [
        "infinitetalk.runtime.models.read_json",
        "infinitetalk.weights.networks.open_file",
        "infinitetalk.weights.networks.Wav2Vec2Model.from_pretrained",
        "infinitetalk.weights.networks.AutoTokenizer.from_pretrained",
        "infinitetalk.runtime.models.Models.prepare",
    ],
)
def test_a_model_that_could_not_be_read_is_another_workers_chance(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "/weights/model.safetensors")

    monkeypatch.setattr(reader, fail)
    engine = Engine(settings := Settings(output_dir=tmp_path, infinitetalk_model="tiny"))
    engine.start()
    error = LocalWorker(settings, engine, tmp_path).run(JOB)["error"]
    assert (error["code"], error["retryable"]) == ("E_PIPELINE_LOAD", True)
    assert "/" not in error["message"]
    assert engine.health.is_broken


@pytest.mark.parametrize(
    "reader", ["infinitetalk.weights.fingerprint.content_of", "infinitetalk.runtime.models.load_transformer_parameters"]
)
def test_a_disk_that_fails_while_the_worker_serves_is_no_mistake_of_the_client(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = Engine(settings := Settings(output_dir=tmp_path, infinitetalk_model="talker"))
    engine.start()
    engine.finish_loading()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "/weights/model.safetensors")

    monkeypatch.setattr(reader, fail)
    for_two = JOB["input"] | {"cond_audio": {name: speech_uri(0.2) for name in ("person1", "person2")}}
    error = LocalWorker(settings, engine, tmp_path).run({"id": "job-1", "input": for_two})["error"]
    assert (error["code"], error["retryable"]) == ("E_PIPELINE_LOAD", True)
    assert engine.health.is_broken


def test_weights_that_do_not_fit_are_no_other_workers_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise CheckpointError("model.safetensors lacks blocks.0.weight")

    monkeypatch.setattr(Models, "prepare", fail)
    engine = Engine(settings := Settings(output_dir=tmp_path, infinitetalk_model="tiny"))
    engine.start()
    error = LocalWorker(settings, engine, tmp_path).run(JOB)["error"]
    assert (error["code"], error["retryable"]) == ("E_PIPELINE_LOAD", False)
    assert not engine.health.is_broken


def test_a_full_disk_fails_the_job_that_fills_it_and_no_other_unless_it_stays_full(tmp_path: Path):
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here: unshare is not permitted")
    script = tmp_path / "on_a_small_disk.py"
    mount = f"mount -t tmpfs -o size=4m tmpfs $TMPDIR && exec {{python}} -u {HANDLER}"
    script.write_text(
        "import os, sys\n"
        f"command = {mount!r}.format(python=sys.executable)\n"
        'os.execvp("unshare", ["unshare", "--map-root-user", "--mount", "sh", "-c", command])\n'
    )
    noise = np.random.default_rng(0).bytes(6_000_000)
    with LocalQueue() as queue, worker_of(queue, tmp_path, script, MIN_TEMPORARY_BYTES="0") as worker:
        worker.wait_until_ready()
        _, failure = worker.refusal(small_job(cond_video=data_uri(scenes_bytes([8]) + noise, "video/mp4")))
        assert failure.error.retryable is True
        assert "disk is full" in failure.error.message
        worker.success(small_job())
        # What fills it now is no job's, and stays.
        disk = Path(f"/proc/{worker.process.pid}/root{worker.temporary}")
        with suppress(OSError), (disk / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(4096))
        _, failure = worker.refusal(small_job())
        assert (failure.error.code, failure.error.retryable) == ("E_GENERATION_RUNTIME", True)
        next_id = queue.post(small_job())
        assert worker.process.wait(START_TIMEOUT_S) == 0
        assert queue.jobs[next_id].status == "IN_QUEUE"


def test_the_first_sigterm_sets_the_end():
    stop = Stop()
    assert stop.leaves_time_for(1e9)
    stop.drain(0.5)
    stop.drain(1e9)
    assert stop.is_draining
    assert not stop.leaves_time_for(1)


@pytest.mark.parametrize(
    ("setting", "policy", "seconds"),
    [
        (None, None, None),
        (90.0, None, 90.0),
        (None, {"executionTimeout": 60_000}, 60 - TIMEOUT_MARGIN_S),
        (30.0, {"executionTimeout": 60_000}, 30.0),
        (90.0, {"executionTimeout": 60_000, "ttl": 600_000}, 60 - TIMEOUT_MARGIN_S),
        (90.0, {"ttl": 600_000}, 90.0),
        (None, {"executionTimeout": 60_000.0}, 60 - TIMEOUT_MARGIN_S),
        (90.0, {"executionTimeout": 10**400}, 90.0),
        (None, {"executionTimeout": 1800, "ttl": 86400}, 1800 - TIMEOUT_MARGIN_S),
        (None, {"executionTimeout": 4_999}, 4_999 - TIMEOUT_MARGIN_S),
        (None, {"executionTimeout": 5_000}, 5 - TIMEOUT_MARGIN_S),
        (90.0, {"executionTimeout": True}, 90.0),
        (90.0, {"executionTimeout": -1}, 90.0),
        (90.0, {"executionTimeout": float("inf")}, 90.0),
        (90.0, [1800], 90.0),
        (90.0, {"executionTimeout": "60000"}, 90.0),
    ],
)
def test_a_jobs_time_is_the_shorter_of_the_workers_and_its_policys(setting, policy, seconds):
    assert time_limit(policy, setting) == seconds

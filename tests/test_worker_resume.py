"""A job that loses its worker goes on in the next one, after its last whole chunk, with the same frames."""

import asyncio
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from pydantic import SecretStr
from safetensors.torch import save_file
from structlog import get_logger
from structlog.testing import capture_logs

from infinitetalk.errors import GenerationStopped
from infinitetalk.family import INFINITETALK
from infinitetalk.runtime.memory import GIB
from infinitetalk.worker import release
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.engine.placement import MemoryBudget
from infinitetalk.worker.job import resume
from infinitetalk.worker.job.bill import Spent
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.resume import ChunkPart, JobStates, Rendering, TaskState, part_file, request_fingerprint
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.queue.runner import Runner
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from infinitetalk.worker.stores.volume import VolumeObjects
from schemas import SingleJob, Stage, Success
from tests.job_inputs import picture_bytes, picture_uri, scenes_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker, ready
from tests.s3_server import S3Server, with_bucket
from tools.frames import read_frames
from tools.queue_server import LocalQueue
from tools.worker_process import JOB_TIMEOUT_S, START_TIMEOUT_S, Worker, worker_of

NUM_CHUNKS = 4
NUM_FRAMES = 17


def streaming_job(**changes: object) -> dict:
    """A job of four chunks, or of as many as its speech has."""
    job = {"mode": "streaming", "cond_audio": {"person1": speech_uri(0.68)}, "sample_steps": 12}
    return small_job(**job | changes)


def changing_job(**changes: object) -> dict:
    """A job of four chunks whose prompt and picture change in the second one."""
    pictures = [picture_uri(), picture_uri(white=slice(20, 50))]
    times = {
        field: [{"from_s": time, name: value} for time, value in zip((0, 0.1), values, strict=True)]
        for field, name, values in (("prompt", "prompt", ["She talks", "She sings"]), ("cond_video", "media", pictures))
    }
    return streaming_job(**times | changes)


@pytest.fixture(scope="module")
def queue() -> Iterator[LocalQueue]:
    with LocalQueue() as queue:
        yield queue


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


def leftovers(worker: Worker) -> list[str]:
    """What is kept of jobs on the volume."""
    return sorted(str(file.relative_to(worker.volume)) for file in worker.volume.rglob(".resume/*/*"))


def test_a_killed_worker_costs_one_chunk_and_a_drained_one_none(queue, folder):
    seed = -1  # the next worker must know which one it was
    with worker_of(queue, folder) as worker:
        killed_id = queue.post(changing_job(base_seed=seed))
        worker.wait_for_event("resume.stored", job_id=killed_id, details={"chunks": 2})
        worker.kill()
    with worker_of(queue, folder, SHUTDOWN_GRACE_S="0") as worker:
        assert worker.wait_for_event("job.resumed", job_id=killed_id)["details"]["chunks"] >= 2
        killed = Success.model_validate(queue.wait(killed_id, JOB_TIMEOUT_S).output, strict=False)
        worker.wait_for_event("result.delivered", job_id=killed_id)

        drained_id = queue.post(streaming_job())
        worker.wait_for_event("resume.stored", job_id=drained_id)
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(START_TIMEOUT_S)
        assert worker.events("job.stopped", job_id=drained_id)[0]["details"]["outcome"] == "handed_over"
        assert queue.jobs[drained_id].status == "IN_PROGRESS"
        queue.lose_worker()
    with worker_of(queue, folder) as worker:
        drained = Success.model_validate(queue.wait(drained_id, JOB_TIMEOUT_S).output, strict=False)
        stored = worker.events("resume.stored", job_id=drained_id)
        resumed = worker.events("job.resumed", job_id=drained_id)[0]["details"]["chunks"]
        assert [line["details"]["chunks"] for line in stored] == list(range(resumed + 1, NUM_CHUNKS + 1))

        _, never_killed = worker.success(changing_job(base_seed=killed.params["base_seed"]))
        _, never_drained = worker.success(streaming_job())
        assert np.array_equal(worker.frames(killed), worker.frames(never_killed))
        assert np.array_equal(worker.frames(drained), worker.frames(never_drained))
        assert killed.evaluations == never_killed.evaluations
        assert killed.video.num_frames == never_killed.video.num_frames == NUM_FRAMES
        worker.wait_for_event("result.delivered", job_id=list(queue.jobs)[-1])
        assert leftovers(worker) == []


class Interrupted:
    """Stops a job once so many chunks have ended."""

    def __init__(self, worker: LocalWorker, num_chunks: int) -> None:
        self.worker = worker
        self.num_chunks = num_chunks

    def __call__(self) -> bool:
        return first_chunk_and_last(self.worker)[1] > self.num_chunks


def first_chunk_and_last(worker: LocalWorker) -> tuple[int, int]:
    """Of those that the last job has sampled, counted from 1; zeros where there are none."""
    details = [event.details for event in worker.events]
    chunks = [chunk["chunk"] for chunk in details if chunk and "chunk" in chunk]
    return (chunks[0], chunks[-1]) if chunks else (0, 0)


def interrupt(worker: LocalWorker, job: dict[str, Any], num_chunks: int) -> None:
    """Runs a job until so many chunks are made."""
    with pytest.raises(GenerationStopped):
        worker.run(job, Interrupted(worker, num_chunks), keep=True)


def frames_of(worker: LocalWorker, job_id: str) -> np.ndarray:
    """The video of a job: uint8 (T, H, W, 3)."""
    return read_frames(worker.volume / "infinitetalk/jobs" / f"{job_id}.mp4")


def kept(worker: LocalWorker) -> list[str]:
    """Names of what is kept of jobs on the volume, without what tells workers' files apart."""
    names = [file.name for file in worker.volume.rglob(".resume/*/*")]
    return sorted(re.sub(r"-[0-9a-f]{12}\.", ".", name) for name in names)


SHORT = {"cond_audio": {"person1": speech_uri(0.36)}}
"""Two chunks, 9 frames."""


def job(job_id: str = "job-1", **changes: Any) -> dict[str, Any]:
    return {"id": job_id, "input": streaming_job(**{"sample_steps": 2} | changes)}


def test_it_goes_on_after_the_chunks_that_are_there_with_the_same_frames(local_worker):
    local_worker.run(job("whole"))
    interrupt(local_worker, job(), 2)
    assert kept(local_worker) == ["chunk-00002.safetensors", *map(part_file, range(2)), "state.json", "thumbnail.jpg"]
    result = local_worker.run(job())
    assert first_chunk_and_last(local_worker) == (3, NUM_CHUNKS)
    assert np.array_equal(frames_of(local_worker, "job-1"), frames_of(local_worker, "whole"))
    assert (result["evaluations"], result["video"]["num_frames"]) == (NUM_CHUNKS * 4, NUM_FRAMES)
    assert kept(local_worker) == []


def test_it_goes_on_in_the_second_scene_of_a_video(local_worker):
    (local_worker.volume / "scenes.mp4").write_bytes(scenes_bytes([16, 16]))
    changes = {"cond_video": "scenes.mp4", "scene_seg": True, "frame_num": 13, "motion_frame": 9}
    changes["cond_audio"] = {"person1": speech_uri(1.24)}
    local_worker.run(job("whole", **changes))
    interrupt(local_worker, job(**changes), 2)
    local_worker.run(job(**changes))
    assert first_chunk_and_last(local_worker) == (3, 4)
    assert np.array_equal(frames_of(local_worker, "job-1"), frames_of(local_worker, "whole"))


def test_a_job_whose_time_is_over_goes_on_when_it_is_tried_again(local_worker):
    # The first one also warms up what the second, which is timed, finds warm.
    local_worker.run(job("first", sample_steps=20))
    whole = local_worker.run(job("whole", sample_steps=20))
    seconds = whole["timings"]["total_ms"] / 1000
    settings = local_worker.settings
    local_worker.settings = settings.model_copy(update={"job_timeout_s": 0.6 * seconds})
    failure = local_worker.run(job(sample_steps=20), keep=True)
    assert (failure["error"]["code"], failure["error"]["retryable"]) == ("E_TIMEOUT", True)
    local_worker.settings = settings
    local_worker.run(job(sample_steps=20))
    assert first_chunk_and_last(local_worker)[0] > 1
    assert np.array_equal(frames_of(local_worker, "job-1"), frames_of(local_worker, "whole"))


def test_a_finished_job_whose_result_was_lost_returns_it_at_once(local_worker):
    result = local_worker.run(job(**SHORT), keep=True)
    again = local_worker.run(job(**SHORT))
    assert again == result
    assert Stage.DOWNLOAD not in local_worker.stages
    assert kept(local_worker) == []


def test_what_was_made_before_an_unexpected_error_stays_for_another_try(local_worker, monkeypatch):
    runner = Runner(local_worker.settings, ready(local_worker.settings, local_worker.engine))

    def run_and_fail(*arguments: Any) -> dict[str, Any]:
        run_job(*arguments)
        raise RuntimeError("nobody expects this")

    # In a thread, which leaves the signals of the tests' process alone.
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(asyncio.run, runner(job("job-0", **SHORT))).result()["status"] == "success"
        monkeypatch.setattr("infinitetalk.worker.queue.runner.run_job", run_and_fail)
        failure = thread.submit(asyncio.run, runner(job(**SHORT))).result()
    assert (failure["error"]["code"], failure["error"]["retryable"]) == ("E_GENERATION_RUNTIME", True)
    assert "state.json" in kept(local_worker)


def test_a_job_that_comes_after_sigterm_is_left_to_the_next_worker_in_time(local_worker):
    """An open request may bring one while the worker drains."""
    local_worker.run(job("whole"))
    settings = local_worker.settings.model_copy(update={"shutdown_grace_s": 0.5})
    runner = Runner(settings, ready(settings, local_worker.engine))
    runner.drain()
    time.sleep(0.5)
    # In a thread, which leaves the signals of the tests' process alone.
    with ThreadPoolExecutor(1) as thread, pytest.raises(asyncio.CancelledError):
        thread.submit(asyncio.run, runner(job())).result()
    assert kept(local_worker) == ["chunk-00001.safetensors", part_file(0), "state.json", "thumbnail.jpg"]
    assert local_worker.run(job())["status"] == "success"
    assert first_chunk_and_last(local_worker) == (2, NUM_CHUNKS)
    assert np.array_equal(frames_of(local_worker, "job-1"), frames_of(local_worker, "whole"))


def test_a_store_that_hangs_when_a_job_is_cleaned_up_delays_the_next_one_only_so_long(local_worker, monkeypatch):
    states = JobStates(local_worker.settings)
    resources = Resources(local_worker.settings, local_worker.engine, states)
    run_job(job(**SHORT), local_worker.settings, lambda: resources, lambda _: None, Stop())
    assert "state.json" in kept(local_worker)
    delete, answers = VolumeObjects.delete, threading.Event()

    def hang(objects: VolumeObjects, names: Any) -> None:
        answers.wait(20)
        delete(objects, names)

    monkeypatch.setattr(VolumeObjects, "delete", hang)
    monkeypatch.setattr(resume, "AFTER_JOB_S", 0.3)
    begin = time.monotonic()
    states.close("job-1", keep=False)
    assert 0.3 <= time.monotonic() - begin < 10
    assert "state.json" in kept(local_worker)
    # The rest is done beside the next job.
    answers.set()
    deadline = time.monotonic() + 20
    while kept(local_worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert kept(local_worker) == []


def test_a_finished_job_whose_video_is_gone_is_put_together_again(local_worker):
    local_worker.run(job(**SHORT), keep=True)
    video = local_worker.volume / "infinitetalk/jobs/job-1.mp4"
    before = video.read_bytes()
    video.unlink()
    result = local_worker.run(job(**SHORT))
    assert first_chunk_and_last(local_worker) == (0, 0)
    assert result["status"] == "success"
    assert video.read_bytes() == before


@pytest.mark.parametrize("change", ["none", "touched", "another", "another of the same time"])
def test_another_lora_of_the_same_name_begins_anew(change, tiny_engine, tmp_path):
    # transformers loads one model at a time in a process.
    tiny_engine.finish_loading()
    settings = Settings(output_dir=tmp_path, volume_dir=tmp_path, lora_dir=tmp_path, infinitetalk_model="tiny")
    worker = LocalWorker(settings, engine := Engine(settings), tmp_path)
    engine.start()
    name = "diffusion_model.head.head.diff_b"
    save_file({name: torch.zeros(64)}, tmp_path / "style.safetensors")
    changes = SHORT | {"loras": [{"name": "style.safetensors"}]}
    interrupt(worker, job(**changes), 1)
    style = tmp_path / "style.safetensors"
    before = style.stat()
    if change.startswith("another"):
        save_file({name: torch.ones(64)}, style)
    if change == "another of the same time":
        os.utime(style, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == "touched":
        os.utime(style)
    # A worker of its own, which has nothing of the file in memory.
    again = LocalWorker(settings, other := Engine(settings), tmp_path)
    engine.finish_loading()
    other.start()
    again.run(job(**changes))
    assert first_chunk_and_last(again) == ((1, 2) if change.startswith("another") else (2, 2))


def test_of_a_batch_only_what_is_missing_is_made(local_worker):
    items = [job(**SHORT)["input"] | {"id": name} for name in ("a", "b")]
    batch = {"id": "job-1", "input": {"batch": items}}

    def in_second_item() -> bool:
        return any(event.item is not None and event.item.item_id == "b" for event in local_worker.events)

    with pytest.raises(GenerationStopped):
        local_worker.run(batch, in_second_item, keep=True)
    result = local_worker.run(batch)
    sampled = {event.item.item_id for event in local_worker.events if event.stage == Stage.SAMPLING}
    assert sampled == {"b"}
    assert (result["status"], len(result["items"])) == ("success", 2)
    assert kept(local_worker) == []


def part_of(folder: Path) -> Path:
    """The first part among what is kept of a job."""
    return next(folder.glob("part-00000-*.mp4"))


@pytest.mark.parametrize(
    "difference", ["prompt", "picture", "code", "stale", "damaged", "part missing", "no JSON", "turned off"]
)
def test_what_does_not_fit_is_ignored(difference, local_worker, monkeypatch, tmp_path):
    (local_worker.volume / "picture.png").write_bytes(picture_bytes())
    changes = SHORT | {"cond_video": "picture.png"}
    packages = (tmp_path / "package", tmp_path / "other_package")
    for package in packages:
        package.mkdir()
        (package / "module.py").write_text("VALUE = 1")
    monkeypatch.setattr(release, "PACKAGES", packages)
    release.code_hash.cache_clear()
    interrupt(local_worker, job(**changes), 1)
    (folder,) = local_worker.volume.rglob(".resume/*")
    match difference:
        case "prompt":
            changes["prompt"] = "A man talks"
        case "picture":
            (local_worker.volume / "picture.png").write_bytes(picture_bytes(white=slice(0, 30)))
        case "code":
            (packages[1] / "module.py").write_text("VALUE = 2")
            release.code_hash.cache_clear()
        case "stale":
            local_worker.settings = local_worker.settings.model_copy(update={"resume_ttl_s": 0.0})
        case "damaged":
            (folder / part_of(folder)).write_bytes(b"another video")
        case "part missing":
            (folder / part_of(folder)).unlink()
        case "no JSON":
            (folder / "state.json").write_text("{")
        case "turned off":
            local_worker.settings = local_worker.settings.model_copy(update={"resume": False})
    result = local_worker.run(job(**changes))
    assert result["video"]["num_frames"] == 9
    assert first_chunk_and_last(local_worker) == (1, 2)


def worker_with(free_gib: float, tmp_path: Path) -> LocalWorker:
    """A worker as on a GPU of so much memory, by the published model's sizes."""
    settings = Settings(output_dir=tmp_path, volume_dir=tmp_path, infinitetalk_model="tiny")
    engine = Engine(settings, lambda *_: MemoryBudget(int(free_gib * GIB), INFINITETALK.model_sizes))
    engine.start()
    engine.finish_loading()
    return LocalWorker(settings, engine, tmp_path)


def test_a_worker_that_computes_otherwise_goes_on_and_says_so_and_one_that_places_otherwise_does_not(
    tiny_engine, tmp_path
):
    # transformers loads one model at a time in a process.
    tiny_engine.finish_loading()
    wide, narrow, frugal = (worker_with(free_gib, tmp_path) for free_gib in (79, 40, 30))
    whole = narrow.run(job("whole"))
    assert (whole["memory_mode"], whole["warnings"]) == ("fp8", [])

    interrupt(wide, job(), 2)
    mixed = narrow.run(job())
    assert first_chunk_and_last(narrow) == (3, NUM_CHUNKS)
    assert mixed["evaluations"] == whole["evaluations"]
    assert mixed["warnings"] == [
        "chunks 1 to 2 were made in float32 on CPU (attention: native), the rest in fp8 on CPU (attention: native): "
        "another worker continued the job, and details may change there"
    ]
    assert not np.array_equal(frames_of(narrow, "job-1"), frames_of(narrow, "whole"))

    interrupt(narrow, job("job-2"), 1)
    moved = frugal.run(job("job-2"))
    assert first_chunk_and_last(frugal) == (2, NUM_CHUNKS)
    assert (moved["memory_mode"], moved["warnings"]) == ("fp8, text encoder streamed", [])
    assert np.array_equal(frames_of(frugal, "job-2"), frames_of(frugal, "whole"))


def test_of_a_jobs_parameters_those_that_change_no_number_are_no_part_of_its_fingerprint():
    def fingerprint(**changes: Any) -> str:
        return request_fingerprint("job-1", SingleJob.model_validate(streaming_job(**changes)), "weights", {})

    assert fingerprint(num_persistent_param_in_dit=5) == fingerprint(offload_model=True) == fingerprint()
    changes = [{"quant": "int8"}, {"sample_steps": 13}, {"base_seed": 1}, {"loras": [{"name": "style"}]}]
    assert len({fingerprint(), *(fingerprint(**change) for change in changes)}) == 5


def test_nothing_is_kept_where_it_is_turned_off(local_worker):
    local_worker.settings = local_worker.settings.model_copy(update={"resume": False})
    interrupt(local_worker, job(**SHORT), 1)
    assert kept(local_worker) == []


def test_a_place_that_cannot_be_written_to_costs_no_job(local_worker):
    folder = local_worker.volume / "infinitetalk/jobs"
    folder.mkdir(parents=True)
    (folder / ".resume").write_text("a file where a folder should be")
    assert local_worker.run(job(**SHORT))["video"]["num_frames"] == 9


def test_what_is_stale_of_other_jobs_goes_with_the_next_job_that_ends(local_worker):
    interrupt(local_worker, job("given-up", **SHORT), 1)
    interrupt(local_worker, job("younger", **SHORT), 1)
    resume_folder = local_worker.volume / "infinitetalk/jobs/.resume"
    foreign = resume_folder / "given-up" / "notes.txt"
    foreign.write_text("not ours")
    long_ago = time.time() - local_worker.settings.resume_ttl_s - 60
    for file in (resume_folder / "given-up").iterdir():
        os.utime(file, (long_ago, long_ago))
    local_worker.run(job(**SHORT))
    assert [file.name for file in (resume_folder / "given-up").iterdir()] == ["notes.txt"]
    assert (resume_folder / "younger/state.json").exists()


def test_it_goes_on_from_a_bucket_after_an_upload_that_failed_without_another_evaluation(
    local_worker, s3_server: S3Server
):
    local_worker.settings = with_bucket(local_worker.settings, s3_server)
    in_bucket = job(output_config={"store": "s3"}, **SHORT)

    def uploading() -> bool:
        return Stage.UPLOAD in local_worker.stages

    with pytest.raises(GenerationStopped):
        local_worker.run(in_bucket, uploading, keep=True)
    stored = s3_server.keys()
    assert "infinitetalk/jobs/.resume/job-1/state.json" in stored
    result = local_worker.run(in_bucket)
    assert first_chunk_and_last(local_worker) == (0, 0)
    assert Success.model_validate(result, strict=False).evaluations == 8
    assert sorted(s3_server.keys()) == [f"infinitetalk/jobs/job-1.{kind}" for kind in ("jpg", "json", "mp4")]


def reasons(logs: list[dict[str, Any]]) -> list[str]:
    """Why kept state was ignored."""
    return [line["details"]["reason"] for line in logs if line["event"] == "resume.ignored"]


def with_secret(worker: LocalWorker, secret: str) -> None:
    """Gives a worker the secret of its endpoint."""
    worker.settings = worker.settings.model_copy(update={"resume_secret": SecretStr(secret)})


@pytest.mark.parametrize("forger", ["without a secret", "with another secret", "by hand"])
def test_state_that_no_worker_of_the_endpoint_has_signed_is_ignored_with_a_warning(forger, local_worker):
    if forger != "without a secret":
        with_secret(local_worker, "another secret")
    local_worker.run(job(**SHORT), keep=True)
    (state,) = local_worker.volume.rglob(".resume/*/state.json")
    with_secret(local_worker, "the endpoint's")
    if forger == "by hand":
        local_worker.run(job(**SHORT), keep=True)
        signed = json.loads(state.read_text())
        signed["state"] = signed["state"].replace('"warnings":[]', '"warnings":["visit evil.example"]')
        state.write_text(json.dumps(signed))
    with capture_logs() as logs:
        result = local_worker.run(job(**SHORT))
    assert reasons(logs) == ["it is damaged, or not signed by this endpoint"]
    assert first_chunk_and_last(local_worker) == (1, 2)
    assert result["warnings"] == []


def test_signed_state_of_one_job_is_no_template_for_another(local_worker):
    with_secret(local_worker, "the endpoint's")
    local_worker.run(job("job-1", **SHORT), keep=True)
    (folder,) = local_worker.volume.rglob(".resume/job-1")
    folder.rename(folder.with_name("job-2"))
    with capture_logs() as logs:
        result = local_worker.run(job("job-2", **SHORT))
    assert reasons(logs) == ["the job, its parameters or the model differ"]
    assert result["job_id"] == "job-2"
    assert first_chunk_and_last(local_worker) == (1, 2)


@pytest.mark.parametrize("disguise", ["picture", "list", "truncated", "pipe", "link", "too large"])
def test_a_part_that_is_no_part_is_not_opened_and_the_job_begins_anew(disguise, local_worker):
    interrupt(local_worker, job(**SHORT), 1)
    (folder,) = local_worker.volume.rglob(".resume/*")
    part = part_of(folder)
    whole = part.read_bytes()
    match disguise:
        case "picture":
            part.write_bytes(picture_bytes())
        case "list":
            part.write_text(f"ffconcat version 1.0\nfile {part.name}\n")
        case "truncated":
            part.write_bytes(whole[: len(whole) // 2])
        case "pipe":
            part.unlink()
            os.mkfifo(part)
        case "link":
            part.rename(folder / "other.mp4")
            part.symlink_to("other.mp4")
        case "too large":
            part.write_bytes(whole + bytes(1_000_000))
    # Whoever writes to an unsigned place makes its hashes fit.
    is_readable = disguise in ("picture", "list", "truncated")
    data = part.read_bytes() if is_readable else whole
    signed = json.loads((folder / "state.json").read_text())
    state = json.loads(signed["state"])
    state["rendering"]["parts"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
    (folder / "state.json").write_text(json.dumps(signed | {"state": json.dumps(state)}))
    with capture_logs() as logs:
        result = local_worker.run(job(**SHORT))
    (reason,) = reasons(logs)
    assert reason == ("EncodeError" if is_readable else "a file is missing or damaged")
    assert result["video"]["num_frames"] == 9
    assert first_chunk_and_last(local_worker) == (1, 2)


def test_what_another_holder_goes_on_from_stays_when_one_ends(local_worker, tmp_path):
    part = tmp_path / "part.mp4"
    part.write_bytes(b"a part")
    thumbnail = tmp_path / "thumbnail.jpg"
    thumbnail.write_bytes(b"a picture")

    def holder() -> TaskState:
        place = VolumeObjects(tmp_path, "jobs")
        return TaskState(place, "job-1", "request", 3600, b"secret", 1_000_000, get_logger())

    lost = holder()
    made = Rendering(7, thumbnail, 64, 64, [ChunkPart(part, 5, 1, 0, "float32")], b"state 1")
    lost.save_rendering(made, "fingerprint", Spent())
    # Both go on from what the lost one has made.
    first, second = holder(), holder()
    for state in (first, second):
        state._stored_parts, state._thumbnail = list(state._rendering.parts), state._rendering.thumbnail
        longer = Rendering(7, thumbnail, 64, 64, [*made.parts, ChunkPart(part, 5, 1, 0, "float32")], b"state 2")
        state.save_rendering(longer, "fingerprint", Spent())
    first.discard()
    (folder,) = tmp_path.rglob(".resume/*")
    names = {file.name for file in folder.iterdir()}
    assert second._rendering.names | {"state.json"} == names
    second.discard()
    assert not folder.exists()


def test_parts_of_a_job_that_goes_on_stay_however_old_they_are(local_worker):
    interrupt(local_worker, job("going-on", **SHORT), 1)
    folder = local_worker.volume / "infinitetalk/jobs/.resume/going-on"
    long_ago = time.time() - local_worker.settings.resume_ttl_s - 60
    os.utime(part_of(folder), (long_ago, long_ago))
    before = sorted(folder.iterdir())
    local_worker.run(job(**SHORT))
    assert sorted(folder.iterdir()) == before


def test_a_clock_that_is_ahead_sweeps_nothing(local_worker, monkeypatch):
    interrupt(local_worker, job("younger", **SHORT), 1)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10 * local_worker.settings.resume_ttl_s)
    local_worker.run(job(**SHORT))
    assert (local_worker.volume / "infinitetalk/jobs/.resume/younger/state.json").exists()


def test_what_was_given_up_goes_whatever_its_prefix(local_worker):
    mine = {"output_config": {"store": "volume", "prefix": "users/one"}}
    interrupt(local_worker, job("given-up", **SHORT | mine), 1)
    long_ago = time.time() - local_worker.settings.resume_ttl_s - 60
    (folder,) = local_worker.volume.rglob(".resume/given-up")
    # A worker that was killed while it copied its video.
    half = local_worker.volume / f"infinitetalk/jobs/.unfinished/given-up/.{'0' * 32}.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half a video")
    for file in (*folder.iterdir(), half):
        os.utime(file, (long_ago, long_ago))
    local_worker.run(job(**SHORT | {"output_config": {"store": "volume", "prefix": "users/two"}}))
    assert not folder.exists()
    assert not half.parent.exists()


def test_a_random_seed_is_the_same_for_all_who_try_a_job(local_worker):
    short = {"cond_audio": {"person1": speech_uri(0.2)}, "base_seed": -1, "dry_run": False}
    seeds = [local_worker.run(job(name, **short))["params"]["base_seed"] for name in ("job-1", "job-1", "job-2")]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_result_that_was_lost_is_told_with_addresses_signed_anew(local_worker, s3_server):
    local_worker.settings = with_bucket(local_worker.settings, s3_server, s3_url_expiry_s=3)
    in_bucket = job(output_config={"store": "s3"}, **SHORT)
    told = local_worker.run(in_bucket, keep=True)
    time.sleep(3.1)
    again = local_worker.run(in_bucket, keep=True)
    assert first_chunk_and_last(local_worker) == (0, 0)
    assert again["video"]["url"] != told["video"]["url"]
    for kind in ("", "thumbnail_", "metadata_"):
        assert requests.get(again["video"][f"{kind}url"], timeout=10).status_code == 200
    assert again["timings"] == told["timings"]


@pytest.mark.parametrize("missing", ["jpg", "json", "size"])
def test_a_lost_result_of_which_a_file_is_gone_is_put_together_again(missing, local_worker):
    told = local_worker.run(job(**SHORT), keep=True)
    if missing == "size":
        (local_worker.volume / told["video"]["path"]).write_bytes(b"cut")
        (local_worker.volume / told["video"]["metadata_path"]).unlink()
    else:
        (local_worker.volume / f"infinitetalk/jobs/job-1.{missing}").unlink()
    again = local_worker.run(job(**SHORT))
    for kind in ("path", "thumbnail_path", "metadata_path"):
        assert (local_worker.volume / again["video"][kind]).stat().st_size > 1
    assert (local_worker.volume / again["video"]["path"]).stat().st_size == told["video"]["bytes"]


@pytest.mark.parametrize(("place", "in_bucket"), [("volume", False), ("none", False), ("none, with a secret", True)])
def test_state_of_a_job_with_its_own_store_is_kept_there_only_signed(
    place, in_bucket, local_worker, s3_server, monkeypatch
):
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    changes: dict[str, Any] = {} if place == "volume" else {"volume_dir": local_worker.volume / "none"}
    if place == "none, with a secret":
        changes["resume_secret"] = SecretStr("the endpoint's")
    local_worker.settings = local_worker.settings.model_copy(update=changes)
    own = {"endpointUrl": s3_server.endpoint, "accessId": s3_server.access_key}
    own |= {"accessSecret": s3_server.secret_key, "bucketName": s3_server.bucket}
    in_store = job(output_config={"store": "s3", "prefix": "mine"}) | {"s3Config": own}
    # A stop also ends the request under way to a store that a job names.
    interrupt(local_worker, in_store, 3)
    stored = [key for key in sorted(s3_server.keys()) if "/.resume/" in key]
    assert bool(stored) == in_bucket
    assert bool(kept(local_worker)) == (place == "volume")
    local_worker.run(in_store)
    assert (first_chunk_and_last(local_worker)[0] > 1) == (place != "none")
    assert sorted(s3_server.keys()) == [f"mine/job-1.{kind}" for kind in ("jpg", "json", "mp4")]


def test_an_upload_of_a_lost_worker_is_ended_when_it_is_old(local_worker, s3_server):
    local_worker.settings = with_bucket(local_worker.settings, s3_server, resume_ttl_s=1.0)
    keys = ["infinitetalk/jobs/lost.mp4", "infinitetalk/jobs/foreign.bin"]
    for key in keys:
        s3_server.client().create_multipart_upload(Bucket=s3_server.bucket, Key=key)
    time.sleep(2.1)
    local_worker.run(job(output_config={"store": "s3"}, **SHORT))
    left = s3_server.client().list_multipart_uploads(Bucket=s3_server.bucket).get("Uploads", [])
    assert [upload["Key"] for upload in left] == keys[1:]

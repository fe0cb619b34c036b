"""One job from payload to failure, as `run_job` answers it: what goes wrong, in the interface's words."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infinitetalk.errors import CheckpointError, EncodeError, MediaError, RegionError
from infinitetalk.runtime.device_errors import as_library_error
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.errors import CODES, STAGE_CODES, WorkerError, is_device_error, job_error
from infinitetalk.worker.job.clock import StageClock
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.resume import JobStates
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.queue.checked import checked_result
from infinitetalk.worker.settings import CHECKOUT, Settings
from infinitetalk.worker.stop import Stop
from schemas import ErrorCode, Failure, Stage
from tests.job_inputs import picture_bytes, picture_uri, small_job, speech_uri


def failure_of(job_input: Any, tmp_path: Path, job_id: str = "job-1", **envelope: Any) -> Failure:
    """How a job fails before it needs a model: the engine here never loads one."""
    volume = tmp_path / "volume"
    volume.mkdir(exist_ok=True)
    settings = Settings(output_dir=volume, volume_dir=volume, webhook_get_job="set")
    job = {"id": job_id, "input": job_input, **envelope}
    resources = Resources(settings, Engine(settings), JobStates(settings))
    result = run_job(job, settings, lambda: resources, lambda event: None, Stop())
    return Failure.model_validate(result, strict=False)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"cond_audio": {"person1": picture_bytes().hex()}}, "E_INPUT_VALIDATION", "cond_audio.person1"),
        ({"cond_video": speech_uri(0.5)}, "E_INPUT_VALIDATION", "must be an image or a video, but it is sound"),
        ({"cond_audio": {"person1": speech_uri(0.1)}}, "E_INPUT_VALIDATION", "at least 0.2 s"),
        ({"cond_video": "http://127.0.0.1:9/face.png"}, "E_DOWNLOAD_FAILED", "public address"),
        ({"cond_video": "examples/media/speech.wav"}, "E_INPUT_VALIDATION", "cond_video is none of these"),
        ({"frames": 81}, "E_INPUT_VALIDATION", 'unknown field "frames"; the nearest known one is "frame_num"'),
        ({"output_config": None}, "E_INPUT_VALIDATION", "S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY, S3_BUCKET"),
        ({"bbox": {"person1": [900, 900, 950, 950]}}, "E_INPUT_VALIDATION", "reaches beyond the 64x64 image"),
        ({"mask": {"person1": picture_uri(height=32)}}, "E_INPUT_VALIDATION", "mask.person1 is 64x32 pixels"),
        ({"mask": {"person1": picture_uri(white=slice(0, 0))}}, "E_INPUT_VALIDATION", "mask.person1 is white nowhere"),
    ],
)
def test_a_mistake_gets_its_code_and_says_what_to_change(changes, code, words, tmp_path):
    failure = failure_of(small_job(**changes), tmp_path)
    assert (failure.job_id, failure.error.code, failure.error.retryable) == ("job-1", code, False)
    assert words in failure.error.message
    assert str(CHECKOUT) not in failure.error.message
    assert str(tmp_path) not in failure.error.message


def test_a_lora_that_is_not_there_is_refused_before_anything_is_fetched(tmp_path):
    failure = failure_of(small_job(loras=[{"name": "fusionx.safetensors"}]), tmp_path)
    assert (failure.error.code, failure.error.at_stage) == ("E_INPUT_VALIDATION", Stage.VALIDATION)
    assert "fusionx.safetensors" in failure.error.message


@pytest.mark.parametrize("job_id", ["..\\up", "a/b", "", ".hidden", "a" * 200])
def test_an_id_that_is_no_file_name_is_refused(job_id, tmp_path):
    assert "id must be" in failure_of(small_job(), tmp_path, job_id=job_id).error.message


def test_a_jobs_own_store_is_checked_for_its_fields(tmp_path):
    failure = failure_of(small_job(output_config=None), tmp_path, s3Config={"accessId": "a"})
    assert "endpointUrl is required" in failure.error.message


def test_the_temporary_folder_is_gone_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    failure_of(small_job(cond_audio={"person1": "nowhere.wav"}), tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "stage", "code"),
    [
        (MediaError("bad sound"), Stage.EMBEDDING, ErrorCode.INPUT_VALIDATION),
        (RegionError("too small"), Stage.SAMPLING, ErrorCode.INPUT_VALIDATION),
        (EncodeError("no disk"), Stage.SAMPLING, ErrorCode.FFMPEG),
        (CheckpointError("vae/config.json is damaged"), Stage.EMBEDDING, ErrorCode.PIPELINE_LOAD),
        (WorkerError(ErrorCode.TIMEOUT, "late"), Stage.SAMPLING, ErrorCode.TIMEOUT),
    ],
)
def test_errors_of_the_library_keep_their_words(error, stage, code):
    told = job_error(error, stage)
    assert (told.code, told.message, told.at_stage) == (code, str(error), stage)


def test_the_published_model_without_weights_stops_the_worker_naming_the_path(tmp_path):
    with pytest.raises(CheckpointError, match="or set CKPT_DIR"):
        Engine(Settings(infinitetalk_model="published"))
    settings = Settings(ckpt_dir=tmp_path / "absent", infinitetalk_dir=tmp_path, wav2vec_dir=tmp_path)
    assert settings.model == "published"
    with pytest.raises(CheckpointError, match=str(tmp_path / "absent")):
        Engine(settings)


@pytest.mark.parametrize("stage", Stage)
def test_an_unexpected_error_is_told_by_its_stage_and_leaks_nothing(stage):
    told = job_error(RuntimeError("/secret/path of host-7"), stage)
    assert told.code == STAGE_CODES[stage]
    assert "secret" not in told.message
    assert "host-7" not in told.message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_exhausted_memory_has_its_own_code_wherever_it_happens(error):
    told = job_error(as_library_error(error), Stage.EMBEDDING)
    assert told.code == ErrorCode.OOM
    assert "smaller frame_num" in told.message


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
    ],
)
def test_a_gpu_that_failed_is_told_apart_from_other_errors(error):
    told = as_library_error(error)
    assert is_device_error(told) and told.__cause__ is error
    assert "the GPU failed" in job_error(told, Stage.EMBEDDING).message
    other = RuntimeError("shape '[2]' is invalid")
    assert as_library_error(other) is other


def test_every_code_says_what_to_do():
    assert set(CODES) == set(ErrorCode)
    assert all(facts.message and facts.hint for facts in CODES.values())


def test_time_is_counted_for_each_stage_and_adds_up(monkeypatch):
    now = 100.0
    monkeypatch.setattr("infinitetalk.worker.job.clock.time.monotonic", lambda: now)
    clock = StageClock(lambda event: None)
    for seconds, stage in [(1, Stage.DOWNLOAD), (2, Stage.EMBEDDING), (3, Stage.LOAD)]:
        now += seconds
        clock.enter(stage)
    now += 4
    clock.enter(Stage.EMBEDDING)
    now += 5
    # The stage that it is in counts as well: a job that fails or is stopped says how far it came.
    timings = clock.timings()
    assert timings == {
        "validation_ms": 1000, "download_ms": 2000, "embedding_ms": 8000, "load_ms": 4000, "sampling_ms": 0,
        "decode_ms": 0, "mux_ms": 0, "upload_ms": 0, "total_ms": 15000,
    }  # fmt: skip


@pytest.mark.parametrize("broken", [{"x": float("nan")}, {"x": "\ud800"}, {"x": Path("/")}])
def test_a_result_that_the_queue_would_lose_becomes_a_failure(broken):
    result = checked_result("job-1", broken, 1000)
    assert Failure.model_validate(result, strict=False).error.message == "the result is not valid JSON"


def test_a_result_that_is_too_large_becomes_a_failure_with_the_way_out():
    result = checked_result("job-1", {"data": "x" * 2000}, 1000)
    assert 'output_config.store "s3" or "volume"' in result["error"]["message"]
    assert checked_result("job-1", {"data": "x"}, 1000) == {"data": "x"}

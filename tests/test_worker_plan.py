"""A job that is only planned, and what a job is warned of."""

import pytest
from structlog.testing import capture_logs

from infinitetalk.family import INFINITETALK
from infinitetalk.media.decode import MediaInfo
from infinitetalk.runtime.memory import GIB, DoesNotFitError, choose_mode
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.engine.conditions import workload_of
from infinitetalk.worker.engine.placement import MemoryBudget
from infinitetalk.worker.job.advice import step_warnings
from infinitetalk.worker.settings import Settings
from schemas import BatchResult, Plan, SingleJob, Stage, Success
from tests.job_inputs import data_uri, scenes_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker

STREAMING = {"mode": "streaming", "cond_audio": {"person1": speech_uri(0.68)}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        STREAMING,
        {"sample_text_guide_scale": 5.0, "sample_audio_guide_scale": 4.0},
        {"cond_audio": {"person1": speech_uri(0.2), "person2": speech_uri(0.3, 220)}, "audio_type": "add"},
        STREAMING | {"cond_video": data_uri(scenes_bytes([10, 10]), "video/mp4"), "scene_seg": True},
        STREAMING | {"size": {"width": 832, "height": 480}},
        {"nag": {}, "negative_prompt": "blur"},
    ],
    ids=["clip", "streaming", "guidance", "two in turns", "scenes", "own size", "nag"],
)
def test_a_plan_says_what_the_job_then_does(changes, local_worker: LocalWorker):
    planned = local_worker.run({"id": "job-1", "input": small_job(**changes, dry_run=True)})
    plan = Plan.model_validate(planned, strict=False)
    assert Stage.SAMPLING not in local_worker.stages
    assert list(local_worker.volume.rglob("*.*")) == []
    result = Success.model_validate(local_worker.run({"id": "job-1", "input": small_job(**changes)}), strict=False)
    video = result.video
    assert (plan.width, plan.height) == (video.width, video.height)
    assert (plan.num_frames, plan.duration_s) == (video.num_frames, video.duration_s)
    assert plan.evaluations == result.evaluations
    assert (plan.memory_mode, plan.model, plan.warnings) == (result.memory_mode, result.model, result.warnings)
    assert plan.params == result.params
    assert plan.num_chunks * 2 * (2 if "sample_text_guide_scale" not in changes else 3) == plan.evaluations


def test_a_resolution_of_the_jobs_own_is_made_with_the_values_of_the_nearest_table(local_worker: LocalWorker):
    size = {"width": 1280, "height": 800}
    result = local_worker.run({"id": "job-1", "input": small_job(size=size)})
    # The small model makes a tenth of each side, in steps of 16.
    assert (result["video"]["width"], result["video"]["height"]) == (128, 80)
    params = result["params"]
    assert (params["size"], params["size_table"], params["sample_shift"]) == (size, "infinitetalk-720", 11.0)
    scaled, cropped = result["warnings"]
    assert "size 1280x800 is 128x80 here" in scaled
    assert "cuts off 38% of the source's 64x64 pixels" in cropped


def test_a_resolution_that_does_not_fit_is_refused_with_what_would():
    job = SingleJob.model_validate(small_job(size={"width": 1920, "height": 1088}, frame_num=401))
    workload = workload_of(job, MediaInfo("image", 1080, 1920, 0.0, False), INFINITETALK, 1.0, 1)
    assert (workload.height, workload.width) == (1088, 1920)
    with pytest.raises(
        DoesNotFitError, match=r"401 frames of 1920x1088 need about \d+ GiB .* Use frame_num \d+ or less"
    ):
        choose_mode(40 * GIB, INFINITETALK.model_sizes, workload)


def test_the_estimate_comes_from_what_the_worker_has_done(tmp_path):
    settings = Settings(output_dir=tmp_path, infinitetalk_model="tiny")
    engine = Engine(settings)
    engine.start()
    worker = LocalWorker(settings, engine, tmp_path)
    planned = {"id": "job-1", "input": small_job(dry_run=True)}
    unknown = worker.run(planned)
    assert ("estimate_s" in unknown, "estimate_from" in unknown) == (False, False)
    result = worker.run({"id": "job-1", "input": small_job()})
    known = worker.run(planned)
    assert known["estimate_from"] == "this worker"
    seconds = (result["timings"]["sampling_ms"] + result["timings"]["decode_ms"]) / 1000
    assert 0.2 * seconds < known["estimate_s"] + 0.1 < 3 * seconds + 0.2
    longer = worker.run({"id": "job-1", "input": small_job(dry_run=True, sample_steps=40)})
    assert longer["estimate_s"] == pytest.approx(20 * known["estimate_s"], rel=0.5, abs=2)


def test_a_price_is_told_with_the_estimate_and_in_the_log(tmp_path):
    settings = Settings(output_dir=tmp_path, infinitetalk_model="tiny", gpu_price_per_s=0.002)
    engine = Engine(settings)
    engine.start()
    worker = LocalWorker(settings, engine, tmp_path)
    assert "estimate_usd" not in worker.run({"id": "job-1", "input": small_job(dry_run=True)})
    with capture_logs() as lines:
        result = worker.run({"id": "job-1", "input": small_job()})
    plan = worker.run({"id": "job-2", "input": small_job(dry_run=True)})
    assert plan["estimate_usd"] == pytest.approx(0.002 * plan["estimate_s"], abs=2e-4)
    (details,) = (line["details"] for line in lines if line["event"] == "job.completed")
    assert details["gpu_seconds"] == pytest.approx(result["timings"]["total_ms"] / 1000, abs=0.1)
    assert details["usd"] == pytest.approx(0.002 * details["gpu_seconds"], abs=3e-4)


def test_a_text_is_planned_by_its_length_and_not_spoken(local_worker: LocalWorker):
    text = {"text": "Welcome to our show. Today we discuss emerging AI video.", "human1_voice": "am_adam"}
    job = small_job(cond_audio=None, tts_audio=text, dry_run=True, mode="streaming")
    plan = local_worker.run({"id": "job-1", "input": job})
    assert 2 < plan["duration_s"] < 6
    assert any("estimated from the text" in warning for warning in plan["warnings"])


def test_items_of_a_batch_are_planned_one_by_one(local_worker: LocalWorker):
    items = [
        small_job(dry_run=True) | {"id": "a"},
        small_job() | {"id": "b"},
        small_job(dry_run=True, frame_num=9) | {"id": "c"},
    ]
    result = BatchResult.model_validate(local_worker.run({"id": "job-1", "input": {"batch": items}}), strict=False)
    assert [item.status for item in result.items] == ["planned", "success", "planned"]
    assert result.status == "success"


def test_a_plan_that_does_not_fit_is_told_what_would(tmp_path):
    settings = Settings(output_dir=tmp_path, infinitetalk_model="tiny")
    engine = Engine(settings, lambda *_: MemoryBudget(1 * GIB, INFINITETALK.model_sizes))
    engine.start()
    error = LocalWorker(settings, engine, tmp_path).run({"id": "job-1", "input": small_job(dry_run=True)})["error"]
    assert error["code"] == "E_OOM"
    assert "GPU with more memory" in error["message"]


def test_media_that_do_not_suit_are_told_by_a_plan_too(local_worker: LocalWorker):
    job = small_job(dry_run=True, cond_video=data_uri(b"only words", "image/png"))
    assert local_worker.run({"id": "job-1", "input": job})["error"]["code"] == "E_INPUT_VALIDATION"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_steps": 8}, "8 steps without a step-distilled LoRA"),
        ({"sample_steps": 8, "loras": [{"name": "my-style"}]}, "8 steps without a step-distilled LoRA"),
        (
            {"sample_steps": 8, "loras": [{"name": "Wan21_I2V_FusionX_LoRA"}], "sample_text_guide_scale": 5.0},
            "sample_text_guide_scale 5 with a step-distilled LoRA",
        ),
        ({"sample_steps": 4, "loras": [{"name": "lightx2v_rank64"}], "sample_text_guide_scale": 1.0}, None),
        ({"sample_steps": 40}, None),
    ],
)
def test_a_choice_that_will_disappoint_is_warned_of(changes, words):
    warnings = step_warnings(SingleJob.model_validate(small_job(**changes)))
    assert [words in warning for warning in warnings] == ([] if words is None else [True])

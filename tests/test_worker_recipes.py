"""Recipes through the worker: LoRAs that they bring, what the worker lacks, and what a dry run says of each."""

import fnmatch
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infinitetalk.errors import CheckpointError, GenerationStopped
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime.models import Models
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from schemas import Stage
from tests.job_inputs import data_uri, picture_uri, scenes_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker, worker_on
from tools.frames import read_frames

#: Of product teams, as they send them.
PAYLOADS = json.loads((Path(__file__).parent / "data" / "payloads.json").read_text(encoding="utf-8"))
FUSIONX = "Wan2.1_I2V_14B_FusionX_LoRA.safetensors"
LIGHTX2V = "loras/lightx2v_rank8.safetensors"


def write_lora(path: Path, engine: Engine) -> None:
    """A LoRA of rank 2 for the first block of the engine's transformer."""
    rows, columns = Models(engine.checkpoint.files(), torch.device("cpu")).transformer_shapes[
        "blocks.0.attn1.to_q.weight"
    ]
    generator = torch.Generator().manual_seed(len(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "diffusion_model.blocks.0.self_attn.q"
    save_file(
        {
            f"{name}.lora_down.weight": 0.3 * torch.randn(2, columns, generator=generator),
            f"{name}.lora_up.weight": 0.3 * torch.randn(rows, 2, generator=generator),
        },
        path,
    )


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory, tiny_engine: Engine) -> Path:
    """A folder with both step-distilled LoRAs. Two engines must not load at once in one process."""
    tiny_engine.finish_loading()
    folder = tmp_path_factory.mktemp("loras")
    for name in (FUSIONX, LIGHTX2V):
        write_lora(folder / name, tiny_engine)
    return folder


@pytest.fixture(scope="module")
def equipped_engine(loras: Path) -> Engine:
    """An engine of the tiny model with LoRAs."""
    engine = Engine(Settings(infinitetalk_model="tiny", lora_dir=loras))
    engine.start()
    engine.finish_loading()
    return engine


def long_job(**changes: object) -> dict:
    """A job that leaves to the recipe what it can."""
    job = small_job(**({"frame_num": 81, "cond_audio": {"person1": speech_uri(1.5)}} | changes))
    for field in ("sample_steps", "sample_text_guide_scale", "sample_audio_guide_scale"):
        job.pop(field)
    return job


def test_a_recipe_brings_its_lora_and_its_values(equipped_engine, tmp_path):
    worker = worker_on(tmp_path, equipped_engine)
    result = worker.run({"id": "job-1", "input": long_job(recipe="lora-8")})
    params = result["params"]
    assert params["loras"] == [{"name": FUSIONX, "scale": 1.0}]
    assert (params["recipe"], params["sample_steps"], params["sample_shift"]) == ("lora-8", 8, 2.0)
    assert result["evaluations"] == 16
    plain = worker.run({"id": "job-2", "input": long_job() | few_steps(params)})
    assert plain["params"]["loras"] == []
    assert (tmp_path / result["video"]["path"]).read_bytes() != (tmp_path / plain["video"]["path"]).read_bytes()


def few_steps(params: dict) -> dict:
    return {field: value for field, value in params.items() if field.startswith("sample_")}


def test_a_lora_that_the_job_names_itself_is_not_added_again(equipped_engine, tmp_path):
    own = [{"name": LIGHTX2V, "scale": 0.5}]
    job = long_job(recipe="lora-4", loras=own, dry_run=True)
    assert worker_on(tmp_path, equipped_engine).run({"id": "job-1", "input": job})["params"]["loras"] == own


def test_a_recipe_whose_lora_is_not_there_is_refused_at_once(local_worker: LocalWorker):
    result = local_worker.run(
        {"id": "job-1", "input": long_job(recipe="lora-8", cond_video="https://example.com/a.png")}
    )
    assert result["error"]["code"] == "E_INPUT_VALIDATION"
    assert "download fusionx`, or set LORA_DIR" in result["error"]["message"]
    assert local_worker.stages == [Stage.VALIDATION]


def test_a_worker_whose_own_recipe_lacks_weights_does_not_start():
    with pytest.raises(CheckpointError, match="DEFAULT_RECIPE is 'lora-8': recipe lora-8 needs a LoRA"):
        Engine(Settings(infinitetalk_model="tiny", default_recipe="lora-8"))


@pytest.mark.parametrize("default", [None, "lora-4"])
def test_a_dry_run_lists_every_recipe_that_the_worker_can_run(default, equipped_engine, tmp_path):
    plan = worker_on(tmp_path, equipped_engine, default_recipe=default).run(
        {"id": "job-1", "input": long_job(dry_run=True)}
    )
    costs = {cost["recipe"]: cost["evaluations"] for cost in plan["recipes"]}
    # 38 frames: one chunk of 81, or two of 33.
    assert costs == {"quality": 120, "lora-8": 16, "lora-4": 8, "flashtalk": 8, "flashtalk-12": 24}
    assert plan["evaluations"] == costs[default or "quality"]


def test_a_dry_run_leaves_out_recipes_that_the_worker_cannot_run(local_worker: LocalWorker):
    two = {"cond_audio": {"person1": speech_uri(0.2), "person2": speech_uri(0.3)}}
    for changes, names in (({}, ["quality", "flashtalk", "flashtalk-12"]), (two, ["quality"])):
        plan = local_worker.run({"id": "job-1", "input": small_job(dry_run=True, **changes)})
        assert [cost["recipe"] for cost in plan["recipes"]] == names


@pytest.mark.parametrize(
    "default",
    ["flashtalk", *(pytest.param(name, marks=pytest.mark.long) for name in [None, *RECIPES] if name != "flashtalk")],
)
def test_payloads_that_name_no_recipe_go_on_working_under_every_default(default, equipped_engine, tmp_path):
    """Six payloads as product teams send them; their media are small, their fields are the payloads' own."""
    worker = worker_on(tmp_path, equipped_engine, default_recipe=default)
    for name, payload in PAYLOADS.items():
        planned = worker.run({"id": name, "input": with_small_media(payload, dry_run=True)})
        made = worker.run({"id": name, "input": with_small_media(payload)})
        results = list(zip(planned.get("items", [planned]), made.get("items", [made]), strict=True))
        assert [result["status"] for _, result in results] == ["success"] * len(results), made
        for plan, result in results:
            params, warnings = result["params"], " ".join(result["warnings"])
            assert params == plan["params"]
            assert "tts_audio" in payload or result["warnings"] == plan["warnings"]
            assert result["evaluations"] + result["evaluations_skipped"] == plan["evaluations"]
            is_fixed = default in ("flashtalk", "flashtalk-12")
            if name == "duo" and is_fixed:
                assert params["recipe"] == "quality"
                assert f"recipe {default}, this worker's default, is for one speaker" in warnings
                continue
            assert params["recipe"] == default
            if is_fixed:
                assert params["sample_steps"] == RECIPES[default].values["sample_steps"]
                assert "fixes it" in warnings or payload.get("sample_steps") == params["sample_steps"]
            elif "sample_steps" in payload:
                assert params["sample_steps"] == payload["sample_steps"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_video_is_the_same_after_two_interruptions(name, equipped_engine, tmp_path):
    """A video of three chunks; they are shorter where the recipe allows it."""
    is_fixed = "frame_num" in RECIPES[name].fixed
    chunk = {} if is_fixed else {"frame_num": 9, "motion_frame": 5}
    speech = {"person1": speech_uri(3.3 if is_fixed else 0.6)}
    job = long_job(recipe=name, mode="streaming", base_seed=7, cond_audio=speech)
    job = {field: value for field, value in job.items() if field not in ("frame_num", "motion_frame")} | chunk
    whole = worker_on(tmp_path / "whole", equipped_engine).run({"id": "job-1", "input": job})
    worker = worker_on(tmp_path / "broken", equipped_engine)
    for num_chunks in (1, 2):
        with pytest.raises(GenerationStopped):
            worker.run({"id": "job-1", "input": job}, partial(has_stored, worker, num_chunks), keep=True)
        assert has_stored(worker, num_chunks)
    resumed = worker.run({"id": "job-1", "input": job})
    assert resumed["evaluations"] == whole["evaluations"]
    frames = [
        read_frames(tmp_path / kind / each["video"]["path"]) for kind, each in (("whole", whole), ("broken", resumed))
    ]
    assert np.array_equal(*frames)


def has_stored(worker: LocalWorker, num_chunks: int) -> bool:
    """Whether a worker has stored as many chunks of its job."""
    # Not `rglob`, which fails where the worker removes a folder meanwhile.
    names = [name for _, _, names in os.walk(worker.volume) for name in names]
    return len(fnmatch.filter(names, "part-*.mp4")) >= num_chunks


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_evaluated_as_often_as_the_dry_run_says(name, equipped_engine, tmp_path, monkeypatch):
    calls = []
    forward = InfiniteTalkTransformer3DModel.forward

    def count(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    worker = worker_on(tmp_path, equipped_engine)
    job = long_job(recipe=name)
    planned = worker.run({"id": "job-1", "input": job | {"dry_run": True}})
    monkeypatch.setattr(InfiniteTalkTransformer3DModel, "forward", count)
    made = worker.run({"id": "job-1", "input": job})
    assert len(calls) == planned["evaluations"] == made["evaluations"]


def with_small_media(payload: dict, **changes: object) -> dict:
    """A payload with media that are made on the spot, and a store that the tests have."""
    if "batch" in payload:
        items = [with_small_media(item, **changes) | {"id": item["id"]} for item in payload["batch"]]
        return payload | {"batch": items, "output_config": {"store": "volume", "prefix": "infinitetalk/batch"}}
    small = (
        payload | {"output_config": payload["output_config"] | {"store": "volume"}} | changes
        if ("output_config" in payload)
        else payload | changes
    )
    is_film = payload["cond_video"].endswith(".mp4")
    small["cond_video"] = data_uri(scenes_bytes([30]), "video/mp4") if is_film else picture_uri(width=128)
    if "cond_audio" in payload:
        small["cond_audio"] = {
            speaker: speech_uri(1.0, 120 + 60 * index) for index, speaker in enumerate(payload["cond_audio"])
        }
    return small


def test_a_dry_run_says_what_a_job_must_leave_out_to_name_a_recipe(equipped_engine, tmp_path):
    job = long_job(dry_run=True) | {"sample_steps": 40, "use_apg": True}
    plan = worker_on(tmp_path, equipped_engine).run({"id": "job-1", "input": job})
    left_out = {cost["recipe"]: cost["leave_out"] for cost in plan["recipes"]}
    assert (left_out["quality"], left_out["lora-8"]) == ([], [])
    assert left_out.get("flashtalk", ["sample_steps", "use_apg"]) == ["sample_steps", "use_apg"]

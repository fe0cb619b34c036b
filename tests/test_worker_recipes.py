"""Recipes through the worker: LoRAs that they bring, what the worker lacks, and what a dry run says of each."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infinitetalk.errors import CheckpointError
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime.models import Models
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from schemas import Stage
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker

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


def worker_of(engine: Engine, volume: Path, **settings: object) -> LocalWorker:
    """A worker with a volume of its own."""
    return LocalWorker(
        Settings(output_dir=volume, volume_dir=volume, webhook_get_job="set", infinitetalk_model="tiny", **settings),
        engine,
        volume,
    )


def long_job(**changes: object) -> dict:
    """A job that leaves to the recipe what it can."""
    job = small_job(frame_num=81, cond_audio={"person1": speech_uri(1.5)}, **changes)
    for field in ("sample_steps", "sample_text_guide_scale", "sample_audio_guide_scale"):
        job.pop(field)
    return job


def test_a_recipe_brings_its_lora_and_its_values(equipped_engine, tmp_path):
    worker = worker_of(equipped_engine, tmp_path)
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
    assert worker_of(equipped_engine, tmp_path).run({"id": "job-1", "input": job})["params"]["loras"] == own


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
def test_a_dry_run_lists_every_recipe_with_the_evaluations_that_it_then_makes(default, equipped_engine, tmp_path):
    worker = worker_of(equipped_engine, tmp_path, default_recipe=default)
    plan = worker.run({"id": "job-1", "input": long_job(dry_run=True)})
    costs = {cost["recipe"]: cost for cost in plan["recipes"]}
    lacking = [name for name, recipe in RECIPES.items() if equipped_engine.lacks(recipe) is not None]
    assert sorted(costs) == sorted(set(RECIPES) - set(lacking))
    assert {"quality", "lora-8", "lora-4"} <= costs.keys()
    assert plan["evaluations"] == costs[default or "quality"]["evaluations"]
    for name in sorted(costs.keys() - {"quality"}):
        made = worker.run({"id": f"job-{name}", "input": long_job(recipe=name)})
        assert (made["evaluations"], made["params"]["recipe"]) == (costs[name]["evaluations"], name)


def test_a_dry_run_says_what_a_job_must_leave_out_to_name_a_recipe(equipped_engine, tmp_path):
    job = long_job(dry_run=True) | {"sample_steps": 40, "use_apg": True}
    plan = worker_of(equipped_engine, tmp_path).run({"id": "job-1", "input": job})
    left_out = {cost["recipe"]: cost["leave_out"] for cost in plan["recipes"]}
    assert (left_out["quality"], left_out["lora-8"]) == ([], [])
    assert left_out.get("flashtalk", ["sample_steps", "use_apg"]) == ["sample_steps", "use_apg"]

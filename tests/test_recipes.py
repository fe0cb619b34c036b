"""Recipes hold values that jobs accept, and cost the evaluations that they promise."""

import subprocess
import sys

import pytest

from infinitetalk.family import FAMILIES, FLASHTALK, INFINITETALK
from infinitetalk.generation.sampling import make_sampler
from infinitetalk.recipes import RECIPES, Recipe
from infinitetalk.worker.engine.scenes import Scene, chunk_grid, generation_settings
from schemas import SingleJob

MINUTE_FRAMES = 1500
PAYLOAD = {
    "prompt": "A woman talks",
    "cond_video": "https://example.com/face.png",
    "cond_audio": {"person1": "https://example.com/voice.wav"},
}


def job_of(recipe: Recipe) -> SingleJob:
    """A job with the recipe's values."""
    return SingleJob.model_validate(PAYLOAD | dict(recipe.values))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_has_values_that_jobs_accept_and_fixes_only_those(recipe: Recipe) -> None:
    job = job_of(recipe)
    assert {field: getattr(job, field) for field in recipe.values} == recipe.values
    assert recipe.fixed <= recipe.values.keys()
    assert RECIPES[recipe.name] is recipe
    assert FAMILIES[recipe.family.name] is recipe.family


@pytest.mark.parametrize(
    ("name", "steps", "evaluations", "minute"),
    [
        ("quality", 40, 120, 2520),
        ("lora-8", 8, 16, 336),
        ("lora-4", 4, 8, 168),
        ("flashtalk", 4, 4, 216),
        ("flashtalk-12", 12, 12, 648),
    ],
)
def test_a_recipe_takes_so_many_evaluations(name: str, steps: int, evaluations: int, minute: int) -> None:
    """Of one chunk, and of a minute."""
    recipe = RECIPES[name]
    job = job_of(recipe)
    sampler = make_sampler(generation_settings(job, 0, Scene(0, MINUTE_FRAMES)), recipe.family)
    assert len(sampler.stepper.timesteps) == steps
    assert sampler.num_evaluations == evaluations
    assert chunk_grid(job).num_chunks(MINUTE_FRAMES) * evaluations == minute


def test_quality_is_what_a_job_gets_that_says_nothing() -> None:
    nothing_said = SingleJob.model_validate(PAYLOAD)
    recipe = RECIPES["quality"]
    assert {field: getattr(nothing_said, field) for field in recipe.values} == recipe.values
    assert recipe.family is INFINITETALK
    assert not recipe.fixed


def test_few_steps_need_a_lora_and_are_guided_by_speech_alone() -> None:
    for name, word in (("lora-8", "fusionx"), ("lora-4", "lightx2v")):
        recipe = RECIPES[name]
        (lora,) = recipe.loras
        (published,) = lora.repository.patterns
        assert lora.is_met_by(published) and lora.is_met_by(f"faces/{word.upper()}_rank32.safetensors")
        assert not lora.is_met_by("style.safetensors")
        guidance = ("sample_text_guide_scale", "sample_audio_guide_scale", "sample_shift")
        assert [recipe.values[field] for field in guidance] == [1, 2, 2]


def test_a_fixed_value_is_contradicted_only_by_another_value() -> None:
    flashtalk = RECIPES["flashtalk"]
    assert flashtalk.family is FLASHTALK
    given = {"frame_num": 81, "sample_shift": None, "use_apg": False, "use_teacache": True}
    assert flashtalk.contradictions(given) == {"frame_num": (81, 33), "use_teacache": (True, False)}
    assert flashtalk.contradictions({"color_correction_strength": 0.2, "base_seed": 1, "frame_num": 33}) == {}
    assert RECIPES["flashtalk-12"].contradictions({"sample_steps": 4}) == {"sample_steps": (4, 12)}


def test_recipes_need_no_torch() -> None:
    code = "import sys; import infinitetalk.recipes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The recipe of a job: what it sets, what it refuses, and what it may not break."""

import pytest

from infinitetalk.recipes import QUALITY, RECIPES
from infinitetalk.worker.engine.scenes import Scene, chunk_grid, generation_settings
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.job.payload import parse_payload
from infinitetalk.worker.job.recipe import choose_recipe
from infinitetalk.worker.settings import Settings
from schemas import SingleJob

FLASHTALK = RECIPES["flashtalk"]
PAYLOAD = {
    "prompt": "A woman talks",
    "cond_video": "https://example.com/face.png",
    "cond_audio": {"person1": "https://example.com/voice.wav"},
}
TWO = {"cond_audio": {"person1": "https://example.com/a.wav", "person2": "https://example.com/b.wav"}}


def job(**changes: object) -> SingleJob:
    return SingleJob.model_validate(PAYLOAD | changes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_every_field_that_the_job_leaves_out(name):
    chosen = choose_recipe(job(recipe=name, mode="streaming"), None)
    assert chosen.warnings == []
    assert {field: getattr(chosen.job, field) for field in RECIPES[name].values} == RECIPES[name].values
    assert chosen.job.family is RECIPES[name].family
    assert chosen.job.shift == RECIPES[name].values.get("sample_shift", 7.0)


def test_what_a_job_says_itself_wins_where_the_recipe_leaves_it_free():
    chosen = choose_recipe(job(recipe="lora-8", sample_steps=6, sample_shift=None, base_seed=3), None)
    assert (chosen.job.sample_steps, chosen.job.sample_shift, chosen.job.base_seed) == (6, 2.0, 3)
    assert chosen.job.sample_text_guide_scale == 1.0
    assert chosen.sent.sample_shift is None


def test_fields_that_the_recipe_sets_do_not_count_as_set_by_the_job():
    sent = job(recipe="flashtalk", base_seed=3)
    assert choose_recipe(sent, None).job.model_fields_set == sent.model_fields_set


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sample_steps": 40}, "sample_steps 40 contradicts recipe flashtalk, which fixes it at 4"),
        ({"use_teacache": True, "sample_shift": 7.0}, "sample_shift 7.0 contradicts recipe flashtalk"),
        ({"use_teacache": True}, "use_teacache True contradicts recipe flashtalk, which fixes it at False"),
        ({"mode": "streaming", "frame_num": 81}, "frame_num 81 contradicts recipe flashtalk, which fixes it at 33"),
        (TWO, "recipe flashtalk is for one speaker, and the job has 2; use one of quality, lora-8, lora-4"),
    ],
    ids=["steps", "two fields", "teacache", "chunk", "two speakers"],
)
def test_a_job_that_names_a_recipe_and_contradicts_it_is_refused(changes, told):
    payload = {"input": PAYLOAD | {"recipe": "flashtalk"} | changes}
    with pytest.raises(WorkerError, match=told):
        parse_payload("job-1", payload, Settings())


def test_an_item_that_contradicts_its_recipe_is_named():
    items = [PAYLOAD | {"id": "a"}, PAYLOAD | {"id": "b", "recipe": "flashtalk", "sample_steps": 8}]
    with pytest.raises(WorkerError, match=r"^batch\.1: sample_steps 8 contradicts"):
        parse_payload("job-1", {"input": {"batch": items}}, Settings())


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(WorkerError, match=r"recipe must be 'quality', 'lora-8', .* or 'flashtalk-12', not 'fast'"):
        parse_payload("job-1", {"input": PAYLOAD | {"recipe": "fast"}}, Settings())


def test_the_workers_recipe_wins_over_a_jobs_fixed_fields_with_a_warning():
    chosen = choose_recipe(job(sample_steps=40, color_correction_strength=0.5), FLASHTALK)
    assert (chosen.job.sample_steps, chosen.job.color_correction_strength) == (4, 0.5)
    assert chosen.job.recipe == "flashtalk"
    assert chosen.warnings == [
        "sample_steps is 4 instead of 40: recipe flashtalk, this worker's default, fixes it; "
        '"recipe": "quality" takes any value'
    ]


def test_a_job_that_the_workers_recipe_cannot_serve_is_made_by_quality_with_a_warning():
    chosen = choose_recipe(job(**TWO), FLASHTALK)
    assert (chosen.job.recipe, chosen.job.sample_steps, chosen.job.family) == ("quality", 40, QUALITY.family)
    assert chosen.warnings == ["recipe flashtalk, this worker's default, is for one speaker: recipe quality was used"]


def test_a_named_recipe_wins_over_the_workers():
    assert choose_recipe(job(recipe="quality"), FLASHTALK).job.sample_steps == 40


def test_without_a_recipe_a_job_has_the_published_defaults():
    sent = job()
    assert choose_recipe(sent, None).job is sent


@pytest.mark.parametrize(
    ("frame_num", "num_frames", "num_chunks"), [(81, 81, 3), (33, 33, 1), (17, 17, 1), (37, 37, 2)]
)
def test_a_clip_by_flashtalk_is_as_long_as_frame_num_says(frame_num, num_frames, num_chunks):
    chosen = choose_recipe(job(recipe="flashtalk", frame_num=frame_num), None).job
    assert (chosen.frame_limit, chosen.chunk_frame_num) == (frame_num, 33)
    settings = generation_settings(chosen, 0, Scene(0, num_frames))
    assert (settings.frame_num, settings.motion_frame, settings.max_frame_num) == (33, 5, num_frames)
    assert chunk_grid(chosen).num_chunks(num_frames) == num_chunks


def test_the_default_recipe_is_a_setting(monkeypatch):
    monkeypatch.setenv("DEFAULT_RECIPE", "lora-4")
    assert Settings().recipe is RECIPES["lora-4"]
    monkeypatch.setenv("DEFAULT_RECIPE", "fast")
    with pytest.raises(ValueError, match="quality"):
        Settings()

"""The interface: what a job may say, what it is told when it says something else, and the generated JSON Schemas."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from schemas import BatchJob, OutputConfig, S3Config, SingleJob, Stage, Video, explain, parse_input
from schemas.names import hint_for
from tools.generated import json_schema

SCHEMAS = Path(__file__).parents[1] / "schemas"
SMALLEST_JOB: dict[str, Any] = {
    "prompt": "A woman sings",
    "cond_video": "face.jpg",
    "cond_audio": {"person1": "voice.wav"},
}
USERS_JOB = {
    "prompt": "A woman sings in a studio",
    "cond_video": "https://example.com/media/image.jpg",
    "cond_audio": {"person1": "https://example.com/audio/voice.wav"},
    "size": "infinitetalk-480",
    "mode": "clip",
    "frame_num": 81,
    "sample_steps": 8,
    "sample_text_guide_scale": 1.0,
    "sample_audio_guide_scale": 2.0,
    "motion_frame": 9,
    "base_seed": 42,
    "output_config": {"store": "s3", "prefix": "infinitetalk/jobs"},
}


def prompts(*times: float) -> list[dict[str, Any]]:
    """A list of prompts that are in force from these times on."""
    return [{"from_s": time, "prompt": f"from {time}"} for time in times]


def turns(*turns: tuple[str, float, float | None]) -> dict[str, Any]:
    """A script of turns: speaker, begin and end."""
    script = [{"speaker": speaker, "from_s": begin, "to_s": end} for speaker, begin, end in turns]
    return {"audio_type": "script", "script": script}


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": prompts(2, 5)}, "prompt must say what is in force from the start: its first entry needs from_s 0"),
    ({"prompt": [{"from_s": 0, "promt": "x"}]}, 'prompt.0 has an unknown field "promt"; the nearest known one'),
    ({"prompt": [{"from_s": 0, "prompt": ""}]}, "prompt.0.prompt must have at least 1 character"),
    ({"prompt": prompts(0, 5, 3)}, "prompt must be in the order of time: from_s 3 comes after 5"),
    ({"prompt": prompts(0, 5, 5)}, "prompt has two entries with from_s 5; give each its own time"),
    ({"prompt": prompts(0, 0.02)}, "prompt needs 0.04 s, a video frame, between entries: from_s 0 and 0.02"),
    ({"prompt": prompts(*range(33))}, "prompt must have at most 32 items"),
    ({"cond_video": [{"from_s": 0, "url": "a"}]}, 'cond_video.0 has an unknown field "url"; the nearest known one is '),
    ({"cond_audio": {"person1": {"media": "a", "from_s": -1}}}, "cond_audio.person1.from_s must be greater than or eq"),
    ({"audio_type": "script"}, 'needs a script with audio_type "script"'),
    ({"script": [{"speaker": "person1", "from_s": 0}]}, "and takes none with another audio_type"),
    (turns(("person2", 0, None)), "has a turn of person2 in script.0; those with sound are person1"),
    (turns(("person1", 3, 4), ("person1", 1, 2)), "script must be in the order of time: script.1 begins at 1"),
    (turns(("person1", 3, 2)), "script needs turns that last: script.0 begins at 3 and ends at 2"),
    (turns(("person1", 0, 5), ("person1", 3, None)), "script needs one turn of a speaker at a time: script.1"),
    (
        {"cond_audio": {"person1": {"media": "a", "from_s": 1}}, "audio_type": "add"},
        'takes from_s of cond_audio.person1 with audio_type "para" only',
    ),
    (
        {"scene_seg": True, "cond_video": [{"from_s": 0, "media": "a"}, {"from_s": 1, "media": "b"}]},
        "takes scene_seg with one cond_video only",
    ),
    ({"frame_num": 80}, "frame_num must be 4n+1, e.g. 77 or 81, not 80"),
    ({"frame_nums": 81}, 'the input has an unknown field "frame_nums"; the nearest known one is "frame_num"'),
    ({"output_config": {"stor": "s3"}}, 'output_config has an unknown field "stor"; the nearest known one'),
    ({"image_url": "a.png"}, '"image_url"; the nearest known one is "cond_video"'),
    ({"audio_url": "a.wav"}, '"audio_url"; the nearest known one is "cond_audio"'),
    ({"audio": "a.wav"}, '"audio"; the nearest known one is "cond_audio"'),
    ({"num_inference_steps": 8}, '"num_inference_steps"; the nearest known one is "sample_steps"'),
    ({"steps": 8}, '"steps"; the nearest known one is "sample_steps"'),
    ({"Seed": 8}, '"Seed"; the nearest known one is "base_seed"'),
    ({"promt": "x"}, '"promt"; the nearest known one is "prompt"'),
    ({"input": {}}, 'unknown field "input"; send its fields directly'),
    ({"s3Config": {}}, 'unknown field "s3Config"; it belongs beside "input"'),
    ({"output_config": {"bucket": "b"}}, 'unknown field "bucket"; name the job\'s own store in s3Config'),
    ({"colour": "red"}, 'unknown field "colour"; the known ones are apg_momentum, '),
    ({"cond_audio": None}, "give either cond_audio, e.g. "),
    ({"tts_audio": {"text": "Hi", "human1_voice": "am_adam"}}, "give either cond_audio, e.g. "),
    ({"cond_audio": {"person1": None}}, "at least one speaker of cond_audio must have audio"),
    ({"cond_audio": {"person2": "a.wav"}}, "cond_audio must name its speakers person1, person2"),
    ({"cond_audio": {f"person{n}": "a" for n in range(1, 10)}}, "1 to 8 of them"),
    ({"bbox": {"person1": [0, 0, 5]}}, "bbox.person1 must have at least 4 items"),
    ({"bbox": {"person1": [0, 0, 5, 5], "person2": [0, 0, 5, 5]}}, "bbox has person1, person2"),
    ({"cond_audio": "a.wav"}, 'cond_audio must be an object with a value for each speaker: {"person1": '),
    ({"cond_audio": ["a.wav"]}, 'cond_audio must be an object with a value for each speaker: {"person1": '),
    ({"bbox": [0, 0, 5, 5]}, 'bbox must be an object with a value for each speaker: {"person1": '),
    ({"mask": {"person1": "m.png"}, "bbox": {"person1": [0, 0, 5, 5]}}, "takes bbox or mask, not both"),
    ({"mode": "streaming", "motion_frame": 81}, "motion_frame smaller than frame_num"),
    ({"sample_steps": 0}, "sample_steps must be greater than or equal to 1, not 0"),
    ({"frame_num": "81"}, "frame_num must be a valid integer, not '81'"),
    ({"base_seed": True}, "base_seed must be a valid integer, not True"),
    ({"sample_shift": float("nan")}, "sample_shift must be a finite number"),
    ({"size": "480p"}, "size must be 'infinitetalk-480', 'infinitetalk-720' or {"),
    ({"size": {"width": 833, "height": 480}}, "size.width must be a multiple of 16, not 833"),
    ({"size": {"width": 832}}, "size.height is required"),
    ({"size": {"width": 2048, "height": 2048}}, "size has 4,194,304 pixels; at most 2,088,960 are allowed"),
    ({"prompt": "\ud800"}, "prompt must be a valid string"),
    ({"prompt": ""}, "prompt must have at least 1 character"),
    ({"batch": []}, "the input has an unknown field"),
    ({"output_config": {"store": "put"}}, 'output_config with store "put" needs video_url and thumbnail_url'),
    ({"output_config": {"video_url": "https://a.com"}}, 'takes video_url and thumbnail_url with store "put" only'),
]  # fmt: skip
"""Changes to the smallest job that the worker refuses, and what it says."""


def refusal(**changes: object) -> str:
    """What the client is told about the smallest job with these changes."""
    with pytest.raises(ValidationError) as caught:
        parse_input(SMALLEST_JOB | changes)
    return explain(caught.value)


def test_the_users_own_job_is_taken_as_it_is():
    job = parse_input(USERS_JOB)
    assert job.model_dump(exclude_unset=True) == USERS_JOB


def test_defaults_are_those_of_the_interface():
    job = parse_input(SMALLEST_JOB)
    assert isinstance(job, SingleJob)
    expected = {
        "audio_type": "para", "bbox_order": "xy", "scene_seg": False, "dry_run": False, "size": "infinitetalk-480",
        "mode": "clip", "frame_num": 81, "max_frame_num": 1000, "sample_steps": 40, "sample_text_guide_scale": 5,
        "sample_audio_guide_scale": 4, "motion_frame": 9, "crossfade_frame": 4, "color_correction_strength": 1,
        "use_teacache": False, "teacache_thresh": 0.2, "use_apg": False, "apg_momentum": -0.75,
        "apg_norm_threshold": 55, "base_seed": 42,
        "num_persistent_param_in_dit": None, "offload_model": None, "quant": None, "loras": [], "output_config": None,
    }  # fmt: skip
    assert {name: getattr(job, name) for name in expected} == expected
    assert OutputConfig() == OutputConfig(store="s3", prefix="infinitetalk/jobs")


@pytest.mark.parametrize(
    ("size", "given", "shift"),
    [
        ("infinitetalk-480", None, 7.0),
        ("infinitetalk-720", None, 11.0),
        ("infinitetalk-720", 2.0, 2.0),
        ({"width": 832, "height": 480}, None, 7.0),
        ({"width": 1024, "height": 1024}, None, 11.0),
    ],
)
def test_the_shift_follows_the_size_unless_given(size, given, shift):
    job = parse_input(SMALLEST_JOB | {"size": size, "sample_shift": given})
    assert job.shift == shift


def test_the_mode_decides_how_many_frames_there_may_be():
    assert parse_input(SMALLEST_JOB | {"frame_num": 33, "max_frame_num": 500}).frame_limit == 33
    streaming = SMALLEST_JOB | {"frame_num": 33, "max_frame_num": 500, "mode": "streaming"}
    assert parse_input(streaming).frame_limit == 500


def test_speakers_come_in_the_order_of_their_numbers():
    job = parse_input(SMALLEST_JOB | {"cond_audio": {"person2": None, "person1": "a.wav"}})
    assert job.speakers == ["person1", "person2"]
    assert list(job.cond_audio.values()) == ["a.wav", None]


@pytest.mark.parametrize(("changes", "message"), REFUSALS)
def test_a_refusal_names_the_field_and_what_to_change(changes, message):
    assert message in refusal(**changes)


BEYOND_SCHEMAS = (
    "bbox has person1, person2",
    "motion_frame smaller than frame_num",
    "sample_shift must be a finite",
    "prompt must be a valid string",
    "size has 4,194,304 pixels",
    "prompt must be in the order of time",
    "prompt has two entries",
    "prompt needs 0.04 s",
    "has a turn of person2",
    "script must be in the order",
    "script needs turns that last",
    "script needs one turn",
    "takes from_s of cond_audio",
    "takes scene_seg with one",
)
"""Refusals that JSON Schema, or JSON, has no words for."""

TAKEN: list[dict[str, Any]] = [
    {"size": {"width": 1920, "height": 1088}},
    {},
    {"frame_num": 5},
    {"frame_num": 401},
    {"cond_audio": {"person1": None, "person2": "a.wav"}},
    {"cond_audio": {f"person{n}": "a" for n in range(1, 9)}},
    {"cond_audio": None, "tts_audio": {"text": "Hi", "human1_voice": "am_adam"}},
    {"tts_audio": None},
    {"bbox": {"person1": [0, 0, 5.5, 5]}, "mask": None},
    {"mask": {"person1": "m.png"}},
    {"mode": "streaming", "motion_frame": 80},
    {"teacache_thresh": 10, "apg_momentum": -1, "base_seed": -1, "sample_steps": 200, "quant": "fp8"},
    {"recipe": "flashtalk", "loras": [{"name": "a"}] * 8},
    {"speech": {"gate": "auto"}},
    {"speech": {}},
    {"prompt": prompts(0)},
    {"prompt": prompts(0, 2.5, 3600)},
    {"cond_video": [{"from_s": 0, "media": "a"}, {"from_s": 1, "media": "b"}]},
    {"cond_audio": {"person1": {"media": "a"}, "person2": {"media": "b", "from_s": 2.5}, "person3": "c"}},
    {"script": None, "audio_type": "para"},
    turns(("person1", 0, 1), ("person1", 1, None)),
    {"cond_audio": {"person1": "a", "person2": "b"}}
    | turns(("person1", 0, 3), ("person2", 0, 2), ("person2", 2, None)),
    {"output_config": {"store": "volume", "preview": True}},
    {"output_config": {"preview": True}},
    {"output_config": {"store": "put", "video_url": "https://a.com/v", "thumbnail_url": "https://a.com/t"}},
    {"batch_of": [{"id": "one"}, {"id": "a.b-c_d"}]},
]
"""Changes to the smallest job that the worker takes; "batch_of": as items of a batch, with these changes."""

MORE_REFUSALS: list[dict[str, Any]] = [
    {"frame_num": 1},
    {"frame_num": 405},
    {"frame_num": 83},
    {"max_frame_num": 90_001},
    {"sample_steps": 201},
    {"teacache_thresh": 0},
    {"base_seed": 2**53},
    {"color_correction_strength": 1.01},
    {"sample_text_guide_scale": 50.5},
    {"cond_audio": {"person1": "a", "person3": "b"}},
    {"cond_audio": {"person0": "a"}},
    {"cond_audio": {}},
    {"cond_audio": {"person1": ""}},
    {"bbox": {"person1": [0, 0, 5, 5, 5]}},
    {"mask": {"person2": "m.png"}},
    {"tts_audio": {"text": ""}},
    {"loras": [{"name": "a"}] * 9},
    {"speech": "auto"},
    {"speech": {"gate": True}},
    {"speech": {"gate": "on"}},
    {"prompt": []},
    {"cond_video": [{"from_s": 0, "media": "a"}] * 17},
    {"cond_audio": {"person1": {"from_s": 1}}},
    {"script": [], "audio_type": "script"},
    {"script": [{"speaker": "anna", "from_s": 1}], "audio_type": "script"},
    {"loras": [{"name": "a", "scale": 4.5}]},
    {"output_config": {"store": "inline", "preview": True}},
    {"output_config": {"store": "put", "video_url": "https://a.com/v", "thumbnail_url": None}},
    {"output_config": {"store": "volume", "thumbnail_url": "https://a.com/t"}},
    {"batch_of": []},
    {"batch_of": [{}]},
    {"batch_of": [{"id": ".hidden"}]},
    {"batch_of": [{"id": "x" * 65}]},
    {"batch_of": [{"id": "one", "frame_num": 80}]},
]
"""More changes that the worker refuses."""


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The smallest job with changes, or a batch of such jobs."""
    if "batch_of" in changes:
        return {"batch": [SMALLEST_JOB | item for item in changes["batch_of"]]}
    return SMALLEST_JOB | changes


def schema_of(job: dict[str, Any]) -> Draft202012Validator:
    """The validator that the published JSON Schema of a job makes."""
    name = "batch_job" if "batch" in job else "single_job"
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "changes",
    [changes for changes, message in REFUSALS if not message.startswith(BEYOND_SCHEMAS)] + MORE_REFUSALS,
    ids=str,
)
def test_the_published_schema_refuses_what_the_worker_refuses(changes):
    with pytest.raises(ValidationError):
        parse_input(changed(changes))
    assert not schema_of(changed(changes)).is_valid(changed(changes))


@pytest.mark.parametrize("changes", TAKEN, ids=str)
def test_the_published_schema_takes_what_the_worker_takes(changes):
    parse_input(changed(changes))
    schema_of(changed(changes)).validate(changed(changes))


def test_the_published_schema_takes_the_users_own_job():
    schema_of(USERS_JOB).validate(USERS_JOB)


def test_the_published_schema_of_a_video_has_one_place():
    success = json.loads((SCHEMAS / "success.schema.json").read_text(encoding="utf-8"))
    schema = Draft202012Validator(success["$defs"]["Video"])
    facts = {"mime": "video/mp4", "bytes": 1, "width": 8, "height": 8, "fps": 25.0, "num_frames": 5, "duration_s": 0.2}
    assert schema.is_valid(facts | {"path": "a.mp4", "thumbnail_path": "a.jpg"})
    for places in ({}, {"path": "a"}, {"path": "a", "thumbnail_url": "b"}, {"path": "a", "url": "b"}):
        assert not schema.is_valid(facts | places)


@pytest.mark.parametrize("payload", [None, [], "text", 5])
def test_an_input_that_is_not_an_object_is_refused(payload):
    with pytest.raises(ValidationError) as caught:
        parse_input(payload)
    assert "the input must be an object" in explain(caught.value)


def test_a_refusal_does_not_echo_media():
    media = "QUJD" * 1000
    assert media not in refusal(size=media)
    assert media[:50] not in refusal(**{media: 1})


def test_no_suggestion_is_far_from_a_field_in_both_meaning_and_spelling():
    known = [field.alias or name for name, field in SingleJob.model_fields.items()]
    for unknown in ("input", "unknown", "x", "", "quality", "fps", "headers", "\n", "ﬀ" * 50):
        assert "nearest" not in hint_for(unknown, known)
    assert all(hint_for(field.upper(), known) == f'the nearest known one is "{field}"' for field in known)


def test_a_name_of_megabytes_is_answered_at_once():
    begin = time.monotonic()
    assert len(refusal(**{"cond_video" * 1_000_000: 1})) < 1100
    assert time.monotonic() - begin < 1


def test_no_value_of_a_store_is_echoed():
    broken = {"endpointUrl": "hush-1", "accessId": "hush-2", "accessSecret": ["hush-3"], "bucketName": "hush 4"}
    for given in (broken, "hush-5", ["hush-6"], broken | {"accesSecret": "hush-7"}):
        with pytest.raises(ValidationError) as caught:
            S3Config.model_validate(given)
        message = explain(caught.value, "s3Config", shows_values=False)
        assert message.startswith("s3Config")
        assert "hush" not in message


def test_a_refusal_of_thousands_of_mistakes_is_short_and_can_be_sent():
    assert len(refusal(loras=[{"name": 5, "\ud800" * 500: 1}] * 8, **{"\ud800": 1}).encode()) < 2000
    assert len(refusal(cond_audio={"x" * 100_000: 5})) < 2000


@pytest.mark.parametrize("prefix", ["../up", "a/../b", "/absolute", "a//b", "a/", "", ".", "a\\b", "a\x00b", "a\nb"])
def test_a_prefix_cannot_climb_out(prefix):
    assert "output_config.prefix" in refusal(output_config={"prefix": prefix})


def test_the_items_of_a_batch_need_different_safe_ids():
    item = SMALLEST_JOB | {"id": "one"}
    assert isinstance(parse_input({"batch": [item, item | {"id": "two"}]}), BatchJob)
    for second in ("one", "../two", ".two", ""):
        with pytest.raises(ValidationError):
            parse_input({"batch": [item, item | {"id": second}]})


def test_an_item_that_takes_the_batchs_preview_needs_25_frames_a_second():
    batch = {"output_config": {"store": "volume", "preview": True}}
    items = [SMALLEST_JOB | {"id": "plain"}, SMALLEST_JOB | {"id": "dubbed", "dub": {}}]
    with pytest.raises(ValidationError, match=r"has batch\.1, which takes output_config\.preview with"):
        parse_input(batch | {"batch": items})
    items[1]["output_config"] = {"store": "volume"}
    parse_input(batch | {"batch": items})


def test_a_video_is_in_exactly_one_place_with_its_thumbnail():
    facts = {"bytes": 1, "width": 8, "height": 8, "fps": 25.0, "num_frames": 5, "duration_s": 0.2}
    assert Video(path="a.mp4", thumbnail_path="a.jpg", **facts).path == "a.mp4"
    for places in ({}, {"path": "a"}, {"path": "a", "thumbnail_url": "b"}, {"path": "a", "url": "b"}):
        with pytest.raises(ValidationError):
            Video(**places, **facts)


def test_the_stages_are_those_of_the_interface():
    assert [stage.value for stage in Stage] == [
        "validation", "download", "embedding", "load", "sampling", "decode", "mux", "upload", "completed",
    ]  # fmt: skip


@pytest.mark.parametrize("model", [SingleJob, BatchJob])
def test_every_field_of_a_job_is_described(model):
    schema = json_schema(model, "validation")
    for definition in (schema, *schema["$defs"].values()):
        assert all(field.get("description") for field in definition["properties"].values()), definition["title"]

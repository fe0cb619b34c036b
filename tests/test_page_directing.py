"""What the page's fields say of a job: which have an effect, what their texts mean, and where boxes are drawn."""

import importlib
import itertools
import json
import mimetypes
from pathlib import Path
from types import ModuleType
from typing import Any

import directing
import numpy as np
import places
import pytest
from PIL import Image

from infinitetalk.media.decode import extract_frames, read_picture
from infinitetalk.worker.job.advice import unused_fields
from schemas import parse_input
from tests.media_factory import make_numbered_video, run_ffmpeg
from tests.page_fields import FIELDS, FILM, MEDIA, ONE_VOICE, OWN_BOXES, TWO_PEOPLE, TWO_VOICES

FILLED_IN: dict[str, Any] = OWN_BOXES | {
    "script": "0 s: person1",
    "begin1": 0.5,
    "begin2": 1.5,
    "gate": True,
    "later_prompts": "1 s: She laughs",
    "strength": 0.5,
    "margin": "",
    "feather": "3",
    "fps": "source",
    "mix": True,
    "max_frame_num": 200,
    "frame_num": 81,
    "motion_frame": 5,
    "crossfade_frame": 2,
    "sample_steps": 8,
    "negative_prompt": "hands",
    "nag": True,
    "nag_scale": 3.0,
}
"""Something in every field of the part that directs."""

SOURCES = {"picture": {}, "film": FILM}
SPEECH = {"one voice": ONE_VOICE, "two voices": TWO_VOICES, "text": {"text": "Welcome."}}
NOWHERE = "http://example.invalid/v2/endpoint"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """The page's functions."""
    return importlib.import_module("page")


@pytest.fixture(scope="module")
def client(page: ModuleType) -> Any:
    """A client that sends all media in the request, so that it needs no endpoint."""
    return page.InfiniteTalkClient(NOWHERE)


@pytest.mark.parametrize("speech", SPEECH.values(), ids=SPEECH)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_field_without_an_effect_is_not_sent(page: ModuleType, client: Any, source: Any, speech: Any) -> None:
    choices: dict[str, tuple[Any, ...]] = {
        "regions": ("halves", "faces", "boxes"),
        "keep": ("none", "face"),
        "audio_type": ("para", "script"),
        "mode": ("clip", "streaming"),
        "recipe": ("", "lora-8"),
        "sample_text_guide_scale": (1.0, 5.0),
    }
    for values in itertools.product(*choices.values()):
        fields = FIELDS | FILLED_IN | source | speech | dict(zip(choices, values, strict=True))
        sent = page.job_input(client, fields)
        job = parse_input(sent)
        job = job if not fields["recipe"] else job.by_recipe(page_recipe(fields["recipe"]))
        unused = unused_fields(job, is_picture=not source, num_chunks=2, s3_config=None)
        # What a recipe sets is not on the page: whether it guides by the text.
        assert [told for told in unused if not (fields["recipe"] and told.startswith("nag"))] == []


def page_recipe(name: str) -> Any:
    """A recipe as the worker has it."""
    return importlib.import_module("infinitetalk.recipes").RECIPES[name]


def test_what_directs_a_video_arrives_in_the_job(page: ModuleType, client: Any) -> None:
    later = {"later_pictures": [FIELDS["source"]], "later_times": "2.5", "begin2": 1.5}
    own_size = {"size": "own", "width": 576, "height": 640}
    calm = {"gate": True, "nag": True, "nag_scale": 3.0, "negative_prompt": "hands", "later_prompts": "2: She laughs"}
    job = page.job_input(client, FIELDS | TWO_PEOPLE | TWO_VOICES | later | own_size | calm)
    media = {"cond_video", "cond_audio"}
    assert (
        job.items()
        >= {
            "prompt": [{"from_s": 0.0, "prompt": "A person talks"}, {"from_s": 2.0, "prompt": "She laughs"}],
            "speech": {"gate": "auto"},
            "size": {"width": 576, "height": 640},
            "negative_prompt": "hands",
            "nag": {"scale": 3.0},
            "bbox": {"person1": [10, 20, 200, 300], "person2": [220, 20, 400, 300]},
        }.items()
        and media <= job.keys()
    )
    assert [entry["from_s"] for entry in job["cond_video"]] == [0.0, 2.5]
    assert isinstance(job["cond_audio"]["person1"], str)
    assert job["cond_audio"]["person2"]["from_s"] == 1.5
    assert {"width", "height", "regions", "dub", "output", "audio_mix"}.isdisjoint(job)


def test_the_only_voice_begins_when_person1_does_in_whichever_field_it_is(page: ModuleType, client: Any) -> None:
    for voice in ("voice1", "voice2"):
        job = page.job_input(client, FIELDS | {voice: ONE_VOICE["voice1"], "begin1": 0.5, "begin2": 1.5})
        assert {name: each["from_s"] for name, each in job["cond_audio"].items()} == {"person1": 0.5}


def test_what_stays_of_a_film_arrives_in_the_job_and_there_is_no_preview(page: ModuleType, client: Any) -> None:
    streaming = {"mode": "streaming", "max_frame_num": 200, "frame_num": 81}
    fields = FIELDS | FILM | ONE_VOICE | streaming
    plain = page.job_input(client, fields)
    assert plain["output_config"]["preview"] and plain.keys().isdisjoint({"dub", "output", "audio_mix", "scene_seg"})
    kept = page.job_input(
        client, fields | {"keep": "face", "strength": 0.6, "feather": "4", "mix": True, "mix_db": -20}
    )
    assert kept["dub"] == {"keep": "face", "strength": 0.6, "margin": 0.5, "feather": 4}
    assert kept["audio_mix"] == {"source": -20}
    assert "preview" not in kept["output_config"]
    even = page.job_input(client, fields | {"keep": "all", "fps": "model", "margin": ""})
    assert even["dub"] == {"keep": "all", "margin": None} and even["output"] == {"fps": "model"}
    assert even["output_config"]["preview"]
    moved = page.job_input(client, fields | {"strength": 0.3, "fps": "source"})
    assert moved["dub"] == {"keep": "none", "strength": 0.3} and "preview" not in moved["output_config"]
    for job in (plain, kept, even, moved):
        parse_input(job)


def test_boxes_and_voices_go_to_the_speaker_they_are_given_for(page: ModuleType, client: Any) -> None:
    job = page.job_input(client, FIELDS | TWO_PEOPLE | TWO_VOICES | {"audio_type": "add"})
    assert job["bbox"] == {"person1": [10, 20, 200, 300], "person2": [220, 20, 400, 300]}
    assert list(job["cond_audio"]) == ["person1", "person2"]
    assert job["audio_type"] == "add"
    assert "tts_audio" not in job
    assert "bbox" not in page.job_input(client, FIELDS | TWO_PEOPLE | ONE_VOICE), "one speaker has the whole picture"
    kept = page.job_input(client, FIELDS | FILM | OWN_BOXES | ONE_VOICE | {"keep": "face"})
    assert kept["bbox"] == {"person1": [10, 20, 200, 300]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": None}, "choose an image or a video"),
        ({"voice1": None, "voice2": None}, "choose a voice, or type a text"),
        (OWN_BOXES | {"box1": "1, 2, 3"}, "four whole numbers"),
        (OWN_BOXES | {"box2": "left, 2, 3, 4"}, "four whole numbers"),
        (OWN_BOXES | {"box1": "30, 2, 3, 40"}, "x_min must be below x_max"),
        (OWN_BOXES | {"box2": ""}, "person2 has no box: click two corners"),
        ({"later_prompts": "8 s: She laughs\n\nShe looks away"}, "line 3: 'She looks away' needs seconds"),
        ({"later_prompts": "8 s:"}, "line 1: '8 s:' needs seconds, a colon and a text"),
        ({"later_prompts": "8: a\n7.5 s: b"}, "line 2: 7.5 s must come after 8 s"),
        ({"later_prompts": "0 s: a"}, "line 1: 0 s must come after 0 s, from which the first one is in force"),
        ({"audio_type": "script"}, "needs turns: write a line for each"),
        ({"audio_type": "script", "script": "0 s: person1\nthen the other"}, "script, line 2: 'then the other' is no"),
        ({"later_pictures": ["b.png"]}, "there are 1 pictures and 0 times"),
        ({"later_pictures": ["b.png"], "later_times": "soon"}, "'soon' is no number of seconds"),
        ({"later_pictures": ["b.png", "c.png"], "later_times": "8 4"}, "4 s must come after 8 s"),
        ({"keep": "face", "feather": "wide"}, "dub.feather: 'wide' is no number; leave it empty for null"),
        ({"size": "own", "width": None}, "size: give width and height"),
    ],
)
def test_a_field_that_cannot_be_sent_is_told_before_anything_is_uploaded(
    page: ModuleType, changes: dict[str, Any], words: str
) -> None:
    nowhere = page.InfiniteTalkClient("http://127.0.0.1:9/v2/local", inline_bytes=0)
    with pytest.raises(ValueError, match=words):
        page.job_input(nowhere, FIELDS | TWO_VOICES | changes)


def test_turns_are_lines_with_times_and_a_speaker() -> None:
    assert directing.turns("0 s: person1\n\n 2.5-4: person2 \n5 s to 6.25 s:person1") == [
        {"speaker": "person1", "from_s": 0.0},
        {"speaker": "person2", "from_s": 2.5, "to_s": 4.0},
        {"speaker": "person1", "from_s": 5.0, "to_s": 6.25},
    ]


def test_a_prompt_may_have_colons_and_times_of_its_own() -> None:
    (line,) = directing.timed_lines("prompt", "12.5 s: At 8 s: she laughs")
    assert (line.time, line.text) == (12.5, "At 8 s: she laughs")


def test_two_clicks_make_a_box_whichever_corner_comes_first() -> None:
    corner, first, second = places.click(None, "", "", [150, 20])
    assert (corner, first, second) == ([150, 20], "", "")
    corner, first, second = places.click(corner, first, second, [40, 180])
    assert (corner, first, second) == (None, "40, 20, 150, 180", "")
    corner, first, second = places.click(corner, first, second, [200, 30])
    assert places.click(corner, first, second, [300, 190]) == (None, "40, 20, 150, 180", "200, 30, 300, 190")


def test_a_third_box_starts_again_with_person1() -> None:
    assert places.click([1, 2], "5, 5, 9, 9", "15, 5, 19, 9", [3, 4]) == (None, "1, 2, 3, 4", "15, 5, 19, 9")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("image", "a.png a.JPG a.webp a.heic a.avif a.gif"),
        ("video", "a.mp4 a.MOV a.webm a.mkv a.m4v a.avi"),
        (None, "a.wav a"),
    ],
)
def test_a_file_is_known_by_its_name_on_every_machine(
    kind: str | None, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the tables of types that some systems have."""
    monkeypatch.setattr(mimetypes, "guess_type", mimetypes.MimeTypes(filenames=()).guess_type)
    assert {directing.kind_of(name) for name in names.split()} == {kind}


@pytest.mark.parametrize("source", [FIELDS["source"], FILM["source"]], ids=["picture", "film"])
def test_the_preview_shows_boxes_and_the_corner_that_waits(source: str) -> None:
    plain = places.preview(source, None, [])
    assert places.preview(source, [40, 20], []) != plain
    drawn = places.preview(source, None, [None, [40, 20, 150, 180]])
    assert drawn.size == plain.size and drawn != plain
    assert drawn.getpixel((41, 100)) == (0x18, 0x64, 0xAB), "person2's colour"
    assert places.preview(str(MEDIA / "speech.wav"), None, []) is None
    assert places.preview(None, None, []) is None


def test_a_picture_too_large_to_be_drawn_is_left_to_the_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    assert places.still(str(tmp_path / "large.png")) is None


def test_boxes_that_are_being_typed_or_have_no_effect_are_not_drawn() -> None:
    typing = FIELDS | TWO_VOICES | {"regions": "boxes", "box1": "40, 20,", "box2": "9, 9, 1, 1"}
    assert places.drawn_boxes(typing, None) == [None, None]
    assert places.drawn_boxes(FIELDS | TWO_PEOPLE | TWO_VOICES, None) == [[10, 20, 200, 300], [220, 20, 400, 300]]
    assert places.drawn_boxes(FIELDS | TWO_PEOPLE | TWO_VOICES | {"regions": "halves"}, None) == [None, None]


@pytest.mark.parametrize("turn", [0, 90, 180])
def test_boxes_of_a_film_are_in_the_pixels_that_the_worker_counts(tmp_path: Path, turn: int) -> None:
    make_numbered_video(tmp_path / "film.mp4", [5], "25", "-pix_fmt", "yuv420p", filters="setsar=4/3")
    run_ffmpeg("-display_rotation", str(turn), "-i", tmp_path / "film.mp4", "-c", "copy", tmp_path / "turned.mp4")
    want = extract_frames(tmp_path / "turned.mp4", tmp_path, stride=1, max_frames=1).frame_at(0).permute(1, 2, 0)
    shown = np.asarray(places.still(str(tmp_path / "turned.mp4")))
    assert shown.shape == tuple(want.shape)
    assert np.abs(shown.astype(int) - want.numpy()).mean() < 8


def test_boxes_of_a_turned_photograph_are_in_the_pixels_that_the_worker_counts(tmp_path: Path) -> None:
    picture = places.still(str(MEDIA / "two_people.jpg")).copy()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    want = read_picture(tmp_path / "turned.jpg").permute(1, 2, 0).numpy()
    shown = np.asarray(places.still(str(tmp_path / "turned.jpg")))
    assert shown.shape == want.shape and np.abs(shown.astype(int) - want).mean() < 3


def test_an_endpoints_places_are_text_and_one_speakers_are_not_told() -> None:
    place = {"speaker": "<b>", "box": [1, 2, 3, 4], "told_by": "faces"}
    assert "&lt;b&gt;: x 1 to 3, y 2 to 4 (a face that was found)" in places.in_words([place])
    assert places.in_words([place | {"told_by": "whole"}]) == ""


def test_the_page_knows_every_way_in_which_a_place_is_told() -> None:
    schema = json.loads((Path(__file__).parents[1] / "schemas/success.schema.json").read_text(encoding="utf-8"))
    assert set(places.TOLD_BY) == set(schema["$defs"]["SpeakerPlace"]["properties"]["told_by"]["enum"])

"""Prompts and pictures that change along a video, speech that begins later, and speakers who take turns by a script.

In `test_worker_resume.py` a worker is killed within a change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from infinitetalk.encoders.text import PromptEncoder
from infinitetalk.errors import GenerationStopped
from infinitetalk.media.decode import Picture, probe, read_waveform
from infinitetalk.media.speech import SAMPLING_RATE, arrange_tracks
from infinitetalk.media.turns import SampleTurn, arrange_turns
from infinitetalk.worker.engine import Scene
from infinitetalk.worker.engine.timeline import first_frame_at, open_stretches, plan_stretches
from infinitetalk.worker.job.resume import request_fingerprint
from infinitetalk.worker.traffic.fetch import Media
from schemas import Stage, parse_input
from tests.job_inputs import data_uri, picture_bytes, picture_uri, scenes_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker
from tools.frames import read_frames

NUM_FRAMES = 17
CHANGE = 8
"""First frame of the third of four chunks, which begin at frames 0, 4, 8 and 12."""

BEFORE_IT_S = 0.3
"""A time after the second chunk's first frame and before the third's."""

OTHER_PICTURE = data_uri(picture_bytes(kind="JPEG", white=slice(20, 50)), "image/jpeg")


def streaming_job(**changes: Any) -> dict[str, Any]:
    """A job of four chunks."""
    return small_job(**{"mode": "streaming", "cond_audio": {"person1": speech_uri(0.68)}} | changes)


def pictures(*others: tuple[float, str]) -> list[dict[str, Any]]:
    return [{"from_s": from_s, "media": media} for from_s, media in ((0, picture_uri()), *others)]


def prompts(*others: tuple[float, str]) -> list[dict[str, Any]]:
    return [{"from_s": from_s, "prompt": prompt} for from_s, prompt in ((0, "A woman talks"), *others)]


def run(worker: LocalWorker, job_id: str, job: dict[str, Any], **options: Any) -> dict[str, Any]:
    return worker.run({"id": job_id, "input": job}, **options)


def video(worker: LocalWorker, result: dict[str, Any]) -> np.ndarray:
    """A result's frames, uint8 (T, H, W, 3)."""
    return read_frames(worker.volume / result["video"]["path"])


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that were embedded, those that were kept from before included."""
    found: list[str] = []
    embed = PromptEncoder.__call__

    def count(encoder: PromptEncoder, prompt: str) -> Tensor:
        found.append(prompt)
        return embed(encoder, prompt)

    monkeypatch.setattr(PromptEncoder, "__call__", count)
    return found


@pytest.fixture
def plain(local_worker: LocalWorker) -> np.ndarray:
    """The video of a job without changes."""
    return video(local_worker, run(local_worker, "plain", streaming_job()))


@pytest.mark.parametrize(
    "changes",
    [
        {"cond_video": pictures((BEFORE_IT_S, OTHER_PICTURE))},
        {"prompt": prompts((BEFORE_IT_S, "A man sings in the rain")), "sample_text_guide_scale": 5.0},
    ],
    ids=["picture", "prompt"],
)
def test_frames_before_a_change_are_those_of_a_job_without_it(
    changes: dict[str, Any], local_worker: LocalWorker
) -> None:
    alone = {name: value for name, value in changes.items() if not isinstance(value, list)}
    without = video(local_worker, run(local_worker, "without", streaming_job(**alone)))
    changed = video(local_worker, run(local_worker, "changed", streaming_job(**changes)))
    assert len(without) == len(changed) == NUM_FRAMES
    assert np.array_equal(changed[:CHANGE], without[:CHANGE])
    assert not np.array_equal(changed[CHANGE + 1], without[CHANGE + 1])


def test_a_chunk_has_the_colours_of_its_own_picture(local_worker: LocalWorker) -> None:
    blue, red = (np.full((64, 64, 3), colour, np.uint8) for colour in ((30, 60, 200), (200, 60, 30)))
    files = [local_worker.volume / name for name in ("blue.png", "red.png")]
    for file, pixels in zip(files, (blue, red), strict=True):
        pixels[::2] //= 2
        Image.fromarray(pixels).save(file)
    job = streaming_job(cond_video=[{"from_s": 0, "media": "blue.png"}, {"from_s": BEFORE_IT_S, "media": "red.png"}])
    frames = video(local_worker, run(local_worker, "colours", job)).mean(axis=(1, 2))
    assert (frames[:CHANGE, 2] > frames[:CHANGE, 0] + 50).all()
    assert (frames[CHANGE + 1 :, 0] > frames[CHANGE + 1 :, 2] + 50).all()


def test_a_list_of_one_entry_is_the_entry(local_worker: LocalWorker, plain: np.ndarray) -> None:
    voice = {"person1": {"media": speech_uri(0.68), "from_s": 0}}
    job = streaming_job(prompt=prompts(), cond_video=pictures(), cond_audio=voice)
    assert np.array_equal(video(local_worker, run(local_worker, "listed", job)), plain)
    as_listed, as_plain = parse_input(job), parse_input(streaming_job())
    assert request_fingerprint("id", as_listed, "w", {}) == request_fingerprint("id", as_plain, "w", {})
    assert "script" not in as_plain.model_fields_set


def test_each_prompt_is_embedded_once_and_each_picture_encoded_once(
    local_worker: LocalWorker, embedded: list[str]
) -> None:
    # A picture that comes again is fetched once.
    uri = picture_uri(height=60)
    cond_video = pictures((0.16, uri), (0.32, picture_uri()), (0.48, uri))
    job = streaming_job(prompt=prompts((0.16, "Rain"), (0.32, "A woman talks")), cond_video=cond_video)
    result = run(local_worker, "once", job)
    assert sorted(embedded) == ["A woman talks", "Rain"]
    assert result["status"] == "success"
    assert any(text.startswith("cond_video.1 is cropped to the shape") for text in result["warnings"])
    assert not any(text.startswith("cond_video.3") for text in result["warnings"])


def test_a_plan_says_which_chunk_takes_what_and_what_none_takes(local_worker: LocalWorker) -> None:
    job = streaming_job(
        prompt=prompts((0.3, "Rain"), (0.36, "Snow"), (0.42, "Fog"), (9, "Night")),
        cond_video=pictures((0.1, OTHER_PICTURE)),
        dry_run=True,
    )
    plan = run(local_worker, "plan", job)
    assert plan["timeline"] == [
        {"first_chunk": 1, "last_chunk": 1, "from_s": 0.0, "prompt": 0, "cond_video": 0},
        {"first_chunk": 2, "last_chunk": 2, "from_s": 0.16, "prompt": 0, "cond_video": 1},
        {"first_chunk": 3, "last_chunk": 3, "from_s": 0.32, "prompt": 1, "cond_video": 1},
        {"first_chunk": 4, "last_chunk": 4, "from_s": 0.48, "prompt": 3, "cond_video": 1},
    ]
    assert [text for text in plan["warnings"] if "has no effect" in text] == [
        "prompt.2, from 0.36 s on, has no effect: no chunk begins from then to 0.42 s; a dry run says when chunks "
        "begin",
        "prompt.4, from 9 s on, has no effect: the video ends at 0.68 s",
    ]
    made = run(local_worker, "made", job | {"dry_run": False})
    assert set(plan["warnings"]) <= set(made["warnings"])
    # Media may hold credentials; from when on they count is told.
    for told in (plan, made):
        assert told["params"]["cond_video"] == [{"from_s": 0.0}, {"from_s": 0.1}]
        assert told["params"]["cond_audio"] == {"person1": {"from_s": 0.0}}
    assert "timeline" not in run(local_worker, "plain-plan", streaming_job(dry_run=True))


def test_a_bad_later_picture_is_refused_before_anything_is_made(local_worker: LocalWorker) -> None:
    failure = run(local_worker, "bad", streaming_job(cond_video=pictures((0.3, speech_uri(0.3)))))
    assert failure["error"]["code"] == "E_INPUT_VALIDATION"
    assert failure["error"]["message"].startswith("cond_video.1 must be an image or a video")
    assert Stage.SAMPLING not in local_worker.stages


def test_a_video_starts_at_its_time_and_an_image_before_it_is_still_used(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(picture_bytes())
    (tmp_path / "film.mp4").write_bytes(scenes_bytes([3, 3, 8]))
    picture, film = tmp_path / "picture.png", tmp_path / "film.mp4"
    sources = [Media(picture, probe(picture), Picture.open(picture)), Media(film, probe(film))]
    job = parse_input(
        streaming_job(cond_video=[{"from_s": 0, "media": "picture.png"}, {"from_s": 0.2, "media": "film.mp4"}])
    )
    first, second = open_stretches(job, sources, tmp_path, Scene(0, NUM_FRAMES))
    assert (first.start, second.start, second.source_start) == (0, CHANGE, CHANGE)
    # The video began at frame 5, so that frame 8 shows its frame 3, and frame 12 its frame 7.
    means = [second.source.frame_at(seconds).float().mean(dim=(1, 2)) for seconds in (0.0, 4 / 25)]
    assert means[0].argmax() == 1
    assert means[1].argmax() == 2


def test_times_are_those_of_the_video_in_each_of_its_scenes() -> None:
    job = parse_input(streaming_job(prompt=prompts((0.3, "Rain"), (1, "Snow")), scene_seg=True))
    found = plan_stretches(job, [Scene(0, 10), Scene(10, 20)])
    told = [(each.first_chunk, each.num_chunks, each.start, each.prompt) for each in found]
    assert told == [(0, 2, 0, 0), (2, 1, 8, 1), (3, 4, 10, 1), (7, 1, 26, 2)]


@pytest.mark.parametrize(("seconds", "frame"), [(0, 0), (0.04, 1), (0.3, 8), (0.32, 8), (0.33, 9), (2.88, 72)])
def test_a_time_is_the_first_frame_that_is_not_before_it(seconds: float, frame: int) -> None:
    assert first_frame_at(seconds) == frame


def test_a_job_that_is_stopped_before_a_change_goes_on_with_it(local_worker: LocalWorker) -> None:
    job = streaming_job(cond_video=pictures((BEFORE_IT_S, OTHER_PICTURE)))
    whole = video(local_worker, run(local_worker, "whole", job))

    def third_chunk_begins() -> bool:
        return any(event.details.get("chunk") == 3 for event in local_worker.events if event.details)

    with pytest.raises(GenerationStopped):
        run(local_worker, "stopped", job, should_stop=third_chunk_begins, keep=True)
    assert np.array_equal(video(local_worker, run(local_worker, "stopped", job)), whole)


# Speech


def sound(seconds: float, value: float) -> np.ndarray:
    return np.full(round(seconds * SAMPLING_RATE), value, dtype=np.float32)


def test_a_voice_begins_after_its_delay() -> None:
    first, second = arrange_tracks([sound(0.2, 1), sound(0.3, 2)], "para", [0, 1600])
    assert len(first) == len(second) == 1600 + 4800
    assert not second[:1600].any()
    assert (second[1600:] == 2).all()
    assert (first[:3200] == 1).all()
    assert not first[3200:].any()


def test_a_silent_speaker_does_not_make_the_video_longer() -> None:
    assert len(arrange_tracks([sound(0.2, 1), None], "para", [0, 16_000])[0]) == 3200


def test_in_its_next_turn_a_speakers_sound_goes_on_where_it_was() -> None:
    count = np.arange(1, 1001, dtype=np.float32)
    turns = [SampleTurn(0, 0, 100), SampleTurn(1, 100, 300), SampleTurn(0, 250, 400), SampleTurn(1, 500, None)]
    first, second = arrange_turns([count, -count[:350]], turns)
    assert len(first) == len(second) == 650
    assert np.array_equal(first[:100], count[:100])
    assert np.array_equal(first[250:400], count[100:250])
    assert not first[100:250].any()
    assert not first[400:].any()
    assert np.array_equal(second[100:300], -count[:200])
    assert np.array_equal(second[500:650], -count[200:350])


def test_a_script_decides_who_is_heard_when(local_worker: LocalWorker) -> None:
    job = streaming_job(
        cond_audio={"person1": speech_uri(0.6, 150), "person2": speech_uri(0.3, 250)},
        audio_type="script",
        script=[
            {"speaker": "person1", "from_s": 0, "to_s": 0.2},
            {"speaker": "person2", "from_s": 0.4},
            {"speaker": "person1", "from_s": 1.0, "to_s": 1.2},
            {"speaker": "person2", "from_s": 30},
        ],
    )
    result = run(local_worker, "script", job)
    assert result["video"]["num_frames"] == 30
    assert [text for text in result["warnings"] if "script" in text] == [
        "script.1 is silent in its last 0.3 s: the sound of person2 has ended",
        "cond_audio.person1: its last 0.2 s are in no turn of the script",
        "script.3 is not heard: it begins at 30 s, and the video ends at 1.2 s",
    ]
    heard = np.abs(read_waveform(local_worker.volume / result["video"]["path"]))

    def level(begin_s: float, end_s: float) -> float:
        return float(heard[round(begin_s * SAMPLING_RATE) : round(end_s * SAMPLING_RATE)].max())

    assert min(level(0, 0.2), level(0.4, 0.7), level(1.0, 1.2)) > 10 * max(level(0.25, 0.37), level(0.75, 0.95))


def test_a_voice_that_begins_later_makes_the_video_longer_and_one_beyond_its_end_is_told(
    local_worker: LocalWorker,
) -> None:
    voices = {
        "person1": speech_uri(0.2),
        "person2": {"media": speech_uri(0.28), "from_s": 0.4},
        "person3": {"media": speech_uri(0.28), "from_s": 50},
        "person4": None,
    }
    job = streaming_job(cond_audio=voices, max_frame_num=40, dry_run=True)
    plan = run(local_worker, "late", job)
    assert plan["num_frames"] == 17
    begins = {"person1": {"from_s": 0.0}, "person2": {"from_s": 0.4}, "person3": {"from_s": 50.0}, "person4": None}
    assert plan["params"]["cond_audio"] == begins
    assert "cond_audio.person3 is not heard: it begins at 50 s, and the video ends at 0.68 s" in plan["warnings"]
    nobody = job | {"cond_audio": {"person1": {"media": speech_uri(0.2), "from_s": 50}}}
    failure = run(local_worker, "nobody", nobody)
    assert failure["error"]["message"] == (
        "cond_audio: nobody speaks before 50 s, and the video ends at 1.6 s: lower from_s, or allow a longer video "
        '(mode "streaming", max_frame_num)'
    )

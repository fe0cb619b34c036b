"""The faces in the picture set the speakers' regions, and the result says which region each speaker got."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.faces import MEDIA, SET_BY_HAND
from infinitetalk.errors import RegionError
from infinitetalk.media.faces import Face, overlap
from infinitetalk.media.people import head_regions, speakers_faces
from infinitetalk.worker.engine import bounding_box
from tests.job_inputs import data_uri, picture_uri, small_job, speech_uri
from tests.local_jobs import LocalWorker
from tools.talker.jobs import LAYOUTS, ExampleMaker, TalkerWorker
from tools.talker.measure import correlation, read_openings

TWO = {"person1": speech_uri(0.2), "person2": speech_uri(0.2, 220)}


def people_uri(*lefts: int, width: int = 900) -> str:
    """The drawn pair's left person at these columns of a wide picture."""
    picture = np.full((320, width, 3), 140, np.uint8)
    with Image.open(MEDIA / "drawn_pair.png") as image:
        person = np.asarray(image.convert("RGB"))[:, :320]
    for left in lefts:
        picture[:, left : left + 320] = person
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return data_uri(file.getvalue(), "image/png")


def run(worker: LocalWorker, **changes: Any) -> dict[str, Any]:
    """The result of a job for two speakers."""
    return worker.run({"id": "job", "input": small_job(cond_audio=TWO, **changes)})


def boxes(result: dict[str, Any]) -> list[tuple[str, str, list[int]]]:
    return [(place["speaker"], place["told_by"], place["box"]) for place in result["speakers"]]


def head(x: float, y: float) -> Face:
    """A face of 40 pixels around a place."""
    return Face((x - 20, y - 20, x + 20, y + 20), 1.0, np.zeros((6, 2), np.float32))


def places(*heads: Face) -> list[list[int]]:
    return [bounding_box(region) for region in head_regions(heads, 200, 300)]


def test_heads_that_meet_are_parted_where_they_meet_and_others_are_whole() -> None:
    alone = [places(each)[0] for each in (head(60, 60), head(65, 130), head(220, 60))]
    assert alone[0] == [28, 20, 92, 90]
    assert places(head(60, 60), head(65, 130), head(220, 60)) == alone  # one above the other, and one apart
    assert places(head(60, 60), head(65, 110)) == [[28, 20, 92, 85], [33, 85, 97, 140]]
    assert places(head(60, 60), head(110, 65)) == [[28, 20, 85, 90], [85, 25, 142, 95]]


def test_a_head_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(RegionError, match=r"nothing is left of the head of the face at \(400, 60\)"):
        places(head(60, 60), head(400, 60))


def test_speakers_go_from_left_to_right_and_one_above_the_other_from_the_top() -> None:
    above, below, right = head(61, 60), head(60, 130), head(82, 100)
    assert speakers_faces([below, above], 2) == [above, below]
    assert speakers_faces([right, below, above], 3) == [above, below, right]
    assert speakers_faces([right, below], 2) == [below, right]


def test_the_faces_of_two_photographed_people_set_their_regions(local_worker: LocalWorker) -> None:
    photograph = data_uri((MEDIA / "two_people.jpg").read_bytes(), "image/jpeg")
    result = run(local_worker, cond_video=photograph, regions="faces")
    assert (result["status"], result["warnings"]) == ("success", [])
    (one, told, left), (two, _, right) = boxes(result)
    assert (one, two, told) == ("person1", "person2", "faces")
    for box, face in zip((left, right), SET_BY_HAND["two_people.jpg"], strict=True):
        assert box[0] <= face[0] + 12 and box[1] <= face[1] and box[2] >= face[2] - 12 and box[3] >= face[3] - 12
        assert box[2] - box[0] < 2 * (face[2] - face[0])
    assert left[2] <= right[0]


@pytest.mark.parametrize("dry_run", [False, True])
def test_faces_set_the_regions_from_left_to_right(dry_run: bool, local_worker: LocalWorker) -> None:
    result = run(local_worker, cond_video=people_uri(250, 580), regions="faces", dry_run=dry_run)
    assert result["warnings"] == []
    (one, told, left), (two, _, right) = boxes(result)
    assert (one, two, told) == ("person1", "person2", "faces")
    face = SET_BY_HAND["drawn_pair.png"][0]
    for box, offset in ((left, 250), (right, 580)):
        x_min, y_min, x_max, y_max = (face[0] + offset, face[1], face[2] + offset, face[3])
        assert box[0] <= x_min + 12 and box[1] <= y_min and box[2] >= x_max - 12 and box[3] >= y_max - 12
        assert overlap(box, (x_min, y_min, x_max, y_max)) > 0.4
    assert left[2] <= right[0]


def test_too_few_faces_are_said_and_the_speakers_stand_side_by_side(local_worker: LocalWorker) -> None:
    result = run(local_worker, cond_video=people_uri(290), regions="faces", dry_run=True)
    assert ["1 face found for 2 speakers" in warning for warning in result["warnings"]] == [True]
    assert [told for _, told, _ in boxes(result)] == ["halves", "halves"]


def test_more_faces_than_speakers_are_said(local_worker: LocalWorker) -> None:
    picture = people_uri(0, 330, 660, width=980)
    result = run(local_worker, cond_video=picture, regions="faces", dry_run=True)
    assert ["3 faces found for 2 speakers" in warning for warning in result["warnings"]] == [True]


def test_the_result_says_where_each_speaker_is_without_faces_too(local_worker: LocalWorker) -> None:
    picture = picture_uri(height=64, width=128)
    told = {"person1": [70.0, 0.0, 128.0, 64.0], "person2": [0.0, 0.0, 60.0, 64.0]}
    assert boxes(run(local_worker, cond_video=picture, bbox=told, dry_run=True)) == [
        ("person1", "bbox", [70, 0, 128, 64]),
        ("person2", "bbox", [0, 0, 60, 64]),
    ]
    halves = boxes(run(local_worker, cond_video=picture, dry_run=True))
    assert [(told, box[0] // 64, box[2] // 64) for _, told, box in halves] == [("halves", 0, 0), ("halves", 1, 1)]
    alone = local_worker.run({"id": "job", "input": small_job(dry_run=True)})
    assert boxes(alone) == [("person1", "whole", [0, 0, 64, 64])]


@pytest.mark.slow
def test_each_voice_moves_the_mouth_of_the_face_that_was_found_for_it(tmp_path: Path) -> None:
    """On the talker, whose people are one above the other, where halves are wrong (`test_talker.py`)."""
    worker, maker, layout = TalkerWorker(tmp_path), ExampleMaker(tmp_path), LAYOUTS["one above the other"]
    example = maker.placed(maker.make(0, num_people=2, seconds=3.24), layout)
    frames = worker.frames(example, regions="faces", size=layout.size)
    openings = read_openings(frames, places=layout.places)[:, 1:]
    for mouth in range(2):
        own, other = (correlation(openings[mouth], example.rules[voice].opening[1:]) for voice in (mouth, 1 - mouth))
        assert own > 0.7 and own > other + 0.4

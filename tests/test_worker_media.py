"""What a job is told of its media: in its result, and in a plan already."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from infinitetalk.media.decode import extract_frames
from tests.job_inputs import data_uri, picture_bytes, small_job, speech_bytes, speech_uri
from tests.local_jobs import LocalWorker
from tests.media_factory import make_heic, make_tagged_video, run_ffmpeg


def picture_uri(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return data_uri(file.getvalue(), f"image/{kind.lower()}")


def sound_uri(*channels: np.ndarray) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.stack(channels, axis=1).astype(np.float32), 16_000, format="WAV", subtype="FLOAT")
    return data_uri(file.getvalue(), "audio/wav")


def voice() -> np.ndarray:
    waveform, _ = soundfile.read(io.BytesIO(speech_bytes(0.4)))
    return waveform


def mask_uri(columns: slice) -> str:
    """White on nothing, as an eraser or a new layer leaves it."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, columns] = 255
    return picture_uri(Image.fromarray(pixels))


TWO_VOICES = {"person1": speech_uri(0.2), "person2": speech_uri(0.2, 220)}


def warnings_of(worker: LocalWorker, **changes: Any) -> list[str]:
    """Of a plan."""
    planned = worker.run({"id": "job-1", "input": small_job(dry_run=True, **changes)})
    assert planned["status"] == "planned", planned
    return planned["warnings"]


def test_what_the_media_lose_is_told_in_the_plan_and_in_the_result(local_worker: LocalWorker) -> None:
    job = small_job(
        cond_video=picture_uri(Image.open(io.BytesIO(picture_bytes())), icc_profile=b"nothing" * 30),
        cond_audio={"person1": sound_uri(voice(), -voice()), "person2": sound_uri(np.zeros(6400))},
        bbox={"person1": [0, 0, 40, 64], "person2": [0, 0, 40, 64]},
        frame_num=13,
    )
    planned = local_worker.run({"id": "job-1", "input": job | {"dry_run": True}})
    result = local_worker.run({"id": "job-1", "input": job})
    assert result["status"] == "success"
    assert planned["warnings"] == result["warnings"]
    begins = ["cond_video: its colour profile is damaged", "person1 and person2 have the same region"]
    begins += ["cond_audio.person1: its channels are of opposite phase", "cond_audio.person2: is silent"]
    assert len(result["warnings"]) == len(begins)
    for begin in begins:
        assert any(warning.startswith(begin) for warning in result["warnings"]), begin


def test_masks_painted_on_transparency_are_where_they_are_painted(local_worker: LocalWorker) -> None:
    left, right = mask_uri(slice(0, 24)), mask_uri(slice(40, 64))
    assert warnings_of(local_worker, cond_audio=TWO_VOICES, mask={"person1": left, "person2": right}) == []
    (warning,) = warnings_of(local_worker, cond_audio=TWO_VOICES, mask={"person1": left, "person2": left})
    assert warning.startswith("person1 and person2 have the same region")


def test_a_mask_that_is_wholly_transparent_is_refused(local_worker: LocalWorker) -> None:
    masks = {"person1": mask_uri(slice(0, 0)), "person2": mask_uri(slice(40, 64))}
    job = small_job(cond_audio=TWO_VOICES, mask=masks, dry_run=True)
    error = local_worker.run({"id": "job-1", "input": job})["error"]
    assert error["code"] == "E_INPUT_VALIDATION"
    assert "mask.person1 is white nowhere" in error["message"]


@pytest.mark.parametrize(("gain", "begin"), [(0.0, "is silent"), (0.02, "is very quiet"), (1.0, None)])
def test_speech_that_is_not_heard_is_told(local_worker: LocalWorker, gain: float, begin: str | None) -> None:
    warnings = warnings_of(local_worker, cond_audio={"person1": sound_uri(voice() * gain)}, frame_num=13)
    assert [warning.removeprefix("cond_audio.person1: ").startswith(begin or "") for warning in warnings] == (
        [] if begin is None else [True]
    )


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_a_phones_picture_is_taken(local_worker: LocalWorker, tmp_path: Path, suffix: str) -> None:
    picture = Image.open(io.BytesIO(picture_bytes(64, 96)))
    path = tmp_path / f"a.{suffix}"
    if suffix == "heic":
        make_heic(path, picture, turns=1)
    else:
        picture.rotate(90, expand=True).save(path)
    result = local_worker.run({"id": "job-1", "input": small_job(cond_video=data_uri(path.read_bytes(), "image/x"))})
    assert result["status"] == "success", result
    assert result["video"]["height"] > result["video"]["width"]
    assert result["warnings"] == []


def test_an_hdr_video_that_lacks_tags_is_planned_and_made(local_worker: LocalWorker, tmp_path: Path) -> None:
    lost = "color_primaries=unknown:colorspace=unknown:range=unknown"
    make_tagged_video(tmp_path / "a.mkv", "0x806060", "p=2020:t=smpte2084:m=2020_ncl:r=tv", lost)
    job = small_job(cond_video=data_uri((tmp_path / "a.mkv").read_bytes(), "video/mp4"))
    planned = local_worker.run({"id": "job-1", "input": job | {"dry_run": True}})
    result = local_worker.run({"id": "job-1", "input": job})
    assert (planned["status"], result["status"]) == ("planned", "success")
    assert planned["warnings"] == result["warnings"]
    assert "what its colours mean" in result["warnings"][0]


@pytest.mark.parametrize(
    ("conversion", "tags"),
    [
        ("p=709:t=709:m=ycgco:r=tv", "color_primaries=unknown:color_trc=unknown"),
        ("p=2020:t=2020_10:m=2020_cl:r=tv", "range=tv"),
        ("p=2020:t=smpte2084:m=ictcp:r=tv", "range=tv"),
        ("p=2020:t=smpte2084:m=chroma-derived-nc:r=tv", "range=tv"),
    ],
    ids=["YCgCo", "constant luminance", "ICtCp", "chroma-derived"],
)
def test_a_video_of_any_matrix_is_shown_in_its_colours(
    conversion: str, tags: str, local_worker: LocalWorker, tmp_path: Path
) -> None:
    make_tagged_video(tmp_path / "a.mkv", "0x806060", conversion, tags)
    source = (tmp_path / "a.mkv").read_bytes()
    result = local_worker.run({"id": "job-1", "input": small_job(cond_video=data_uri(source, "video/x-matroska"))})
    assert result["status"] == "success"
    (tmp_path / "frames").mkdir()
    shown = extract_frames(tmp_path / "a.mkv", tmp_path / "frames", stride=1, max_frames=1).frame_at(0)
    assert shown[:, 24, 32].tolist() == pytest.approx([128, 96, 96], abs=4)


def test_metadata_of_any_length_hide_no_fact_of_the_file(local_worker: LocalWorker, tmp_path: Path) -> None:
    """Its log shows each line of it."""
    lost = "color_primaries=unknown"
    make_tagged_video(tmp_path / "a.mkv", "0x806060", "p=2020:t=smpte2084:m=2020_ncl:r=tv", lost)
    lines = "{" + "\\\n" * 150_000 + "}"
    (tmp_path / "lines.txt").write_text(f";FFMETADATA1\ncomment={lines}\n")
    source = ("-i", tmp_path / "a.mkv", "-i", tmp_path / "lines.txt", "-map_metadata", "1", "-c", "copy")
    run_ffmpeg(*source, tmp_path / "b.mkv")
    (warning,) = warnings_of(local_worker, cond_video=data_uri((tmp_path / "b.mkv").read_bytes(), "video/x-matroska"))
    assert warning.startswith("cond_video: it does not fully say what its colours mean")
    (tmp_path / "frames").mkdir()
    shown = extract_frames(tmp_path / "b.mkv", tmp_path / "frames", stride=1, max_frames=1).frame_at(0)
    assert shown[:, 24, 32].tolist() == pytest.approx([128, 96, 96], abs=6)

"""Videos, thumbnails and previews say in their metadata that AI made them, and play as before."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from infinitetalk.errors import EncodeError
from infinitetalk.media.encode import EncodedSound, PartEncoder, join_parts, write_thumbnail
from infinitetalk.media.provenance import TRAINED_ALGORITHMIC_MEDIA, XMP_BOX, Mark, append_xmp
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker

MARK = Mark("InfiniteTalk worker", "0.1.0+3f2a9c417b08", 'a "model" <of> two & more')
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
XMP = "{http://ns.adobe.com/xap/1.0/}"
HEIGHT, WIDTH, NUM_FRAMES = 48, 64, 12


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    encoder = PartEncoder(tmp_path / "part.mp4", HEIGHT, WIDTH)
    encoder.write(np.random.default_rng(0).integers(0, 255, (NUM_FRAMES, HEIGHT, WIDTH, 3), np.uint8))
    encoder.close()
    return [tmp_path / "part.mp4"]


def joined(parts: list[Path], mark: Mark | None) -> Path:
    path = parts[0].with_name("marked.mp4" if mark else "plain.mp4")
    join_parts(parts, EncodedSound(np.zeros(NUM_FRAMES * 640, np.float32)), path, mark)
    return path


def boxes(data: bytes) -> list[tuple[str, bytes]]:
    """The boxes of an MP4's top level: type and content."""
    found, begin = [], 0
    while begin < len(data):
        size, kind = struct.unpack_from(">I4s", data, begin)
        found.append((kind.decode(), data[begin + 8 : begin + size]))
        begin += size
    return found


def said_in(xmp: str | bytes) -> dict[str, str]:
    """What an XMP packet says of its file."""
    text = xmp.decode() if isinstance(xmp, bytes) else xmp
    (description,) = ElementTree.fromstring(text).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    return dict(description.attrib)


def xmp_of_mp4(path: Path) -> str | None:
    """The XMP that ffmpeg's demuxer finds in an MP4."""
    with av.open(str(path), options={"export_xmp": "1"}) as container:
        return container.metadata.get("xmp")


def check_said(xmp: str | bytes, mark: Mark) -> None:
    said = said_in(xmp)
    assert said[f"{IPTC}DigitalSourceType"] == SOURCE_TYPE == TRAINED_ALGORITHMIC_MEDIA
    assert said[f"{IPTC}AISystemUsed"] == f"InfiniteTalk worker, model {mark.model}"
    assert said[f"{IPTC}AISystemVersionUsed"] == mark.version
    assert said[f"{XMP}CreatorTool"] == f"InfiniteTalk worker {mark.version}"


def test_a_marked_video_says_so_to_machines_and_to_people(parts: list[Path]) -> None:
    path = joined(parts, MARK)
    check_said(xmp_of_mp4(path) or "", MARK)
    with av.open(str(path)) as container:
        assert container.metadata["comment"] == MARK.sentence


def test_the_mark_is_the_last_box_and_what_players_read_first_stays_first(parts: list[Path]) -> None:
    data = joined(parts, MARK).read_bytes()
    kinds = [kind for kind, _ in boxes(data)]
    assert kinds.index("moov") < kinds.index("mdat") < kinds.index("uuid") == len(kinds) - 1
    _, content = boxes(data)[-1]
    assert content == XMP_BOX.bytes + MARK.xmp
    assert kinds[:-1] == [kind for kind, _ in boxes(joined(parts, None).read_bytes())]


def test_a_marked_video_plays_from_a_file_and_from_a_stream_without_a_complaint(parts: list[Path]) -> None:
    path = joined(parts, MARK)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == NUM_FRAMES
    data = path.read_bytes()
    beginning = data[: data.rindex(XMP_BOX.bytes)]
    for name, given in {str(path): b"", "pipe:": data}.items():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "warning", "-xerror", "-i", name, "-f", "null", "-"]
        played = subprocess.run(command, input=given, capture_output=True)
        assert (played.returncode, played.stderr) == (0, b"")
    # What a player has before the mark arrives is the whole video.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "info", "-i", "pipe:", "-f", "null", "-"]
    played = subprocess.run(command, input=beginning, capture_output=True)
    assert f"frame={NUM_FRAMES:5d}".encode() in played.stderr


def test_frames_and_sound_are_those_of_the_video_without_a_mark(parts: list[Path]) -> None:
    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux()]

    assert packets(joined(parts, MARK)) == packets(joined(parts, None))


def test_a_video_without_a_mark_says_nothing(parts: list[Path]) -> None:
    path = joined(parts, None)
    assert xmp_of_mp4(path) is None
    with av.open(str(path)) as container:
        assert "comment" not in container.metadata


def test_a_film_of_which_something_is_kept_is_marked_as_a_composite() -> None:
    mark = replace(MARK, is_composite=True)
    assert said_in(mark.xmp)[f"{IPTC}DigitalSourceType"] == SOURCE_TYPE.replace("trained", "compositeWithTrained")
    assert mark.sentence.startswith("Made in part by AI: ")


def test_a_thumbnail_says_so_too(tmp_path: Path) -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    write_thumbnail(frame, tmp_path / "marked.jpg", MARK)
    write_thumbnail(frame, tmp_path / "plain.jpg")
    with Image.open(tmp_path / "marked.jpg") as picture:
        check_said(picture.info["xmp"], MARK)
    with Image.open(tmp_path / "plain.jpg") as picture:
        assert "xmp" not in picture.info


def test_a_video_that_cannot_be_marked_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodeError):
        append_xmp(tmp_path, MARK)


def streaming_job(**changes: Any) -> dict[str, Any]:
    streaming = {"mode": "streaming", "cond_audio": {"person1": speech_uri(0.36)}, "sample_steps": 1}
    config = {"output_config": {"store": "volume", "preview": True}}
    return {"id": "job-1", "input": small_job(**streaming | config | changes)}


def service_of(segment: Path) -> str:
    """What ffmpeg says of the service in a segment."""
    told = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(segment)], capture_output=True, text=True).stderr
    return " ".join(re.findall(r"service_(?:name|provider)\s*: (.*)", told))


def test_all_that_a_job_makes_is_marked_with_its_model_and_release(local_worker: LocalWorker) -> None:
    result = local_worker.run(streaming_job())
    folder = local_worker.volume / "infinitetalk/jobs"
    video = folder / "job-1.mp4"
    mark = Mark("InfiniteTalk worker", result["worker"], "tiny-random")
    check_said(xmp_of_mp4(video) or "", mark)
    assert result["video"]["bytes"] == video.stat().st_size
    with Image.open(folder / "job-1.jpg") as picture:
        check_said(picture.info["xmp"], mark)
    segments = list(folder.glob("job-1.preview/*.ts"))
    assert len(segments) == 2
    assert all(service_of(segment) == f"{mark.sentence} {mark.tool}" for segment in segments)
    assert json.loads((folder / "job-1.json").read_text())["digital_source_type"] == SOURCE_TYPE


def test_nothing_is_marked_where_it_is_turned_off(local_worker: LocalWorker) -> None:
    local_worker.settings = local_worker.settings.model_copy(update={"provenance": False})
    local_worker.run(streaming_job())
    folder = local_worker.volume / "infinitetalk/jobs"
    assert xmp_of_mp4(folder / "job-1.mp4") is None
    with Image.open(folder / "job-1.jpg") as picture:
        assert "xmp" not in picture.info
    assert not any("Made by AI" in service_of(segment) for segment in folder.glob("job-1.preview/*.ts"))
    assert json.loads((folder / "job-1.json").read_text())["digital_source_type"] is None

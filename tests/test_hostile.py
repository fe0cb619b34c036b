"""The table of hostile inputs is what the tests of the worker take it for."""

import io
import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image

from schemas import ErrorCode
from tests.hostile import (
    HOSTILE_FILES,
    HOSTILE_INPUTS,
    OK,
    HostileInput,
    blank_png,
    job_with,
    movie,
    movie_with_external_data,
    png,
)


def test_the_table_is_large_and_its_names_differ() -> None:
    assert len(HOSTILE_FILES) >= 60
    assert len({hostile.name for hostile in HOSTILE_INPUTS}) == len(HOSTILE_INPUTS)
    assert all(hostile.expected and set(hostile.expected) <= {OK, *ErrorCode} for hostile in HOSTILE_INPUTS)


@pytest.mark.parametrize("hostile", HOSTILE_FILES, ids=lambda hostile: hostile.name)
def test_a_hostile_file_can_be_made_and_sent(hostile: HostileInput) -> None:
    content = hostile.make()
    assert isinstance(content, bytes)
    assert len(content) < 5_000_000
    job = job_with(hostile)
    assert json.loads(json.dumps(job)) == job


def test_every_hostile_value_can_be_put_into_a_job() -> None:
    plain = job_with(HostileInput("plain", "prompt", lambda: "A woman talks", (OK,)))
    for hostile in HOSTILE_INPUTS:
        assert json.dumps(job_with(hostile)) != json.dumps(plain), hostile.name


def test_the_bomb_is_small_and_says_that_it_is_large() -> None:
    bomb = png(60_000, 60_000, bytes(50_000_000))
    assert len(bomb) < 60_000
    with pytest.raises(Image.DecompressionBombError, match="3600000000 pixels"):
        Image.open(io.BytesIO(bomb))
    assert Image.open(io.BytesIO(blank_png(30, 20))).convert("L").getextrema() == (0, 0)


def test_only_its_reference_keeps_the_movie_with_external_data_from_being_read(tmp_path: Path) -> None:
    for name, content in (("plain", movie()), ("external", movie_with_external_data())):
        (tmp_path / name).write_bytes(content)
    assert "Video: h264" in _ffmpeg_says(tmp_path / "plain")
    assert "Skipped opening external track" in _ffmpeg_says(tmp_path / "external")


def _ffmpeg_says(path: Path) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-i", path, "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True).stderr

"""A photograph that meets the embedded talker, which animates drawings only, is told in the result."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infinitetalk.embedded.drawn import DRAWN_FROM, drawn_share, looks_drawn
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker
from tools.talker.scenes import random_scene, random_shape

MEDIA = Path(__file__).parents[1] / "examples/media"


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return np.asarray(Image.open(file))


def opened(name: str) -> np.ndarray:
    return np.asarray(Image.open(MEDIA / name).convert("RGB"))


def on_a_wall(pixels: np.ndarray) -> np.ndarray:
    """A picture in the middle of a white one, twice as wide and high."""
    height, width = pixels.shape[:2]
    wall = np.full((2 * height, 2 * width, 3), 255, np.uint8)
    wall[height // 2 : height // 2 + height, width // 2 : width // 2 + width] = pixels
    return wall


def test_the_talkers_own_drawings_look_drawn_also_as_jpeg() -> None:
    generator = np.random.default_rng(5)
    for _ in range(12):
        scene = random_scene(generator, random_shape(generator))
        small = scene.portrait()
        large = replace(scene, height=3 * scene.height, width=3 * scene.width).portrait()
        assert drawn_share(small) > 2 * DRAWN_FROM
        assert drawn_share(large) > 2 * DRAWN_FROM
        assert looks_drawn(as_jpeg(large, 80))
    for name in ("drawn_portrait.png", "drawn_pair.png"):
        assert looks_drawn(opened(name)) and looks_drawn(as_jpeg(opened(name), 60))


@pytest.mark.parametrize("name", ["portrait.jpg", "two_speakers.jpg"])
def test_a_photograph_does_not_look_drawn_neither_smaller_nor_on_a_white_wall(name: str) -> None:
    pixels = opened(name)
    for shown in (pixels, pixels[::2, ::2], as_jpeg(pixels, 60), on_a_wall(pixels)):
        assert drawn_share(shown) < DRAWN_FROM / 2


def test_a_picture_of_one_colour_is_drawn() -> None:
    assert drawn_share(np.full((64, 64, 3), 40, np.uint8)) == 1


@pytest.mark.parametrize(
    ("source", "is_drawn"),
    [("portrait.jpg", False), ("talk.mp4", False), ("drawn_portrait.png", True), ("drawn_video.mp4", True)],
)
def test_plan_and_result_tell_a_photograph_where_the_talker_is_the_only_model(
    source: str, is_drawn: bool, local_worker: LocalWorker
) -> None:
    (local_worker.volume / source).write_bytes((MEDIA / source).read_bytes())
    job: dict[str, Any] = {"id": "job-1", "input": small_job(cond_video=source, frame_num=5)}
    planned = job | {"input": job["input"] | {"dry_run": True}}
    told = "cond_video looks like a photograph"
    # A worker of another model says nothing of it.
    assert told not in " ".join(local_worker.run(planned)["warnings"])
    local_worker.settings = local_worker.settings.model_copy(update={"infinitetalk_model": "talker"})
    for result in (local_worker.run(planned), local_worker.run(job)):
        assert (told not in " ".join(result["warnings"])) == is_drawn

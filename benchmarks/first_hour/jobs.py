"""The hour's jobs: the six kinds of examples/, with their own parameters and by each recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.first_hour.media import Media
from benchmarks.first_hour_record import Job
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.recipes import RECIPES

EXAMPLES = Path(__file__).parents[2] / "examples"

#: The kinds of jobs, by the file that has each one's parameters.
KINDS = ("single_image", "single_video", "two_speakers", "tts_single", "long_streaming", "batch")

#: The kind by which recipes are compared.
COMPARED = "single_image"

#: Fields that a job by a recipe leaves out, so that the recipe sets them.
OF_RECIPES = frozenset(name for recipe in RECIPES.values() for name in recipe.values) | {
    "teacache_thresh",
    "apg_momentum",
    "apg_norm_threshold",
    "num_persistent_param_in_dit",
}

Upload = Mapping[Path, str]
"""File → what a job names it by."""


def inputs_of(job: Job, media: Media, named: Upload, video_s: float) -> dict[str, Any]:
    """A job's input, without its output_config.

    Args:
        named: what the endpoint knows the media by.
        video_s: seconds of video of the group "recipes".
    """
    found = json.loads((EXAMPLES / f"{job.kind}.json").read_text(encoding="utf-8"))["input"]
    found.pop("output_config", None)
    if "batch" in found:
        found["batch"] = [_input_of(item, job, media, named, index) for index, item in enumerate(found["batch"])]
        return dict(found)
    found = _input_of(found, job, media, named, 0)
    if job.group == "recipes":
        found |= {"mode": "streaming", "max_frame_num": math.ceil(video_s * VIDEO_FPS)}
    return dict(found)


def _input_of(item: Mapping[str, Any], job: Job, media: Media, named: Upload, index: int) -> dict[str, Any]:
    """One video's input: the example's parameters, the hour's media, and the recipe."""
    source = Path(item["cond_video"]).name
    shown = media.video if source.endswith(".mp4") else media.pair if "pair" in source else media.single
    found = dict(item) | {"cond_video": named[shown]}
    if "cond_audio" in item:
        found["cond_audio"] = {speaker: named[voice_of(speaker, media, index)] for speaker in item["cond_audio"]}
    if job.group != "as sent":
        found = {name: value for name, value in found.items() if name not in OF_RECIPES}
    if job.recipe is not None:
        found["recipe"] = job.recipe
    found["prompt"] = found["prompt"].replace("drawn ", "") if "drawn" not in media.single.name else found["prompt"]
    return found


def voice_of(speaker: str, media: Media, index: int) -> Path:
    """A speaker's speech; the second item of a batch has the other voice."""
    return media.voices["person2" if index else speaker]


def spoken_by(job: Job, media: Media) -> list[list[Path] | None]:
    """For each video of a job, the speech of each speaker from left to right; None: the worker speaks a text."""
    if job.kind == "batch":
        return [[voice_of("person1", media, index)] for index in range(2)]
    if job.kind == "tts_single":
        return [None]
    speakers = ("person1", "person2") if job.kind == "two_speakers" else ("person1",)
    return [[media.voices[speaker] for speaker in speakers]]


def jobs_for(recipes: Sequence[str]) -> Iterator[Job]:
    """All jobs, the most telling first: the recipes side by side, each kind as it is sent, each kind by each recipe.

    Args:
        recipes: those that the worker has, the cheapest first.
    """
    for recipe in recipes:
        yield Job(name=f"{COMPARED} by {recipe}", group="recipes", kind=COMPARED, recipe=recipe)
    for kind in KINDS:
        yield Job(name=f"{kind} as sent", group="as sent", kind=kind)
    for recipe in recipes:
        for kind in KINDS:
            if kind != COMPARED and RECIPES[recipe].serves(2 if kind == "two_speakers" else 1):
                yield Job(name=f"{kind} by {recipe}", group="kinds", kind=kind, recipe=recipe)

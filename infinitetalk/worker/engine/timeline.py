"""Which chunks of a video take which of a job's prompts and pictures."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infinitetalk.generation.timeline import Change
from infinitetalk.media.decode import MediaInfo, Source
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.worker.engine.scenes import Scene, chunk_grid, open_source
from infinitetalk.worker.traffic.fetch import Media
from schemas import SingleJob

#: A time this much before a frame counts as the frame's.
TOLERANCE_FRAMES = 1e-6


@dataclass(frozen=True)
class Stretch:
    """Chunks of a scene, one after the other, that take the same prompt and the same picture.

    Attributes:
        first_chunk: index of its first chunk in the whole video.
        num_chunks: number of its chunks.
        start: first frame of its first chunk in the whole video.
        prompt, picture: indices of the job's entries.
    """

    first_chunk: int
    num_chunks: int
    start: int
    prompt: int
    picture: int


def first_frame_at(seconds: float) -> int:
    """The first video frame that is not before a time."""
    return math.ceil(seconds * VIDEO_FPS - TOLERANCE_FRAMES)


def stretches_of(job: SingleJob, scene: Scene, num_chunks_before: int = 0) -> list[Stretch]:
    """The stretches of a scene: each chunk takes what is in force at its first frame.

    Args:
        num_chunks_before: number of chunks of the scenes before.
    """
    prompts = [first_frame_at(entry.from_s) for entry in job.prompts]
    pictures = [first_frame_at(entry.from_s) for entry in job.pictures]
    found: list[Stretch] = []
    for plan in chunk_grid(job).plans(scene.num_frames):
        start = scene.start + plan.start
        taken = bisect_right(prompts, start) - 1, bisect_right(pictures, start) - 1
        last = found[-1] if found else None
        if last is not None and taken == (last.prompt, last.picture):
            found[-1] = Stretch(last.first_chunk, last.num_chunks + 1, last.start, *taken)
        else:
            found.append(Stretch(num_chunks_before + plan.index, 1, start, *taken))
    return found


def plan_stretches(job: SingleJob, scenes: Sequence[Scene]) -> list[Stretch]:
    """The stretches of a video, scene by scene."""
    found: list[Stretch] = []
    for scene in scenes:
        found += stretches_of(job, scene, found[-1].first_chunk + found[-1].num_chunks if found else 0)
    return found


def num_references(stretches: Sequence[Stretch], sources: Sequence[MediaInfo]) -> int:
    """The number of reference frames that a video encodes: one of each image, one for each chunk of a video."""
    images = {stretch.picture for stretch in stretches if sources[stretch.picture].kind == "image"}
    return len(images) + sum(stretch.num_chunks for stretch in stretches if stretch.picture not in images)


def open_stretches(job: SingleJob, sources: Sequence[Media], folder: Path, scene: Scene) -> list[Change[str]]:
    """The prompts and sources of a scene, with frames counted from its start; the first begins at 0.

    Args:
        sources: the job's images and videos, one for each of its entries.
        folder: folder for the frames of videos.

    Raises:
        WorkerError: a source cannot be decoded.
    """
    stretches, grid = stretches_of(job, scene), chunk_grid(job)
    begins = {picture: _begin(stretches, picture) for picture in dict.fromkeys(each.picture for each in stretches)}
    ends = [*list(begins.values())[1:], scene.start + scene.num_frames]
    stride = grid.reference_stride(scene.num_frames)
    opened: dict[int, Source] = {}
    for (picture, begin), end in zip(begins.items(), ends, strict=True):
        field = "cond_video" if len(sources) == 1 else f"cond_video.{picture}"
        skipped = begin - first_frame_at(job.pictures[picture].from_s)
        opened[picture] = open_source(sources[picture], field, folder, Scene(skipped, end - begin), stride)
    return [
        Change(
            start=each.start - scene.start,
            prompt=job.prompts[each.prompt].prompt,
            source=opened[each.picture],
            source_start=begins[each.picture] - scene.start,
        )
        for each in stretches
    ]


def _begin(stretches: Sequence[Stretch], picture: int) -> int:
    return next(stretch.start for stretch in stretches if stretch.picture == picture)

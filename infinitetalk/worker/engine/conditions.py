"""A job's conditions other than its media: prompts, the resolution, and the regions of the speakers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from infinitetalk.family import Family
from infinitetalk.media.decode import MediaInfo, read_region
from infinitetalk.media.faces import Face
from infinitetalk.media.people import foreground, head_regions, speakers_faces
from infinitetalk.media.sizes import choose_resolution
from infinitetalk.network.regions import RegionError, box_regions, check_boxes
from infinitetalk.runtime.memory import Workload
from infinitetalk.worker.engine.people import too_few_faces
from infinitetalk.worker.engine.scenes import Scene, generation_settings
from infinitetalk.worker.traffic.fetch import Media, naming
from schemas import SingleJob


def workload_of(job: SingleJob, source: MediaInfo, family: Family, size_scale: float, gpus: int) -> Workload:
    """The values that determine a job's memory in addition to the weights.

    Args:
        family, size_scale: of the checkpoint that makes the video.
        gpus: number of GPUs that make it together.
    """
    height, width = choose_resolution(family, job.size_table, job.resolution, source.height, source.width, size_scale)
    branches = len(generation_settings(job, 0, Scene(0, 1)).branches)
    # TeaCache keeps what the blocks of each branch added.
    cached_branches = branches if job.use_teacache else 0
    return Workload(job.chunk_frame_num, height, width, family, cached_branches, gpus, branches)


def negative_prompt_of(job: SingleJob) -> str:
    """The job's negative prompt, or the family's default."""
    return job.family.defaults.negative_prompt if job.negative_prompt is None else job.negative_prompt


def speaker_regions(
    job: SingleJob,
    source: MediaInfo,
    masks: Sequence[Media] | None,
    faces: Sequence[Face] | None,
    warnings: list[str],
) -> Tensor | None:
    """Each speaker's region, bool (speakers, height, width) of the source; None: side by side.

    Args:
        faces: those found in the source, from left to right; None: nobody looked for them.
        warnings: warnings for the client are added to this list.

    Raises:
        RegionError: a box or mask does not fit the source, or marks nothing; nothing of a head is left.
        WorkerError: a mask cannot be decoded.
    """
    if job.bbox is not None:
        boxes = list(job.bbox.values())
        check_boxes(boxes, source.height, source.width, job.bbox_order)
        regions = box_regions(boxes, source.height, source.width, job.bbox_order)
    elif masks is not None:
        regions = torch.stack(
            [read_mask(mask.path, speaker, source, warnings) for speaker, mask in zip(job.speakers, masks, strict=True)]
        )
    elif faces is not None:
        heads = speakers_faces(faces, len(job.speakers))
        if len(heads) < len(job.speakers) and job.keeps_film:
            found = f"{len(heads)} face{'' if len(heads) == 1 else 's'} found in cond_video for {len(job.speakers)}"
            raise RegionError(f"{found} speakers: dub.keep needs a place for each; give bbox or mask")
        if len(heads) < len(job.speakers):
            warnings.append(too_few_faces(job, heads))
            return None
        regions = head_regions(heads, source.height, source.width)
        if (others := len(foreground(faces)) - len(heads)) > 0:
            warnings.append(
                f"cond_video: {len(heads) + others} faces found for {len(heads)} speakers; the largest were "
                "taken, left to right. If these are not the speakers, give bbox"
            )
    else:
        return None
    return regions


@dataclass(frozen=True)
class Overlap:
    """The overlap of two speakers' regions.

    Attributes:
        one, other: the speakers.
        fraction: overlapping share of the smaller region, 0 to 1.
        is_same: whether the regions are equal.
    """

    one: str
    other: str
    fraction: float
    is_same: bool


def region_overlaps(job: SingleJob, regions: Tensor | None) -> list[Overlap]:
    """The overlap of every two speakers' regions.

    Args:
        regions: bool (speakers, height, width); None: side by side, without overlap.
    """
    if regions is None:
        return []
    return [
        Overlap(
            one,
            other,
            int((first & second).sum()) / min(int(first.sum()), int(second.sum())),
            torch.equal(first, second),
        )
        for (one, first), (other, second) in itertools.combinations(zip(job.speakers, regions, strict=True), 2)
    ]


def read_mask(path: Path, speaker: str, source: MediaInfo, warnings: list[str]) -> Tensor:
    """A speaker's mask, bool (height, width): true where the image is white and not transparent.

    Args:
        warnings: warnings for the client are added to this list.

    Raises:
        RegionError: the mask has another size than the source, or no white pixel.
        WorkerError: it cannot be decoded.
    """
    with naming(f"mask.{speaker}"):
        region, notes = read_region(path)
    if region.shape != (source.height, source.width):
        raise RegionError(
            f"mask.{speaker} is {region.shape[1]}x{region.shape[0]} pixels; it must have the size of cond_video, "
            f"{source.width}x{source.height}"
        )
    if not region.any():
        raise RegionError(
            f"mask.{speaker} is white nowhere (transparent pixels do not count); paint the place of {speaker} white"
        )
    warnings += [f"mask.{speaker}: {note}" for note in notes]
    return region

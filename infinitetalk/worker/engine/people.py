"""The people in a job's source: their faces, and the place of each speaker."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from infinitetalk.media.faces import Face, FaceDetector
from infinitetalk.network.regions import default_regions
from schemas import SingleJob, SpeakerPlace


@cache
def face_detector() -> FaceDetector:
    """The worker's one detector; jobs run one at a time.

    Raises:
        FacesSetupError: its networks are not installed.
    """
    return FaceDetector()


def needs_faces(job: SingleJob) -> bool:
    """Whether a job needs to know the faces in its source: they set its speakers' regions, or are what is dubbed."""
    if job.keeps_film:
        return True
    return job.regions == "faces" and len(job.speakers) > 1 and job.bbox is None and job.mask is None


def speaker_places(job: SingleJob, regions: Tensor | None, height: int, width: int) -> list[SpeakerPlace]:
    """Where each speaker is in the source.

    Args:
        regions: bool (speakers, height, width); None: side by side.
    """
    if job.bbox is not None:
        told = "bbox"
    elif job.mask is not None:
        told = "mask"
    else:
        told = "faces" if regions is not None else "halves" if len(job.speakers) > 1 else "whole"
    shown = default_regions(len(job.speakers), height, width) if regions is None else regions
    return [
        SpeakerPlace.model_validate({"speaker": speaker, "box": bounding_box(region), "told_by": told})
        for speaker, region in zip(job.speakers, shown, strict=True)
    ]


def bounding_box(region: Tensor) -> list[int]:
    """x_min, y_min, x_max, y_max of a region, bool (height, width), which is not empty."""
    rows, columns = region.any(dim=1).nonzero(), region.any(dim=0).nonzero()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def face_of(region: Tensor, faces: Sequence[Face]) -> Face | None:
    """The largest face whose centre lies in a region, bool (height, width); None if there is none."""
    height, width = region.shape

    def lies_within(face: Face) -> bool:
        x, y = (int(coordinate) for coordinate in face.centre)
        return 0 <= x < width and 0 <= y < height and bool(region[y, x])

    return max((face for face in faces if lies_within(face)), key=lambda face: face.side, default=None)


def too_few_faces(job: SingleJob, faces: Sequence[Face]) -> str:
    """A warning that faces do not set the regions, since there are fewer of them than speakers."""
    return (
        f'regions "faces": {len(faces)} face{"" if len(faces) == 1 else "s"} found for {len(job.speakers)} speakers; '
        'they were placed side by side, as with "halves". Give bbox or mask'
    )

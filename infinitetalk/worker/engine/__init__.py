"""The model and its use: the only part of the worker that touches tensors and the pipeline.

`checkpoint` finds the weights, `loading` loads them into memory, `placement` chooses devices and memory modes,
`estimate` computes a video's cost from the seconds in `rehearsed`, `scenes`, `timeline` and `conditions` read a job's
fields, `footage` the frames of a video that sampling starts from, and `engine` generates videos.
"""

from infinitetalk.worker.engine.conditions import Overlap, negative_prompt_of, region_overlaps, speaker_regions
from infinitetalk.worker.engine.engine import Engine, VideoRequest
from infinitetalk.worker.engine.estimate import FilmWork, VideoCost
from infinitetalk.worker.engine.footage import VideoReader
from infinitetalk.worker.engine.people import (
    bounding_box,
    face_detector,
    face_of,
    needs_faces,
    speaker_places,
)
from infinitetalk.worker.engine.scenes import (
    FilmView,
    Scene,
    chunk_ends,
    chunk_grid,
    first_frame,
    generation_settings,
    plan_scenes,
)
from infinitetalk.worker.engine.timeline import Stretch, plan_stretches

__all__ = [
    "Engine",
    "FilmView",
    "FilmWork",
    "Overlap",
    "Scene",
    "Stretch",
    "VideoCost",
    "VideoReader",
    "VideoRequest",
    "bounding_box",
    "chunk_ends",
    "chunk_grid",
    "face_detector",
    "face_of",
    "first_frame",
    "generation_settings",
    "needs_faces",
    "negative_prompt_of",
    "plan_scenes",
    "plan_stretches",
    "region_overlaps",
    "speaker_places",
    "speaker_regions",
]

"""The model and its use: the only part of the worker that touches tensors and the pipeline.

`checkpoint` finds the weights, `loading` loads them into memory, `placement` chooses devices and memory modes,
`estimate` computes a video's cost from the seconds in `rehearsed`, `scenes` and `conditions` read a job's fields, and
`engine` generates videos.
"""

from infinitetalk.worker.engine.conditions import Overlap, negative_prompt_of, region_overlaps, speaker_regions
from infinitetalk.worker.engine.engine import Engine, Request
from infinitetalk.worker.engine.estimate import VideoCost
from infinitetalk.worker.engine.scenes import Scene, chunk_grid, generation_settings, open_picture, plan_scenes

__all__ = [
    "Engine",
    "Overlap",
    "Request",
    "Scene",
    "VideoCost",
    "chunk_grid",
    "generation_settings",
    "negative_prompt_of",
    "open_picture",
    "plan_scenes",
    "region_overlaps",
    "speaker_regions",
]

"""The model and its use: the only part of the worker that touches tensors and the pipeline."""

from infinitetalk.worker.engine.engine import (
    ASSUMED_FLOP_PER_S,
    Engine,
    MemoryBudget,
    Overlap,
    Request,
    Scene,
    evaluation_flop,
    generation_settings,
    negative_prompt_of,
    region_overlaps,
    speaker_regions,
)

__all__ = [
    "ASSUMED_FLOP_PER_S",
    "Engine",
    "MemoryBudget",
    "Overlap",
    "Request",
    "Scene",
    "evaluation_flop",
    "generation_settings",
    "negative_prompt_of",
    "region_overlaps",
    "speaker_regions",
]

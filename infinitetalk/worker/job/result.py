"""The part of a job's result that says how the video was made."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.worker.engine import VideoCost, chunk_grid, negative_prompt_of, price_of
from infinitetalk.worker.job.resume import Rendering
from infinitetalk.worker.settings import Settings
from schemas import OutputConfig, SingleJob

MEDIA_FIELDS = ("cond_video", "cond_audio", "mask")
PACKAGES = tuple(Path(__file__).parents[3] / name for name in ("infinitetalk", "schemas"))
VERSIONED = ("torch", "diffusers", "transformers", "kokoro", "av", "runpod")


def resolved_parameters(job: SingleJob, seed: int) -> dict[str, Any]:
    """The parameters as used, without media."""
    params = job.model_dump(mode="json", exclude={*MEDIA_FIELDS, "dry_run", "output_config", "id"})
    output_config = job.output_config or OutputConfig()
    resolved = {
        "chunk_frame_num": job.chunk_frame_num,
        "sample_shift": job.shift,
        "crossfade_frame": chunk_grid(job).fade_length,
        "base_seed": seed,
        "negative_prompt": negative_prompt_of(job),
        # Presigned addresses are credentials.
        "output_config": output_config.model_dump(mode="json", exclude={"video_url", "thumbnail_url"}),
    }
    return params | resolved


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that affect the video, and of this worker's code (its SHA-256)."""
    code = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in package.rglob("*.py")):
        code.update(file.read_bytes())
    found = {"python": platform.python_version(), "worker": code.hexdigest()[:12]}
    return found | {name: version(name) for name in VERSIONED}


def video_facts(video: Path, rendering: Rendering) -> dict[str, Any]:
    """The fields of `schemas.Video` for a finished video, without its addresses."""
    return {
        "bytes": video.stat().st_size,
        "width": rendering.width,
        "height": rendering.height,
        "fps": float(VIDEO_FPS),
        "num_frames": rendering.num_frames,
        "duration_s": rendering.num_frames / VIDEO_FPS,
    }


def gpu_costs(seconds: float, gpus: int, settings: Settings) -> dict[str, Any]:
    """What a job has cost, for the log: seconds of all its GPUs together, and dollars if the worker knows a price."""
    gpu_seconds = seconds * gpus
    usd = price_of(gpu_seconds, settings)
    return {"gpu_seconds": round(gpu_seconds, 1), "usd": None if usd is None else round(usd, 4)}


def plan_facts(video: VideoCost, settings: Settings) -> dict[str, Any]:
    """The fields of `schemas.Plan` for a planned video."""
    usd = None if video.seconds is None else price_of(video.seconds * video.gpus, settings)
    return {
        "width": video.width,
        "height": video.height,
        "num_frames": video.num_frames,
        "duration_s": video.num_frames / VIDEO_FPS,
        "num_chunks": video.num_chunks,
        "evaluations": video.evaluations,
        "memory_mode": video.memory_mode,
        "estimate_s": None if video.seconds is None else round(video.seconds, 1),
        "estimate_from": video.origin,
        "estimate_usd": None if usd is None else round(usd, 4),
    }

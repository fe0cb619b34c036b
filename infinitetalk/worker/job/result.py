"""The part of a job's result that says how the video was made."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infinitetalk.media.decode import MediaInfo
from infinitetalk.media.encode import Timing
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.worker.engine import VideoCost, chunk_grid, negative_prompt_of
from infinitetalk.worker.job.film import Frame
from infinitetalk.worker.job.resume import Rendering
from infinitetalk.worker.release import SHOWN_CHARACTERS, code_hash
from infinitetalk.worker.settings import Settings
from schemas import OutputConfig, SingleJob

MEDIA_FIELDS = ("cond_video", "cond_audio", "mask")
VERSIONED = ("torch", "diffusers", "transformers", "kokoro", "av", "silero-vad", "runpod")


def resolved_parameters(job: SingleJob, seed: int) -> dict[str, Any]:
    """The parameters as used, without media; of pictures and voices, from when on they count."""
    params = job.model_dump(mode="json", exclude={*MEDIA_FIELDS, "dry_run", "output_config", "id"})
    output_config = job.output_config or OutputConfig()
    voices = {name: None if voice is None else {"from_s": voice.from_s} for name, voice in job.voices.items()}
    resolved = {
        "cond_video": [{"from_s": picture.from_s} for picture in job.pictures],
        "cond_audio": voices or None,
        "chunk_frame_num": job.chunk_frame_num,
        "size_table": job.size_table,
        "sample_shift": job.shift,
        "crossfade_frame": chunk_grid(job).fade_length,
        "base_seed": seed,
        "negative_prompt": negative_prompt_of(job),
        # Presigned addresses are credentials.
        "output_config": output_config.model_dump(mode="json", exclude={"video_url", "thumbnail_url"}),
    }
    return params | resolved


def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that affect the video, and of this worker's code (its SHA-256)."""
    return {"python": platform.python_version(), "worker": code_hash()} | _library_versions()


@cache
def _library_versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONED}


def weights_hash(fingerprint: str) -> str:
    """The start of the SHA-256 that stands for weights in logs and records, of their whole fingerprint."""
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:SHOWN_CHARACTERS]


def video_facts(video: Path, rendering: Rendering, timing: Timing) -> dict[str, Any]:
    """The fields of `schemas.Video` for a finished video, without its addresses.

    Args:
        timing: when its frames are shown.
    """
    return {
        "bytes": video.stat().st_size,
        "width": rendering.width,
        "height": rendering.height,
        "fps": round(float(timing.rate), 3),
        "num_frames": rendering.num_frames,
        "duration_s": float(timing.start(rendering.num_frames) * timing.time_base),
    }


def kept_size(frame: Frame | None, source: MediaInfo) -> dict[str, Any]:
    """The fields of `schemas.Plan` that differ where a film is kept: the result has its size."""
    return {} if frame is None else {"height": source.height // 2 * 2, "width": source.width // 2 * 2}


def plan_facts(video: VideoCost, settings: Settings) -> dict[str, Any]:
    """The fields of `schemas.Plan` for a planned video."""
    usd = None if video.seconds is None else settings.price_of(video.seconds * video.gpus)
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

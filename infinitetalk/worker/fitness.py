"""Checks at the worker's start: one that fails ends the worker, before it takes a job.

What may pass by itself ends no worker: a store that does not answer is logged, and the check before each job decides.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable

import structlog
import torch

from infinitetalk.media import ffmpeg_path
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.storage import make_store
from schemas import OutputConfig

FFMPEG_TIMEOUT_S = 60.0


class UnfitError(RuntimeError):
    """The worker cannot serve jobs. The message is for its operator."""


def fitness_checks(settings: Settings, engine: Engine) -> list[Callable[[], None]]:
    """The checks, as the SDK takes them: each raises what ends the worker, and is named in its log."""

    def ffmpeg() -> None:
        check_ffmpeg()

    def temporary_space() -> None:
        check_temporary_space(settings.min_temporary_bytes)

    def weights() -> None:
        engine.check_weights()

    def gpus() -> None:
        check_gpus(engine.device, engine.num_gpus)

    def gpu_memory() -> None:
        engine.check_memory()

    def store() -> None:
        look_at_store(settings)

    return [ffmpeg, temporary_space, weights, gpus, gpu_memory, store]


def check_ffmpeg() -> None:
    """Runs ffmpeg.

    Raises:
        UnfitError: it does not run.
    """
    try:
        subprocess.run([ffmpeg_path(), "-version"], check=True, capture_output=True, timeout=FFMPEG_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnfitError(f"ffmpeg does not run: set FFMPEG_BINARY, or install it ({type(error).__name__})") from error


def check_temporary_space(min_bytes: int) -> None:
    """Looks for free space where jobs are worked on.

    Raises:
        UnfitError: there is too little.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < min_bytes:
        raise UnfitError(
            f"{folder} has {free / MEGABYTE:.0f} MB free, fewer than MIN_TEMPORARY_BYTES ({min_bytes / MEGABYTE:.0f} "
            "MB): give the container a larger disk, or set TMPDIR"
        )


def check_gpus(device: torch.device, num_gpus: int) -> None:
    """Looks whether there are as many GPUs as are to make a video together.

    Raises:
        UnfitError: there are fewer.
    """
    if device.type == "cuda" and num_gpus > torch.cuda.device_count():
        raise UnfitError(
            f"GPUS_PER_JOB is {num_gpus}, and the worker has {torch.cuda.device_count()}: choose more GPUs per worker "
            "in the endpoint's settings, or leave GPUS_PER_JOB out"
        )


def look_at_store(settings: Settings) -> None:
    """Logs whether the worker's own bucket answers, if it has one."""
    if settings.s3_bucket is None:
        return
    try:
        make_store(OutputConfig(store="s3"), None, settings).check()
    except WorkerError as error:
        structlog.get_logger().warning("store.unreachable", details={"message": error.message})

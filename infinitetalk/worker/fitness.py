"""Checks at the worker's start, one that fails ends the worker before it takes a job, and after a job has failed.

What may pass by itself ends no worker: a store that does not answer is logged, and the check before each job decides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog
import torch
from PIL import Image

from infinitetalk.media import ffmpeg_path, probe
from infinitetalk.sandbox import keeps_root
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.stores.registry import make_store
from schemas import OutputConfig

FFMPEG_TIMEOUT_S = 60.0
DESCRIPTORS_OF_JOB = 64
"""Eight downloads at once, each with its socket, its file and its decoder's pipes."""


class UnfitError(RuntimeError):
    """The worker cannot serve jobs. The message is for its operator."""


def fitness_checks(settings: Settings, engine: Engine) -> list[Callable[[], None]]:
    """The checks, as the SDK takes them: each raises what ends the worker, and is named in its log."""

    def ffmpeg() -> None:
        check_ffmpeg()

    def privileges() -> None:
        look_at_privileges()

    def temporary_space() -> None:
        check_temporary_space(settings.min_temporary_bytes)

    def weights() -> None:
        engine.checkpoint.check()

    def gpus() -> None:
        check_gpus(engine.devices.first, engine.devices.count)

    def gpu_memory() -> None:
        engine.check_memory()

    def store() -> None:
        look_at_store(settings)

    return [ffmpeg, privileges, temporary_space, weights, gpus, gpu_memory, store]


def check_ffmpeg() -> None:
    """Runs ffmpeg.

    Raises:
        UnfitError: it does not run.
    """
    try:
        subprocess.run([ffmpeg_path(), "-version"], check=True, capture_output=True, timeout=FFMPEG_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnfitError(f"ffmpeg does not run: set FFMPEG_BINARY, or install it ({type(error).__name__})") from error


def look_at_privileges() -> None:
    """Logs a warning if the children that decode media run as root: a flaw of a decoder would have the whole worker."""
    for program in (ffmpeg_path(), sys.executable):
        if keeps_root(program):
            remedy = "install setpriv, give the container CAP_SETUID, let others read the program, or run as a user"
            details = {"program": Path(program).name, "remedy": remedy}
            structlog.get_logger().warning("decoder.runs_as_root", details=details)


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


def machine_problem(min_temporary_bytes: int) -> Exception | None:
    """What the machine lacks that every job needs; None where it has all.

    Asked after a job has failed: whatever its error says of the job's input, a machine on which a picture of our own
    cannot be written and read back, by the same decoder, would say it of any.
    """
    try:
        check_temporary_space(min_temporary_bytes)
        check_descriptors()
        read_own_picture()
    except Exception as error:
        return error
    return None


def read_own_picture() -> None:
    """Writes a picture to a temporary folder and looks at it as at those that jobs name."""
    with tempfile.TemporaryDirectory(prefix="infinitetalk-") as folder:
        file = Path(folder) / "grey.png"
        Image.new("RGB", (16, 16), "grey").save(file)
        probe(file)


def check_descriptors() -> None:
    """Opens as many files as a job may need at once.

    Raises:
        OSError: the process may not.
    """
    with ExitStack() as opened:
        for _ in range(DESCRIPTORS_OF_JOB):
            opened.enter_context(open(os.devnull, "rb"))  # noqa: PTH123


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

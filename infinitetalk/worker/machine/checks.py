"""Checks of the machine that need the large libraries: at the start, after their import, and after a job has failed.

A transient problem does not end the worker: if the store does not answer, this is only logged, and each job checks the
store again.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import structlog
import torch
from PIL import Image

from infinitetalk.media.decode import probe
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.machine.fitness import Check, UnfitError, check_temporary_space
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.registry import make_store
from schemas import OutputConfig

DESCRIPTORS_OF_JOB = 64
"""Eight downloads at once, each with its socket, its file and its decoder's pipes."""


def check_machine(settings: Settings, engine: Engine, sdk_checks: Iterable[Check]) -> None:
    """Checks, once the libraries are imported, that the worker can serve jobs.

    Args:
        sdk_checks: the SDK's own checks that import torch.

    Raises:
        UnfitError: there are fewer GPUs than set.
        CheckpointError: weights are missing or unfit.
        DoesNotFitError: no memory mode fits the GPU.
        RuntimeError: one of the SDK's checks failed.
    """
    for check in sdk_checks:
        asyncio.run(check())
    engine.check_weights()
    check_gpus(engine.devices.first, engine.devices.count)
    engine.check_memory()
    look_at_store(settings)


def machine_problem(min_temporary_bytes: int) -> Exception | None:
    """A problem of the machine that affects every job; None if there is none.

    Called after a job has failed: the job's error may blame its input although the machine is the cause. A machine
    that cannot write an image and read it back by the same decoder would fail with any input.
    """
    try:
        check_temporary_space(min_temporary_bytes)
        check_descriptors()
        read_own_picture()
    except Exception as error:
        return error
    return None


def read_own_picture() -> None:
    """Writes an image to a temporary folder and probes it like a job's image."""
    with tempfile.TemporaryDirectory(prefix="infinitetalk-") as folder:
        file = Path(folder) / "grey.png"
        Image.new("RGB", (16, 16), "grey").save(file)
        probe(file)


def check_descriptors() -> None:
    """Opens as many files as a job may need at once.

    Raises:
        OSError: the process is not allowed to.
    """
    with ExitStack() as opened:
        for _ in range(DESCRIPTORS_OF_JOB):
            opened.enter_context(open(os.devnull, "rb"))  # noqa: PTH123


def check_gpus(device: torch.device, num_gpus: int) -> None:
    """Checks that there are as many GPUs as are set to make a video together.

    Raises:
        UnfitError: there are fewer.
    """
    if device.type == "cuda" and num_gpus > torch.cuda.device_count():
        raise UnfitError(
            f"GPUS_PER_JOB is {num_gpus}, and the worker has {torch.cuda.device_count()}: choose more GPUs per worker "
            "in the endpoint's settings, or leave GPUS_PER_JOB out"
        )


def look_at_store(settings: Settings) -> None:
    """Logs a warning if the worker has a bucket that does not answer."""
    if settings.s3_bucket is None:
        return
    try:
        make_store(OutputConfig(store="s3"), None, settings).check()
    except WorkerError as error:
        structlog.get_logger().warning("store.unreachable", details={"message": error.message})

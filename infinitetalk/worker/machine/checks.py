"""Checks of the machine that need the large libraries: once they are imported, and after a job has failed.

A problem that may pass by itself ends no worker: a store that does not answer is logged, and the check before each job
decides.
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
    """Checks, once the libraries are imported, whether the worker can serve jobs.

    Args:
        sdk_checks: the SDK's own checks that import torch.

    Raises:
        UnfitError: there are fewer GPUs than are set.
        CheckpointError: weights are missing or unfit.
        DoesNotFitError: no memory mode fits the GPU.
        RuntimeError: a check of the SDK failed.
    """
    for check in sdk_checks:
        asyncio.run(check())
    engine.checkpoint.check()
    check_gpus(engine.devices.first, engine.devices.count)
    engine.check_memory()
    look_at_store(settings)


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

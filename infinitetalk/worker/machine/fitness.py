"""Checks before the worker takes its first job; if one fails, the worker ends.

They need none of the large libraries. The checks that do are in `infinitetalk.worker.machine.checks`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog
from runpod.serverless.modules import rp_fitness

from infinitetalk.media.sandbox import ffmpeg_path, keeps_root
from infinitetalk.worker.settings import MEGABYTE, Settings

FFMPEG_TIMEOUT_S = 60.0
IMPORT_TORCH = ("_cuda_init_check", "_benchmark_check")
"""Names of the SDK's checks that import torch, for which the first job would have to wait."""

Check = Callable[[], Coroutine[Any, Any, None]]


class UnfitError(RuntimeError):
    """The worker cannot serve jobs. The message is for its operator."""


def register_checks(settings: Settings) -> list[Check]:
    """Makes the SDK run the checks of this module before it takes a job.

    Returns:
        The SDK's own checks that import torch. They are removed from the SDK's list; the caller must run them.
    """

    def ffmpeg() -> None:
        check_ffmpeg()

    def privileges() -> None:
        look_at_privileges()

    def temporary_space() -> None:
        check_temporary_space(settings.min_temporary_bytes)

    # The SDK logs the name of a check that fails.
    for check in (ffmpeg, privileges, temporary_space):
        rp_fitness.register_fitness_check(check)
    rp_fitness._ensure_system_checks_registered()
    checks = rp_fitness._fitness_checks
    later = [check for check in checks if check.__name__ in IMPORT_TORCH]
    checks[:] = [check for check in checks if check not in later]
    return later


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
    """Logs a warning if the child processes that decode media run as root: a flaw in a decoder could then compromise
    the whole worker."""
    for program in (ffmpeg_path(), sys.executable):
        if keeps_root(program):
            remedy = "install setpriv, give the container CAP_SETUID, let others read the program, or run as a user"
            details = {"program": Path(program).name, "remedy": remedy}
            structlog.get_logger().warning("decoder.runs_as_root", details=details)


def check_temporary_space(min_bytes: int) -> None:
    """Checks the free space of the temporary folder.

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

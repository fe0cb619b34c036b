"""The worker's start: libraries and model come up in a thread, while jobs that are refused are answered already."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import structlog
from runpod.serverless.modules import rp_fitness

from infinitetalk.errors import LibraryError
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.machine.fitness import Check, UnfitError
from infinitetalk.worker.queue.ending import end_process
from infinitetalk.worker.settings import Settings


class Startup:
    """Imports the libraries and starts the engine. A worker that turns out to be unfit ends: its job, of which nothing
    has been made, stays with the queue.

    Args:
        settings: the worker's settings.
        sdk_checks: the SDK's checks that import torch, which are run with our own of weights and GPUs; None: nothing is
            checked, since jobs do not come from a queue.

    Attributes:
        resources: what jobs need, once the libraries are imported; the engine may still be loading its model.
    """

    def __init__(self, settings: Settings, sdk_checks: Sequence[Check] | None) -> None:
        self.resources: Future[Resources] = Future()
        self._settings = settings
        self._sdk_checks = sdk_checks
        # Not a daemon thread: exiting while torch is imported in one aborts the process and loses the exit code.
        self._thread = threading.Thread(target=self._run, name="startup")

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def finish(self) -> None:
        """Waits until nothing is being imported or loaded: whatever still is when the interpreter ends, fails."""
        self._thread.join()
        self.resources.result().engine.finish_loading()

    def _run(self) -> None:
        try:
            resources = self._prepare()
        except Exception as error:
            is_known = isinstance(error, LibraryError | UnfitError)
            reason = f"{type(error).__name__}: {error}"
            structlog.get_logger().error(
                "worker.unfit", details={"reason": reason}, exc_info=None if is_known else error
            )
            if self._sdk_checks is not None:
                rp_fitness._report_unhealthy("startup", reason)
            end_process()
        self.resources.set_result(resources)

    def _prepare(self) -> Resources:
        """What jobs need.

        Raises:
            LibraryError, UnfitError: weights are missing or unfit, or the GPUs are not as they are set.
            Exception: a library cannot be imported, or a check of the SDK failed.
        """
        begin = time.monotonic()
        # Imported here, since they bring torch, diffusers and transformers.
        from infinitetalk.worker.engine import Engine
        from infinitetalk.worker.job import video  # noqa: F401
        from infinitetalk.worker.job.resume import JobStates
        from infinitetalk.worker.machine.checks import check_machine

        structlog.get_logger().info("libraries.imported", lat_ms=round((time.monotonic() - begin) * 1000))
        engine = Engine(self._settings)
        engine.start()
        if self._sdk_checks is not None:
            check_machine(self._settings, engine, self._sdk_checks)
        return Resources(self._settings, engine, JobStates(self._settings))

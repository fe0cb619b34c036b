"""Starts the worker: imports libraries and loads the model in a thread, so that refused jobs are answered meanwhile."""

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
from infinitetalk.worker.release import release_of
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.signing import content_credentials


class Startup:
    """Imports the libraries and starts the engine. An unfit worker ends; a job that it has taken stays in the queue.

    Args:
        settings: the worker's settings.
        sdk_checks: the SDK's checks that import torch; they are run with the worker's own checks of weights and GPUs.
            None: nothing is checked, since jobs do not come from a queue.

    Attributes:
        resources: the resources that jobs need, set once the libraries are imported; the engine may still be loading
            its model.
    """

    def __init__(self, settings: Settings, sdk_checks: Sequence[Check] | None) -> None:
        self.resources: Future[Resources] = Future()
        self._settings = settings
        self._sdk_checks = sdk_checks
        # Not a daemon thread: exiting while torch is imported in one aborts the process and loses the exit code.
        self._thread = threading.Thread(target=self._run, name="startup")

    def start(self) -> None:
        """Logs which worker this is, and starts the thread."""
        settings = self._settings
        details = {"worker": release_of(settings), "model": settings.model, "recipe": settings.default_recipe}
        structlog.get_logger().info("worker.started", details=details)
        self._thread.start()

    def finish(self) -> None:
        """Waits for imports and loading to end: they fail if the interpreter exits before."""
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
        """The resources that jobs need.

        Raises:
            LibraryError, UnfitError: weights are missing or unfit, there are fewer GPUs than set, or the certificate
                cannot sign.
            Exception: a library cannot be imported, or a check of the SDK failed.
        """
        credentials = content_credentials(self._settings)
        begin = time.monotonic()
        # Imported here, since these modules import torch, diffusers and transformers.
        from infinitetalk.worker.engine import Engine
        from infinitetalk.worker.job import video  # noqa: F401
        from infinitetalk.worker.job.resume import JobStates
        from infinitetalk.worker.machine.checks import check_machine

        structlog.get_logger().info("libraries.imported", lat_ms=round((time.monotonic() - begin) * 1000))
        engine = Engine(self._settings)
        engine.start()
        if self._sdk_checks is not None:
            check_machine(self._settings, engine, self._sdk_checks)
        return Resources(self._settings, engine, JobStates(self._settings), credentials)

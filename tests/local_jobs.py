"""Jobs run in this process, on the embedded tiny model, without the SDK."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.resume import JobStates
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.progress import ProgressEvent
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.signing import content_credentials
from infinitetalk.worker.stop import Stop
from schemas import Stage


class StopOrCancel(Stop):
    """A stop that also asks whether the job is cancelled."""

    def __init__(self, time_limit_s: float | None, is_cancelled: Callable[[], bool]) -> None:
        super().__init__(time_limit_s)
        self._is_cancelled = is_cancelled

    def __call__(self) -> bool:
        return super().__call__() or self._is_cancelled()


@dataclass
class LocalWorker:
    """Runs jobs one by one.

    Attributes:
        volume: folder of the store "volume".
        events: that the last job reported.
    """

    settings: Settings
    engine: Engine
    volume: Path
    events: list[ProgressEvent] = field(default_factory=list)

    @property
    def stages(self) -> list[Stage]:
        """The stages that the last job reported."""
        return [event.stage for event in self.events]

    def run(
        self, job: dict[str, Any], should_stop: Callable[[], bool] = lambda: False, keep: bool = False
    ) -> dict[str, Any]:
        """The result of a job, `id` and `input`.

        Args:
            should_stop: whether the job is cancelled.
            keep: whether what is stored of it stays, as it does when its worker is lost.
        """
        self.events = []
        credentials = content_credentials(self.settings)
        resources = Resources(self.settings, self.engine, JobStates(self.settings), credentials)
        stop = StopOrCancel(self.settings.job_timeout_s, should_stop)
        try:
            return run_job(job, self.settings, lambda: resources, self.events.append, stop)
        finally:
            resources.states.close(job["id"], keep)


def worker_on(volume: Path, engine: Engine, **settings: Any) -> LocalWorker:
    """A worker of the tiny model with a volume of its own, which is made, and these settings."""
    volume.mkdir(exist_ok=True)
    own = {"output_dir": volume, "volume_dir": volume, "webhook_get_job": "set", "infinitetalk_model": "tiny"}
    return LocalWorker(Settings(**(own | {"download_attempts": 1} | settings)), engine, volume)


def ready(settings: Settings, engine: Engine) -> Future[Resources]:
    """What a worker's jobs need, as it is once the worker has started."""
    resources: Future[Resources] = Future()
    resources.set_result(Resources(settings, engine, JobStates(settings)))
    return resources


@pytest.fixture(scope="session")
def tiny_engine() -> Engine:
    """The engine of the tiny model, which loads while tests begin."""
    engine = Engine(Settings(infinitetalk_model="tiny"))
    engine.start()
    return engine


@pytest.fixture
def local_worker(tiny_engine: Engine, tmp_path: Path) -> LocalWorker:
    """A worker with a volume of its own."""
    return worker_on(tmp_path / "volume", tiny_engine)

"""Jobs run in this process, on the embedded tiny model, without the SDK."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.video import run_job
from infinitetalk.worker.resume import JobStates
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from schemas import Stage


@dataclass
class LocalWorker:
    """Runs jobs one by one.

    Attributes:
        volume: folder of the store "volume".
        stages: that the last job reported.
        messages: that the last job reported, as they were given.
    """

    settings: Settings
    engine: Engine
    volume: Path
    stages: list[Stage] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def run(
        self, job: dict[str, Any], should_stop: Callable[[], bool] = lambda: False, keep: bool = False
    ) -> dict[str, Any]:
        """The result of a job, `id` and `input`.

        Args:
            should_stop: whether the job is cancelled.
            keep: whether what is stored of it stays, as it does when its worker is lost.
        """
        self.stages, self.messages = [], []
        states = JobStates(self.settings)
        stop = Stop(self.settings.job_timeout_s, should_stop)
        try:
            return run_job(job, self.settings, self.engine, states, self._report, stop)
        finally:
            states.close(job["id"], keep)

    def _report(self, stage: Stage, *arguments: Any, **more: Any) -> None:
        self.stages.append(stage)
        self.messages.append({"stage": stage, "arguments": arguments, **more})


@pytest.fixture(scope="session")
def tiny_engine() -> Engine:
    """The engine of the tiny model, which loads while tests begin."""
    engine = Engine(Settings(infinitetalk_model="tiny"))
    engine.start()
    return engine


@pytest.fixture
def local_worker(tiny_engine: Engine, tmp_path: Path) -> LocalWorker:
    """A worker with a volume of its own."""
    volume = tmp_path / "volume"
    volume.mkdir()
    settings = Settings(
        output_dir=volume, volume_dir=volume, webhook_get_job="set", infinitetalk_model="tiny", download_attempts=1
    )
    return LocalWorker(settings, tiny_engine, volume)

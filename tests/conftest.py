"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

# Before torch is imported: tests run side by side, and threads that wait for each other at these sizes only lose time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from infinitetalk.weights.settings import WeightsSettings
from tests.local_jobs import local_worker, tiny_engine
from tests.s3_server import s3_server, s3_server_process

__all__ = ["local_worker", "s3_server", "s3_server_process", "tiny_engine"]


@pytest.fixture
def open_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a job name addresses of this machine."""
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")


@pytest.fixture
def no_weights_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting names weights, and the network volume is empty."""
    for name in WeightsSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files whose tests start processes first, so that none of them is left for the end, to run alone."""
    items.sort(key=lambda item: not Path(item.path).name.startswith(("test_worker", "test_parallel", "test_examples")))

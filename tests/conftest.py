"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

# Before torch is imported: tests run side by side, and threads that wait for each other at these sizes only lose time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.local_jobs import local_worker, tiny_engine
from tests.s3_server import s3_server, s3_server_process

__all__ = ["local_worker", "s3_server", "s3_server_process", "tiny_engine"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files whose tests start processes first, so that none of them is left for the end, to run alone."""
    items.sort(key=lambda item: not Path(item.path).name.startswith(("test_worker", "test_parallel", "test_examples")))

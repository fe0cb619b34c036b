"""Parts of tests that talk to a local endpoint: a worker that only reports, and an endpoint with a finished video."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.queue_server import LocalQueue

DONE = {"output": {"status": "success", "video": {"path": "made/talk.mp4"}}}


@contextmanager
def queue_with_video(folder: Path) -> Iterator[LocalQueue]:
    """An endpoint whose folder of files, in `folder`, has a finished video."""
    files = folder / "files"
    (files / "made").mkdir(parents=True)
    (files / "made/talk.mp4").write_bytes(b"video")
    with LocalQueue(files) as queue:
        yield queue


def work(queue: LocalQueue, *messages: dict) -> threading.Thread:
    """A worker that takes one job and says these things."""

    def take_and_report() -> None:
        while (payload := queue.take()) is None:
            time.sleep(0.01)
        for message in messages:
            queue.report(payload["id"], message)

    thread = threading.Thread(target=take_and_report, daemon=True)
    thread.start()
    return thread

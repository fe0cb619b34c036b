"""The SDK's ping process, watched.

A worker that pings no longer is given up by the platform, which hands its job to another one; were it to work on, two
would write the same result. The SDK starts the process and never looks at it again.

Imported by the ping process itself, and so small.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing import connection

from runpod.serverless.modules import rp_ping

from infinitetalk.worker.queue.ending import is_ending
from infinitetalk.worker.streams import keep_streams_writable


class PingProcess(multiprocessing.Process):
    """A process whose end is noticed.

    Attributes:
        on_end: called from a thread when it has ended and the worker has not.
    """

    on_end: Callable[[], None]

    def start(self) -> None:
        """Starts it, and a thread that watches it."""
        super().start()
        threading.Thread(target=self._watch, name="ping-watch", daemon=True).start()

    def run(self) -> None:
        """What the process does; a log that cannot be written does not end it."""
        keep_streams_writable([])
        super().run()

    def _watch(self) -> None:
        connection.wait([self.sentinel])
        if not is_ending.is_set():
            type(self).on_end()


def install(on_end: Callable[[], None]) -> None:
    """Lets the SDK start its pings as a `PingProcess`."""
    PingProcess.on_end = staticmethod(on_end)
    rp_ping.Process = PingProcess

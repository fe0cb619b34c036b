"""Watches the SDK's ping process.

If a worker's pings stop, the platform gives its job to another worker. If the first worker continued, both would write
the same result. The SDK starts the ping process but does not watch it.

The ping process imports this module, so it imports little.
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
    """A process that is watched by a thread.

    Attributes:
        on_end: called from that thread if the process ends before the worker does.
    """

    on_end: Callable[[], None]

    def start(self) -> None:
        """Starts the process and the thread that watches it."""
        super().start()
        threading.Thread(target=self._watch, name="ping-watch", daemon=True).start()

    def run(self) -> None:
        """Runs in the process; a log that cannot be written does not end it."""
        keep_streams_writable([])
        super().run()

    def _watch(self) -> None:
        connection.wait([self.sentinel])
        if not is_ending.is_set():
            type(self).on_end()


def install(on_end: Callable[[], None]) -> None:
    """Makes the SDK start its pings as a `PingProcess`."""
    PingProcess.on_end = staticmethod(on_end)
    rp_ping.Process = PingProcess

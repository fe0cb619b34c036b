"""When a job has to end before its work is done: it was cancelled, its time is over, or its worker goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from typing import TypeVar

from infinitetalk.errors import GenerationStopped

POLL_S = 0.1

T = TypeVar("T")


class Stop:
    """Asked by a job's thread before every network evaluation whether it has to end; any thread may tell it.

    Args:
        time_limit_s: seconds that the job may take from now on; None: as many as it needs.
    """

    def __init__(self, time_limit_s: float | None = None) -> None:
        self.time_limit_s = time_limit_s
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._cancelled = threading.Event()
        self._gone_at: float | None = None

    def __call__(self) -> bool:
        """Whether the job has to end now."""
        return self._cancelled.is_set() or self.timed_out

    @property
    def timed_out(self) -> bool:
        """Whether the job's time is over."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def cancel(self) -> None:
        """The job is wanted no longer."""
        self._cancelled.set()

    def drain(self, grace_s: float) -> None:
        """The worker goes in this many seconds, at the latest; said again, the first time counts."""
        if self._gone_at is None:
            self._gone_at = time.monotonic() + grace_s

    @property
    def is_draining(self) -> bool:
        """Whether the worker goes."""
        return self._gone_at is not None

    def leaves_time_for(self, seconds: float) -> bool:
        """Whether the worker stays for as long as that."""
        return self._gone_at is None or time.monotonic() + seconds <= self._gone_at


def wait_for(future: Future[T], should_stop: Callable[[], bool]) -> T:
    """The future's result.

    Raises:
        GenerationStopped: `should_stop` said so first.
        Exception: what the future ended with.
    """
    while True:
        try:
            return future.result(timeout=POLL_S)
        except TimeoutError:
            if should_stop():
                raise GenerationStopped from None

"""Stops a job before its work is done: because it was cancelled, reached its time limit, or its worker ends."""

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
    """Says whether a job has to end. The job's thread asks before every network evaluation; any thread may set it.

    Args:
        time_limit_s: time limit of the job in seconds from now on; None: no limit.
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
        """Whether the job has reached its time limit."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def cancel(self) -> None:
        """Cancels the job."""
        self._cancelled.set()

    def drain(self, grace_s: float) -> None:
        """Tells the job that the worker ends in `grace_s` seconds at the latest; only the first call has an effect."""
        if self._gone_at is None:
            self._gone_at = time.monotonic() + grace_s

    @property
    def is_draining(self) -> bool:
        """Whether the worker is about to end."""
        return self._gone_at is not None

    def leaves_time_for(self, seconds: float) -> bool:
        """Whether the worker continues for at least `seconds`."""
        return self._gone_at is None or time.monotonic() + seconds <= self._gone_at


def wait_for(future: Future[T], should_stop: Callable[[], bool]) -> T:
    """The future's result.

    Raises:
        GenerationStopped: `should_stop` returned true before the future had a result.
        Exception: the future's exception.
    """
    while True:
        try:
            return future.result(timeout=POLL_S)
        except TimeoutError:
            if should_stop():
                raise GenerationStopped from None

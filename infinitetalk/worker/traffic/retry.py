"""Repeats requests after transient errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from infinitetalk.worker.traffic.transport import Watch

FIRST_WAIT_S = 0.5
"""Seconds before the second attempt; each further wait is twice as long."""

LONGEST_WAIT_S = 30.0
"""Longest wait in seconds. An address that asks for a longer one counts as failed."""

TRANSIENT_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
"""Status codes after which the same request may succeed later."""

T = TypeVar("T")


class Transient(Exception):
    """An attempt failed with a transient error.

    Args:
        failure: the exception to raise if no further attempt follows.
        wait_s: the wait in seconds that the other side asked for; None: the usual wait.
    """

    def __init__(self, failure: Exception, wait_s: float | None = None) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.wait_s = wait_s


def with_retries(attempt: Callable[[], T], max_attempts: int, watch: Watch) -> T:
    """Calls `attempt`, and again after each `Transient` with increasing waits; returns its result.

    Args:
        max_attempts: largest number of attempts, at least 1.
        watch: ends the waits.

    Raises:
        Exception: the `failure` of the last `Transient`, or another exception of `attempt`.
        GenerationStopped, TimeIsOver: as `Watch.check`, during a wait.
    """
    for number in range(1, max_attempts + 1):
        try:
            return attempt()
        except Transient as transient:
            wait_s = FIRST_WAIT_S * 2 ** (number - 1) if transient.wait_s is None else transient.wait_s
            if number == max_attempts or wait_s > LONGEST_WAIT_S:
                raise transient.failure from transient
        watch.sleep(wait_s)
    raise AssertionError("there is at least one attempt")

"""A job's `policy`: Runpod's limits on its running time and its lifetime, in milliseconds.

Some clients give seconds: {"executionTimeout": 1800, "ttl": 86400}. Runpod allows no executionTimeout below 5,000 ms,
so a smaller value means that the whole policy is in seconds.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from schemas.envelope import LONGEST_MS, SHORTEST_MS

LONGEST_TIMEOUT_S = 1e9
"""About 30 years: a larger value counts as no limit."""

TIMEOUT_MARGIN_S = 1.0
"""A job ends this many seconds before the platform's executionTimeout, since the platform's answer has no error code.
"""


class PolicyError(ValueError):
    """A job's `policy` that Runpod would refuse and that is not clearly in seconds."""


def is_in_seconds(policy: Any) -> bool:
    """Whether a policy's times are in seconds."""
    timeout = policy.get("executionTimeout") if isinstance(policy, dict) else None
    return _is_number(timeout) and 0 < timeout < SHORTEST_MS["executionTimeout"]


def timeout_s(policy: Any) -> float | None:
    """Seconds after which a job ends by itself, just before the platform would end it; None if there is no limit."""
    timeout = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if not _is_number(timeout) or not 0 < timeout < LONGEST_TIMEOUT_S * 1000:
        return None
    seconds = timeout if is_in_seconds(policy) else timeout / 1000
    return max(seconds - TIMEOUT_MARGIN_S, TIMEOUT_MARGIN_S)


def time_limit(policy: Any, job_timeout_s: float | None) -> float | None:
    """A job's time limit in seconds: the worker's JOB_TIMEOUT_S or the limit of the job's policy, whichever is less;
    None if neither is set."""
    limits = [job_timeout_s, timeout_s(policy)]
    return min((limit for limit in limits if limit is not None), default=None)


def policy_warnings(policy: Any) -> list[str]:
    """Warnings about a job's policy."""
    if not is_in_seconds(policy):
        return []
    given = policy["executionTimeout"]
    shortest_ms = SHORTEST_MS["executionTimeout"]
    return [
        f"policy was taken in seconds, since executionTimeout {given:g} is below Runpod's minimum of {shortest_ms} "
        f"milliseconds; Runpod itself may refuse or end such a job: give milliseconds, {given * 1000:.0f}"
    ]


def checked_seconds(policy: Any, name: str) -> float | None:
    """A time of a job's `policy` in seconds; None if it is not given.

    Raises:
        PolicyError: it is not a number within Runpod's limits.
    """
    if not isinstance(policy, dict):
        raise PolicyError('policy must be an object: {"executionTimeout": milliseconds, "ttl": milliseconds}')
    value = policy.get(name)
    if value is None:
        return None
    shortest_ms = SHORTEST_MS[name]
    milliseconds = value * 1000 if is_in_seconds(policy) and isinstance(value, int) else value
    if isinstance(value, bool) or not isinstance(value, int) or not shortest_ms <= milliseconds <= LONGEST_MS:
        raise PolicyError(f"policy.{name} must be {shortest_ms} to {LONGEST_MS} milliseconds, not {value!r}")
    return milliseconds / 1000


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Logs a job's error and turns it into the client's error."""

from __future__ import annotations

from typing import Any

from infinitetalk.worker.errors import WorkerError, is_expected, job_error
from infinitetalk.worker.job.clock import StageClock
from infinitetalk.worker.stop import Stop
from schemas import ErrorCode, JobError


def log_failure(error: Exception, clock: StageClock, logger: Any) -> JobError:
    """Logs an error with the time of each stage; returns the error for the client."""
    told = job_error(error, clock.stage)
    timings = clock.timings()
    logger.error(
        "job.failed",
        lat_ms=timings["total_ms"],
        details=told.model_dump(mode="json") | {"timings": timings},
        exc_info=None if is_expected(error) else error,
    )
    return told


def log_stop(stop: Stop, clock: StageClock, logger: Any) -> None:
    """Logs that a job was cancelled or is left to the next worker."""
    timings = clock.timings()
    logger.info("job.stopped", lat_ms=timings["total_ms"], details={"timings": timings, "handed_over": not stop()})


def timeout_error(time_limit_s: float | None) -> WorkerError:
    """The error of a job that reached its time limit."""
    return WorkerError(
        ErrorCode.TIMEOUT,
        f"the job took longer than its {time_limit_s:g} s; allow more (policy.executionTimeout, or the worker's "
        "JOB_TIMEOUT_S), or use fewer steps or frames",
    )

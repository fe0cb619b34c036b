"""Logs the end of a job without a video, and turns its error into the client's."""

from __future__ import annotations

from typing import Any

from infinitetalk.worker.errors import WorkerError, is_expected, job_error
from infinitetalk.worker.job.bill import Bill
from infinitetalk.worker.stop import Stop
from schemas import ErrorCode, JobError


def log_failure(error: Exception, bill: Bill, logger: Any) -> JobError:
    """Logs an error with what the job cost; returns the error for the client."""
    told = job_error(error, bill.clock.stage)
    bill.log(
        "timed_out" if told.code is ErrorCode.TIMEOUT else "failed",
        logger,
        told,
        None if is_expected(error) else error,
    )
    return told


def log_stop(stop: Stop, bill: Bill, logger: Any) -> None:
    """Logs that a job was cancelled or is left to the next worker, with what it cost."""
    bill.log("cancelled" if stop() else "handed_over", logger)


def timeout_error(time_limit_s: float | None) -> WorkerError:
    """The error of a job that reached its time limit."""
    return WorkerError(
        ErrorCode.TIMEOUT,
        f"the job took longer than its {time_limit_s:g} s; allow more (policy.executionTimeout, or the worker's "
        "JOB_TIMEOUT_S), or use fewer steps or frames",
    )

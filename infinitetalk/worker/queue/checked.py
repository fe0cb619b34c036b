"""Checks that the queue will take a result: valid JSON, not too large."""

from __future__ import annotations

import json
from typing import Any

from infinitetalk.worker.errors import WorkerError, job_error
from infinitetalk.worker.logs import job_logger
from infinitetalk.worker.settings import MEGABYTE
from schemas import ErrorCode, Failure, Stage, sendable


def failure_of(job_id: str, error: Exception) -> dict[str, Any]:
    """The failure of a job at an unknown stage."""
    return Failure(job_id=sendable(job_id), error=job_error(error, Stage.SAMPLING)).model_dump(mode="json")


def checked_result(job_id: str, result: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """The result, or a failure if the queue would drop it because it is not JSON, contains NaN, or is too large."""
    try:
        size = len(json.dumps(result, allow_nan=False, ensure_ascii=False).encode())
        if size <= max_bytes:
            return result
        message = (
            f"the result is too large ({size / MEGABYTE:.1f} MB, at most {max_bytes / MEGABYTE:g} MB); use "
            'output_config.store "s3" or "volume"'
        )
    except (TypeError, ValueError):
        message = "the result is not valid JSON"
    job_logger(job_id).error("job.result_refused", details={"message": message})
    error = job_error(WorkerError(ErrorCode.UPLOAD, message, retryable=False), Stage.UPLOAD)
    return Failure(job_id=sendable(job_id), error=error).model_dump(mode="json")

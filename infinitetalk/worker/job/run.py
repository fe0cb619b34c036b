"""Runs a job from the queue. Refusing it needs no network: the code that makes videos is imported after validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.job.batch import run_batch
from infinitetalk.worker.job.bill import Bill
from infinitetalk.worker.job.clock import StageClock
from infinitetalk.worker.job.context import JobContext
from infinitetalk.worker.job.failure import log_failure, log_stop, timeout_error
from infinitetalk.worker.job.payload import count_inline, parse_payload
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.logs import job_logger
from infinitetalk.worker.policy import policy_warnings
from infinitetalk.worker.progress import Report
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from schemas import (
    BatchItem,
    BatchJob,
    BatchResult,
    Failure,
    ItemFailure,
    ItemPlan,
    ItemSuccess,
    Plan,
    SingleJob,
    Success,
    sendable,
)

R = TypeVar("R", Success | Plan | Failure, BatchResult)


def run_job(
    payload: dict[str, Any], settings: Settings, get_resources: Callable[[], Resources], report: Report, stop: Stop
) -> dict[str, Any]:
    """Runs one job from the queue; every error becomes a coded failure.

    Args:
        payload: `id`, `input` and, if the job names its own store, `s3Config`.
        settings: the worker's settings.
        get_resources: returns the worker's resources, and waits for them if necessary; called after the payload was
            validated. The caller closes the job's state.
        report: takes the job's progress.
        stop: is asked before every network evaluation and while data arrives.

    Returns:
        `schemas.Success`, `schemas.Plan`, `schemas.Failure` or, for a batch, `schemas.BatchResult`, as JSON types.

    Raises:
        GenerationStopped: the job was cancelled, or is left to the next worker.
    """
    # `parse_payload` refuses a bad id, but the refusal carries the id and must itself be sendable.
    job_id = sendable(str(payload["id"]))
    logger = job_logger(job_id)
    clock = StageClock(report)
    bill = Bill(clock, settings)
    try:
        job, s3_config = parse_payload(job_id, payload, settings)
        resources = get_resources()
    except GenerationStopped:
        if not stop.timed_out:
            log_stop(stop, bill, logger)
            raise
        error = log_failure(timeout_error(stop.time_limit_s), bill, logger)
        return as_json(Failure(job_id=job_id, error=error))
    except Exception as error:
        return as_json(Failure(job_id=job_id, error=log_failure(error, bill, logger)))
    context = JobContext(job_id, count_inline(job), s3_config, resources, stop)
    concerns = policy_warnings(payload.get("policy"))
    if isinstance(job, BatchJob):
        return as_json(with_warnings(run_items(context, job, report), concerns))
    return as_json(with_warnings(make_video(context, None, job, clock), concerns))


def run_items(context: JobContext, batch: BatchJob, report: Report) -> BatchResult:
    """Makes a batch's videos one after the other; returns the batch's result.

    Raises:
        GenerationStopped: the job was cancelled, or is left to the next worker.
    """

    def run_item(item: BatchItem, report: Report) -> ItemSuccess | ItemPlan | ItemFailure:
        with_store = item.model_copy(update={"output_config": item.output_config or batch.output_config})
        return as_item(make_video(context, item.id, with_store, StageClock(report)), item.id)

    result = run_batch(context.job_id, batch, run_item, report)
    job_logger(context.job_id).info(
        f"batch.{result.status}", lat_ms=result.timings["total_ms"], details={"timings": result.timings}
    )
    return result


def make_video(context: JobContext, item_id: str | None, job: SingleJob, clock: StageClock) -> Success | Plan | Failure:
    """Calls `infinitetalk.worker.job.video.make_video`; the import brings torch and all networks."""
    from infinitetalk.worker.job import video

    return video.make_video(context, item_id, job, clock)


def as_item(result: Success | Plan | Failure, item_id: str) -> ItemSuccess | ItemPlan | ItemFailure:
    """A video's result as the result of a batch item."""
    kinds: dict[type, type[ItemSuccess | ItemPlan | ItemFailure]]
    kinds = {Success: ItemSuccess, Plan: ItemPlan, Failure: ItemFailure}
    return kinds[type(result)].model_validate(dict(result) | {"item_id": item_id})


def with_warnings(result: R, warnings: list[str]) -> R:
    """A result with additional warnings that concern the whole job; a failure is returned unchanged."""
    if isinstance(result, Failure) or not warnings:
        return result
    return result.model_copy(update={"warnings": [*result.warnings, *warnings]})


def as_json(result: Success | Plan | Failure | BatchResult) -> dict[str, Any]:
    """A result as the handler returns it; Runpod counts a job with an `error` as failed."""
    return result.model_dump(mode="json", exclude_none=True)

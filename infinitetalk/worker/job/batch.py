"""Makes the videos of a batch one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from infinitetalk.worker.progress import ItemPosition, ProgressEvent, Report
from schemas import BatchItem, BatchJob, BatchResult, ItemFailure, ItemPlan, ItemSuccess, JobError, Stage


class RunItem(Protocol):
    """Makes one item's video; every error becomes an `ItemFailure`."""

    def __call__(self, item: BatchItem, report: Report) -> ItemSuccess | ItemPlan | ItemFailure: ...


def run_batch(
    job_id: str,
    batch: BatchJob,
    run_item: RunItem,
    report: Report,
    now: Callable[[], float] = time.monotonic,
) -> BatchResult:
    """Runs a batch's items one after the other; a failed item does not stop the next one.

    Args:
        job_id: id of the job.
        run_item: makes one item.
        report: takes the batch's progress.
        now: returns the time in seconds, for the timings.

    Raises:
        GenerationStopped: `run_item` raised it.
    """
    begin = now()
    results = []
    for index, item in enumerate(batch.batch):
        position = ItemPosition(item.id, index, len(batch.batch))
        results.append(run_item(item, reporting_item(report, position)))
    report(ProgressEvent(Stage.COMPLETED))
    failures = [result for result in results if isinstance(result, ItemFailure)]
    is_unused = batch.output_config is not None and all(item.output_config is not None for item in batch.batch)
    none_succeeded = len(failures) == len(results)
    return BatchResult(
        job_id=job_id,
        status="error" if none_succeeded else "partial" if failures else "success",
        items=results,
        timings={"total_ms": round((now() - begin) * 1000)},
        warnings=["output_config of the batch has no effect: every item has its own"] if is_unused else [],
        error=_error_of_all(failures) if none_succeeded else None,
    )


def reporting_item(report: Report, position: ItemPosition) -> Report:
    """A `Report` that passes an item's progress on as its batch's progress."""
    return lambda event: report(replace(event, item=position))


def _error_of_all(failures: list[ItemFailure]) -> JobError:
    """The first item's error, worded for the batch; retryable if any item's error is."""
    first = failures[0].error
    return JobError(
        code=first.code,
        message=f"no item of the batch succeeded; {failures[0].item_id}: {first.message}",
        retryable=any(failure.error.retryable for failure in failures),
        at_stage=first.at_stage,
    )

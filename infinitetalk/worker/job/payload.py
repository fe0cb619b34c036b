"""Parses a job's payload into the interface's models."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from infinitetalk.recipes import Recipe
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.job.recipe import choose_recipe
from infinitetalk.worker.settings import Settings
from schemas import BatchJob, ErrorCode, OutputConfig, S3Config, SingleJob, check_safe_name, explain, parse_input


def parse_payload(
    job_id: str, payload: dict[str, Any], settings: Settings
) -> tuple[SingleJob | BatchJob, S3Config | None]:
    """The job in a payload, and the job's own store if the payload names one.

    Args:
        payload: `input` and, if the job names its own store, `s3Config`.
        settings: the worker's settings.

    Raises:
        WorkerError: the payload breaks the interface.
    """
    try:
        check_safe_name(job_id)
    except ValueError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"id {error}") from None
    try:
        job = parse_input(payload.get("input"))
    except ValidationError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, explain(error)) from None
    try:
        s3_config = S3Config.model_validate(payload["s3Config"]) if payload.get("s3Config") else None
    except ValidationError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, explain(error, "s3Config", shows_values=False)) from None
    check_recipes(job, settings.recipe)
    if isinstance(job, BatchJob) and len(job.batch) > settings.max_batch_items:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f"batch has {len(job.batch)} items; this worker takes at most {settings.max_batch_items}, send the rest as "
            "another job",
        )
    return job, s3_config


def check_recipes(job: SingleJob | BatchJob, default: Recipe | None) -> None:
    """Checks that a recipe can be chosen for each video.

    Args:
        default: the worker's recipe; None: it has none.

    Raises:
        WorkerError: a recipe is not for a video's speakers, or a video's fields contradict it.
    """
    if isinstance(job, SingleJob):
        choose_recipe(job, default)
        return
    for index, item in enumerate(job.batch):
        try:
            choose_recipe(item, default)
        except WorkerError as error:
            raise WorkerError(ErrorCode.INPUT_VALIDATION, f"batch.{index}: {error.message}") from None


def count_inline(job: SingleJob | BatchJob) -> int:
    """The number of videos that are returned inside the job's result, at least 1."""
    if isinstance(job, SingleJob):
        return 1
    stores = [(item.output_config or job.output_config or OutputConfig()).store for item in job.batch]
    return max(stores.count("inline"), 1)

"""What a client sees while its job runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from schemas.base import StrictModel


class Stage(StrEnum):
    """The stages of a job, in order: the same list for progress, timings and errors."""

    VALIDATION = "validation"
    DOWNLOAD = "download"
    EMBEDDING = "embedding"
    LOAD = "load"
    SAMPLING = "sampling"
    DECODE = "decode"
    MUX = "mux"
    UPLOAD = "upload"
    COMPLETED = "completed"


class Progress(StrictModel):
    """One progress message, the job's `output` while it is IN_PROGRESS."""

    stage: Stage
    """What the worker is doing."""

    pct: Annotated[float, Field(ge=0, le=100)]
    """Share of the work done, in per cent; never goes back."""

    job_id: str
    """The job."""

    seq: Annotated[int, Field(ge=1)]
    """Number of the message, counted up."""

    eta_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds left, as far as known, of the item in a batch; null until a sampling step has been timed."""

    item_id: str | None = None
    """Of a batch: the item at work."""

    item_index: Annotated[int, Field(ge=0)] | None = None
    """Of a batch: the item's place in it, counted from 0."""

    preview_url: str | None = None
    """With output_config.preview and store "s3": address of the HLS playlist, from the first chunk on."""

    preview_path: str | None = None
    """With output_config.preview and store "volume": the playlist's path below the output folder."""

    details: dict[str, Any] = Field(default_factory=dict)
    """More on the stage; for sampling: chunk, num_chunks, step, num_steps, each counted from 1; for
    download and upload: bytes so far and, where known, total_bytes."""

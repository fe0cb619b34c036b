"""The progress messages that a client gets while its job runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from schemas.base import StrictModel


class Stage(StrEnum):
    """The stages of a job, in order; progress, timings and errors use the same list."""

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
    """The current stage."""

    pct: Annotated[float, Field(ge=0, le=100)]
    """Share of the work done, in per cent; it never decreases."""

    job_id: str
    """Id of the job."""

    seq: Annotated[int, Field(ge=1)]
    """Number of the message; it increases with each message."""

    eta_s: Annotated[float, Field(ge=0)] | None = None
    """Estimated seconds left, in a batch for the current item; null until a sampling step has been timed."""

    item_id: str | None = None
    """In a batch: id of the current item."""

    item_index: Annotated[int, Field(ge=0)] | None = None
    """In a batch: position of the current item, counted from 0."""

    preview_url: str | None = None
    """With output_config.preview and store "s3": address of the HLS playlist, from the first chunk on."""

    preview_path: str | None = None
    """With output_config.preview and store "volume": the playlist's path below the output folder."""

    details: dict[str, Any] = Field(default_factory=dict)
    """Details of the stage; for sampling: chunk, num_chunks, step, num_steps, each counted from 1; for
    download and upload: bytes so far and, if known, total_bytes."""

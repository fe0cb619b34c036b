"""What a job ends with."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.base import StrictModel
from schemas.progress import Stage


class ErrorCode(StrEnum):
    """What went wrong; `infinitetalk.worker.errors` says what to do for each."""

    INPUT_VALIDATION = "E_INPUT_VALIDATION"
    DOWNLOAD_FAILED = "E_DOWNLOAD_FAILED"
    AUDIO_EMBEDDING = "E_AUDIO_EMBEDDING"
    PIPELINE_LOAD = "E_PIPELINE_LOAD"
    OOM = "E_OOM"
    FFMPEG = "E_FFMPEG"
    GENERATION_RUNTIME = "E_GENERATION_RUNTIME"
    UPLOAD = "E_UPLOAD"
    TIMEOUT = "E_TIMEOUT"


class Video(StrictModel):
    """The video made, in exactly one place, and its thumbnail in the same."""

    url: str | None = None
    """Store "s3": address of the MP4, which the worker has tried. Store "put": the address given, without its query and
    untried."""

    path: str | None = None
    """Store "volume": path of the MP4 relative to the volume's root."""

    data: str | None = None
    """Store "inline": the MP4 in base64."""

    mime: Literal["video/mp4"] = "video/mp4"
    """Type of the file."""

    bytes: Annotated[int, Field(ge=1)]
    """Size of the MP4."""

    thumbnail_url: str | None = None
    """Stores "s3" and "put": address of the JPEG."""

    thumbnail_path: str | None = None
    """Store "volume": path of the JPEG relative to the volume's root."""

    thumbnail_data: str | None = None
    """Store "inline": the JPEG in base64."""

    metadata_url: str | None = None
    """Store "s3": address of a JSON file with parameters, timings, model, seed and versions."""

    metadata_path: str | None = None
    """Store "volume": path of the same file relative to the volume's root."""

    width: Annotated[int, Field(ge=1)]
    """Pixels."""

    height: Annotated[int, Field(ge=1)]
    """Pixels."""

    fps: Annotated[float, Field(gt=0)]
    """Frames a second."""

    num_frames: Annotated[int, Field(ge=1)]
    """Frames in the video."""

    duration_s: Annotated[float, Field(gt=0)]
    """Seconds: num_frames / fps."""

    @model_validator(mode="after")
    def check_places(self) -> Video:
        """One place for the video, the same one for the thumbnail.

        Raises:
            ValueError: none, several, or different ones.
        """
        places = [name for name in ("url", "path", "data") if getattr(self, name) is not None]
        thumbnails = [name for name in ("url", "path", "data") if getattr(self, f"thumbnail_{name}") is not None]
        if len(places) != 1 or thumbnails != places:
            raise ValueError("must have exactly one of url, path and data, and the thumbnail in the same place")
        return self


class Success(StrictModel):
    """A finished job."""

    job_id: str
    """The job."""

    status: Literal["success"] = "success"
    """The job succeeded."""

    video: Video
    """The video made."""

    timings: dict[str, Annotated[int, Field(ge=0)]]
    """Milliseconds: <stage>_ms for each stage, and total_ms."""

    params: dict[str, Any]
    """The parameters as used: defaults filled in, a random seed named."""

    model: str
    """The model that made the video; "tiny-random" makes noise."""

    memory_mode: str
    """How the networks were held: "bf16", "fp8, VAE in tiles" …"""

    evaluations: Annotated[int, Field(ge=0)]
    """Network evaluations made."""

    evaluations_skipped: Annotated[int, Field(ge=0)]
    """Network evaluations that TeaCache saved."""

    warnings: list[str] = Field(default_factory=list)
    """What may disappoint in this result, in words."""


class Plan(StrictModel):
    """What a job with `dry_run` would do. Nothing was generated, stored or drawn by lot."""

    job_id: str
    """The job."""

    status: Literal["planned"] = "planned"
    """The job can be run."""

    width: Annotated[int, Field(ge=1)]
    """Pixels."""

    height: Annotated[int, Field(ge=1)]
    """Pixels."""

    num_frames: Annotated[int, Field(ge=1)]
    """Frames of the video, at 25 a second."""

    duration_s: Annotated[float, Field(gt=0)]
    """Seconds of the video."""

    num_chunks: Annotated[int, Field(ge=1)]
    """Chunks that it is made in."""

    evaluations: Annotated[int, Field(ge=1)]
    """Network evaluations; TeaCache may save some of them."""

    memory_mode: str
    """How the networks would be held: the fastest mode whose estimate fits."""

    estimate_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds of generating, without fetching, loading and storing; null where nothing is known of this model."""

    estimate_from: Literal["this worker", "table"] | None = None
    """"this worker": from the last chunk that it has made, by the work of an evaluation. "table": from what
    docs/deploy.md assumes."""

    params: dict[str, Any]
    """The parameters as they would be used; a random seed is still -1."""

    model: str
    """The model that would make the video."""

    warnings: list[str] = Field(default_factory=list)
    """What may disappoint, in words."""


class JobError(StrictModel):
    """Why a job failed."""

    code: ErrorCode
    """One of the listed codes."""

    message: str
    """What happened and what to change."""

    retryable: bool
    """True where the same job may succeed later."""

    at_stage: Stage
    """Where it failed."""


class Failure(StrictModel):
    """A failed job, as the handler returns it; Runpod shows `error` as the job's error and the rest as output."""

    job_id: str
    """The job."""

    status: Literal["error"] = "error"
    """The job failed."""

    error: JobError
    """Why."""


class ItemSuccess(Success):
    """A finished item of a batch."""

    item_id: str
    """The item."""


class ItemPlan(Plan):
    """What an item of a batch would do."""

    item_id: str
    """The item."""


class ItemFailure(Failure):
    """A failed item of a batch."""

    item_id: str
    """The item."""


class BatchResult(StrictModel):
    """A batch of which at least one item succeeded, or, with `error`, none."""

    job_id: str
    """The job."""

    status: Literal["success", "partial", "error"]
    """All, some or none of the items succeeded."""

    items: list[ItemSuccess | ItemPlan | ItemFailure]
    """One result per item, in the batch's order."""

    timings: dict[str, Annotated[int, Field(ge=0)]]
    """Milliseconds: total_ms."""

    warnings: list[str] = Field(default_factory=list)
    """What concerns the whole batch."""

    error: JobError | None = None
    """Set when no item succeeded, so that the job is FAILED."""

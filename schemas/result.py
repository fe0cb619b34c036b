"""The results of jobs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from schemas.base import StrictModel
from schemas.progress import Stage


class ErrorCode(StrEnum):
    """The kinds of errors; `infinitetalk.worker.errors` says what to do about each."""

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
    """The finished video and its thumbnail, both in the same one of three places."""

    # What check_places checks.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": [place, f"thumbnail_{place}"],
                    "properties": {place: {"type": "string"}, f"thumbnail_{place}": {"type": "string"}},
                }
                for place in ("url", "path", "data")
            ]
        }
    )

    url: str | None = None
    """Store "s3": address of the MP4, tested by the worker. Store "put": the given address without its query, not
    tested."""

    path: str | None = None
    """Store "volume": path of the MP4 relative to the volume's root."""

    data: str | None = None
    """Store "inline": the MP4 in base64."""

    mime: Literal["video/mp4"] = "video/mp4"
    """Media type of the file."""

    bytes: Annotated[int, Field(ge=1)]
    """Size of the MP4 in bytes."""

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
    """Width in pixels."""

    height: Annotated[int, Field(ge=1)]
    """Height in pixels."""

    fps: Annotated[float, Field(gt=0)]
    """Frames per second; of a film with frames of different lengths, the usual."""

    num_frames: Annotated[int, Field(ge=1)]
    """Number of frames in the video."""

    duration_s: Annotated[float, Field(gt=0)]
    """Length in seconds."""

    @model_validator(mode="after")
    def check_places(self) -> Video:
        """Checks that there is one place for the video, and that the thumbnail is in the same place.

        Raises:
            ValueError: there are none, several, or different places.
        """
        places = [name for name in ("url", "path", "data") if getattr(self, name) is not None]
        thumbnails = [name for name in ("url", "path", "data") if getattr(self, f"thumbnail_{name}") is not None]
        if len(places) != 1 or thumbnails != places:
            raise ValueError("must have exactly one of url, path and data, and the thumbnail in the same place")
        return self


class SpeakerPlace(StrictModel):
    """Where a speaker is in the source."""

    speaker: str
    """The speaker: person1, person2, …"""

    box: Annotated[list[int], Field(min_length=4, max_length=4)]
    """x_min, y_min, x_max, y_max in pixels of the upright source; of a mask, the box around it."""

    told_by: Literal["bbox", "mask", "faces", "halves", "whole"]
    """"bbox" or "mask": the job's. "faces": a face found there. "halves": several speakers side by side. "whole": the
    only speaker."""


class Success(StrictModel):
    """A finished job."""

    job_id: str
    """The job."""

    status: Literal["success"] = "success"
    """The job succeeded."""

    video: Video
    """The finished video."""

    timings: dict[str, Annotated[int, Field(ge=0)]]
    """Milliseconds: <stage>_ms for each stage, and total_ms. If several workers made the video one after the other, of
    all together."""

    params: dict[str, Any]
    """The parameters as used, with defaults filled in and the drawn seed. Of cond_video and cond_audio,
    only from when on their media count."""

    model: str
    """The model that made the video; "tiny-random" makes noise."""

    worker: str
    """The worker that finished the video: its version and its git commit, or the hash of its code."""

    memory_mode: str
    """The networks' memory mode: "bf16", "fp8, VAE in tiles" …"""

    evaluations: Annotated[int, Field(ge=0)]
    """Number of network evaluations made."""

    evaluations_skipped: Annotated[int, Field(ge=0)]
    """Number of network evaluations that TeaCache saved."""

    speakers: list[SpeakerPlace] = Field(default_factory=list)
    """Each speaker's place in the source, person1 first."""

    warnings: list[str] = Field(default_factory=list)
    """Likely flaws of this result, in words."""


class RecipeCost(StrictModel):
    """The cost of the same job by a recipe that this worker can run."""

    recipe: str
    """The recipe's name in jobs."""

    evaluations: Annotated[int, Field(ge=1)]
    """Number of network evaluations; TeaCache may save some of them."""

    estimate_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds of the job, like the plan's."""

    estimate_usd: Annotated[float, Field(ge=0)] | None = None
    """Dollars, like the plan's."""

    leave_out: list[str] = Field(default_factory=list)
    """Fields that the job must leave out if it names this recipe, because the recipe fixes other values."""


class PlannedStretch(StrictModel):
    """Chunks, one after the other, that take the same prompt and the same picture of the job's lists."""

    first_chunk: Annotated[int, Field(ge=1)]
    """The first of these chunks; chunks are counted from 1."""

    last_chunk: Annotated[int, Field(ge=1)]
    """The last of these chunks."""

    from_s: Annotated[float, Field(ge=0)]
    """Seconds of the video at which the first chunk begins."""

    prompt: Annotated[int, Field(ge=0)]
    """The prompt that they take: its index in the job's list, from 0."""

    cond_video: Annotated[int, Field(ge=0)]
    """The image or video that they take: its index in the job's list, from 0."""


class Plan(StrictModel):
    """The plan of a job with `dry_run`. No video was generated or stored, and no random seed was chosen."""

    job_id: str
    """The job."""

    status: Literal["planned"] = "planned"
    """The job can be run."""

    width: Annotated[int, Field(ge=1)]
    """Width in pixels."""

    height: Annotated[int, Field(ge=1)]
    """Height in pixels."""

    num_frames: Annotated[int, Field(ge=1)]
    """Number of generated frames, at 25 per second; with a film's own frame times, the video has others."""

    duration_s: Annotated[float, Field(gt=0)]
    """Length of the video in seconds."""

    num_chunks: Annotated[int, Field(ge=1)]
    """Number of chunks of the video."""

    evaluations: Annotated[int, Field(ge=1)]
    """Number of network evaluations; TeaCache may save some of them."""

    memory_mode: str
    """The networks' memory mode: the fastest one that fits by its estimate."""

    estimate_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds of the job, without fetching, loading and storing; null if nothing is known about this model."""

    estimate_from: str | None = None
    """"this worker": from the last chunk that this worker made. "table: H100" and the like: from the estimates of
    docs/deploy.md for this GPU, or for the one that is nearest to it, with the factor."""

    estimate_usd: Annotated[float, Field(ge=0)] | None = None
    """Dollars for `estimate_s` on all GPUs of the worker; null without an estimate or without GPU_PRICE_PER_S."""

    recipes: list[RecipeCost] = Field(default_factory=list)
    """Every recipe by which this worker could run the job, with its cost."""

    speakers: list[SpeakerPlace] = Field(default_factory=list)
    """Each speaker's place in the source, person1 first."""
    timeline: list[PlannedStretch] | None = None
    """Which chunks take which prompt and picture; null if the job has only one of each."""
    voices: list[str] = Field(default_factory=list)
    """Names of the voices in which this worker can speak `tts_audio`; empty if it cannot speak."""

    params: dict[str, Any]
    """The parameters as they would be used; a random seed is still -1. Of cond_video and cond_audio,
    only from when on their media count."""

    model: str
    """The model that would make the video."""

    worker: str
    """The worker that would make it: its version and its git commit, or the hash of its code."""

    warnings: list[str] = Field(default_factory=list)
    """Likely flaws of the result, in words."""


class JobError(StrictModel):
    """Why a job failed."""

    code: ErrorCode
    """The error code."""

    message: str
    """What happened and what to change."""

    retryable: bool
    """Whether the same job may succeed later."""

    at_stage: Stage
    """The stage at which the job failed."""


class Failure(StrictModel):
    """A failed job, as the handler returns it; Runpod shows `error` as the job's error and the rest as output."""

    job_id: str
    """The job."""

    status: Literal["error"] = "error"
    """The job failed."""

    error: JobError
    """Why the job failed."""


class ItemSuccess(Success):
    """A finished item of a batch."""

    item_id: str
    """The item."""


class ItemPlan(Plan):
    """The plan of an item of a batch."""

    item_id: str
    """The item."""


class ItemFailure(Failure):
    """A failed item of a batch."""

    item_id: str
    """The item."""


class BatchResult(StrictModel):
    """The result of a batch; `error` is set if no item succeeded."""

    job_id: str
    """The job."""

    status: Literal["success", "partial", "error"]
    """All, some or none of the items succeeded."""

    items: list[ItemSuccess | ItemPlan | ItemFailure]
    """One result per item, in the batch's order."""

    timings: dict[str, Annotated[int, Field(ge=0)]]
    """Milliseconds: total_ms."""

    warnings: list[str] = Field(default_factory=list)
    """Warnings about the whole batch."""

    error: JobError | None = None
    """Set if no item succeeded; the job is then FAILED."""

"""What Runpod puts around a job's input, progress and result: the bodies of its requests, its answers and its webhooks.

The worker sees of these only the job's input, its policy and its store. The models describe them for clients; they let
fields pass that Runpod may add.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from schemas.job import BatchJob, S3Config, SingleJob
from schemas.progress import Progress
from schemas.result import BatchResult, JobError, Plan, Success

SHORTEST_MS = {"executionTimeout": 5_000, "ttl": 10_000}
LONGEST_MS = 7 * 24 * 3600 * 1000
"""Runpod's limits of a policy."""


class JobStatus(StrEnum):
    """Runpod's names of a job's states."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


class Envelope(BaseModel):
    """A body that Runpod may extend."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, populate_by_name=True)


class Policy(Envelope):
    """Runpod's limits on a job, in milliseconds."""

    execution_timeout: Annotated[
        Annotated[int, Field(ge=SHORTEST_MS["executionTimeout"], le=LONGEST_MS)] | None,
        Field(alias="executionTimeout"),
    ] = None
    """Longest running time. Without it, the endpoint's own limit counts."""

    ttl: Annotated[int, Field(ge=SHORTEST_MS["ttl"], le=LONGEST_MS)] = 24 * 3600 * 1000
    """Lifetime from submission: after it, the job and its result are gone."""

    low_priority: Annotated[bool, Field(alias="lowPriority")] = False
    """Start no further worker for this job."""


class Request(Envelope):
    """The body of POST /run and /runsync."""

    input: SingleJob | BatchJob
    """The job."""

    policy: Policy | None = None
    """Limits on the job."""

    s3_config: Annotated[S3Config | None, Field(alias="s3Config")] = None
    """The job's own store, instead of the worker's."""

    webhook: str | None = None
    """Address to which the job's end is posted."""


class Taken(Envelope):
    """The answer of POST /run."""

    id: str
    """The job."""

    status: JobStatus
    """IN_QUEUE, as a rule."""


class FailedOutput(Envelope):
    """The output of a failed job; its error is beside it."""

    job_id: str
    """The job."""

    status: Literal["error"]
    """The job failed."""


class _State(Envelope):
    id: str
    """The job."""

    delay_time: Annotated[int | None, Field(alias="delayTime", ge=0)] = None
    """Milliseconds in the queue."""

    execution_time: Annotated[int | None, Field(alias="executionTime", ge=0)] = None
    """Milliseconds on a worker."""

    worker_id: Annotated[str | None, Field(alias="workerId")] = None
    """The worker."""


class InQueue(_State):
    """A job that waits for a worker."""

    status: Literal["IN_QUEUE"]
    """It waits."""


class InProgress(_State):
    """A job that runs."""

    status: Literal["IN_PROGRESS"]
    """It runs."""

    output: Progress | None = None
    """Its progress, once there is any."""


class Completed(_State):
    """A job with a result."""

    status: Literal["COMPLETED"]
    """It has ended."""

    output: Success | Plan | BatchResult
    """The result: of one video, of a dry run, of a batch."""


class Failed(_State):
    """A job without a result."""

    status: Literal["FAILED"]
    """It has ended."""

    error: JobError | str
    """Why it failed: the worker's error, as an object or as its JSON text; or Runpod's own, as plain text."""

    output: FailedOutput | BatchResult | None = None
    """What the worker said beside the error."""


class Cancelled(_State):
    """A job that was cancelled."""

    status: Literal["CANCELLED"]
    """It has ended."""


class TimedOut(_State):
    """A job that took longer than its executionTimeout."""

    status: Literal["TIMED_OUT"]
    """It has ended; POST /retry continues it."""

    error: str | None = None
    """Runpod's reason."""


class JobState(
    RootModel[
        Annotated[
            InQueue | InProgress | Completed | Failed | Cancelled | TimedOut,
            Field(discriminator="status"),
        ]
    ]
):
    """The answer of GET /status, POST /runsync, /cancel and /retry, and the body of a webhook."""


class Refusal(Envelope):
    """The answer to a request that the endpoint does not take."""

    error: Any
    """Why."""


class Health(Envelope):
    """The answer of GET /health."""

    jobs: dict[str, int]
    """Number of jobs by state: completed, failed, inProgress, inQueue, retried."""

    workers: dict[str, int]
    """Number of workers by state."""

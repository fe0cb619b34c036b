"""The surroundings of a job."""

from __future__ import annotations

from dataclasses import dataclass

from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.stop import Stop
from schemas import S3Config


@dataclass(frozen=True)
class JobContext:
    """The values that all videos of a job share.

    Attributes:
        job_id: id of the job.
        num_inline: number of videos that share the space of the job's result, at least 1.
        s3_config: the job's own store, if it names one.
        resources: the worker's resources.
        stop: is asked before every network evaluation and while data arrives.
    """

    job_id: str
    num_inline: int
    s3_config: S3Config | None
    resources: Resources
    stop: Stop

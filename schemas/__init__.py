"""The interface of the worker: a job's input, its progress, its result, and what Runpod puts around them."""

from schemas.addresses import check_address
from schemas.base import explain, sendable
from schemas.dub import Dub
from schemas.envelope import JobState, JobStatus, Request
from schemas.job import (
    DEFAULT_PREFIX,
    LONGEST_VIDEO,
    STORES,
    BatchItem,
    BatchJob,
    Lora,
    OutputConfig,
    RecipeName,
    S3Config,
    SingleJob,
    TtsAudio,
    check_safe_name,
    parse_input,
)
from schemas.progress import Progress, Stage
from schemas.result import (
    BatchResult,
    ErrorCode,
    Failure,
    ItemFailure,
    ItemPlan,
    ItemSuccess,
    JobError,
    Plan,
    RecipeCost,
    Success,
    Video,
)

__all__ = [
    "DEFAULT_PREFIX",
    "LONGEST_VIDEO",
    "STORES",
    "BatchItem",
    "BatchJob",
    "BatchResult",
    "Dub",
    "ErrorCode",
    "Failure",
    "ItemFailure",
    "ItemPlan",
    "ItemSuccess",
    "JobError",
    "JobState",
    "JobStatus",
    "Lora",
    "OutputConfig",
    "Plan",
    "Progress",
    "RecipeCost",
    "RecipeName",
    "Request",
    "S3Config",
    "SingleJob",
    "Stage",
    "Success",
    "TtsAudio",
    "Video",
    "check_address",
    "check_safe_name",
    "explain",
    "parse_input",
    "sendable",
]

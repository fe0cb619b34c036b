"""What a video costs: counted while its job runs, and logged in one line when it ends, however it ends.

The line counts what this worker has spent, so that a sum over all lines is the sum that was spent. A video that several
workers made one after the other has a line of each; its result, and the fields job_… of the lines, count them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from infinitetalk.worker.job.clock import StageClock
from infinitetalk.worker.release import release_of
from infinitetalk.worker.settings import Settings
from schemas import ErrorCode, JobError, Stage

if TYPE_CHECKING:
    from infinitetalk.generation.pipeline import Step
    from infinitetalk.worker.engine import Engine

Outcome = Literal["completed", "repeated", "planned", "failed", "timed_out", "cancelled", "handed_over"]

LINES: dict[Outcome, str] = {
    "completed": "job.completed",
    "repeated": "job.was_completed",
    "planned": "job.planned",
    "failed": "job.failed",
    "timed_out": "job.failed",
    "cancelled": "job.stopped",
    "handed_over": "job.stopped",
}
"""The event that is logged for each outcome."""


class JobEnd(BaseModel):
    """The `details` of the line that ends a video's job."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    outcome: Outcome
    """"completed", "repeated" (an earlier worker's result was sent once more), "planned" (a dry run), "failed",
    "timed_out", "cancelled", or "handed_over": left to the next worker, since this one ends."""

    recipe: str | None
    """Recipe by which the video is made; null if the job has the published defaults and its own values."""

    model: str | None
    """Name of the model; null if the job ended before it was known."""

    weights: str | None
    """Start of the SHA-256 that identifies the weights: checkpoint, LoRAs and voices; null as for `model`."""

    video_s: float
    """Seconds of video that this worker made: its finished chunks."""

    gpu: str | None
    """Name of the GPU, or "CPU"; null if the job ended before the libraries were loaded."""

    gpus: int | None
    """Number of GPUs that make a video together; null as for `gpu`."""

    gpu_seconds: float | None
    """Seconds from the job's begin to its end on this worker, times `gpus`; null as for `gpu`."""

    usd: float | None
    """Dollars for `gpu_seconds`; null without GPU_PRICE_PER_S."""

    evaluations: int
    """Network evaluations that this worker computed, those of an unfinished chunk included."""

    references_encoded: int
    """Chunks for which this worker encoded the picture or film; fewer than chunks where it kept what it had encoded."""

    job_gpu_seconds: float | None
    """Like `gpu_seconds`, of all workers that have made this video together."""

    job_usd: float | None
    """Dollars for `job_gpu_seconds`."""

    job_evaluations: int
    """Like `evaluations`, of all these workers together."""

    at_stage: Stage
    """Stage in which the job ended."""

    timings: dict[str, int]
    """Milliseconds of this worker: <stage>_ms for each stage, the one in which the job ended included, and total_ms."""

    worker: str
    """The worker's version and git commit."""

    code: ErrorCode | None
    """Error code; null unless the job failed or timed out."""

    message: str | None
    """The error's message for the client; null as for `code`."""

    retryable: bool | None
    """Whether the same job may succeed later; null as for `code`."""


class Spent(BaseModel):
    """What workers have spent on a video.

    Attributes:
        timings: milliseconds: <stage>_ms for each stage, and total_ms.
        gpu_seconds: seconds of all GPUs together.
        evaluations: network evaluations, those of chunks that were lost included.
    """

    model_config = ConfigDict(frozen=True)

    timings: dict[str, int] = {}
    gpu_seconds: float = 0.0
    evaluations: int = 0

    def __add__(self, other: Spent) -> Spent:
        """The sum, stage by stage."""
        stages = [*self.timings, *(name for name in other.timings if name not in self.timings)]
        return Spent(
            timings={name: self.timings.get(name, 0) + other.timings.get(name, 0) for name in stages},
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            evaluations=self.evaluations + other.evaluations,
        )


class Bill:
    """Counts what this worker spends on one video.

    Args:
        clock: times the video's stages.
        settings: the worker's settings.

    Attributes:
        clock: as given.
        recipe: name of the recipe, once it is chosen.
        model: name of the model, once it is found.
        weights: hash of the weights, once it is known.
        video_s: seconds of video in the chunks that this worker finished.
        references_encoded: chunks for which the picture or film was encoded.
        earlier: what other workers have spent on the same video.
    """

    def __init__(self, clock: StageClock, settings: Settings) -> None:
        self.clock = clock
        self.recipe: str | None = None
        self.model: str | None = None
        self.weights: str | None = None
        self.video_s = 0.0
        self.references_encoded = 0
        self.earlier = Spent()
        self._settings = settings
        self._evaluations = 0
        self._gpu: str | None = None
        self._gpus: int | None = None

    def use(self, engine: Engine) -> None:
        """Takes the name and the number of the GPUs."""
        self._gpu, self._gpus = engine.devices.name, engine.devices.count

    def count_step(self, step: Step) -> None:
        """Counts a sampling step; called by one thread."""
        self._evaluations += step.evaluations

    @property
    def spent(self) -> Spent:
        """What this worker has spent so far; without GPUs in use, no GPU seconds."""
        timings = self.clock.timings()
        gpu_seconds = timings["total_ms"] / 1000 * (self._gpus or 0)
        return Spent(timings=timings, gpu_seconds=gpu_seconds, evaluations=self._evaluations)

    @property
    def job_spent(self) -> Spent:
        """What all workers have spent on the video so far."""
        return self.earlier + self.spent

    def end(self, outcome: Outcome, error: JobError | None = None) -> JobEnd:
        """The line's `details`.

        Args:
            error: the client's error, if the job failed.
        """
        spent = self.spent
        together = self.earlier + spent
        is_known = self._gpus is not None
        return JobEnd(
            outcome=outcome,
            recipe=self.recipe,
            model=self.model,
            weights=self.weights,
            video_s=round(self.video_s, 3),
            gpu=self._gpu,
            gpus=self._gpus,
            gpu_seconds=round(spent.gpu_seconds, 3) if is_known else None,
            usd=self._usd(spent) if is_known else None,
            evaluations=spent.evaluations,
            references_encoded=self.references_encoded,
            job_gpu_seconds=round(together.gpu_seconds, 3) if is_known else None,
            job_usd=self._usd(together) if is_known else None,
            job_evaluations=together.evaluations,
            at_stage=self.clock.stage if error is None else error.at_stage,
            timings=spent.timings,
            worker=release_of(self._settings),
            code=None if error is None else error.code,
            message=None if error is None else error.message,
            retryable=None if error is None else error.retryable,
        )

    def log(self, outcome: Outcome, logger: Any, error: JobError | None = None, exc_info: Any = None) -> None:
        """Logs the line.

        Args:
            error: the client's error, if the job failed.
            exc_info: the exception whose traceback is logged, if any.
        """
        ended = self.end(outcome, error)
        write = logger.info if error is None else logger.error
        write(
            LINES[outcome],
            lat_ms=ended.timings["total_ms"],
            details=ended.model_dump(mode="json"),
            **({} if exc_info is None else {"exc_info": exc_info}),
        )

    def _usd(self, spent: Spent) -> float | None:
        usd = self._settings.price_of(spent.gpu_seconds)
        return None if usd is None else round(usd, 6)

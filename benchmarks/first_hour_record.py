"""What the hour has found so far: report.json, from which the command goes on and from which report.html is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

FILE = "report.json"

Status = Literal["waiting", "running", "done", "failed", "left out", "stopped", "lost"]
"""waiting: not begun. running: begun, in this file only while the command runs or after it was killed. done: ended
well. failed: ended with an error, or not as expected. left out: not begun, for a reason. stopped: ended by the limits
or by Ctrl-C. lost: the endpoint no longer answered; the job may go on."""

OPEN: tuple[Status, ...] = ("waiting", "running", "stopped", "lost")
"""What is done when the command goes on."""


class Model(BaseModel):
    """A part of the report; unknown fields are errors."""

    model_config = {"extra": "forbid", "use_attribute_docstrings": True}


class Limits(Model):
    """What the hour may take in all, earlier runs of the command included."""

    minutes: float
    dollars: float


class Machine(Model):
    """Where the videos are made."""

    form: Literal["machine", "endpoint"]
    """"machine": this command started the worker. "endpoint": it only sends jobs."""

    gpu: str | None = None
    """Name of the GPU, as CUDA says it, or as --gpu does; null: none, or not known."""

    card: str | None = None
    """The card of the worker's table of seconds that stands for it; null: none does."""

    factor: float = 1.0
    """How many times the card's seconds it is taken to need."""

    gpus: int = 1
    """Number of GPUs that make a video together."""

    price_per_s: float
    """Dollars for a second of the machine."""

    price_from: str
    """Where the price comes from."""

    about: str | None = None
    """The machine in words; only of the one that this command ran on."""

    model: str | None = None
    """The model that makes the videos."""

    worker: str | None = None
    """The worker's version and commit."""

    settings: dict[str, str] = Field(default_factory=dict)
    """The worker's settings that decide how videos are made, as far as they are set."""


class Medium(Model):
    """A file that is sent."""

    name: str
    content: str
    origin: str
    """Where it comes from, and on what terms."""


class Step(Model):
    """Something other than a job."""

    name: str
    title: str
    status: Status = "waiting"
    reason: str | None = None
    seconds: float | None = None
    figures: dict[str, Any] = Field(default_factory=dict)
    """What was found, by name: numbers, words, lists."""


class Series(Model):
    """A mouth and its speech, 25 values a second."""

    opening: list[float]
    loudness: list[float]


class Video(Model):
    """A finished video, measured."""

    item: str | None = None
    """The item of a batch."""

    file: str
    """Its name below the folder of the report."""

    width: int
    height: int
    num_frames: int
    duration_s: float
    quality: dict[str, float | None] = Field(default_factory=dict)
    """Figures of docs/measures.md."""

    missed: list[str] = Field(default_factory=list)
    """Figures beyond their bounds."""

    unmeasured: dict[str, str] = Field(default_factory=dict)
    """Why figures are null."""

    series: list[Series] = Field(default_factory=list)
    """One for each mouth."""

    pictures: list[str] = Field(default_factory=list)
    """First, middle and last frame: JPEG in base64."""


class Job(Model):
    """A job and what came of it."""

    name: str
    group: Literal["recipes", "as sent", "kinds"]
    """"recipes": the same video by each recipe. "as sent": a kind of job with its own parameters. "kinds": a kind of
    job by a recipe."""

    kind: str
    recipe: str | None = None
    """null: the worker's default, and the job's own parameters."""

    status: Status = "waiting"
    reason: str | None = None
    job_id: str | None = None
    estimate_s: float | None = None
    """By the worker's dry run."""

    estimate_from: str | None = None
    estimate_usd: float | None = None
    """`estimate_s` at the hour's price."""

    seconds: float | None = None
    """Execution, as the endpoint says it."""

    waited_s: float | None = None
    """In the queue, with the start of a worker, if one had to start."""

    usd: float | None = None
    """`seconds` at the hour's price."""

    minute_s: float | None = None
    """Seconds for a minute of such video, if each second of it takes as long."""

    minute_usd: float | None = None
    ratio: float | None = None
    """`seconds` over `estimate_s`."""

    evaluations: int | None = None
    evaluations_skipped: int | None = None
    evaluation_s: float | None = None
    """Mean seconds of an evaluation: sampling over evaluations."""

    evaluation_estimate_s: float | None = None
    """The same by the table, in 16 bits or widened 8 bits, nothing streamed."""

    memory_mode: str | None = None
    timings: dict[str, int] = Field(default_factory=dict)
    """Milliseconds by stage."""

    warnings: list[str] = Field(default_factory=list)
    videos: list[Video] = Field(default_factory=list)


class Part(Model):
    """One part of the work, estimated and measured."""

    name: str
    unit: Literal["s", "GiB"]
    estimated: float
    measured: float
    ratio: float
    """Measured over estimated: more than 1 where the estimate is too hopeful."""


class Summary(Model):
    """A recipe, from its job of the group "recipes"."""

    recipe: str
    minute_s: float
    minute_usd: float
    ratio: float | None = None
    table_minute_usd: float | None = None
    """The documents' estimate for this card, of 640×640; null if they have none."""

    quality: dict[str, float | None]
    missed: list[str]


class Advice(Model):
    """A setting, and why."""

    setting: str
    value: str
    reason: str


class Spent(Model):
    """What the hour has taken, in all runs of the command."""

    seconds: float = 0.0
    usd: float = 0.0


class Report(Model):
    """All of it. The file has no key and no address of the endpoint."""

    format: Literal[1] = 1
    began: str
    """Date and time, UTC."""

    version: str
    """Of this repository."""

    limits: Limits
    machine: Machine
    video_s: float
    """Seconds of video by which recipes are compared."""

    spent: Spent = Field(default_factory=Spent)
    ended: str = "running"
    """How the last run of the command ended, in words."""

    media: list[Medium] = Field(default_factory=list)
    steps: list[Step] = Field(default_factory=list)
    jobs: list[Job] = Field(default_factory=list)
    parts: list[Part] = Field(default_factory=list)
    recipes: list[Summary] = Field(default_factory=list)
    advice: list[Advice] = Field(default_factory=list)

    def step(self, name: str) -> Step:
        """A step by its name."""
        return next(step for step in self.steps if step.name == name)

    @property
    def is_published(self) -> bool:
        """Whether the videos were made by the published weights, and not by an embedded model."""
        return self.machine.model is not None and not self.machine.model.startswith("tiny")


def save(report: Report, folder: Path) -> None:
    """Writes report.json; at any moment the file is whole."""
    scratch = folder / f".{FILE}.part"
    scratch.write_text(report.model_dump_json(indent=1), encoding="utf-8")
    scratch.replace(folder / FILE)


def load(path: Path) -> Report:
    """Reads a report.

    Raises:
        OSError: the file cannot be read.
        pydantic.ValidationError: it is no report.
    """
    return Report.model_validate_json(path.read_bytes())

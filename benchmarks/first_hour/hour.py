"""Runs what is open of the hour: steps, then jobs, within the limits; the report is on disk after each of them."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from infinitetalk_client import EndpointError, InfiniteTalkError
from infinitetalk_client.endpoint import job_error
from PIL import Image

from benchmarks.first_hour.compare import evaluation_estimate, tell, usual_ratio
from benchmarks.first_hour.endpoint import Follower, LostError, OverLimitError
from benchmarks.first_hour.jobs import COMPARED, inputs_of, jobs_for, spoken_by
from benchmarks.first_hour.media import Media, prepare
from benchmarks.first_hour.page import write_page
from benchmarks.first_hour_record import OPEN, Job, Report, Series, Step, Video, save
from infinitetalk.errors import FacesSetupError
from infinitetalk.generation.chunks import ChunkGrid
from infinitetalk.media.decode import read_waveform
from infinitetalk.recipes import RECIPES
from tools.measures.quality import measure

LIMITS = "the limits: "
"""How the reason of a job begins that was left out for them; it is looked at again with greater limits."""

LEAST_START_S = 5.0
"""An endpoint's first job that waits longer than this has waited for the start of a worker."""

PICTURE_WIDTH = 240
LATENT_STRIDE, TOKEN_PIXELS = 4, 16
"""Frames of a latent frame, and pixels of a token's side, of the published model."""

Work = Callable[["Hour", Step], None]
"""A step's work: fills its figures, and raises `StepError` if something is not as it should be."""


class StepError(Exception):
    """A step ended with a finding that is a failure; its text is the reason."""


class LeftOutError(Exception):
    """A step cannot be done here; its text is the reason."""


class Hour:
    """One run of the command.

    Args:
        report: what is known; changed and saved as the run goes on.
        folder: of report.json, report.html, videos and media.
        works: step → its work.
        follower: sends jobs; None until a step sets it.
        pays_always: whether the machine costs from the beginning to the end, and not only during jobs.
        chosen: the groups of jobs and the recipes that are wanted; empty: all.
        show: shows what is done: a text, and per cent of the current job.
    """

    def __init__(
        self,
        report: Report,
        folder: Path,
        works: dict[str, Work],
        follower: Follower | None,
        pays_always: bool,
        chosen: tuple[Sequence[str], Sequence[str]] = ((), ()),
        show: Callable[[str, float], None] = lambda text, pct: None,
    ) -> None:
        self.report = report
        self.folder = folder
        self.follower = follower
        self.show = show
        self._works = works
        self._groups, self._recipes = chosen
        self._earlier = report.spent.model_copy()
        self._began = time.monotonic()
        self._paid_s = 0.0
        self._pays_from: float | None = self._began if pays_always else None
        #: Seconds for which the last dry run waited in the queue.
        self.waited_s: float | None = None
        self._media: Media | None = None
        self._named: dict[Path, str] = {}
        (folder / "videos").mkdir(parents=True, exist_ok=True)

    def run(self) -> bool:
        """Does what is open; returns whether all of it was done.

        Raises:
            LostError: the endpoint no longer answers; what was done is in the report.
            KeyboardInterrupt: likewise.
        """
        for step in self.report.steps:
            # Without a plan there are no jobs: a step that failed is tried again.
            if step.status in (*OPEN, "failed"):
                self._do(step)
            if step.name == "checks" and step.status == "failed":
                # The worker would not start, or would make videos by another model: that is worth no money.
                return False
        for job in self.report.jobs:
            if job.status in OPEN or (job.status == "left out" and (job.reason or "").startswith(LIMITS)):
                self._run(job)
        is_whole = all(job.status in ("done", "failed") for job in self.report.jobs)
        return is_whole and all(step.status in ("done", "left out") for step in self.report.steps)

    def end(self, how: str) -> None:
        """Writes both files for the last time in this run."""
        self.report.ended = how
        self.keep()

    def keep(self) -> None:
        """Writes report.json and report.html."""
        self._count()
        tell(self.report)
        save(self.report, self.folder)
        write_page(self.report, self.folder)

    def left_s(self) -> float:
        """Seconds that the limits leave."""
        self._count()
        spent, limits, price = self.report.spent, self.report.limits, self.report.machine.price_per_s
        by_time = 60 * limits.minutes - spent.seconds
        return min(by_time, (limits.dollars - spent.usd) / price) if price else by_time

    def _count(self) -> None:
        now = time.monotonic()
        paying_s = 0.0 if self._pays_from is None else now - self._pays_from
        self.report.spent.seconds = self._earlier.seconds + now - self._began
        self.report.spent.usd = self._earlier.usd + (self._paid_s + paying_s) * self.report.machine.price_per_s

    @contextmanager
    def paying(self) -> Iterator[None]:
        """Counts what the endpoint's worker costs meanwhile."""
        if self._pays_from is not None:
            yield
            return
        self._pays_from = time.monotonic()
        try:
            yield
        finally:
            self._paid_s += time.monotonic() - self._pays_from
            self._pays_from = None

    def _do(self, step: Step) -> None:
        if self.left_s() <= 0:
            step.status, step.reason = "waiting", f"{LIMITS}nothing is left"
            return
        self.show(step.title, 0.0)
        step.status, step.reason, step.figures = "running", None, {}
        self.keep()
        began = time.monotonic()
        with self._ending(step):
            try:
                with self.paying():
                    self._works[step.name](self, step)
            finally:
                step.seconds = time.monotonic() - began
            step.status = "done"

    def _run(self, job: Job) -> None:
        """Runs a job, if the limits allow."""
        left_s = self.left_s()
        expected_s = (job.estimate_s or 0.0) * (usual_ratio(self.report) or 1.0)
        if left_s <= expected_s:
            needs = f"about {expected_s:.0f} s, " if expected_s else ""
            job.status, job.reason = "left out", f"{LIMITS}it needs {needs}and {max(left_s, 0):.0f} s are left"
            self.keep()
            return
        self.show(job.name, 0.0)
        with self._ending(job):
            with self.paying():
                answer = self._answer(job)
            self._take(job, answer)

    @contextmanager
    def _ending(self, part: Step | Job) -> Iterator[None]:
        """Says as the part's status and reason what ended it early, and keeps the report however it ends.

        Raises:
            LostError, KeyboardInterrupt: they end the run too; whatever else it is, what follows is done.
        """
        try:
            yield
        except LeftOutError as error:
            part.status, part.reason = "left out", str(error)
        except (StepError, InfiniteTalkError) as error:
            part.status, part.reason = "failed", str(error)
        except OverLimitError:
            part.status, part.reason = "stopped", f"{LIMITS}used up while it ran"
        except LostError as error:
            part.status, part.reason = "lost", str(error)
            raise
        except KeyboardInterrupt:
            part.status, part.reason = "stopped", self._interrupted()
            raise
        except Exception as error:
            part.status, part.reason = "failed", f"{type(error).__name__}: {error}"
        finally:
            self.keep()

    def _answer(self, job: Job) -> dict[str, Any]:
        """The endpoint's last answer about a job, which is sent unless the endpoint knows it from before."""
        follower = self.following
        if job.job_id is None or not follower.knows(job.job_id, self.left_s):
            job.job_id = follower.send(self.input_of(job))
        job.status, job.reason = "running", None
        self.keep()
        return follower.follow(job.job_id, self.left_s, lambda stage, pct: self.show(f"{job.name}: {stage}", pct))

    def _interrupted(self) -> str:
        """Cancels the job that runs, so that it costs no more; returns what is told of the interruption."""
        try:
            self.following.cancel_running()
        except LostError as error:
            return f"Ctrl-C; the job could not be cancelled: {error}"
        return "Ctrl-C"

    @property
    def following(self) -> Follower:
        """The follower, once there is an endpoint."""
        assert self.follower is not None
        return self.follower

    @property
    def media(self) -> Media:
        """The media, as the model needs them; uploaded on first use."""
        if self._media is None:
            is_drawn = not self.report.is_published
            self._media = prepare(self.folder / "media", is_drawn, self.report.video_s)
            self.report.media = self._media.described
            files = [self._media.single, self._media.pair, self._media.video, *self._media.voices.values()]
            self._named = {file: name for file in files for name in self.following.client.media(file)}
        return self._media

    def use_media_again(self) -> None:
        """Chooses and uploads the media anew, once the model is known."""
        self._media = None

    def input_of(self, job: Job) -> dict[str, Any]:
        """A job's input, without output_config."""
        media = self.media
        return inputs_of(job, media, self._named, self.report.video_s)

    def plan(self, job: Job) -> list[dict[str, Any]]:
        """The plans of a job's videos, by a dry run.

        Raises:
            StepError: it is refused.
            InfiniteTalkError, LostError, OverLimitError: as they say.
        """
        given = self.input_of(job)
        items = given.get("batch", [given])
        for item in items:
            item["dry_run"] = True
        answer = self.following.follow(self.following.send(given), self.left_s)
        if answer["status"] != "COMPLETED":
            raise StepError(f"{job.name}: {error_text(answer)}")
        self.waited_s = _seconds(answer.get("delayTime"))
        output = answer["output"]
        return [plan for plan in output.get("items", [output]) if plan["status"] == "planned"]

    def wanted(self, recipes: Sequence[str]) -> list[Job]:
        """The jobs to run, by the recipes that the worker has, the cheapest first."""
        known = [name for name in recipes if not self._recipes or name in self._recipes]
        return [job for job in jobs_for(known) if not self._groups or job.group in self._groups]

    def _take(self, job: Job, answer: dict[str, Any]) -> None:
        """Takes a job's end: figures, videos, quality."""
        job.waited_s = _seconds(answer.get("delayTime"))
        job.seconds = _seconds(answer.get("executionTime"))
        if answer["status"] != "COMPLETED":
            job.status, job.reason = "failed", error_text(answer)
            return
        output = answer["output"]
        made = made_of(output, spoken_by(job, self.media))
        broken = [item for item in output.get("items", []) if item["status"] == "error"]
        self._count_figures(job, [item for item, _ in made])
        job.videos = []
        for item, spoken in made:
            self.show(f"{job.name}: measuring", 100.0)
            job.videos.append(self._video(job, item, spoken))
        job.status = "failed" if broken else "done"
        job.reason = "; ".join(f"{item['item_id']}: {item['error']['message']}" for item in broken) or None

    def _count_figures(self, job: Job, items: Sequence[dict[str, Any]]) -> None:
        price, video_s = self.report.machine.price_per_s, sum(item["video"]["duration_s"] for item in items)
        first = items[0]
        job.evaluations = sum(item["evaluations"] for item in items)
        job.evaluations_skipped = sum(item["evaluations_skipped"] for item in items)
        job.memory_mode = first["memory_mode"]
        job.timings = {stage: sum(item["timings"].get(stage, 0) for item in items) for stage in first["timings"]}
        job.warnings = [warning for item in items for warning in item["warnings"]]
        if job.seconds is None:
            job.seconds = job.timings["total_ms"] / 1000
        job.usd = job.seconds * price
        job.minute_s, job.minute_usd = (60 * value / video_s for value in (job.seconds, job.usd))
        job.ratio = job.seconds / job.estimate_s if job.estimate_s else None
        job.evaluation_s = job.timings["sampling_ms"] / 1000 / max(job.evaluations - job.evaluations_skipped, 1)
        video, frames = first["video"], first["params"]["frame_num"]
        picture = (video["width"] // TOKEN_PIXELS) * (video["height"] // TOKEN_PIXELS)
        tokens = (1 + (frames - 1) // LATENT_STRIDE) * picture
        speakers = len(spoken_by(job, self.media)[0] or [None])
        job.evaluation_estimate_s = evaluation_estimate(self.report, job, tokens, speakers)

    def _video(self, job: Job, item: dict[str, Any], spoken: Sequence[Path] | None) -> Video:
        """Fetches and measures a video."""
        name = f"{job.name} {item.get('item_id', '')}".strip().replace(" ", "-")
        file = self.following.client.download(item, self.folder / "videos" / f"{name}.mp4")
        shown = item["video"]
        video = Video(
            item=item.get("item_id"),
            file=f"videos/{file.name}",
            **{field: shown[field] for field in ("width", "height", "num_frames", "duration_s")},
        )
        voices = None if spoken is None else [read_waveform(path) for path in spoken]
        try:
            quality = measure(file, voices, borders_of(item), is_drawn=not self.report.is_published)
        except (FacesSetupError, ValueError) as error:
            video.unmeasured = {"all": str(error)}
            return video
        video.quality, video.missed, video.unmeasured = quality.figures, quality.missed, quality.left_out
        video.series = [
            Series(opening=_rounded(mouth.opening), loudness=_rounded(mouth.loudness)) for mouth in quality.mouths
        ]
        video.pictures = [_jpeg(frame) for frame in quality.watched.shown]
        return video


def borders_of(result: dict[str, Any]) -> list[int]:
    """The first frames of a result's chunks but the first, by the parameters that it names."""
    params, recipe = result["params"], result["params"].get("recipe")
    family = RECIPES[recipe or "quality"].family
    grid = ChunkGrid(params["frame_num"], params["motion_frame"], params["crossfade_frame"], family)
    plans = grid.plans(result["video"]["num_frames"])[1:]
    return [plan.start + plan.num_motion_frames for plan in plans]


def made_of(
    output: dict[str, Any], voices: Sequence[list[Path] | None]
) -> list[tuple[dict[str, Any], list[Path] | None]]:
    """The videos of a result that were made, each with its voices.

    Args:
        voices: of all videos that were asked for, those that failed included.
    """
    items = output.get("items", [output])
    return [(item, spoken) for item, spoken in zip(items, voices, strict=True) if item["status"] == "success"]


def error_text(answer: dict[str, Any]) -> str:
    """Why a job has not succeeded, by the endpoint's answer."""
    return str(job_error(answer))


def planning(hour: Hour, step: Step) -> None:
    """Plans every job by a dry run: the model, the recipes, estimates."""
    report = hour.report
    # Parameters of its own would be those of every recipe.
    (plan,) = hour.plan(Job(name="the recipes", group="recipes", kind=COMPARED))
    report.machine.model, report.machine.worker = plan["model"], plan["worker"]
    if report.machine.form == "endpoint" and (waited_s := hour.waited_s or 0.0) > LEAST_START_S:
        step.figures["start_s"] = waited_s
    step.figures["estimate_from"] = plan.get("estimate_from")
    costs = sorted(plan["recipes"], key=lambda cost: (cost.get("estimate_s") or 0.0, cost["evaluations"]))
    step.figures["recipes"] = [cost["recipe"] for cost in costs]
    hour.use_media_again()
    known = {job.name: job for job in report.jobs}
    report.jobs = [known.get(job.name, job) for job in hour.wanted(step.figures["recipes"])]
    refused = {}
    for number, job in enumerate(report.jobs):
        hour.show(f"planning {job.name}", 100 * number / len(report.jobs))
        try:
            plans = hour.plan(job)
        except (StepError, EndpointError) as error:
            refused[job.name] = str(error)
            continue
        known_s = [found["estimate_s"] for found in plans if found.get("estimate_s") is not None]
        if plans and len(known_s) == len(plans):
            job.estimate_s = float(sum(known_s))
            job.estimate_usd = job.estimate_s * report.machine.price_per_s
            job.estimate_from = plans[0]["estimate_from"]
    step.figures["refused"] = refused


def cancelling(hour: Hour, step: Step) -> None:
    """Cancels a job while it runs, and sends it again."""
    job = next(jobs_for([]))
    follower, given = hour.following, hour.input_of(job)

    def is_sampling(answer: dict[str, Any]) -> bool:
        output = answer.get("output")
        return isinstance(output, dict) and output.get("stage") == "sampling"

    job_id = follower.send(given)
    follower.follow(job_id, hour.left_s, lambda stage, pct: hour.show(f"to be cancelled: {stage}", pct), is_sampling)
    began = time.monotonic()
    state = follower.cancel(job_id)
    if state != "CANCELLED":
        raise StepError(f"the job that was to be cancelled is {state}: it had ended before")
    step.figures["cancel_answered_s"] = time.monotonic() - began
    answer = follower.follow(
        follower.send(given), hour.left_s, lambda stage, pct: hour.show(f"sent again: {stage}", pct)
    )
    if answer["status"] != "COMPLETED":
        raise StepError(f"the job that was sent again: {error_text(answer)}")
    step.figures["waited_s"] = _seconds(answer.get("delayTime"))
    step.figures["sent_again_s"] = _seconds(answer.get("executionTime"))


def _seconds(milliseconds: Any) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _rounded(series: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in series]


def _jpeg(frame: np.ndarray) -> str:
    image = Image.fromarray(frame)
    height = round(frame.shape[0] * PICTURE_WIDTH / frame.shape[1])
    file = io.BytesIO()
    image.resize((PICTURE_WIDTH, height)).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()

"""One job from payload to result, stage by stage."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from infinitetalk.ahead import run_ahead
from infinitetalk.chunks import fade_length, usable_rows
from infinitetalk.encode import PartEncoder, join_parts, sound_bytes, write_thumbnail
from infinitetalk.errors import GenerationStopped
from infinitetalk.media import read_sound, sound_seconds
from infinitetalk.pipeline import Chunk, Step
from infinitetalk.runtime.device_errors import as_library_error
from infinitetalk.speech import (
    QUIET_LUFS,
    SAMPLING_RATE,
    SILENCE_LUFS,
    TARGET_LUFS,
    VIDEO_FPS,
    arrange_tracks,
    measure_loudness,
    mix_tracks,
    normalise_loudness,
)
from infinitetalk.worker.engine import (
    Engine,
    Overlap,
    Request,
    negative_prompt_of,
    region_overlaps,
    speaker_regions,
)
from infinitetalk.worker.errors import (
    TELLS_OF_WORKER,
    MachineError,
    WorkerError,
    is_device_error,
    is_disk_full,
    is_expected,
    is_machine_error,
    job_error,
)
from infinitetalk.worker.fetch import Media, OnBytes, Wanted, fetch_all, naming
from infinitetalk.worker.fitness import machine_problem
from infinitetalk.worker.job.advice import cut_prompts, cut_speech, flat_chunks, shared_regions, unused_fields
from infinitetalk.worker.job.batch import run_batch
from infinitetalk.worker.logs import job_logger
from infinitetalk.worker.policy import policy_warnings
from infinitetalk.worker.preview import HlsPreview, Preview
from infinitetalk.worker.progress import Report
from infinitetalk.worker.resume import (
    THUMBNAIL_FILE,
    JobStates,
    Part,
    Rendering,
    TaskState,
    part_file,
    rendering_fingerprint,
    request_fingerprint,
    seed_of,
)
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from infinitetalk.worker.storage import Artifacts, S3Store, Store, VolumeStore, make_store
from schemas import (
    BatchItem,
    BatchJob,
    BatchResult,
    ErrorCode,
    Failure,
    ItemFailure,
    ItemPlan,
    ItemSuccess,
    JobError,
    OutputConfig,
    Plan,
    S3Config,
    SingleJob,
    Stage,
    Success,
    Video,
    check_safe_name,
    explain,
    parse_input,
    sendable,
)

MEDIA_FIELDS = ("cond_video", "cond_audio", "mask")
PACKAGES = tuple(Path(__file__).parents[3] / name for name in ("infinitetalk", "schemas"))
VERSIONED = ("torch", "diffusers", "transformers", "kokoro", "av", "runpod")
AFTER_SAMPLING = (Stage.DECODE, Stage.MUX, Stage.UPLOAD, Stage.COMPLETED)
"""Stages short enough to report no time left."""

STEP_DISTILLED = ("fusionx", "lightx2v")
"""In the names of LoRAs that make few steps enough, and guidance too much."""

FEW_STEPS = 12
"""Too few for the model as it was trained."""

MIN_SPEECH_FRAMES = 5
SPOKEN_CHARACTERS_PER_S = 15.0
"""Of English text, roughly."""

TRAINED_SPEAKERS = 2


R = TypeVar("R", Success | Plan | Failure, BatchResult)


class StageClock:
    """Knows which stage a job is in, how long each has taken, and reports it."""

    def __init__(self, report: Report) -> None:
        self.stage = Stage.VALIDATION
        self.eta_s = 0.0
        self._has_more = True
        self._preview: dict[str, str] = {}
        self._report_progress = report
        self._begin = self._since = time.monotonic()
        self._seconds: dict[Stage, float] = {stage: 0.0 for stage in Stage if stage is not Stage.COMPLETED}
        report(self.stage)

    def has_preview(self, field: str, value: str) -> None:
        """From now on reports say where the preview is."""
        self._preview = {field: value}

    def _report(
        self,
        stage: Stage,
        fraction: float = 0.0,
        eta_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        self._report_progress(stage, fraction, eta_s, details, self._preview)

    def enter(self, stage: Stage) -> None:
        """Goes to another stage and reports it."""
        self.count_towards(stage)
        self._report(stage, eta_s=0.0 if stage in AFTER_SAMPLING else None)

    def begin_sampling(self, num_done: int = 0) -> None:
        """Enters sampling, from which on the time left is known; `num_done` chunks are there already."""
        self.enter(Stage.SAMPLING)
        self._sampling_since = self._since
        self._chunks_before = num_done

    def end_step(self, step: Step) -> None:
        """Counts a sampling step; after a chunk's last one its frames are decoded."""
        done = (step.chunk - 1) * step.num_steps + step.step
        total = step.num_chunks * step.num_steps
        done_here = done - self._chunks_before * step.num_steps
        self.eta_s = (time.monotonic() - self._sampling_since) / done_here * (total - done)
        details = {"chunk": step.chunk, "num_chunks": step.num_chunks, "step": step.step, "num_steps": step.num_steps}
        self._report(Stage.SAMPLING, done / total, round(self.eta_s, 1), details)
        if step.step == step.num_steps:
            # While chunks follow, their sampling goes on as far as the client is concerned.
            self._has_more = step.chunk < step.num_chunks
            (self.count_towards if self._has_more else self.enter)(Stage.DECODE)

    def count_bytes(self, done: int, total: int | None) -> None:
        """Reports bytes that have been fetched or stored, of all where that is known."""
        details = {"bytes": done} | ({} if total is None else {"total_bytes": total})
        fraction = min(done / total, 1.0) if total else 0.0
        self._report(self.stage, fraction, 0.0 if self.stage in AFTER_SAMPLING else None, details)

    def next_chunk(self) -> None:
        """Goes back to sampling after a chunk's frames are decoded, unless it was the last."""
        if self._has_more:
            self.count_towards(Stage.SAMPLING)

    def timings(self) -> dict[str, int]:
        """Milliseconds of each stage so far, and of all."""
        milliseconds = {f"{stage}_ms": round(seconds * 1000) for stage, seconds in self._seconds.items()}
        return milliseconds | {"total_ms": round((time.monotonic() - self._begin) * 1000)}

    def count_towards(self, stage: Stage) -> None:
        """Lets time from now on count towards a stage, without reporting it."""
        now = time.monotonic()
        self._seconds[self.stage] += now - self._since
        self.stage, self._since = stage, now


@dataclass(frozen=True)
class JobMedia:
    """A job's media as local files.

    Attributes:
        source: picture or video of the speakers.
        speech: of each speaker; None for a silent one.
        masks: of each speaker, where the job has masks.
        warnings: what is lost of them, as far as they have been read.
    """

    source: Media
    speech: list[Media | None]
    masks: list[Media] | None
    warnings: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The files, in a fixed order."""
        media = [self.source, *self.speech, *(self.masks or [])]
        return [medium.path for medium in media if medium is not None]


@dataclass(frozen=True)
class JobContext:
    """What the videos of a job share.

    Attributes:
        job_id: the job.
        num_inline: how many videos share the room of the job's result, 1 where none does.
        s3_config: the job's own store, where it names one.
        settings, engine, states: of the worker.
        stop: asked before every network evaluation and while data arrives.
    """

    job_id: str
    num_inline: int
    s3_config: S3Config | None
    settings: Settings
    engine: Engine
    states: JobStates
    stop: Stop


@dataclass(frozen=True)
class Task:
    """One video to make.

    Attributes:
        context: of the job that it belongs to.
        item_id: of a batch, which of its items; None for a job of its own.
        job: the parameters.
        store: where the result goes.
    """

    context: JobContext
    item_id: str | None
    job: SingleJob
    store: Store

    @property
    def name(self) -> str:
        """Of the files that the task leaves, without extension."""
        job_id = self.context.job_id
        return job_id if self.item_id is None else f"{job_id}-{self.item_id}"


def run_job(
    payload: dict[str, Any], settings: Settings, engine: Engine, states: JobStates, report: Report, stop: Stop
) -> dict[str, Any]:
    """Run one job as the queue hands it over; whatever goes wrong becomes a coded failure.

    Args:
        payload: `id`, `input` and, where the job names its own store, `s3Config`.
        states: what is kept of jobs; the caller closes this one's.
        report: told where the job is.
        stop: asked before every network evaluation and while data arrives.

    Returns:
        `schemas.Success`, `schemas.Failure` or, for a batch, `schemas.BatchResult`, as JSON types.

    Raises:
        GenerationStopped: the job was cancelled, or is left to the next worker.
    """
    # An id is refused further down, but the refusal itself must be fit to be sent.
    job_id = sendable(str(payload["id"]))
    logger = job_logger(job_id)
    clock = StageClock(report)
    try:
        job, s3_config = parse_payload(job_id, payload, settings)
    except Exception as error:
        return as_json(Failure(job_id=job_id, error=_failed(error, clock, logger)))
    context = JobContext(job_id, count_inline(job), s3_config, settings, engine, states, stop)
    concerns = policy_warnings(payload.get("policy"))
    try:
        if isinstance(job, SingleJob):
            return as_json(with_warnings(run_single(context, None, job, clock), concerns))

        def run_item(item: BatchItem, report: Report) -> ItemSuccess | ItemPlan | ItemFailure:
            with_store = item.model_copy(update={"output_config": item.output_config or job.output_config})
            made = run_single(context, item.id, with_store, StageClock(report))
            kinds: dict[type, type[ItemSuccess | ItemPlan | ItemFailure]]
            kinds = {Success: ItemSuccess, Plan: ItemPlan, Failure: ItemFailure}
            return kinds[type(made)].model_validate(dict(made) | {"item_id": item.id})

        result = with_warnings(run_batch(job_id, job, run_item, report), concerns)
    except GenerationStopped:
        timings = clock.timings()
        logger.info("job.stopped", lat_ms=timings["total_ms"], details={"timings": timings, "handed_over": not stop()})
        raise
    logger.info(f"batch.{result.status}", lat_ms=result.timings["total_ms"], details={"timings": result.timings})
    return as_json(result)


def with_warnings(result: R, warnings: list[str]) -> R:
    """A result that also says what concerns the job as a whole; a failure has its own words."""
    if isinstance(result, Failure) or not warnings:
        return result
    return result.model_copy(update={"warnings": [*result.warnings, *warnings]})


def count_inline(job: SingleJob | BatchJob) -> int:
    """How many videos go into the job's result itself, at least 1."""
    if isinstance(job, SingleJob):
        return 1
    stores = [(item.output_config or job.output_config or OutputConfig()).store for item in job.batch]
    return max(stores.count("inline"), 1)


def as_json(result: Success | Plan | Failure | BatchResult) -> dict[str, Any]:
    """A result as the handler returns it; Runpod takes a job with an `error` for failed."""
    return result.model_dump(mode="json", exclude_none=True)


def run_single(context: JobContext, item_id: str | None, job: SingleJob, clock: StageClock) -> Success | Plan | Failure:
    """Makes one video, or plans it; whatever goes wrong becomes a coded failure.

    Args:
        item_id: of a batch, the item; its job's other items share the job's result.

    Raises:
        GenerationStopped: the job was cancelled, or is left to the next worker.
    """
    job_id, engine, stop = context.job_id, context.engine, context.stop
    logger = job_logger(job_id) if item_id is None else job_logger(job_id).bind(item_id=item_id)
    try:
        output_config = job.output_config or OutputConfig()
        store = make_store(output_config, context.s3_config, context.settings, context.num_inline, stop)
        task = Task(context, item_id, job, store)
        # Whatever becomes of the job, nothing of it stays but what the store has.
        with TemporaryDirectory(prefix="infinitetalk-") as folder, make_preview(task, Path(folder), clock) as preview:
            check(task, engine)
            if job.dry_run:
                return plan(task, Path(folder), clock)
            request = request_fingerprint(job_id, job, engine.weights_for(job), versions())
            state = context.states.open(job_id, task.name, request, store, logger)
            if (told := _told_before(task, state)) is not None:
                logger.info("job.was_completed")
                return told
            store.remember(task.name)
            if item_id is not None and stop.is_draining and state.files is not None:
                raise GenerationStopped
            result = _run_stages(task, Path(folder), state, request, preview, clock)
    except GenerationStopped:
        if not stop.timed_out:
            raise
        message = (
            f"the job took longer than its {stop.time_limit_s:g} s; allow more (policy.executionTimeout, or the "
            "worker's JOB_TIMEOUT_S), or use fewer steps or frames"
        )
        failure = Failure(job_id=job_id, error=_failed(WorkerError(ErrorCode.TIMEOUT, message), clock, logger))
    except Exception as error:
        cause = find_cause(as_library_error(error), engine, context.settings, logger)
        failure = Failure(job_id=job_id, error=_failed(cause, clock, logger))
    else:
        state.save_result(result)
        details = {"timings": result.timings, "model": result.model, "evaluations": result.evaluations}
        logger.info("job.completed", lat_ms=result.timings["total_ms"], details=details)
        return result
    # Outside the except clause, so that the exception and the tensors of its frames are gone; there are none before the
    # model is used, and it takes half a second.
    if clock.stage not in (Stage.VALIDATION, Stage.DOWNLOAD):
        engine.recover()
    return failure


def find_cause(error: Exception, engine: Engine, settings: Settings, logger: Any) -> Exception:
    """What a job failed of: its error, or the machine, which may have made it look like the job's own.

    A machine that has failed is marked as broken, so that it takes no other job.
    """
    if is_device_error(error) or (is_machine_error(error) and not is_disk_full(error)):
        engine.is_broken = True
        return error
    problem = machine_problem(settings.min_temporary_bytes)
    if problem is None:
        return error
    engine.is_broken = True
    logger.error("machine.failed", exc_info=problem)
    if job_error(error, Stage.SAMPLING).code in TELLS_OF_WORKER:
        return error
    machine_error = MachineError()
    machine_error.__cause__ = error
    return machine_error


def _told_before(task: Task, state: TaskState) -> Success | None:
    """The result that the task has ended with before, its addresses made anew; None where it has not, or the store has
    its files no longer."""
    told = state.result
    if told is None or told.job_id != task.context.job_id:
        return None
    places = task.store.places(task.name, told.video.bytes)
    if places is None:
        return None
    return told.model_copy(update={"video": told.video.model_copy(update=places)})


def _failed(error: Exception, clock: StageClock, logger: Any) -> JobError:
    """What the client is told of an error, which is logged."""
    told = job_error(error, clock.stage)
    timings = clock.timings()
    logger.error(
        "job.failed",
        lat_ms=timings["total_ms"],
        details=told.model_dump(mode="json") | {"timings": timings},
        exc_info=None if is_expected(error) else error,
    )
    return told


def plan(task: Task, folder: Path, clock: StageClock) -> Plan:
    """What a task would do: its media are fetched and looked at, its text is not spoken.

    Args:
        folder: for the media.

    Raises:
        WorkerError: a medium cannot be fetched or decoded, or does not suit the job.
        RegionError: a box or mask does not fit the source.
        CheckpointError: the model could not be found.
        DoesNotFitError: no mode fits the GPU's memory.
        GenerationStopped: the job was cancelled.
    """
    context, job = task.context, task.job
    engine, stop = context.engine, context.stop
    clock.enter(Stage.DOWNLOAD)
    media = download(job, folder, context.settings, clock.count_bytes, stop)
    overlaps = region_overlaps(job, speaker_regions(job, media.source.info, media.masks, media.warnings))
    if job.tts_audio is None:
        tracks = make_tracks(job, media, engine, stop)
        num_rows, speech_s = count_rows(tracks), speech_seconds(job, media, tracks)
        task.store.check_size(lambda: sound_bytes(mix_tracks(tracks), min(job.frame_limit, num_rows)))
    else:
        num_rows = max(round(len(job.tts_audio.text) / SPOKEN_CHARACTERS_PER_S * VIDEO_FPS), MIN_SPEECH_FRAMES)
        speech_s = num_rows / VIDEO_FPS
    clock.enter(Stage.LOAD)
    video = engine.plan(job, media.source, num_rows, stop)
    warnings = warnings_of(job, engine) + media.warnings
    warnings += losses_of(task, media, overlaps, speech_s, video.num_chunks)
    if job.tts_audio is not None:
        warnings.append("the length is a guess from the text: how long it takes to say is known once it is spoken")
    clock.enter(Stage.COMPLETED)
    return Plan(
        job_id=context.job_id,
        width=video.width,
        height=video.height,
        num_frames=video.num_frames,
        duration_s=video.num_frames / VIDEO_FPS,
        num_chunks=video.num_chunks,
        evaluations=video.evaluations,
        memory_mode=video.memory_mode,
        estimate_s=None if video.seconds is None else round(video.seconds, 1),
        estimate_from=None if video.seconds is None else "this worker" if video.is_measured else "table",
        params=resolved_parameters(job, job.base_seed),
        model=engine.model_name,
        warnings=warnings,
    )


def _run_stages(
    task: Task, folder: Path, state: TaskState, request: str, preview: Preview, clock: StageClock
) -> Success:
    context, job = task.context, task.job
    engine, stop = context.engine, context.stop

    clock.enter(Stage.DOWNLOAD)
    media = download(job, folder, context.settings, clock.count_bytes, stop)

    regions = speaker_regions(job, media.source.info, media.masks, media.warnings)

    clock.enter(Stage.EMBEDDING)
    tracks = make_tracks(job, media, engine, stop)
    sound = mix_tracks(tracks)
    count_sound_bytes = cache(partial(sound_bytes, sound, min(job.frame_limit, count_rows(tracks))))
    task.store.check_size(count_sound_bytes)
    speech = engine.embed(tracks, stop)

    clock.enter(Stage.LOAD)
    memory_mode = engine.prepare(job, media.source.info, stop)

    fingerprint = rendering_fingerprint(request, media.paths, engine.numerics)
    rendering = state.restore(fingerprint, folder)
    if rendering is None:
        seed = seed_of(task.name) if job.base_seed == -1 else job.base_seed
        rendering = Rendering(seed, folder / THUMBNAIL_FILE)
    clock.begin_sampling(len(rendering.parts))
    if rendering.parts:
        job_logger(context.job_id).info("job.resumed", item_id=task.item_id, details={"chunks": len(rendering.parts)})

    def keep() -> bool:
        task.store.check_size(lambda: count_sound_bytes() + rendering.picture_bytes)
        return state.save_rendering(rendering, fingerprint)

    preview.begin(sound)
    everything = Request(job, rendering.seed, media.source, speech, regions, folder)
    # A LoRA that is taken away meanwhile costs nothing of what has been made.
    warnings = warnings_of(job, engine) + media.warnings
    render(engine, everything, rendering, preview, keep, clock, stop)
    overlaps = region_overlaps(job, regions)
    warnings += losses_of(task, media, overlaps, speech_seconds(job, media, tracks), len(rendering.parts))
    warnings += flat_chunks([part.is_flat for part in rendering.parts])
    return finish(task, rendering, request, sound, folder, memory_mode, warnings, clock)


def finish(
    task: Task,
    rendering: Rendering,
    request: str,
    sound: np.ndarray,
    folder: Path,
    memory_mode: str,
    warnings: list[str],
    clock: StageClock,
) -> Success:
    """Joins a video's parts and sound, stores it, and says what was made.

    Args:
        request: fingerprint of what was asked for.
        sound: float32 (samples,) at 16 kHz.
        folder: for the files.
        memory_mode: that the job ran in.
        warnings: for the client.

    Raises:
        EncodeError: they could not be joined.
        WorkerError: the store did not take the result.
        GenerationStopped: the job was cancelled.
    """
    context, job = task.context, task.job
    engine = context.engine
    clock.enter(Stage.MUX)
    artifacts = Artifacts(folder / "video.mp4", rendering.thumbnail, folder / "metadata.json", request)
    join_parts([part.path for part in rendering.parts], sound, artifacts.video)
    facts = {
        "bytes": artifacts.video.stat().st_size,
        "width": rendering.width,
        "height": rendering.height,
        "fps": float(VIDEO_FPS),
        "num_frames": rendering.num_frames,
        "duration_s": rendering.num_frames / VIDEO_FPS,
    }
    about: dict[str, Any] = {
        "params": resolved_parameters(job, rendering.seed),
        "model": engine.model_name,
        "memory_mode": memory_mode,
        "evaluations": rendering.evaluations,
        "evaluations_skipped": rendering.evaluations_skipped,
        "warnings": warnings,
    }

    clock.enter(Stage.UPLOAD)
    identity = {"job_id": context.job_id, "item_id": task.item_id}
    made: dict[str, Any] = {"request": request}
    made |= {"seed": rendering.seed, "video": facts, "timings": clock.timings(), "versions": versions()}
    metadata = json.dumps(identity | about | made, indent=2, ensure_ascii=False)
    artifacts.metadata.write_text(metadata, encoding="utf-8")
    places = task.store.save(task.name, artifacts, clock.count_bytes, context.stop)
    clock.enter(Stage.COMPLETED)
    about["warnings"] += task.store.warnings
    return Success(job_id=context.job_id, video=Video.model_validate(facts | places), timings=clock.timings(), **about)


def make_preview(task: Task, folder: Path, clock: StageClock) -> Preview:
    """The preview that a task asks for, which may be none; reports name it from its first chunk on."""
    store = task.store
    if task.job.dry_run or task.job.output_config is None or not task.job.output_config.preview:
        return Preview()
    assert isinstance(store, S3Store | VolumeStore)
    logger = job_logger(task.context.job_id)
    return HlsPreview(store, task.name, task.job.frame_num, folder, clock.has_preview, logger)


def parse_payload(
    job_id: str, payload: dict[str, Any], settings: Settings
) -> tuple[SingleJob | BatchJob, S3Config | None]:
    """A job's input and its own store as models.

    Raises:
        WorkerError: the input breaks the interface.
    """
    try:
        check_safe_name(job_id)
    except ValueError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"id {error}") from None
    try:
        job = parse_input(payload.get("input"))
    except ValidationError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, explain(error)) from None
    try:
        s3_config = S3Config.model_validate(payload["s3Config"]) if payload.get("s3Config") else None
    except ValidationError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, explain(error, "s3Config", shows_values=False)) from None
    if isinstance(job, BatchJob) and len(job.batch) > settings.max_batch_items:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f"batch has {len(job.batch)} items; this worker takes at most {settings.max_batch_items}, send the rest "
            "as another job",
        )
    return job, s3_config


def check(task: Task, engine: Engine) -> None:
    """Looks, before anything is fetched, at what need not be fetched.

    Raises:
        WorkerError: a LoRA is missing or unfit, the job's text cannot be spoken, or the store would refuse the result.
        CheckpointError: the worker cannot speak.
        GenerationStopped: the job was cancelled.
    """
    job = task.job
    engine.check_loras(job, task.context.stop)
    if job.tts_audio is not None:
        with naming("tts_audio"), engine.reading_weights():
            engine.synthesiser.check(job.tts_audio.text, job.tts_audio.voices)
    task.store.check()


def download(
    job: SingleJob, folder: Path, settings: Settings, on_bytes: OnBytes, should_stop: Callable[[], bool]
) -> JobMedia:
    """All media of a job as local files, each known to be of a fit kind.

    Raises:
        WorkerError: one cannot be fetched or decoded, is too large, or of the wrong kind.
        GenerationStopped: `should_stop` said so.
    """
    wanted = {"cond_video": Wanted(job.cond_video, ("image", "video"))}
    speech = job.cond_audio or {}
    for speaker, source in speech.items():
        if source is not None:
            wanted[f"cond_audio.{speaker}"] = Wanted(source, ("audio",))
    for speaker, source in (job.mask or {}).items():
        wanted[f"mask.{speaker}"] = Wanted(source, ("image",))
    media = fetch_all(wanted, folder, settings, on_bytes, should_stop)
    return JobMedia(
        source=media["cond_video"],
        speech=[media.get(f"cond_audio.{speaker}") for speaker in speech],
        masks=None if job.mask is None else [media[f"mask.{speaker}"] for speaker in job.mask],
        warnings=[f"cond_video: {warning}" for warning in media["cond_video"].info.warnings],
    )


def make_tracks(job: SingleJob, media: JobMedia, engine: Engine, should_stop: Callable[[], bool]) -> list[np.ndarray]:
    """One normalised track for each speaker, float32 (samples,), no longer than the video can use.

    Raises:
        WorkerError: the speech is too short, cannot be decoded, or its text cannot be spoken.
        CheckpointError: Kokoro cannot be loaded.
        GenerationStopped: `should_stop` said so.
    """
    max_seconds = usable_seconds(job)
    if job.tts_audio is not None:
        with naming("tts_audio"), engine.reading_weights():
            spoken = engine.synthesiser.speak(job.tts_audio.text, job.tts_audio.voices, max_seconds, should_stop)
        tracks = [normalise_loudness(track) for track in spoken]
    else:
        tracks = arrange_tracks(read_waveforms(job, media, max_seconds), job.audio_type)
        tracks = [track[: round(max_seconds * SAMPLING_RATE)] for track in tracks]
    if len(tracks[0]) * VIDEO_FPS < MIN_SPEECH_FRAMES * SAMPLING_RATE:
        field = "cond_audio" if job.tts_audio is None else "tts_audio"
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION, f"{field} is too short: at least {MIN_SPEECH_FRAMES / VIDEO_FPS:g} s"
        )
    return tracks


def speech_seconds(job: SingleJob, media: JobMedia, tracks: Sequence[np.ndarray]) -> float:
    """Seconds of all of a job's speech, of which `tracks` hold what the video can use.

    Of sounds that are cut, to within a packet; of a text that is, guessed from its characters.
    """
    kept = len(tracks[0])
    if kept < round(usable_seconds(job) * SAMPLING_RATE):
        return kept / SAMPLING_RATE
    if job.tts_audio is not None:
        seconds = len(job.tts_audio.text) / SPOKEN_CHARACTERS_PER_S
    else:
        lengths = [sound_seconds(medium.path) for medium in media.speech if medium is not None]
        seconds = max(lengths) if job.audio_type == "para" else sum(lengths)
    return max(kept / SAMPLING_RATE, seconds)


def usable_seconds(job: SingleJob) -> float:
    """Seconds of speech that a job's video can use: those it shows, and what its last frames hear."""
    return usable_rows(job.frame_limit, job.frame_num, job.motion_frame) / VIDEO_FPS


def count_rows(tracks: Sequence[np.ndarray]) -> int:
    """Rows of the embeddings that each of the tracks, all as long, will have: one a video frame."""
    return len(tracks[0]) * VIDEO_FPS // SAMPLING_RATE


def read_waveforms(job: SingleJob, media: JobMedia, max_seconds: float) -> list[np.ndarray | None]:
    """The normalised sound of each speaker, float32 (samples,); None for a silent one. Adds to the media's warnings.

    Raises:
        WorkerError: one cannot be decoded, or has samples too large to compute with.
    """
    waveforms: list[np.ndarray | None] = []
    for speaker, medium in zip(job.speakers, media.speech, strict=True):
        if medium is None:
            waveforms.append(None)
            continue
        with naming(f"cond_audio.{speaker}"):
            sound = read_sound(medium.path, max_seconds)
        loudness = measure_loudness(sound.waveform)
        warnings = [*sound.warnings, *loudness_warnings(loudness)]
        media.warnings.extend(f"cond_audio.{speaker}: {warning}" for warning in warnings)
        waveforms.append(normalise_loudness(sound.waveform, loudness))
    return waveforms


def loudness_warnings(loudness: float) -> list[str]:
    """What to say of speech of so many LUFS."""
    if abs(loudness) > SILENCE_LUFS:
        return ["is silent where it is used: the mouth stays closed; send a recording in which speech is heard"]
    if loudness < QUIET_LUFS:
        return [
            f"is very quiet ({loudness:.0f} LUFS): it was made {TARGET_LUFS - loudness:.0f} dB louder, and its noise "
            "with it"
        ]
    return []


def render(
    engine: Engine,
    request: Request,
    rendering: Rendering,
    preview: Preview,
    keep: Callable[[], bool],
    clock: StageClock,
    stop: Stop,
) -> None:
    """Generates what is missing of a video, and encodes, publishes and saves each chunk while the next one is made.

    Args:
        rendering: as far as it is made; goes on to the end.
        preview: gets each chunk as it ends.
        keep: stores it for another worker, after each chunk; says whether it did.

    Raises:
        GenerationStopped: `stop` said so, or the worker goes before the job would be done.
        RegionError: a speaker's region cannot be served.
        EncodeError: a chunk could not be encoded.
        WorkerError: `keep` raised it.
    """

    num_done, chunk_state = len(rendering.parts), rendering.chunk_state

    def generate(should_stop: Callable[[], bool]) -> Iterator[Chunk]:
        for chunk in engine.generate(request, should_stop, clock.end_step, num_done, chunk_state):
            clock.next_chunk()
            yield chunk

    preview.publish(rendering.parts)
    with closing(run_ahead(generate, stop)) as chunks:
        for chunk in chunks:
            frames = chunk.frames
            part = request.folder / part_file(len(rendering.parts))
            encoder = PartEncoder(part, *frames.shape[1:3])
            encoder.write(frames)
            num_frames = encoder.close()
            if not rendering.parts:
                write_thumbnail(frames[0], rendering.thumbnail)
                rendering.height, rendering.width = frames.shape[1:3]
            rendering.parts.append(Part(part, num_frames, chunk.evaluations, chunk.evaluations_skipped, chunk.is_flat))
            rendering.chunk_state = None if chunk.state is None else chunk.state.to_bytes()
            preview.publish(rendering.parts)
            if keep() and not stop.leaves_time_for(clock.eta_s):
                raise GenerationStopped
    preview.publish(rendering.parts, is_complete=True)


def resolved_parameters(job: SingleJob, seed: int) -> dict[str, Any]:
    """The parameters as used, without media."""
    params = job.model_dump(mode="json", exclude={*MEDIA_FIELDS, "dry_run", "output_config", "id"})
    output_config = job.output_config or OutputConfig()
    resolved = {
        "sample_shift": job.shift,
        "crossfade_frame": fade_length(job.motion_frame, job.crossfade_frame),
        "base_seed": seed,
        "negative_prompt": negative_prompt_of(job),
        # Presigned addresses are credentials.
        "output_config": output_config.model_dump(mode="json", exclude={"video_url", "thumbnail_url"}),
    }
    return params | resolved


@cache
def versions() -> dict[str, str]:
    """Of Python, the libraries that decide how a video looks, and this worker's own code, by its SHA-256."""
    code = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in package.rglob("*.py")):
        code.update(file.read_bytes())
    found = {"python": platform.python_version(), "worker": code.hexdigest()[:12]}
    return found | {name: version(name) for name in VERSIONED}


def warnings_of(job: SingleJob, engine: Engine) -> list[str]:
    """What may disappoint in the result."""
    warnings = [] if job.tts_audio is None else list(engine.synthesiser.warnings)
    warnings += engine.check_loras(job)
    if len(job.speakers) > TRAINED_SPEAKERS:
        warnings.append(
            f"{len(job.speakers)} speakers: no checkpoint is trained for more than {TRAINED_SPEAKERS}; "
            "lips may follow the wrong speaker"
        )
    return warnings + (step_warnings(job) if engine.is_published else [])


def losses_of(task: Task, media: JobMedia, overlaps: Sequence[Overlap], speech_s: float, num_chunks: int) -> list[str]:
    """What of the job's input its video does without.

    Args:
        overlaps: of every two speakers' regions.
        speech_s: seconds of all of the speech.
        num_chunks: of the video.
    """
    context, job = task.context, task.job
    return [
        *cut_speech(job, speech_s, is_estimate=job.tts_audio is not None),
        *cut_prompts(job, lambda prompt: context.engine.count_tokens(prompt, context.stop)),
        *shared_regions(overlaps),
        *unused_fields(job, media.source.info.kind == "image", num_chunks, context.s3_config),
    ]


def step_warnings(job: SingleJob) -> list[str]:
    """Whether the published model's steps and guidance go with the job's LoRAs."""
    is_distilled = any(name in lora.name.lower() for lora in job.loras for name in STEP_DISTILLED)
    if not is_distilled and job.sample_steps <= FEW_STEPS:
        return [
            f"{job.sample_steps} steps without a step-distilled LoRA: the video will lack detail; use 40 steps, or "
            'such a LoRA (FusionX, lightx2v) in "loras"'
        ]
    if is_distilled and job.sample_text_guide_scale > 1:
        return [
            f"sample_text_guide_scale {job.sample_text_guide_scale:g} with a step-distilled LoRA: colours will be "
            "harsh, and each step takes an evaluation more; use 1"
        ]
    return []

"""One job from payload to result, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import randbelow
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from infinitetalk.chunks import usable_rows
from infinitetalk.encode import PartEncoder, join_parts, write_thumbnail
from infinitetalk.errors import GenerationStopped
from infinitetalk.media import read_waveform
from infinitetalk.pipeline import Step
from infinitetalk.speech import SAMPLING_RATE, VIDEO_FPS, arrange_tracks, mix_tracks, normalise_loudness
from infinitetalk.worker.engine import Engine, Request, negative_prompt_of, speaker_regions
from infinitetalk.worker.errors import WorkerError, is_expected, job_error
from infinitetalk.worker.fetch import Media, fetch_media, naming
from infinitetalk.worker.logs import job_logger
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.storage import Store, make_store
from schemas import (
    BatchJob,
    ErrorCode,
    Failure,
    OutputConfig,
    S3Config,
    SingleJob,
    Stage,
    Success,
    Video,
    check_safe_name,
    explain,
    parse_input,
)

NOT_YET_SUPPORTED = (
    "batch",
    "tts_audio",
    "loras",
    "quant",
    "offload_model",
    "num_persistent_param_in_dit",
    "dry_run",
)
"""Fields that are declared and not served: a job that sets one is refused."""

MEDIA_FIELDS = ("cond_video", "cond_audio", "mask")
AFTER_SAMPLING = (Stage.DECODE, Stage.MUX, Stage.UPLOAD, Stage.COMPLETED)
"""Stages short enough to report no time left."""

MIN_SPEECH_FRAMES = 5
TRAINED_SPEAKERS = 2


class Report(Protocol):
    """Takes a job's progress: see `ProgressReporter.report`."""

    def __call__(
        self, stage: Stage, fraction: float = 0.0, eta_s: float | None = None, details: dict[str, Any] | None = None
    ) -> None: ...


class StageClock:
    """Knows which stage a job is in, how long each has taken, and reports it."""

    def __init__(self, report: Report) -> None:
        self.stage = Stage.VALIDATION
        self._report = report
        self._begin = self._since = time.monotonic()
        self._seconds: dict[Stage, float] = {stage: 0.0 for stage in Stage if stage is not Stage.COMPLETED}
        report(self.stage)

    def enter(self, stage: Stage) -> None:
        """Goes to another stage and reports it."""
        self.count_towards(stage)
        self._report(stage, eta_s=0.0 if stage in AFTER_SAMPLING else None)

    def begin_sampling(self) -> None:
        """Enters sampling, from which on the time left is known."""
        self.enter(Stage.SAMPLING)
        self._sampling_since = self._since

    def end_step(self, step: Step) -> None:
        """Counts a sampling step; after a chunk's last one its frames are decoded."""
        done = (step.chunk - 1) * step.num_steps + step.step
        total = step.num_chunks * step.num_steps
        eta_s = (time.monotonic() - self._sampling_since) / done * (total - done)
        details = {"chunk": step.chunk, "num_chunks": step.num_chunks, "step": step.step, "num_steps": step.num_steps}
        self._report(Stage.SAMPLING, done / total, round(eta_s, 1), details)
        if step.step == step.num_steps:
            # While chunks follow, their sampling goes on as far as the client is concerned.
            is_last = step.chunk == step.num_chunks
            (self.enter if is_last else self.count_towards)(Stage.DECODE)

    def next_chunk(self) -> None:
        """Goes back to sampling after a chunk's frames are encoded."""
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
    """

    source: Media
    speech: list[Media | None]
    masks: list[Media] | None


@dataclass(frozen=True)
class Rendered:
    """The video as encoded parts, in order, and its first frame, uint8 (height, width, 3)."""

    parts: list[Path]
    first_frame: np.ndarray
    num_frames: int
    evaluations: int
    evaluations_skipped: int


def run_job(
    job: dict[str, Any], settings: Settings, engine: Engine, report: Report, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Run one job as the queue hands it over; whatever goes wrong becomes a coded failure.

    Args:
        job: `id`, `input` and, where the job names its own store, `s3Config`.
        report: told where the job is.
        should_stop: asked before every network evaluation and while data arrives.

    Returns:
        `schemas.Success` or `schemas.Failure`, as JSON types.

    Raises:
        GenerationStopped: `should_stop` said so.
    """
    job_id = str(job["id"])
    logger = job_logger(job_id)
    clock = StageClock(report)
    try:
        # Whatever becomes of the job, nothing of it stays but what the store has.
        with TemporaryDirectory(prefix="infinitetalk-") as folder:
            result = _run_stages(job_id, job, Path(folder), settings, engine, clock, should_stop)
    except GenerationStopped:
        raise
    except Exception as error:
        failure = job_error(error, clock.stage)
        logger.error(
            "job.failed",
            details=failure.model_dump(mode="json") | {"timings": clock.timings()},
            exc_info=None if is_expected(error) else error,
        )
        return Failure(job_id=job_id, error=failure).model_dump(mode="json")
    logger.info("job.completed", details={"timings": result.timings, "model": result.model})
    return result.model_dump(mode="json", exclude_none=True)


def _run_stages(
    job_id: str,
    payload: dict[str, Any],
    folder: Path,
    settings: Settings,
    engine: Engine,
    clock: StageClock,
    should_stop: Callable[[], bool],
) -> Success:
    job, store = validate(job_id, payload, settings)
    seed = randbelow(2**32) if job.base_seed == -1 else job.base_seed

    clock.enter(Stage.DOWNLOAD)
    media = download(job, folder, settings, should_stop)

    regions = speaker_regions(job, media.source.info, media.masks)

    clock.enter(Stage.EMBEDDING)
    tracks = read_tracks(job, media)
    speech = engine.embed(tracks, should_stop)

    clock.enter(Stage.LOAD)
    engine.prepare(len(job.speakers), should_stop)

    clock.begin_sampling()
    request = Request(job=job, seed=seed, source=media.source, speech=speech, regions=regions, folder=folder)
    rendered = render(engine, request, clock, should_stop)

    clock.enter(Stage.MUX)
    video, thumbnail = folder / "video.mp4", folder / "thumbnail.jpg"
    join_parts(rendered.parts, mix_tracks(tracks), video)
    write_thumbnail(rendered.first_frame, thumbnail)

    clock.enter(Stage.UPLOAD)
    places = store.save(job_id, video, thumbnail)
    height, width = rendered.first_frame.shape[:2]
    clock.enter(Stage.COMPLETED)
    facts = {
        "bytes": video.stat().st_size,
        "width": width,
        "height": height,
        "fps": float(VIDEO_FPS),
        "num_frames": rendered.num_frames,
        "duration_s": rendered.num_frames / VIDEO_FPS,
    }
    return Success(
        job_id=job_id,
        video=Video.model_validate(places | facts),
        timings=clock.timings(),
        params=resolved_parameters(job, seed),
        model=engine.model_name,
        evaluations=rendered.evaluations,
        evaluations_skipped=rendered.evaluations_skipped,
        warnings=warnings_of(job),
    )


def validate(job_id: str, payload: dict[str, Any], settings: Settings) -> tuple[SingleJob, Store]:
    """A job's input as a model, and the store its result will go to, looked at.

    Raises:
        WorkerError: the input breaks the interface, asks for what is not served, or the store would refuse it.
    """
    try:
        check_safe_name(job_id)
        job = parse_input(payload["input"])
        s3_config = S3Config.model_validate(payload["s3Config"]) if payload.get("s3Config") else None
    except ValidationError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, explain(error)) from None
    except ValueError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"id {error}") from None
    if unserved := unsupported_fields(job):
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"not yet supported: {', '.join(unserved)}; leave it out")
    assert isinstance(job, SingleJob)
    store = make_store(job.output_config or OutputConfig(), s3_config, settings)
    store.check()
    return job, store


def unsupported_fields(job: SingleJob | BatchJob) -> list[str]:
    """Fields of `NOT_YET_SUPPORTED` that a job sets to anything but their default."""
    fields = type(job).model_fields
    return [
        name
        for name in NOT_YET_SUPPORTED
        if name in fields and getattr(job, name) != fields[name].get_default(call_default_factory=True)
    ]


def download(job: SingleJob, folder: Path, settings: Settings, should_stop: Callable[[], bool]) -> JobMedia:
    """All media of a job as local files, each known to be of a fit kind.

    Raises:
        WorkerError: one cannot be fetched or decoded, is too large, or of the wrong kind.
        GenerationStopped: `should_stop` said so.
    """
    assert job.cond_audio is not None

    def fetch(field: str, source: str, *kinds: str) -> Media:
        return fetch_media(field, source, kinds, folder / field, settings, should_stop)

    return JobMedia(
        source=fetch("cond_video", job.cond_video, "image", "video"),
        speech=[
            None if source is None else fetch(f"cond_audio.{speaker}", source, "audio")
            for speaker, source in job.cond_audio.items()
        ],
        masks=None
        if job.mask is None
        else [fetch(f"mask.{speaker}", source, "image") for speaker, source in job.mask.items()],
    )


def read_tracks(job: SingleJob, media: JobMedia) -> list[np.ndarray]:
    """One normalised track for each speaker, float32 (samples,), no longer than the video can use.

    Raises:
        WorkerError: the speech is too short or cannot be decoded.
    """
    max_seconds = usable_rows(job.frame_limit, job.frame_num, job.motion_frame) / VIDEO_FPS
    waveforms = []
    for speaker, medium in zip(job.speakers, media.speech, strict=True):
        with naming(f"cond_audio.{speaker}"):
            waveform = None if medium is None else read_waveform(medium.path, max_seconds)
        waveforms.append(None if waveform is None else normalise_loudness(waveform))
    tracks = [track[: round(max_seconds * SAMPLING_RATE)] for track in arrange_tracks(waveforms, job.audio_type)]
    if len(tracks[0]) * VIDEO_FPS < MIN_SPEECH_FRAMES * SAMPLING_RATE:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION, f"cond_audio is too short: at least {MIN_SPEECH_FRAMES / VIDEO_FPS:g} s"
        )
    return tracks


def render(engine: Engine, request: Request, clock: StageClock, should_stop: Callable[[], bool]) -> Rendered:
    """Generates the video and encodes each chunk as it comes.

    Raises:
        GenerationStopped: `should_stop` said so.
        RegionError: a speaker's region cannot be served.
        EncodeError: a chunk could not be encoded.
    """
    parts: list[Path] = []
    first_frame = None
    num_frames = evaluations = evaluations_skipped = 0
    for chunk in engine.generate(request, should_stop, clock.end_step):
        frames = chunk.frames
        part = request.folder / f"part-{len(parts):05d}.mkv"
        encoder = PartEncoder(part, *frames.shape[1:3])
        encoder.write(frames)
        num_frames += encoder.close()
        parts.append(part)
        if first_frame is None:
            first_frame = frames[0]
        evaluations += chunk.evaluations
        evaluations_skipped += chunk.evaluations_skipped
        clock.next_chunk()
    assert first_frame is not None
    return Rendered(parts, first_frame, num_frames, evaluations, evaluations_skipped)


def resolved_parameters(job: SingleJob, seed: int) -> dict[str, Any]:
    """The parameters as used, without media and fields that are not served."""
    params = job.model_dump(mode="json", exclude={*MEDIA_FIELDS, *NOT_YET_SUPPORTED, "output_config"})
    output_config = job.output_config or OutputConfig()
    resolved = {
        "sample_shift": job.shift,
        "base_seed": seed,
        "negative_prompt": negative_prompt_of(job),
        "output_config": output_config.model_dump(mode="json"),
    }
    return params | resolved


def warnings_of(job: SingleJob) -> list[str]:
    """What may disappoint in the result."""
    warnings = []
    if len(job.speakers) > TRAINED_SPEAKERS:
        warnings.append(
            f"{len(job.speakers)} speakers: no checkpoint is trained for more than {TRAINED_SPEAKERS}; "
            "lips may follow the wrong speaker"
        )
    elif len(job.speakers) == 1 and (job.bbox or job.mask):
        warnings.append("bbox and mask have no effect with one speaker")
    return warnings

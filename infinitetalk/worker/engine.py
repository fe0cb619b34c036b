"""The model and its use: the only place where the worker touches tensors and the pipeline."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import structlog
import torch
from torch import Tensor

from infinitetalk.chunks import ChunkGrid
from infinitetalk.errors import CheckpointError, GenerationStopped, NotFiniteError
from infinitetalk.family import Family
from infinitetalk.lora import find_lora
from infinitetalk.lora_files import files_of, read_lora
from infinitetalk.media import MediaInfo, Picture, Source, detect_scenes, extract_frames, read_region, read_waveform
from infinitetalk.memory import (
    DoesNotFitError,
    MemoryPlan,
    ModelSizes,
    Workload,
    choose_plan,
    estimate_bytes,
    free_bytes,
    model_sizes,
    release_cached_memory,
)
from infinitetalk.models import Models, load_models
from infinitetalk.parallel import ParallelError
from infinitetalk.pipeline import Chunk, ChunkState, InfiniteTalkPipeline, Step
from infinitetalk.regions import RegionError, box_regions, check_boxes
from infinitetalk.sampling import GenerationSettings, make_sampler
from infinitetalk.sizes import choose_bucket
from infinitetalk.text import count_tokens
from infinitetalk.tiny import DEFAULT_FOLDER, ensure_tiny_kokoro, ensure_tiny_model, talker_paths
from infinitetalk.tts import SpeechSynthesiser
from infinitetalk.wav2vec2 import SpeechEmbeddings
from infinitetalk.weights.check import check_checkpoint
from infinitetalk.weights.fingerprint import contents_of, files_below
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.locate import locate
from infinitetalk.worker.errors import WorkerError, failed_to_read, load_error, may_load_elsewhere
from infinitetalk.worker.fetch import Media, naming
from infinitetalk.worker.settings import Settings
from schemas import ErrorCode, SingleJob

POLL_S = 0.1
ASSUMED_FLOP_PER_S = 400e12
"""Of a GPU before anything has been measured on it, as docs/deploy.md assumes."""

Speech = list[SpeechEmbeddings]
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What a video is to be generated from.

    Attributes:
        job: the parameters.
        seed: of the noise.
        source: picture or video of the speakers.
        speech: embeddings of each speaker, of equal lengths.
        regions: bool (speakers, height, width) of the source, where each speaker is; None: side by side.
        folder: for temporary files.
    """

    job: SingleJob
    seed: int
    source: Media
    speech: Speech
    regions: Tensor | None
    folder: Path


@dataclass(frozen=True)
class Scene:
    """A stretch of the video, in frames."""

    start: int
    num_frames: int


@dataclass(frozen=True)
class VideoPlan:
    """What a video takes.

    Attributes:
        width, height: in pixels.
        num_frames, num_chunks: of the video.
        evaluations: of the network; TeaCache may save some.
        memory_mode: name of the mode.
        seconds: of generating; None where nothing is known.
        is_measured: whether they come from what this worker has done.
    """

    width: int
    height: int
    num_frames: int
    num_chunks: int
    evaluations: int
    memory_mode: str
    seconds: float | None
    is_measured: bool


@dataclass(frozen=True)
class MemoryBudget:
    """GPU memory in bytes before any network is on it, and the checkpoint's sizes."""

    free_bytes: int
    sizes: ModelSizes


class Engine:
    """Holds the networks of one checkpoint, which it loads in a thread of its own.

    Attributes:
        is_broken: the GPU has failed, or the model could not be read; another process may do better.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models: Future[Models] = Future()
        self._preloaded: Future[None] = Future()
        self._kokoro_dir = settings.kokoro_dir
        self._lora_dir = settings.lora_dir
        self._synthesiser: SpeechSynthesiser | None = None
        self._budget: MemoryBudget | None = None
        self._seconds_per_flop: float | None = None
        self._paths: CheckpointPaths | None = None
        self._threads: list[threading.Thread] = []
        self.is_broken = False

    def start(self) -> None:
        """Begins to load the model; jobs may be validated and fetched meanwhile.

        Raises:
            CheckpointError: weights are missing.
        """
        paths = self._paths = checkpoint_paths(self._settings)
        if paths is not None:
            self._kokoro_dir, self._lora_dir = paths.kokoro, paths.loras
        # No daemons: an interpreter that ends while torch loads in a thread aborts, and with it the exit code.
        self._threads = [
            threading.Thread(target=warm_up_sound, name="warm-up"),
            threading.Thread(target=self._load, args=(paths,), name="load"),
        ]
        for thread in self._threads:
            thread.start()

    def finish_loading(self) -> None:
        """Waits until nothing is being loaded: what still is when the interpreter ends, fails."""
        for thread in self._threads:
            thread.join()

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self._models.result().name

    @property
    def is_published(self) -> bool:
        """Whether the model is the published one, and not one embedded in this project."""
        return self._settings.model == "published"

    @cached_property
    def weights(self) -> str:
        """Which weights there are, by their contents; known before any is loaded.

        Raises:
            CheckpointError: a file is damaged.
        """
        if self._paths is None:
            return "tiny"
        paths = self._paths
        parts = (paths.base, paths.adapter_single, paths.adapter_multi, paths.wav2vec2)
        others = [part for part in (paths.transformer, paths.quantised) if part is not None]
        return contents_of(file for part in (*parts, *others) for file in files_below(part))

    def weights_for(self, job: SingleJob) -> str:
        """`weights`, the job's LoRAs, and Kokoro where the job's text is spoken, by their contents.

        Raises:
            CheckpointError: there is no file of a name, or one is damaged.
        """
        with self.reading_weights():
            files = [file for lora in job.loras for file in files_of(find_lora(self._lora_dir, lora.name))]
            if job.tts_audio is not None:
                files += files_below(self._find_kokoro())
            return f"{self.weights}\n{contents_of(files)}"

    @contextmanager
    def reading_weights(self) -> Iterator[None]:
        """Around what reads weights in a job: where the disk fails, the job is told so, and another worker takes over.

        Raises:
            WorkerError: the disk failed.
        """
        try:
            yield
        except Exception as error:
            if not failed_to_read(error):
                raise
            self.is_broken = True
            raise load_error(error) from error

    @property
    def numerics(self) -> str:
        """What of the mode in use decides a video's numbers."""
        memory = self._models.result().memory
        return f"{self.device.type} {self.num_gpus} {self.dtype} {memory.quantisation} {memory.vae_tiling}"

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return numbered(torch.device(self._settings.device or ("cuda" if torch.cuda.is_available() else "cpu")))

    @property
    def num_gpus(self) -> int:
        """How many devices, and processes, make a video together."""
        return self._settings.gpus_per_job or (torch.cuda.device_count() if self.device.type == "cuda" else 1)

    @property
    def other_devices(self) -> list[torch.device]:
        """Those that make a video together with `device`."""
        numbers = range(1, self.num_gpus)
        return [torch.device("cuda", number) if self.device.type == "cuda" else self.device for number in numbers]

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer and the text encoder."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def synthesiser(self) -> SpeechSynthesiser:
        """Kokoro, which loads its network when it first speaks.

        Raises:
            CheckpointError: its weights are missing.
        """
        if self._synthesiser is None:
            self._synthesiser = SpeechSynthesiser(self._find_kokoro(), self.device)
        return self._synthesiser

    def check_weights(self) -> None:
        """Reads the headers of every file that videos need, against the networks they are for.

        Raises:
            CheckpointError: one is missing or unfit.
        """
        if self._paths is None:
            return
        for finding in check_checkpoint(self._paths):
            if finding.needed and finding.problem is not None:
                raise CheckpointError(f"{finding.part}: {finding.problem}")

    def check_memory(self) -> None:
        """Looks whether any mode fits the GPU's memory, what the worker has loaded already left aside.

        Raises:
            DoesNotFitError: none does.
        """
        if self._paths is not None and self.device.type == "cuda":
            free = free_bytes(self.device) + torch.cuda.memory_reserved(self.device)
            choose_plan(free, model_sizes(self._paths), usual_workload(self._paths.family))

    def embed(self, tracks: Sequence[np.ndarray], should_stop: Callable[[], bool] = lambda: False) -> Speech:
        """Embeddings of each speaker's track, float32 (samples,) at 16 kHz, one row a video frame.

        Waits for the speech encoder alone.

        Raises:
            CheckpointError: it cannot be loaded.
            GenerationStopped: `should_stop` said so.
        """
        models = wait_for(self._models, should_stop)
        with self.reading_weights():
            speech_encoder = models.speech_encoder
        speech = []
        for track in tracks:
            if should_stop():
                raise GenerationStopped
            speech.append(speech_encoder(track))
        return speech

    def prepare(self, job: SingleJob, source: MediaInfo, should_stop: Callable[[], bool] = lambda: False) -> str:
        """Returns once every network is there as the job needs it: adapter, LoRAs, and a mode that fits the memory.

        Returns:
            The mode's name.

        Raises:
            CheckpointError: a network or a LoRA cannot be loaded.
            DoesNotFitError: no mode fits the free memory.
            GenerationStopped: `should_stop` said so.
            ParallelError: a process of another GPU ends or does not answer though it has just been started.
        """
        try:
            wait_for(self._preloaded, should_stop)
            models = self._models.result()
            models.use_adapter(len(job.speakers))
            models.use_memory(self._choose_memory(job, source, models.size_scale))
            with self.reading_weights():
                models.use_loras([(lora.name, lora.scale) for lora in job.loras])
                _ = models.transformer
        except ParallelError:
            self.is_broken = True
            raise
        mode = models.memory.describe(self.dtype)
        return mode if self.num_gpus == 1 else f"{mode}, {self.num_gpus} GPUs"

    def check_loras(self, job: SingleJob, should_stop: Callable[[], bool] = lambda: False) -> list[str]:
        """Looks from their headers whether the job's LoRAs can be laid on the model; returns what the job is warned of.

        Raises:
            WorkerError: one is not there, or cannot be laid on the model.
            CheckpointError: the model could not be found.
            GenerationStopped: `should_stop` said so.
        """
        with naming_loras(), self.reading_weights():
            paths = [find_lora(self._lora_dir, lora.name) for lora in job.loras]
        if not paths:
            return []
        models = wait_for(self._models, should_stop)
        with self.reading_weights():
            shapes = models.transformer_shapes
        with naming_loras(), self.reading_weights():
            return [warning for path in paths for warning in read_lora(path, shapes).warnings]

    def count_tokens(self, prompt: str, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Tokens of a prompt, of which the model reads the first `TEXT_LENGTH`.

        Raises:
            CheckpointError: the model could not be found, or its tokenizer not be loaded.
            GenerationStopped: `should_stop` said so.
        """
        models = wait_for(self._models, should_stop)
        with self.reading_weights():
            return count_tokens(models.tokenizer, prompt)

    def _choose_memory(self, job: SingleJob, source: MediaInfo, size_scale: float) -> MemoryPlan:
        """What the job asks for; on a GPU, completed to the fastest mode that fits."""
        requested = requested_memory(job)
        if self._budget is None:
            return requested
        workload = workload_of(job, source, size_scale)
        plan = choose_plan(self._budget.free_bytes, self._budget.sizes, workload, requested)
        if job.offload_model is False and plan.persistent_parameters is not None:
            raise DoesNotFitError("the model does not fit the GPU's memory with offload_model false; leave it out")
        return plan

    def plan(
        self, job: SingleJob, source: Media, num_rows: int, should_stop: Callable[[], bool] = lambda: False
    ) -> VideoPlan:
        """What a job would take; loads nothing and computes nothing on the GPU.

        Args:
            num_rows: of the speech, one a video frame.

        Raises:
            CheckpointError: the model could not be found.
            DoesNotFitError: no mode fits the free memory.
            WorkerError: the source cannot be decoded.
            GenerationStopped: `should_stop` said so.
        """
        models = wait_for(self._models, should_stop)
        workload = workload_of(job, source.info, models.size_scale)
        all_settings = [generation_settings(job, 0, scene) for scene in plan_scenes(job, source, num_rows)]
        num_chunks = sum(settings.grid(job.family).num_chunks(settings.max_frame_num) for settings in all_settings)
        evaluations = num_chunks * make_sampler(all_settings[0], job.family).num_evaluations
        seconds_per_flop = self._seconds_per_flop
        if seconds_per_flop is None and self.is_published:
            seconds_per_flop = 1 / (ASSUMED_FLOP_PER_S * self.num_gpus)
        return VideoPlan(
            width=workload.width,
            height=workload.height,
            num_frames=sum(settings.max_frame_num for settings in all_settings),
            num_chunks=num_chunks,
            evaluations=evaluations,
            memory_mode=self._choose_memory(job, source.info, models.size_scale).describe(self.dtype),
            seconds=None if seconds_per_flop is None else seconds_per_flop * evaluations * evaluation_flop(workload),
            is_measured=self._seconds_per_flop is not None,
        )

    def recover(self) -> None:
        """Gives back the memory that a failed job may still hold, unless the GPU answers no longer."""
        if not self.is_broken:
            release_cached_memory()

    def generate(
        self,
        request: Request,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None],
        num_done: int = 0,
        chunk_state: bytes | None = None,
    ) -> Iterator[Chunk]:
        """The video, chunk by chunk; each scene of it is generated on its own.

        Args:
            num_done: chunks that are there already, counted through all scenes.
            chunk_state: the state of the last of them; None after a scene's last chunk.
            should_stop: asked before every network evaluation.
            on_step: told after every sampling step; chunks are counted through all scenes.

        Raises:
            GenerationStopped: `should_stop` said so.
            RegionError: a speaker's region is lost at the model's resolution.
            WorkerError: the source cannot be decoded, or the numbers of a step or of frames are not finite.
            DoesNotFitError: the GPU's memory did not suffice.
            ParallelError: a process of another GPU has ended or does not answer; the next job starts it anew.
        """
        try:
            yield from self._generate(request, should_stop, on_step, num_done, chunk_state)
        except NotFiniteError as error:
            raise WorkerError(
                ErrorCode.GENERATION_RUNTIME,
                f"the video could not be generated: {error}; {what_overflows(request.job)}",
                retryable=False if request.job.loras else None,
            ) from error
        except DoesNotFitError:
            raise
        except torch.OutOfMemoryError as error:
            if self._budget is None:
                raise
            raise self._use_less_memory(self._budget, request) from error

    def _use_less_memory(self, budget: MemoryBudget, request: Request) -> DoesNotFitError:
        """Counts with less memory from now on, the mode in use having taken too much; returns what to tell."""
        job, models = request.job, self._models.result()
        workload = workload_of(job, request.source.info, models.size_scale)
        needed = estimate_bytes(models.memory, budget.sizes, workload)
        self._budget = replace(budget, free_bytes=min(budget.free_bytes, needed - 1))
        try:
            plan = choose_plan(self._budget.free_bytes, budget.sizes, workload, requested_memory(job))
        except DoesNotFitError as error:
            return error
        return DoesNotFitError(
            f"the GPU's memory did not suffice in the mode {models.memory.describe(self.dtype)}: send the job again, "
            f"this worker will run it in the mode {plan.describe(self.dtype)}",
            fits_next_time=True,
        )

    def _generate(
        self,
        request: Request,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None],
        num_done: int,
        chunk_state: bytes | None,
    ) -> Iterator[Chunk]:
        """As `generate`."""
        pipeline = InfiniteTalkPipeline(self._models.result())
        job = request.job
        workload = workload_of(job, request.source.info, self._models.result().size_scale)
        scenes = plan_scenes(job, request.source, len(request.speech[0]))
        all_settings = [generation_settings(job, request.seed, scene) for scene in scenes]
        chunks_before = [0]
        for settings in all_settings:
            chunks_before.append(chunks_before[-1] + settings.grid(job.family).num_chunks(settings.max_frame_num))

        for index, (scene, settings) in enumerate(zip(scenes, all_settings, strict=True)):
            if num_done >= chunks_before[index + 1]:
                continue
            goes_on = num_done > chunks_before[index]

            def count_step(step: Step, before: int = chunks_before[index]) -> None:
                on_step(Step(before + step.chunk, chunks_before[-1], step.step, step.num_steps))

            chunks = pipeline(
                source=open_source(request, scene, settings),
                speech=[stretch_of(embeddings, scene, settings.grid(job.family)) for embeddings in request.speech],
                prompt=job.prompt,
                settings=settings,
                negative_prompt=negative_prompt_of(job),
                regions=request.regions,
                state=ChunkState.from_bytes(chunk_state) if goes_on and chunk_state is not None else None,
                should_stop=should_stop,
                on_step=count_step,
            )
            begin = time.monotonic()
            for chunk in chunks:
                work = max(chunk.evaluations, 1) * evaluation_flop(workload)
                self._seconds_per_flop = (time.monotonic() - begin) / work
                yield chunk
                begin = time.monotonic()

    def _find_kokoro(self) -> Path:
        if self._kokoro_dir is not None:
            return self._kokoro_dir
        if self._settings.model != "published":
            return ensure_tiny_kokoro(self._settings.tiny_dir or DEFAULT_FOLDER)
        raise CheckpointError(
            "tts_audio needs Kokoro-82M, which is neither in KOKORO_DIR nor on the network volume nor in the image; "
            "the worker's operator fetches it by `python -m infinitetalk.weights download`"
        )

    def _load(self, paths: CheckpointPaths | None) -> None:
        begin = time.monotonic()
        device = self.device
        logger = structlog.get_logger()
        waiting: Future[Models] | Future[None] = self._models
        try:
            if paths is None:
                paths = ensure_tiny_model(self._settings.tiny_dir or DEFAULT_FOLDER)
                paths = replace(paths, loras=self._lora_dir)
            memory = MemoryPlan()
            if device.type == "cuda":
                self._budget = MemoryBudget(free_bytes(device), model_sizes(paths))
                memory = choose_plan(self._budget.free_bytes, self._budget.sizes, usual_workload(paths.family))
            models = load_models(paths, device, self.dtype, memory, self.other_devices)
            self._models.set_result(models)
            waiting = self._preloaded
            models.preload()
        except Exception as error:
            logger.error("model.not_loaded", exc_info=error)
            self.is_broken |= may_load_elsewhere(error)
            waiting.set_exception(load_error(error))
            return
        lat_ms = round((time.monotonic() - begin) * 1000)
        details = {"model": models.name, "device": str(device), "memory_mode": memory.describe(self.dtype)}
        logger.info("model.loaded", lat_ms=lat_ms, details=details)
        self._preloaded.set_result(None)


def numbered(device: torch.device) -> torch.device:
    """A device with its number, without which no process of several can make it its own."""
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


def what_overflows(job: SingleJob) -> str:
    """What of a job may have made numbers that are not finite, as advice."""
    if job.loras:
        names = ", ".join(lora.name for lora in job.loras)
        return f"leave out the LoRAs one by one ({names}), or lower their scale"
    return (
        "lower sample_text_guide_scale and sample_audio_guide_scale where they are high; else the worker's operator "
        "has to check its weights"
    )


@contextmanager
def naming_loras() -> Iterator[None]:
    """Around what reads a job's LoRAs: one that does not fit is the job's mistake.

    Raises:
        WorkerError: it does not fit.
    """
    try:
        yield
    except CheckpointError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"loras: {error}") from error


def evaluation_flop(workload: Workload) -> float:
    """Floating-point operations of one evaluation of the published network."""
    return workload.family.evaluation_flop(workload.num_tokens)


def usual_workload(family: Family) -> Workload:
    """What the mode is chosen for while no job has come: a chunk of the default length at the default size."""
    defaults = family.defaults
    return Workload(defaults.frame_num, *family.sizes[defaults.size].usual_resolution, family)


def workload_of(job: SingleJob, source: MediaInfo, size_scale: float) -> Workload:
    """What decides the memory that a job takes beside its weights."""
    height, width = choose_bucket(job.family, job.size, source.height, source.width, size_scale)
    return Workload(job.frame_num, height, width, job.family)


def warm_up_sound() -> None:
    """Lets librosa import what it imports when first used, which takes seconds, before a job needs it."""
    with tempfile.TemporaryDirectory(prefix="infinitetalk-") as folder:
        file = Path(folder) / "silence.wav"
        soundfile.write(file, np.zeros(4800, dtype=np.float32), 48_000)
        read_waveform(file)


def wait_for(future: Future[T], should_stop: Callable[[], bool]) -> T:
    """The future's result.

    Raises:
        GenerationStopped: `should_stop` said so first.
        Exception: what the future ended with.
    """
    while True:
        try:
            return future.result(timeout=POLL_S)
        except TimeoutError:
            if should_stop():
                raise GenerationStopped from None


def checkpoint_paths(settings: Settings) -> CheckpointPaths | None:
    """Where the model's weights are; None for the random one, which is made where it is missing.

    Raises:
        CheckpointError: a part is neither set nor found, or a folder that is set does not exist.
    """
    if settings.model == "tiny":
        return None
    if settings.model == "talker":
        return replace(talker_paths(), loras=settings.lora_dir, kokoro=settings.kokoro_dir)
    return locate(settings)


def requested_memory(job: SingleJob) -> MemoryPlan:
    """The part of the mode that a job fixes; offload_model keeps no block of the transformer on the GPU."""
    kept = job.num_persistent_param_in_dit
    if kept is None and job.offload_model:
        kept = 0
    return MemoryPlan(quantisation=job.quant, persistent_parameters=kept, stream_text_encoder=bool(job.offload_model))


def negative_prompt_of(job: SingleJob) -> str:
    """The job's negative prompt, or the family's default."""
    return job.family.defaults.negative_prompt if job.negative_prompt is None else job.negative_prompt


def chunk_grid(job: SingleJob) -> ChunkGrid:
    """How the job's video is divided into chunks."""
    return ChunkGrid(job.frame_num, job.motion_frame, job.crossfade_frame, job.family)


def generation_settings(job: SingleJob, seed: int, scene: Scene) -> GenerationSettings:
    """A job's parameters as the pipeline takes them, for one scene."""
    return GenerationSettings(
        size=job.size,
        frame_num=job.frame_num,
        max_frame_num=scene.num_frames,
        motion_frame=job.motion_frame,
        crossfade_frame=job.crossfade_frame,
        num_inference_steps=job.sample_steps,
        shift=job.shift,
        text_guide_scale=job.sample_text_guide_scale,
        audio_guide_scale=job.sample_audio_guide_scale,
        use_apg=job.use_apg,
        apg_momentum=job.apg_momentum,
        apg_norm_threshold=job.apg_norm_threshold,
        teacache_threshold=job.teacache_thresh if job.use_teacache else None,
        color_correction_strength=job.color_correction_strength,
        seed=seed,
    )


def plan_scenes(job: SingleJob, source: Media, num_rows: int) -> list[Scene]:
    """The scenes of the video: those of the source video where the job asks for them, else one.

    The last one goes on to the end of the speech.

    Args:
        num_rows: of the speech, one a video frame.

    Raises:
        WorkerError: the source cannot be decoded.
    """
    num_frames = min(job.frame_limit, num_rows)
    if not job.scene_seg or source.info.kind != "video":
        return [Scene(0, num_frames)]
    with naming("cond_video"):
        starts = detect_scenes(source.path, num_frames)
    ends = [*starts[1:], num_frames]
    return [Scene(start, end - start) for start, end in zip(starts, ends, strict=True)]


def open_source(request: Request, scene: Scene, settings: GenerationSettings) -> Source:
    """The reference frames of a scene, whose time begins with the scene.

    Raises:
        WorkerError: the source cannot be decoded.
    """
    with naming("cond_video"):
        if request.source.info.kind == "image":
            return Picture.open(request.source.path)
        folder = request.folder / f"frames-{scene.start:06d}"
        folder.mkdir()
        stride = settings.grid(request.job.family).reference_stride(scene.num_frames)
        return extract_frames(request.source.path, folder, stride, scene.num_frames, scene.start)


def stretch_of(embeddings: SpeechEmbeddings, scene: Scene, grid: ChunkGrid) -> SpeechEmbeddings:
    """The rows of a scene, and those after it that its last frames hear."""
    end = min(scene.start + grid.usable_rows(scene.num_frames), len(embeddings))
    if (scene.start, end) == (0, len(embeddings)):
        return embeddings
    return SpeechEmbeddings.from_tensor(embeddings.rows(torch.arange(scene.start, end)))


def speaker_regions(
    job: SingleJob, source: MediaInfo, masks: Sequence[Media] | None, warnings: list[str]
) -> Tensor | None:
    """Where each speaker is, bool (speakers, height, width) of the source; None: side by side.

    Args:
        warnings: gets what a client should know of them.

    Raises:
        RegionError: a box or mask does not fit the source, or marks nothing.
        WorkerError: a mask cannot be decoded.
    """
    if job.bbox is not None:
        boxes = list(job.bbox.values())
        check_boxes(boxes, source.height, source.width, job.bbox_order)
        regions = box_regions(boxes, source.height, source.width, job.bbox_order)
    elif masks is not None:
        regions = torch.stack(
            [read_mask(mask.path, speaker, source, warnings) for speaker, mask in zip(job.speakers, masks, strict=True)]
        )
    else:
        return None
    return regions


@dataclass(frozen=True)
class Overlap:
    """How much two speakers' regions have in common.

    Attributes:
        one, other: the speakers.
        fraction: of the smaller region, 0 to 1.
        is_same: whether the regions are one.
    """

    one: str
    other: str
    fraction: float
    is_same: bool


def region_overlaps(job: SingleJob, regions: Tensor | None) -> list[Overlap]:
    """What every two of the speakers' regions, bool (speakers, height, width), have in common; None: side by side."""
    if regions is None:
        return []
    return [
        Overlap(
            one,
            other,
            int((first & second).sum()) / min(int(first.sum()), int(second.sum())),
            torch.equal(first, second),
        )
        for (one, first), (other, second) in itertools.combinations(zip(job.speakers, regions, strict=True), 2)
    ]


def read_mask(path: Path, speaker: str, source: MediaInfo, warnings: list[str]) -> Tensor:
    """A speaker's mask, bool (height, width): where the picture is white and not transparent.

    Args:
        warnings: gets what a client should know of it.

    Raises:
        RegionError: it is not of the source's size, or white nowhere.
        WorkerError: it cannot be decoded.
    """
    with naming(f"mask.{speaker}"):
        region, notes = read_region(path)
    if region.shape != (source.height, source.width):
        raise RegionError(
            f"mask.{speaker} is {region.shape[1]}x{region.shape[0]} pixels; it must have those of cond_video, "
            f"{source.width}x{source.height}"
        )
    if not region.any():
        raise RegionError(
            f"mask.{speaker} is white nowhere (what is transparent does not count); paint the place of {speaker} white"
        )
    warnings += [f"mask.{speaker}: {note}" for note in notes]
    return region

"""The worker's use of the library: turns a job's request into calls of the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import structlog
import torch
from torch import Tensor

from infinitetalk.encoders.text import count_tokens
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.errors import CheckpointError, GenerationStopped, NotFiniteError, ParallelError
from infinitetalk.family import FAMILIES, INFINITETALK
from infinitetalk.generation.pipeline import Chunk, ChunkState, Control, DecodedChunk, InfiniteTalkPipeline, Step
from infinitetalk.generation.references import EncodedReferences
from infinitetalk.media.decode import MediaInfo
from infinitetalk.media.sizes import bucket_of_part, scale_resolution
from infinitetalk.media.tts import SpeechSynthesiser
from infinitetalk.recipes import QUALITY, RECIPES, Recipe, missing
from infinitetalk.runtime.choice import Arithmetic, NetworkChoice, arithmetic_of
from infinitetalk.runtime.kernels.registry import PUBLISHED, candidates_at
from infinitetalk.runtime.lora import find_lora, find_loras, lora_names
from infinitetalk.runtime.memory import DoesNotFitError, Workload, release_cached_memory
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks
from infinitetalk.weights.fingerprint import contents_of, files_that_count
from infinitetalk.weights.layouts import adapter_kind
from infinitetalk.weights.locate import kernels_folders
from infinitetalk.weights.lora_files import files_of, read_lora
from infinitetalk.worker.engine.checkpoint import find_checkpoints
from infinitetalk.worker.engine.conditions import negative_prompt_of, workload_of
from infinitetalk.worker.engine.estimate import (
    ChunkWork,
    FilmWork,
    Speed,
    VideoCost,
    chunk_work,
    number_of_chunks,
    video_cost,
)
from infinitetalk.worker.engine.footage import FootageReader, chunk_starts
from infinitetalk.worker.engine.kernels import PUBLISHED_SETTING, KernelSelection, setting_of_kernels
from infinitetalk.worker.engine.loading import Health, Loading
from infinitetalk.worker.engine.placement import MeasureMemory, available_bytes, devices_of, gpu_of, measure_memory
from infinitetalk.worker.engine.rehearsed import likeness_of
from infinitetalk.worker.engine.scenes import (
    FilmView,
    Scene,
    generation_settings,
    speech_of,
    view_of,
)
from infinitetalk.worker.engine.timeline import num_references, open_stretches, plan_stretches
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.traffic.fetch import Media
from schemas import ErrorCode, Lora, SingleJob


@dataclass(frozen=True)
class VideoRequest:
    """A request to generate a video.

    Attributes:
        job: the parameters.
        seed: seed of the noise.
        source: image or video of the speakers; if it changes, the first one.
        speech: each speaker's embeddings, all of the same length.
        regions: each speaker's region, bool (speakers, height, width) of the source; None: side by side.
        folder: folder for temporary files.
        networks: the networks, prepared for the job.
        later_sources: the images and videos that take the source's place, in the job's order.
        film: the part of the source that is generated; None: all of it. If it is given, `source.info` says its size,
            and `regions` are of its pixels.
        scenes: the video's scenes; each is generated separately.
    """

    job: SingleJob
    seed: int
    source: Media
    speech: list[SpeechEmbeddings]
    regions: Tensor | None
    folder: Path
    networks: Networks
    scenes: Sequence[Scene]
    later_sources: Sequence[Media] = ()
    film: FilmView | None = None


class Engine:
    """Makes videos with the networks of one or several checkpoints: a job's family says which.

    Args:
        settings: the worker's settings.
        measure: measures the memory available for networks; by default that of a GPU.

    Attributes:
        checkpoints: the weights.
        checkpoint: those that are loaded at the start: for the worker's own recipe, or else InfiniteTalk's if they are
            there.
        devices: the devices of the networks.
        health: whether this process may serve jobs.
        thread: the one thread in which all videos of this worker are generated.

    Raises:
        CheckpointError: weights are missing, also those of the worker's own recipe, or the setting KERNELS names no
            kernel, or one that is not there.
    """

    def __init__(self, settings: Settings, measure: MeasureMemory = measure_memory) -> None:
        self.devices = devices_of(settings)
        kernels_setting = setting_of_kernels(settings, self.devices)
        folders = () if kernels_setting == PUBLISHED_SETTING else kernels_folders(settings)
        if folders:
            details = {"folders": [str(folder) for folder in folders], "setting": kernels_setting}
            structlog.get_logger().info("kernels.folders", details=details)
        self.checkpoints = find_checkpoints(settings, folders)
        first = INFINITETALK if settings.recipe is None else settings.recipe.family
        if first.name not in self.checkpoints.by_family:
            others = list(self.checkpoints.by_family)
            structlog.get_logger().warning("checkpoint.absent", details={"family": first.name, "served": others})
            first = FAMILIES[others[0]]
        self.checkpoint = self.checkpoints.of(first)
        self.health = Health()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        kernels = KernelSelection(settings, self.devices, candidates_at(folders))
        self._loading = Loading(self.checkpoints, first, self.devices, kernels, measure, self.health)
        self._synthesiser: SpeechSynthesiser | None = None
        self._references = EncodedReferences()
        if settings.recipe is not None and (problem := self.lacks(settings.recipe)) is not None:
            raise CheckpointError(f"DEFAULT_RECIPE is {settings.recipe.name!r}: {problem}")

    def start(self) -> None:
        """Starts loading the model; jobs may be validated and fetched meanwhile."""
        self._loading.start()

    def finish_loading(self) -> None:
        """Waits for loading to end, which fails if the interpreter exits before; a trial of kernels is stopped."""
        self._loading.finish()

    def model_name_for(self, job: SingleJob) -> str:
        """Name of the model that makes a job's video.

        Raises:
            CheckpointError: it could not be found.
        """
        return self._loading.found(job.family).models.name

    @cached_property
    def _speed(self) -> Speed:
        """This worker's speed. Of the embedded models nothing is assumed, nor of a CPU."""
        gpu = gpu_of(self.devices.first) if self.checkpoint.is_published else None
        return Speed(None if gpu is None else likeness_of(gpu))

    def weights_for(self, job: SingleJob) -> str:
        """Fingerprint of the weights that a job uses: the checkpoint, the job's LoRAs, and Kokoro if it speaks a text.

        Raises:
            CheckpointError: a file is missing or damaged.
            WorkerError: the disk failed.
        """
        with self.reading_weights():
            checkpoint = self.checkpoints.of(job.family)
            folders = checkpoint.lora_folders
            files = [file for lora in job.loras for file in files_of(find_lora(folders, lora.name))]
            if job.tts_audio is not None:
                files += files_that_count(checkpoint.find_kokoro())
            return f"{checkpoint.fingerprint}\n{contents_of(files)}"

    def lacks(self, recipe: Recipe) -> str | None:
        """What this worker lacks to run a recipe, and how to get it; None: nothing."""
        return missing(recipe, self.checkpoints.absent, self._lora_names() if recipe.loras else [])

    def equip(self, job: SingleJob) -> SingleJob:
        """The job with the LoRAs that its recipe needs; a LoRA that the job names itself is not added again.

        Raises:
            WorkerError: this worker lacks the recipe's weights.
        """
        recipe = QUALITY if job.recipe is None else RECIPES[job.recipe]
        wanted = [lora for lora in recipe.loras if not any(lora.is_met_by(given.name) for given in job.loras)]
        names = self._lora_names() if wanted else []
        problem = missing(replace(recipe, loras=tuple(wanted)), self.checkpoints.absent, names)
        if problem is not None:
            raise WorkerError(ErrorCode.INPUT_VALIDATION, problem)
        if not wanted:
            return job
        added = [Lora(name=name) for lora in wanted if (name := lora.choose(names)) is not None]
        return job.model_copy(update={"loras": [*job.loras, *added]})

    def _lora_names(self) -> list[str]:
        return lora_names(self.checkpoint.lora_folders)

    def reading_weights(self) -> AbstractContextManager[None]:
        """As `Health.reading_weights`: wraps code that reads weights in a job."""
        return self.health.reading_weights()

    @property
    def synthesiser(self) -> SpeechSynthesiser:
        """Kokoro; it loads its network when it first speaks.

        Raises:
            CheckpointError: its weights are missing.
        """
        if self._synthesiser is None:
            self._synthesiser = SpeechSynthesiser(self.checkpoint.find_kokoro(), self.devices.first)
        return self._synthesiser

    @property
    def voices(self) -> list[str]:
        """Names of the voices that `synthesiser` has; none if there is no Kokoro, or a broken one."""
        try:
            return self.synthesiser.voices
        except CheckpointError:
            return []

    def check_weights(self) -> None:
        """Reads the headers of every file that videos need. If a checkpoint that is not loaded at the start is unfit,
        this is only logged: its jobs will fail.

        Raises:
            CheckpointError: a file that the start loads is missing or unfit.
        """
        self.checkpoint.check()
        for family, checkpoint in self.checkpoints.by_family.items():
            if checkpoint is self.checkpoint:
                continue
            try:
                checkpoint.check()
            except CheckpointError as error:
                details = {"family": family, "reason": str(error)}
                structlog.get_logger().warning("checkpoint.unfit", details=details)

    def check_memory(self) -> None:
        """Checks that a memory mode fits the GPU for the checkpoint that is loaded at the start; memory of networks
        that this worker has already loaded counts as free.

        Raises:
            DoesNotFitError: none does.
        """
        device = self.devices.first
        if device.type == "cuda":
            self.checkpoint.check_memory(available_bytes(device))

    def embed(
        self, job: SingleJob, tracks: Sequence[np.ndarray], should_stop: Callable[[], bool] = lambda: False
    ) -> list[SpeechEmbeddings]:
        """Embeddings of each speaker's track, float32 (samples,) at 16 kHz, with one row per video frame.

        Waits for the audio encoder of the job's model only, not for the other networks.

        Raises:
            CheckpointError: the audio encoder cannot be loaded.
            GenerationStopped: `should_stop` returned true.
        """
        models = self._loading.found(job.family, should_stop).models
        with self.reading_weights():
            audio_encoder = models.audio_encoder
        speech = []
        for track in tracks:
            if should_stop():
                raise GenerationStopped
            speech.append(audio_encoder(track))
        return speech

    def prepare(self, job: SingleJob, source: MediaInfo, should_stop: Callable[[], bool] = lambda: False) -> Networks:
        """Prepares the networks for the job: checkpoint, adapter, LoRAs, and a memory mode that fits. Frees those of
        another checkpoint if they do not fit beside them.

        Raises:
            CheckpointError: a network or a LoRA cannot be loaded.
            DoesNotFitError: no mode fits the free memory.
            GenerationStopped: `should_stop` returned true.
            ParallelError: another GPU's process has ended or does not answer although it was just started.
        """
        found = self._loading.loaded(job.family, should_stop)
        workload = self._workload(job, source, found.models)
        memory = found.modes.choose(job, workload)
        try:
            with self.reading_weights():
                loras = find_loras(self.checkpoint.lora_folders, [(lora.name, lora.scale) for lora in job.loras])
                adapter = adapter_kind(len(job.speakers))
                choice = self._loading.with_kernels(NetworkChoice(self.devices.dtype, memory, adapter, loras))
                choice = replace(choice, kernels=found.modes.affordable(choice.kernels, memory, workload))
                self._loading.make_room(found, memory, workload)
                return found.models.prepare(choice)
        except ParallelError:
            self.health.mark_broken()
            raise

    def memory_mode(self, choice: NetworkChoice) -> str:
        """Name of the networks' memory mode, as shown in results, with kernels that are not the published ones."""
        parts = [choice.memory.describe(choice.dtype)]
        if choice.kernels != PUBLISHED:
            parts.append(f"kernels {choice.kernels}")
        if self.devices.count > 1:
            parts.append(f"{self.devices.count} GPUs")
        return ", ".join(parts)

    def arithmetic(self, choice: NetworkChoice) -> Arithmetic:
        """How this worker computes with networks that were prepared by `choice`."""
        return arithmetic_of(choice, self.devices.first, self.devices.count)

    def check_loras(self, job: SingleJob, should_stop: Callable[[], bool] = lambda: False) -> list[str]:
        """Checks by the headers of the job's LoRAs that they can be applied to the model; returns warnings for the
        client.

        Raises:
            WorkerError: a LoRA is missing or cannot be applied to the model.
            CheckpointError: the model could not be found.
            GenerationStopped: `should_stop` returned true.
        """
        with naming_loras(), self.reading_weights():
            paths = [find_lora(self.checkpoint.lora_folders, lora.name) for lora in job.loras]
        if not paths:
            return []
        models = self._loading.found(job.family, should_stop).models
        with self.reading_weights():
            shapes = models.transformer_shapes
        with naming_loras(), self.reading_weights():
            return [warning for path in paths for warning in read_lora(path, shapes).warnings]

    def count_tokens(self, job: SingleJob, prompt: str, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Number of tokens of a job's prompt; its model reads the first `TEXT_LENGTH`.

        Raises:
            CheckpointError: the model could not be found, or its tokenizer could not be loaded.
            GenerationStopped: `should_stop` returned true.
        """
        models = self._loading.found(job.family, should_stop).models
        with self.reading_weights():
            return count_tokens(models.tokenizer, prompt)

    def plan(
        self,
        job: SingleJob,
        source: MediaInfo,
        scenes: Sequence[Scene],
        should_stop: Callable[[], bool] = lambda: False,
        later_sources: Sequence[MediaInfo] = (),
        film: FilmWork | None = None,
    ) -> VideoCost:
        """The cost of a job's video; loads nothing and computes nothing on the GPU.

        Args:
            source: what the source is.
            scenes: the scenes of the video.
            later_sources: what the images and videos are that take the source's place.
            film: what the film asks of the processor; None: nothing.

        Raises:
            CheckpointError: the model could not be found.
            DoesNotFitError: no mode fits the free memory.
            GenerationStopped: `should_stop` returned true.
        """
        found = self._loading.found(job.family, should_stop)
        workload = self._workload(job, source, found.models)
        settings = [generation_settings(job, 0, scene) for scene in scenes]
        memory = found.modes.choose(job, workload)
        chunk = chunk_work(settings[0], workload, memory, len(job.speakers))
        stretches = plan_stretches(job, scenes)
        references = num_references(stretches, [source, *later_sources])
        prompts = len({job.prompts[stretch.prompt].prompt for stretch in stretches})
        mode = memory.describe(self.devices.dtype)
        return video_cost(settings, chunk, references, prompts, mode, self._speed, film)

    def frame_size(self, job: SingleJob, height: int, width: int, should_stop: Callable[[], bool]) -> tuple[int, int]:
        """Height and width that a job's model generates for a part of a source of about this height and width.

        Raises:
            CheckpointError: the model could not be found.
            GenerationStopped: `should_stop` returned true.
        """
        models = self._loading.found(job.family, should_stop).models
        if job.resolution is not None:
            return scale_resolution(models.family, job.resolution, models.size_scale)
        return bucket_of_part(models.family, job.size_table, height, width, models.size_scale)

    def _workload(self, job: SingleJob, source: MediaInfo, networks: Models | Networks) -> Workload:
        """The work of one chunk of a job's video by these networks."""
        return workload_of(job, source, networks.family, networks.size_scale, self.devices.count)

    def recover(self) -> None:
        """Releases memory that a failed job may still hold, unless this process is broken."""
        if not self.health.is_broken:
            release_cached_memory()

    def generate(
        self,
        request: VideoRequest,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None],
        num_done: int = 0,
        chunk_state: bytes | None = None,
        is_beside: bool = False,
    ) -> Iterator[DecodedChunk]:
        """Generates the video chunk by chunk, and each scene separately. The chunks must be finished in their order,
        best in another thread while the next one is made (`finish`).

        Args:
            is_beside: whether they are: a scene's last chunk may then come before it is decoded.
            num_done: number of existing chunks, counted through all scenes.
            chunk_state: the state after the last existing chunk; None after a scene's last chunk.
            should_stop: is asked before every network evaluation.
            on_step: is called after every sampling step; chunks are counted through all scenes.

        Raises:
            GenerationStopped: `should_stop` returned true.
            RegionError: a speaker's region is lost at the model's resolution.
            WorkerError: the source cannot be decoded, or numbers of a step or of frames are not finite.
            DoesNotFitError: the GPU has too little memory.
            ParallelError: another GPU's process has ended or does not answer; the next job restarts it.
        """
        with self._telling(request):
            yield from self._generate(request, should_stop, on_step, num_done, chunk_state, is_beside)

    def finish(self, request: VideoRequest, chunk: DecodedChunk, on_frames: Callable[[np.ndarray], None]) -> Chunk:
        """Finishes a chunk, beside the steps of the next one; `on_frames` takes its frames as they come.

        Raises:
            WorkerError: numbers of frames are not finite.
            DoesNotFitError: the GPU has too little memory.
            DecodingEndedError: its frames could not be decoded; `generate` raises the reason.
        """
        with self._telling(request):
            return chunk.finish(is_beside=True, on_frames=on_frames)

    @contextmanager
    def _telling(self, request: VideoRequest) -> Iterator[None]:
        """Wraps the work on a video: its errors become those that `generate` describes, and a job that runs out of
        memory is the last one in its mode."""
        try:
            yield
        except NotFiniteError as error:
            raise WorkerError(
                ErrorCode.GENERATION_RUNTIME,
                f"the video could not be generated: {error}; {what_overflows(request.job)}",
                retryable=False if request.job.loras else None,
            ) from error
        except torch.OutOfMemoryError as error:
            networks, job = request.networks, request.job
            choice = networks.choice
            workload = self._workload(job, request.source.info, networks)
            found = self._loading.found(job.family)
            if self._loading.release_others(found):
                raise DoesNotFitError(
                    "the GPU has too little memory for two models: send the job again, this worker has freed the other",
                    fits_next_time=True,
                ) from error
            lesson = found.modes.learn(job, workload, choice.memory, choice.dtype)
            if lesson is None:
                raise
            raise lesson from error

    def _generate(
        self,
        request: VideoRequest,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None],
        num_done: int,
        chunk_state: bytes | None,
        is_beside: bool,
    ) -> Iterator[DecodedChunk]:
        """Implements `generate`, without its handling of errors."""
        pipeline = InfiniteTalkPipeline(request.networks, self._references)
        job = request.job
        family = request.networks.family
        workload = self._workload(job, request.source.info, request.networks)
        scenes = request.scenes
        all_settings = [generation_settings(job, request.seed, scene) for scene in scenes]
        chunks_before = list(accumulate((number_of_chunks(each, family) for each in all_settings), initial=0))
        memory = request.networks.choice.memory
        can_finish_beside = self._loading.found(job.family).modes.can_finish_beside(memory, workload)

        resolution, starts = (workload.height, workload.width), chunk_starts(job, scenes)

        with FootageReader(
            request.source, request.film, resolution, starts, job.chunk_frame_num, should_stop
        ) as footage:
            for index, (scene, settings) in enumerate(zip(scenes, all_settings, strict=True)):
                if num_done >= chunks_before[index + 1]:
                    continue
                goes_on = num_done > chunks_before[index]

                def count_step(step: Step, before: int = chunks_before[index]) -> None:
                    on_step(replace(step, chunk=before + step.chunk, num_chunks=chunks_before[-1]))

                sources = [request.source, *request.later_sources]
                first, *changes = open_stretches(job, sources, request.folder, scene)
                conditions = pipeline.embed_prompts(
                    source=view_of(first.source, request.film, scene.start),
                    speech=[speech_of(embeddings, scene, settings.grid(family)) for embeddings in request.speech],
                    prompt=first.prompt,
                    settings=settings,
                    negative_prompt=negative_prompt_of(job),
                    regions=request.regions,
                    changes=changes,
                    footage=partial(footage.chunk, scene),
                )
                state = ChunkState.from_bytes(chunk_state) if goes_on and chunk_state is not None else None
                work = chunk_work(settings, workload, memory, len(job.speakers))
                control = Control(state, should_stop, count_step, is_beside and can_finish_beside)
                chunks = pipeline.decoded_chunks(conditions, settings, control)
                begin = time.monotonic()
                for chunk in chunks:
                    if not can_finish_beside:
                        chunk.finish()
                    if not chunk.is_arriving:
                        self._record(chunk, time.monotonic() - begin, work)
                    yield chunk
                    if not chunk.is_arriving:
                        begin = time.monotonic()
                if chunk.is_arriving:
                    # It was decoded after it was given out.
                    self._record(chunk, time.monotonic() - begin, work)

    def _record(self, chunk: DecodedChunk, seconds: float, work: ChunkWork) -> None:
        """Learns this worker's speed from a chunk."""
        # A chunk in which blocks were compiled, or that waited for a film to be read, tells nothing about the others.
        if not (self._loading.keep_compiled() or work.encodes_source):
            self._speed.record(seconds, work, chunk.evaluations, chunk.has_encoded_reference)


def what_overflows(job: SingleJob) -> str:
    """Advice on the fields of a job that may have led to numbers that are not finite."""
    if job.loras:
        names = ", ".join(lora.name for lora in job.loras)
        return f"leave out the LoRAs one by one ({names}), or lower their scale"
    return (
        "lower sample_text_guide_scale and sample_audio_guide_scale where they are high; else the worker's operator "
        "has to check its weights"
    )


@contextmanager
def naming_loras() -> Iterator[None]:
    """Wraps code that reads a job's LoRAs: if a LoRA does not fit, the job's input is wrong.

    Raises:
        WorkerError: a LoRA does not fit.
    """
    try:
        yield
    except CheckpointError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"loras: {error}") from error

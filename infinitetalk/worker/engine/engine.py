"""The worker's use of the library: a job's request becomes calls of the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infinitetalk.encoders.text import count_tokens
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.errors import CheckpointError, GenerationStopped, NotFiniteError, ParallelError
from infinitetalk.generation.pipeline import Chunk, ChunkState, InfiniteTalkPipeline, Step
from infinitetalk.media.decode import MediaInfo
from infinitetalk.media.tts import SpeechSynthesiser
from infinitetalk.runtime.choice import Arithmetic, NetworkChoice, arithmetic_of
from infinitetalk.runtime.lora import find_lora, find_loras
from infinitetalk.runtime.memory import free_bytes, release_cached_memory
from infinitetalk.runtime.networks import Networks
from infinitetalk.weights.fingerprint import contents_of, files_below
from infinitetalk.weights.layouts import adapter_kind
from infinitetalk.weights.lora_files import files_of, read_lora
from infinitetalk.worker.engine.checkpoint import find_checkpoint
from infinitetalk.worker.engine.conditions import negative_prompt_of, workload_of
from infinitetalk.worker.engine.estimate import ASSUMED_FLOP_PER_S, Speed, VideoCost, number_of_chunks, video_cost
from infinitetalk.worker.engine.loading import Health, Loading
from infinitetalk.worker.engine.placement import MeasureMemory, devices_of, measure_memory
from infinitetalk.worker.engine.scenes import generation_settings, open_source, plan_scenes, stretch_of
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.traffic.fetch import Media
from schemas import ErrorCode, SingleJob


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
        networks: prepared for the job.
    """

    job: SingleJob
    seed: int
    source: Media
    speech: list[SpeechEmbeddings]
    regions: Tensor | None
    folder: Path
    networks: Networks


class Engine:
    """Makes videos with the networks of one checkpoint.

    Args:
        settings: of the worker.
        measure: measures the memory that there is for networks; a GPU's by default.

    Attributes:
        checkpoint: the weights.
        devices: where networks run.
        health: whether this process may serve jobs.

    Raises:
        CheckpointError: weights are missing.
    """

    def __init__(self, settings: Settings, measure: MeasureMemory = measure_memory) -> None:
        self.checkpoint = find_checkpoint(settings)
        self.devices = devices_of(settings)
        self.health = Health()
        self._loading = Loading(self.checkpoint, self.devices, measure, self.health)
        self._speed = Speed(ASSUMED_FLOP_PER_S * self.devices.count if self.checkpoint.is_published else None)
        self._synthesiser: SpeechSynthesiser | None = None

    def start(self) -> None:
        """Begins to load the model; jobs may be validated and fetched meanwhile."""
        self._loading.start()

    def finish_loading(self) -> None:
        """Waits until nothing is being loaded: what still is when the interpreter ends, fails."""
        self._loading.finish()

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self._loading.found().models.name

    def weights_for(self, job: SingleJob) -> str:
        """The weights that a job uses, by their contents: the checkpoint's, its LoRAs', Kokoro's if its text is spoken.

        Raises:
            CheckpointError: there is no file of a name, or one is damaged.
            WorkerError: the disk failed.
        """
        with self.reading_weights():
            folder = self.checkpoint.lora_folder
            files = [file for lora in job.loras for file in files_of(find_lora(folder, lora.name))]
            if job.tts_audio is not None:
                files += files_below(self.checkpoint.find_kokoro())
            return f"{self.checkpoint.fingerprint}\n{contents_of(files)}"

    def reading_weights(self) -> AbstractContextManager[None]:
        """Wraps code that reads weights in a job, as `Health.reading_weights`."""
        return self.health.reading_weights()

    @property
    def synthesiser(self) -> SpeechSynthesiser:
        """Kokoro, which loads its network when it first speaks.

        Raises:
            CheckpointError: its weights are missing.
        """
        if self._synthesiser is None:
            self._synthesiser = SpeechSynthesiser(self.checkpoint.find_kokoro(), self.devices.first)
        return self._synthesiser

    def check_memory(self) -> None:
        """Looks whether any mode fits the GPU's memory; networks that this worker has loaded already do not count.

        Raises:
            DoesNotFitError: none does.
        """
        device = self.devices.first
        if device.type == "cuda":
            self.checkpoint.check_memory(free_bytes(device) + torch.cuda.memory_reserved(device))

    def embed(
        self, tracks: Sequence[np.ndarray], should_stop: Callable[[], bool] = lambda: False
    ) -> list[SpeechEmbeddings]:
        """Embeddings of each speaker's track, float32 (samples,) at 16 kHz, one row a video frame.

        Waits for the audio encoder alone.

        Raises:
            CheckpointError: it cannot be loaded.
            GenerationStopped: `should_stop` said so.
        """
        models = self._loading.found(should_stop).models
        with self.reading_weights():
            audio_encoder = models.audio_encoder
        speech = []
        for track in tracks:
            if should_stop():
                raise GenerationStopped
            speech.append(audio_encoder(track))
        return speech

    def prepare(self, job: SingleJob, source: MediaInfo, should_stop: Callable[[], bool] = lambda: False) -> Networks:
        """The networks as the job needs them: adapter, LoRAs, and a memory mode that fits.

        Raises:
            CheckpointError: a network or a LoRA cannot be loaded.
            DoesNotFitError: no mode fits the free memory.
            GenerationStopped: `should_stop` said so.
            ParallelError: a process of another GPU ends or does not answer though it has just been started.
        """
        found = self._loading.loaded(should_stop)
        memory = found.placement.choose(job, workload_of(job, source, found.models.size_scale))
        try:
            with self.reading_weights():
                loras = find_loras(self.checkpoint.lora_folder, [(lora.name, lora.scale) for lora in job.loras])
                adapter = adapter_kind(len(job.speakers))
                return found.models.prepare(NetworkChoice(self.devices.dtype, memory, adapter, loras))
        except ParallelError:
            self.health.mark_broken()
            raise

    def memory_mode(self, choice: NetworkChoice) -> str:
        """Name of the mode that networks are in, as results give it."""
        mode = choice.memory.describe(choice.dtype)
        return mode if self.devices.count == 1 else f"{mode}, {self.devices.count} GPUs"

    def arithmetic(self, choice: NetworkChoice) -> Arithmetic:
        """How this worker computes with networks that are prepared by a choice."""
        return arithmetic_of(choice, self.devices.first, self.devices.count)

    def check_loras(self, job: SingleJob, should_stop: Callable[[], bool] = lambda: False) -> list[str]:
        """Looks from their headers whether the job's LoRAs can be laid on the model; returns warnings for the client.

        Raises:
            WorkerError: one is not there, or cannot be laid on the model.
            CheckpointError: the model could not be found.
            GenerationStopped: `should_stop` said so.
        """
        with naming_loras(), self.reading_weights():
            paths = [find_lora(self.checkpoint.lora_folder, lora.name) for lora in job.loras]
        if not paths:
            return []
        models = self._loading.found(should_stop).models
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
        models = self._loading.found(should_stop).models
        with self.reading_weights():
            return count_tokens(models.tokenizer, prompt)

    def plan(
        self, job: SingleJob, source: Media, num_rows: int, should_stop: Callable[[], bool] = lambda: False
    ) -> VideoCost:
        """The cost of a job's video; loads nothing and computes nothing on the GPU.

        Args:
            num_rows: of the speech, one a video frame.

        Raises:
            CheckpointError: the model could not be found.
            DoesNotFitError: no mode fits the free memory.
            WorkerError: the source cannot be decoded.
            GenerationStopped: `should_stop` said so.
        """
        found = self._loading.found(should_stop)
        workload = workload_of(job, source.info, found.models.size_scale)
        scenes = [generation_settings(job, 0, scene) for scene in plan_scenes(job, source, num_rows)]
        memory_mode = found.placement.choose(job, workload).describe(self.devices.dtype)
        return video_cost(scenes, workload, memory_mode, self._speed)

    def recover(self) -> None:
        """Gives back the memory that a failed job may still hold, unless the GPU answers no longer."""
        if not self.health.is_broken:
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
        except torch.OutOfMemoryError as error:
            choice, job = request.networks.choice, request.job
            workload = workload_of(job, request.source.info, request.networks.size_scale)
            lesson = self._loading.found().placement.learn(job, workload, choice.memory, choice.dtype)
            if lesson is None:
                raise
            raise lesson from error

    def _generate(
        self,
        request: Request,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None],
        num_done: int,
        chunk_state: bytes | None,
    ) -> Iterator[Chunk]:
        """As `generate`."""
        pipeline = InfiniteTalkPipeline(request.networks)
        job = request.job
        workload = workload_of(job, request.source.info, request.networks.size_scale)
        scenes = plan_scenes(job, request.source, len(request.speech[0]))
        all_settings = [generation_settings(job, request.seed, scene) for scene in scenes]
        chunks_before = list(accumulate((number_of_chunks(each, job.family) for each in all_settings), initial=0))

        for index, (scene, settings) in enumerate(zip(scenes, all_settings, strict=True)):
            if num_done >= chunks_before[index + 1]:
                continue
            goes_on = num_done > chunks_before[index]

            def count_step(step: Step, before: int = chunks_before[index]) -> None:
                on_step(Step(before + step.chunk, chunks_before[-1], step.step, step.num_steps))

            chunks = pipeline(
                source=open_source(request.source, request.folder, scene, settings.grid(job.family)),
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
                self._speed.record(time.monotonic() - begin, chunk.evaluations, workload)
                yield chunk
                begin = time.monotonic()


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
    """Wraps code that reads a job's LoRAs: one that does not fit is the job's mistake.

    Raises:
        WorkerError: it does not fit.
    """
    try:
        yield
    except CheckpointError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"loras: {error}") from error

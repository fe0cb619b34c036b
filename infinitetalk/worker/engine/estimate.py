"""The cost of a video before it is made: evaluations of the network, seconds, dollars."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infinitetalk.family import Family, ModelSizes
from infinitetalk.generation.guidance import Branch
from infinitetalk.generation.sampling import GenerationSettings, make_sampler
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.runtime.memory import MemoryMode, Workload, rounds_of_a_step, vae_rows
from infinitetalk.worker.engine.rehearsed import Card, Likeness

#: Seconds of one core for a pixel of a frame, to finished H.264. Measured on one core of an AMD EPYC
#: (docs/performance.md): 250 frames of 640x640 in 7.2 s.
ENCODING_S_PER_PIXEL = 7.2 / (250 * 640 * 640)
#: Seconds of one core for a pixel of a film's frame: to decode it and follow two faces; to decode it, lay two speakers
#: over it and encode it; to decode it and cut out what sampling starts from. Measured on one core of an
#: AMD EPYC: `python -m benchmarks.film_costs` (docs/dub.md).
FOLLOWING_S_PER_PIXEL = 0.03e-6
LAYING_S_PER_PIXEL = 0.115e-6
READING_S_PER_PIXEL = 0.04e-6
#: Seconds of a job beside networks and H.264: looking at media, decoding them, thumbnail, joining, the queue. Measured
#: on the same machine: a warm job's time less sampling and VAE.
JOB_S = 0.86
#: Bytes of a number in half precision.
HALF = 2
#: Tensors of a block that several GPUs exchange: query, key, value, and what attention makes of them.
EXCHANGED = 4
#: What normalised attention guidance adds to an evaluation: this share of what its tokens take outside self-attention.
#: Rehearsed: 0.05 to 0.09, `python -m benchmarks.rehearsal --parts nag`.
NAG_SHARE = 0.07
#: The VAE's work for a pixel, and its kernels, where several GPUs share a picture's rows: how many times those of one.
#: Rehearsed: 1.14 by two and 1.18 by four; 2.3 and 2.6.
SHARED_WORK, SHARED_KERNELS = 1.18, 2.6
#: Side and stride of a VAE tile in pixels, by diffusers' defaults.
TILE, TILE_STRIDE = 256, 192


@dataclass(frozen=True)
class ChunkWork:
    """What one chunk asks of the GPUs.

    Attributes:
        workload: its size.
        memory: the memory mode.
        speakers: number of speakers.
        branches: the guidance branches that each step evaluates.
        steps: number of steps.
        motion_frames: frames that the next chunk takes over, which are encoded again; counted after the last one too.
        has_nag: whether evaluations have normalised attention guidance.
        encodes_source: whether the source's own frames of each chunk are encoded, from which sampling starts.
    """

    workload: Workload
    memory: MemoryMode
    speakers: int
    branches: tuple[Branch, ...]
    steps: int
    motion_frames: int
    has_nag: bool = False
    encodes_source: bool = False

    @property
    def sizes(self) -> ModelSizes:
        """Numbers of parameters of the published network, which the table is about."""
        return self.workload.family.model_sizes

    @property
    def evaluations(self) -> int:
        """Network evaluations, including those that TeaCache may skip."""
        return self.steps * len(self.branches)

    @property
    def uses_negative_prompt(self) -> bool:
        """Whether the negative prompt is embedded."""
        return self.has_nag or any(not branch.has_text for branch in self.branches)


@dataclass(frozen=True)
class FilmWork:
    """What a film asks of the processor.

    Attributes:
        num_frames: number of frames that the video shows of it, repeated ones too.
        num_followed: number of its own frames in which speakers are followed before anything is generated.
        pixels: of each.
        is_kept: whether what is generated is laid over it.
    """

    num_frames: int
    num_followed: int
    pixels: int
    is_kept: bool


@dataclass(frozen=True)
class VideoWork:
    """What a video asks of the GPUs.

    Attributes:
        chunk: each chunk's work.
        num_chunks: number of chunks.
        references: number of frames of the sources that are encoded: one of an image, one for each chunk of a video.
        speech_s: seconds of speech, of all speakers together.
        prompts: number of different prompts, without the negative one.
        film: what the film asks of the processor; None: nothing.
    """

    chunk: ChunkWork
    num_chunks: int
    references: int
    speech_s: float
    prompts: int = 1
    film: FilmWork | None = None


@dataclass(frozen=True)
class VideoCost:
    """The cost of a video.

    Attributes:
        width, height: size of the video in pixels.
        num_frames, num_chunks: length of the video.
        evaluations: number of network evaluations; TeaCache may save some.
        memory_mode: name of the memory mode.
        seconds: of the job on a worker that has loaded its networks; None if nothing is known.
        origin: what the seconds are based on; None if nothing is known.
        gpus: number of GPUs that make the video together.
    """

    width: int
    height: int
    num_frames: int
    num_chunks: int
    evaluations: int
    memory_mode: str
    seconds: float | None
    origin: str | None
    gpus: int


def chunk_seconds(card: Card, work: ChunkWork, evaluations: int, encodes_reference: bool) -> float:
    """Seconds of a chunk on a card.

    Args:
        evaluations: number of evaluations that are computed.
        encodes_reference: whether it is the first chunk with its reference frame.
    """
    workload = work.workload
    pixels = workload.height * workload.width
    return (
        evaluations * evaluation_seconds(card, work)
        + vae_seconds(card, work, "decode", workload.num_frames)
        + vae_seconds(card, work, "encode", work.motion_frames)
        + workload.num_frames * card.colours.seconds(pixels)
        + (reference_seconds(card, work) if encodes_reference else 0.0)
        + (vae_seconds(card, work, "encode", workload.num_frames) if work.encodes_source else 0.0)
    )


def evaluation_seconds(card: Card, work: ChunkWork) -> float:
    """Mean seconds of an evaluation over a step's guidance branches."""
    return step_seconds(card, work) / len(work.branches)


def step_seconds(card: Card, work: ChunkWork) -> float:
    """Seconds of a step: its guidance branches are evaluated in rounds, of which each lasts as long as its longest."""
    gpus, begun, seconds = work.workload.gpus, 0, 0.0
    for at_once in rounds_of_a_step(work.memory, work.workload):
        branches = work.branches[begun : begun + at_once]
        seconds += max(branch_seconds(card, work, branch, gpus // at_once) for branch in branches)
        begun += at_once
    return seconds


def branch_seconds(card: Card, work: ChunkWork, branch: Branch, gpus: int) -> float:
    """Seconds of an evaluation that so many GPUs share; without audio there is one speaker."""
    tokens = work.workload.num_tokens
    computing = card.evaluation.seconds(tokens, gpus)
    if branch.has_audio:
        computing += (work.speakers - 1) * card.further_speaker.seconds(tokens, gpus)
    if work.has_nag:
        computing += NAG_SHARE * card.evaluation.per_token * tokens / gpus
    if work.memory.quantisation is not None:
        computing += card.widening
    return computing + exchange_seconds(card, work, gpus) + streaming_seconds(card, work, computing)


def exchange_seconds(card: Card, work: ChunkWork, gpus: int) -> float:
    """What several GPUs send to each other in an evaluation: of each tensor's own part, all but what they keep."""
    own_tokens = work.workload.num_tokens / gpus
    sent = EXCHANGED * HALF * own_tokens * work.sizes.dim * (1 - 1 / gpus)
    return work.sizes.num_blocks * sent / card.link_bytes_per_s


def streaming_seconds(card: Card, work: ChunkWork, computing_s: float) -> float:
    """What streamed blocks add to an evaluation: waits, and copies as far as they take longer than a block's work."""
    if work.memory.resident_parameters is None:
        return 0.0
    block = work.sizes.blocks / work.sizes.num_blocks
    streamed = work.sizes.num_blocks - min(work.memory.resident_parameters // block, work.sizes.num_blocks)
    copying_s = block * (HALF if work.memory.quantisation is None else 1) / card.host_bytes_per_s
    return streamed * (card.stream_wait + max(0.0, copying_s - computing_s / work.sizes.num_blocks))


def vae_seconds(card: Card, work: ChunkWork, way: str, num_frames: int) -> float:
    """A pass of the VAE over frames of the video, "decode" or "encode": whole, of which several GPUs share the rows, or
    in tiles."""
    workload = work.workload
    seconds = card.decode if way == "decode" else card.encode
    latent_frames = (num_frames - 1) // workload.family.vae_scale_factor_temporal + 1
    if not work.memory.vae_tiling:
        factor = workload.family.vae_scale_factor_spatial
        latent_rows = workload.height // factor
        own_rows = vae_rows(latent_rows, workload.gpus)
        pixels = factor * own_rows * workload.width
        if own_rows == latent_rows:
            return seconds.seconds(latent_frames, pixels)
        return seconds.seconds(latent_frames, SHARED_WORK * pixels, SHARED_KERNELS)
    sides = itertools.product(tile_sides(workload.height), tile_sides(workload.width))
    return sum(seconds.seconds(latent_frames, height * width) for height, width in sides)


def tile_sides(side: int) -> Iterator[int]:
    """Sides of the VAE's tiles along a side of the video, in pixels."""
    for start in range(0, side, TILE_STRIDE):
        yield min(TILE, side - start)


def reference_seconds(card: Card, work: ChunkWork) -> float:
    """A reference frame: its features, and its latents with those of the grey frames that follow."""
    return card.image + vae_seconds(card, work, "encode", work.workload.num_frames)


def encoders_seconds(card: Card, work: VideoWork) -> float:
    """What a job has once: its prompts and its speech. A streamed text encoder is copied for each prompt."""
    copied = HALF * work.chunk.sizes.text_encoder if work.chunk.memory.stream_text_encoder else 0
    prompt = card.prompt + copied / card.host_bytes_per_s
    return (work.prompts + work.chunk.uses_negative_prompt) * prompt + work.speech_s * card.speech


def last_encoding_seconds(work: ChunkWork) -> float:
    """The H.264 of the last chunk; that of the others runs while the next one is made."""
    workload = work.workload
    return ENCODING_S_PER_PIXEL * workload.num_frames * workload.height * workload.width


def video_seconds(card: Card, work: VideoWork) -> float:
    """Seconds of a job on a card, with its networks loaded; without fetching, storing and `film_seconds`."""
    chunks = work.num_chunks * chunk_seconds(card, work.chunk, work.chunk.evaluations, encodes_reference=False)
    chunks += work.references * reference_seconds(card, work.chunk)
    return chunks + encoders_seconds(card, work) + last_encoding_seconds(work.chunk) + JOB_S


def film_seconds(work: VideoWork, sampling_s: float) -> float:
    """Seconds that a film adds to a video that takes `sampling_s` without it.

    A chunk is laid over the film while the next one is sampled. Where sampling starts from the film, it waits for each
    chunk's frames.
    """
    film, num_chunks = work.film, work.num_chunks
    if film is None:
        return 0.0
    pixels = film.num_frames * film.pixels
    seconds = FOLLOWING_S_PER_PIXEL * film.num_followed * film.pixels
    if work.chunk.encodes_source:
        reading_s = READING_S_PER_PIXEL * pixels
        sampling_s, seconds = sampling_s + reading_s, seconds + reading_s
    if film.is_kept:
        laying_s = LAYING_S_PER_PIXEL * pixels / num_chunks
        seconds += laying_s + (num_chunks - 1) * max(0.0, laying_s - sampling_s / num_chunks)
    return seconds


def first_chunk_seconds(card: Card, work: VideoWork) -> float:
    """Seconds from a job's begin to the first chunk that can be played, with its networks loaded."""
    chunk = chunk_seconds(card, work.chunk, work.chunk.evaluations, encodes_reference=True)
    return chunk + encoders_seconds(card, work) + last_encoding_seconds(work.chunk) + JOB_S


class Speed:
    """How fast this worker is: by the table until it has made a chunk, and then by the last chunk.

    Args:
        likeness: the card of the table whose seconds stand for the GPU's; None if there is nothing to assume.
    """

    def __init__(self, likeness: Likeness | None) -> None:
        self._card = None if likeness is None else likeness.card
        #: Seconds for a second of the table, or for a floating-point operation where there is no card.
        self._factor = None if likeness is None else likeness.factor
        self.origin = None if likeness is None else likeness.origin

    def record(self, seconds: float, work: ChunkWork, evaluations: int, encodes_reference: bool) -> None:
        """Takes the speed from the time of a chunk, of whose evaluations so many were computed."""
        if self._card is None:
            self._factor = seconds / max(evaluations, 1) / evaluation_flop(work)
        else:
            self._factor = seconds / chunk_seconds(self._card, work, evaluations, encodes_reference)
        self.origin = "this worker"

    def seconds(self, work: VideoWork) -> float | None:
        """Seconds of a video; None if nothing is known."""
        if self._factor is None:
            return None
        if self._card is None:
            seconds = self._factor * work.num_chunks * work.chunk.evaluations * evaluation_flop(work.chunk)
        else:
            seconds = self._factor * video_seconds(self._card, work)
        return seconds + film_seconds(work, seconds)


def evaluation_flop(work: ChunkWork) -> float:
    """Floating-point operations of an evaluation of the published network."""
    return work.workload.family.evaluation_flop(work.workload.num_tokens)


def chunk_work(settings: GenerationSettings, workload: Workload, memory: MemoryMode, speakers: int) -> ChunkWork:
    """What a chunk with these settings, of this size, asks of the GPUs."""
    return ChunkWork(
        workload=workload,
        memory=memory,
        speakers=speakers,
        branches=settings.branches,
        steps=settings.num_steps,
        motion_frames=settings.motion_frame,
        has_nag=settings.nag_in_force is not None,
        encodes_source=settings.starts_from_source,
    )


def video_cost(
    scenes: Sequence[GenerationSettings],
    chunk: ChunkWork,
    references: int,
    prompts: int,
    memory_mode: str,
    speed: Speed,
    film: FilmWork | None = None,
) -> VideoCost:
    """The cost of a video.

    Args:
        scenes: the settings of each scene.
        chunk: a chunk's work.
        references: number of reference frames that are encoded.
        prompts: number of different prompts.
        memory_mode: name of the job's memory mode.
        speed: this worker's speed.
        film: what the film asks of the processor; None: nothing.
    """
    workload = chunk.workload
    num_chunks = [number_of_chunks(settings, workload.family) for settings in scenes]
    evaluations = sum(
        chunks * make_sampler(settings, workload.family).num_evaluations
        for chunks, settings in zip(num_chunks, scenes, strict=True)
    )
    num_frames = sum(settings.max_frame_num for settings in scenes)
    work = VideoWork(
        chunk=chunk,
        num_chunks=sum(num_chunks),
        references=references,
        speech_s=chunk.speakers * num_frames / VIDEO_FPS,
        prompts=prompts,
        film=film,
    )
    return VideoCost(
        width=workload.width,
        height=workload.height,
        num_frames=num_frames,
        num_chunks=work.num_chunks,
        evaluations=evaluations,
        memory_mode=memory_mode,
        seconds=speed.seconds(work),
        origin=speed.origin,
        gpus=workload.gpus,
    )


def number_of_chunks(settings: GenerationSettings, family: Family) -> int:
    """The number of chunks of a scene of `settings.max_frame_num` frames."""
    return settings.grid(family).num_chunks(settings.max_frame_num)

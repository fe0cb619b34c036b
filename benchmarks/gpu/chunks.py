"""Whole chunks with the worker's pipeline, at the published sizes with random weights: two steps of each.

The time of a recipe's chunk follows from them: the work done once per chunk, and the time of its steps. Then a
cancelled job.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.caches import Portrait
from benchmarks.gpu.networks import Shape, make_image_encoder, make_transformer, make_vae, shape_of, working_dtype
from benchmarks.gpu.rows import Figure, Group, Row, device, memory_figure, release, synchronise
from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.errors import GenerationStopped
from infinitetalk.generation.pipeline import Conditions, Control, InfiniteTalkPipeline, Step
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.networks import Networks

#: Settings that are timed for two steps, and the number of steps of a job with them.
SETTINGS = GenerationSettings(num_inference_steps=2, shift=2.0, text_guide_scale=1.0, audio_guide_scale=2.0)
FEW_STEPS = replace(SETTINGS, frame_num=33, max_frame_num=33, motion_frame=5, shift=5.0, audio_guide_scale=1.0)


@dataclass
class Pipeline:
    """The pipeline with networks of random weights."""

    shape: Shape
    pipeline: InfiniteTalkPipeline

    def conditions(self, num_frames: int) -> Conditions:
        """An image of 640x640, noise for speech and prompt."""
        generator = torch.Generator().manual_seed(1)
        return Conditions(
            source=Portrait(),
            speech=[SpeechEmbeddings.from_tensor(torch.randn(num_frames, 12, 768, generator=generator))],
            prompt_embeds=torch.randn(1, 512, 4096, generator=generator).to(device()),
            negative_prompt_embeds=torch.randn(1, 512, 4096, generator=generator).to(device()),
        )


def prepare(small: bool) -> Pipeline:
    """Transformer, VAE and CLIP; prompts and speech are embedded already."""
    shape = shape_of(small)

    networks = Networks(
        choice=NetworkChoice(working_dtype()),
        device=device(),
        size_scale=0.1 if small else 1.0,
        transformer=make_transformer(shape),
        vae=make_vae(shape),
        prompt_encoder=None,  # type: ignore[arg-type]  # prompts come embedded
        image_encoder=ImageEncoder(make_image_encoder(shape)),
        audio_encoder=None,  # type: ignore[arg-type]  # speech comes embedded
    )
    return Pipeline(shape, InfiniteTalkPipeline(networks))


def chunk(state: Pipeline, name: str, settings: GenerationSettings) -> Iterator[Figure]:
    """Two chunks of two steps each; the second starts from the first, as in a stream."""
    settings = replace(settings, max_frame_num=2 * settings.frame_num - settings.motion_frame)
    release()
    times = []

    def on_step(step: Step) -> None:
        synchronise()
        times.append(time.perf_counter())

    begin = time.perf_counter()
    chunks = state.pipeline.generate(state.conditions(settings.max_frame_num), settings, Control(on_step=on_step))
    ends = []
    for made in chunks:
        synchronise()
        ends.append(time.perf_counter())
        evaluations = made.evaluations // settings.num_inference_steps
        shown = made.frames.shape
    yield Figure(f"{name}: from conditions to the end of the first step, cold", times[0] - begin)
    yield Figure(f"{name}: one step, {evaluations} evaluation(s)", times[1] - times[0])
    yield Figure(
        f"{name}: from the last step to the frames, cold", ends[0] - times[1], "s", "decode, colour, motion frames"
    )
    yield Figure(f"{name}: one step of the second chunk", times[3] - times[2])
    yield Figure(
        f"{name}: from the last step to the frames, second chunk", ends[1] - times[3], "s", f"{shown}, the last chunk"
    )
    yield memory_figure(f"{name}: peak memory", detail="weights of transformer, VAE and CLIP included")


def guided(state: Pipeline) -> Iterator[Figure]:
    """81 frames, text guidance 1 and audio guidance 2."""
    yield from chunk(state, "chunk of 81 frames, audio guidance", SETTINGS)


def few_steps(state: Pipeline) -> Iterator[Figure]:
    """33 frames without guidance."""
    yield from chunk(state, "chunk of 33 frames, no guidance", FEW_STEPS)


def cancelled(state: Pipeline) -> Iterator[Figure]:
    """A job that is stopped within its first evaluation: the time until it ends, and the memory that it leaves."""
    release()
    before = torch.cuda.memory_allocated() if device().type == "cuda" else 0
    asked = []

    def should_stop() -> bool:
        asked.append(time.perf_counter())
        return len(asked) > 1

    try:
        list(state.pipeline.generate(state.conditions(81), SETTINGS, Control(should_stop=should_stop)))
    except GenerationStopped:
        synchronise()
        stopped = time.perf_counter()
    release()
    left = (torch.cuda.memory_allocated() - before) / 2**20 if device().type == "cuda" else 0.0
    yield Figure("a cancelled job: from its first evaluation to its end", stopped - asked[0])
    yield Figure("a cancelled job: memory that it leaves", left, "MiB")


def out_of_memory(state: Pipeline) -> Iterator[Figure]:
    """A chunk without enough memory, and the same chunk when there is enough again."""
    if device().type != "cuda":
        yield Figure("a chunk for which memory is missing", None, detail="no GPU here")
        return
    release()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 3 * 2**30, dtype=torch.uint8, device=device())
    began = time.perf_counter()
    try:
        list(state.pipeline.generate(state.conditions(81), SETTINGS))
        raise AssertionError("it had memory enough")
    except torch.OutOfMemoryError:
        missed = time.perf_counter() - began
    del taken
    release()
    yield Figure("a chunk for which memory is missing: until it says so", missed)
    settings = replace(FEW_STEPS, num_inference_steps=1)
    made = list(state.pipeline.generate(state.conditions(33), settings))
    yield Figure("the next job after it: frames", float(sum(len(part.frames) for part in made)), "frames")


GROUP = Group(
    "chunks",
    prepare,
    (
        Row("guided", guided),
        Row("few steps", few_steps),
        Row("cancelled", cancelled),
        Row("out of memory", out_of_memory),
    ),
)

"""What sampling is made of can be replaced: a stepper and a cache are added here, without a change to the library."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from torch import Tensor

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.family import INFINITETALK
from infinitetalk.generation.pipeline import ChunkState, InfiniteTalkPipeline
from infinitetalk.generation.sampling import (
    ChunkConditions,
    EulerStepper,
    GenerationSettings,
    Sampler,
    chunk_noise,
    make_sampler,
    sample_chunk,
)
from infinitetalk.media.decode import Picture
from infinitetalk.network.protocols import DrawNoise, EvaluationInputs
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks

SETTINGS = GenerationSettings(
    frame_num=9,
    max_frame_num=13,
    motion_frame=5,
    num_inference_steps=4,
    text_guide_scale=1.0,
    audio_guide_scale=2.0,
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    models = Models(ensure_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), torch.device("cpu"))
    return models.prepare(NetworkChoice(torch.float32))


@pytest.fixture
def evaluated(networks: Networks) -> Iterator[list[int]]:
    """Numbers of the transformer's blocks, in the order in which they are computed."""
    computed: list[int] = []
    handles = [
        block.attn1.register_forward_pre_hook(lambda *_, index=index: computed.append(index))
        for index, block in enumerate(networks.transformer.blocks)
    ]
    yield computed
    for handle in handles:
        handle.remove()


def picture() -> Picture:
    return Picture(torch.randint(0, 256, (3, 60, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def speech(num_frames: int = 13) -> SpeechEmbeddings:
    generator = torch.Generator().manual_seed(0)
    return SpeechEmbeddings.from_tensor(torch.randn(num_frames, 12, 32, generator=generator))


def generate(pipeline: InfiniteTalkPipeline, **changes: object) -> np.ndarray:
    chunks = pipeline(picture(), [speech()], "A woman talks", replace(SETTINGS, **changes))
    return np.concatenate([chunk.frames for chunk in chunks])


class Renoising:
    """Each step goes to the noiseless latents that the network sees, and back to the next level with new noise."""

    timesteps = torch.tensor([1000.0, 600.0])

    def step(self, index: int, velocity: Tensor, latents: Tensor, draw_noise: DrawNoise) -> Tensor:
        level, next_level = (1.0, 0.6, 0.0)[index : index + 2]
        return (1 - next_level) * (latents - level * velocity) + next_level * draw_noise(index + 1)


class RenoisingPipeline(InfiniteTalkPipeline):
    """The pipeline with that stepper."""

    def make_sampler(self, settings: GenerationSettings) -> Sampler:
        return replace(make_sampler(settings, INFINITETALK), stepper=Renoising())


def test_a_stochastic_stepper_makes_a_video_and_resumes_with_the_same_frames(
    networks: Networks, evaluated: list[int]
) -> None:
    pipeline = RenoisingPipeline(networks)
    first, second = pipeline(picture(), [speech()], "A woman talks", SETTINGS)
    assert len(evaluated) == 2 * 2 * 2 * len(networks.transformer.blocks)
    assert first.evaluations == pipeline.make_sampler(SETTINGS).num_evaluations == 4
    assert first.state is not None
    state = ChunkState.from_bytes(first.state.to_bytes())
    (resumed,) = pipeline(picture(), [speech()], "A woman talks", SETTINGS, state=state)
    assert np.array_equal(resumed.frames, second.frames)
    assert not np.array_equal(generate(pipeline), generate(InfiniteTalkPipeline(networks)))


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=1e9),
        MagCacheConfig(threshold=1e9, max_skip_steps=4, num_inference_steps=4, mag_ratios=torch.ones(4)),
    ],
)
def test_a_cache_of_diffusers_saves_blocks_and_begins_anew_in_each_chunk(
    networks: Networks, evaluated: list[int], config: object
) -> None:
    pipeline = InfiniteTalkPipeline(networks)
    exact = generate(pipeline)
    every_block = len(evaluated)
    evaluated.clear()
    networks.transformer.enable_cache(config)
    try:
        cached = generate(pipeline)
        first_time = list(evaluated)
        evaluated.clear()
        assert np.array_equal(generate(pipeline), cached)
    finally:
        networks.transformer.disable_cache()
    assert evaluated == first_time
    # The last block is computed once for each of two branches in each of two chunks.
    assert first_time.count(len(networks.transformer.blocks) - 1) == 4 < every_block
    assert not np.array_equal(cached, exact)
    assert np.array_equal(generate(pipeline), exact)


def recording_denoiser(noise_seen: list[Tensor]) -> Callable:
    """A network that predicts nothing and keeps what it is given."""

    class Denoiser(torch.nn.Module):
        dtype = torch.float32

        def reset_cache(self) -> None:
            pass

        def rounds(self, num_evaluations: int) -> list[int]:
            return [1] * num_evaluations

        def evaluate(self, evaluations: Sequence[EvaluationInputs]) -> list[Tensor]:
            seen = [evaluation.hidden_states[:, :16] for evaluation in evaluations]
            noise_seen.extend(latents.clone() for latents in seen)
            return [torch.zeros_like(latents) for latents in seen]

    return Denoiser()


def test_a_chunk_is_sampled_without_writing_into_the_noise_it_begins_from() -> None:
    noise = torch.ones(1, 16, 3, 4, 4)
    conditions = ChunkConditions(
        prompt_embeds=torch.zeros(1, 4, 8),
        negative_prompt_embeds=None,
        image_embeds=torch.zeros(1, 5, 8),
        condition=torch.zeros(1, 20, 3, 4, 4),
        motion_latents=torch.full((1, 16, 1, 4, 4), 7.0),
        audio_windows=torch.zeros(1, 9, 5, 12, 32),
        regions=None,
    )
    seen: list[Tensor] = []
    sampled = sample_chunk(
        recording_denoiser(seen),
        lambda draw: noise,
        conditions,
        make_sampler(SETTINGS, INFINITETALK),
        should_stop=lambda: False,
        on_step=lambda step, evaluations: None,
    )
    assert torch.equal(noise, torch.ones_like(noise))
    assert len(seen) == sampled.evaluations == 8
    assert all((latents[:, :, :1] == 7).all() and (latents[:, :, 1:] == 1).all() for latents in seen)
    assert torch.equal(sampled.latents, seen[0])


def test_the_first_draw_is_what_a_chunk_began_from_before_there_were_others() -> None:
    """Videos of a seed stay the same."""
    seed = int(np.random.SeedSequence([42, 3]).generate_state(1, np.uint64)[0])
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(chunk_noise(42, 3, 0, (2, 3)), expected)


def test_euler_takes_as_many_steps_as_it_has_timesteps() -> None:
    sampler = make_sampler(SETTINGS, INFINITETALK)
    assert isinstance(sampler.stepper, EulerStepper)
    assert sampler.num_evaluations == 8

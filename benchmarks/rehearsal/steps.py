"""Sampling steps as a chunk has them: guidance, the stepper, the caches and the checks between evaluations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.rehearsal.log import Log
from benchmarks.rehearsal.networks import evaluation_inputs, make_transformer, on_fake_device
from benchmarks.rehearsal.stage import Stage
from infinitetalk.family import INFINITETALK
from infinitetalk.generation.sampling import ChunkConditions, GenerationSettings, make_sampler, sample_chunk
from infinitetalk.runtime.memory import Workload


def steps(
    stage: Stage, workload: Workload, settings: GenerationSettings, speakers: int = 1, num_layers: int = 1
) -> Log:
    """The sampling of a chunk by a network of so many blocks; what it waits for does not depend on their number."""
    transformer = make_transformer(stage.mode, num_layers)
    given = evaluation_inputs(stage.mode, workload.height, workload.width, workload.num_frames, speakers)
    video, prompt, image, audio = (
        _given(given, name)
        for name in (
            "hidden_states",
            "encoder_hidden_states",
            "encoder_hidden_states_image",
            "encoder_hidden_states_audio",
        )
    )
    channels = INFINITETALK.latent_channels
    with on_fake_device(stage.mode):
        latents = torch.empty(video[:, :channels].shape)
        conditions = ChunkConditions(
            prompt_embeds=prompt,
            negative_prompt_embeds=prompt,
            image_embeds=image.float(),
            condition=video[:, channels:].float(),
            motion_latents=latents[:, :, :1],
            audio_windows=audio.float(),
            regions=given["regions"],
        )
    # Its noise levels have numbers, which decide what happens.
    with unset_fake_temporarily():
        sampler = make_sampler(settings, INFINITETALK)
    return stage.record(
        lambda: sample_chunk(
            transformer, lambda draw: latents, conditions, sampler, lambda: False, lambda step, evaluations: None
        )
    )


def _given(inputs: dict[str, Tensor | None], name: str) -> Tensor:
    value = inputs[name]
    assert value is not None
    return value

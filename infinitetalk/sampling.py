"""From noise to the latents of one chunk: the schedule, the noise, and the sampling loop."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from infinitetalk.errors import GenerationStopped
from infinitetalk.finite import check_finite
from infinitetalk.guidance import AdaptiveProjectedGuidance, Branch, Guidance, GuidanceScales, PlainGuidance
from infinitetalk.parallel import LeadingTransformer
from infinitetalk.teacache import TeaCache
from infinitetalk.transformer import InfiniteTalkTransformer3DModel

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class GenerationSettings:
    """How a video is generated.

    Attributes:
        size: "infinitetalk-480" or "infinitetalk-720", the table of resolutions and of TeaCache's coefficients.
        frame_num: frames of a chunk, 4n + 1.
        max_frame_num: frames of the video at most; `frame_num` for a single chunk.
        motion_frame: frames a chunk takes over from the one before, 1…frame_num - 1.
        crossfade_frame: of these at most so many, in which what is shown fades from one chunk to the next; 0 cuts, as
            the published code does.
        num_inference_steps: sampling steps.
        shift: of the noise schedule; larger spends more steps at high noise.
        text_guide_scale, audio_guide_scale: guidance; 1 leaves that condition unamplified.
        use_apg, apg_momentum, apg_norm_threshold: adaptive projected guidance.
        teacache_threshold: evaluations are skipped below it; None computes all.
        color_correction_strength: 0 (off) … 1.
        seed: of the noise, together with the chunk's index.
    """

    size: str = "infinitetalk-480"
    frame_num: int = 81
    max_frame_num: int = 81
    motion_frame: int = 9
    crossfade_frame: int = 4
    num_inference_steps: int = 40
    shift: float = 7.0
    text_guide_scale: float = 5.0
    audio_guide_scale: float = 4.0
    use_apg: bool = False
    apg_momentum: float = -0.75
    apg_norm_threshold: float = 55.0
    teacache_threshold: float | None = None
    color_correction_strength: float = 1.0
    seed: int = 42


@dataclass(frozen=True)
class ChunkConditions:
    """What the network is told during one chunk.

    Attributes:
        prompt_embeds: (1, text_len, text_dim).
        negative_prompt_embeds: the same, or None where guidance does without.
        image_embeds: (1, image_tokens, image_dim), CLIP features of the reference frame.
        condition: (1, 20, t, h, w), 4 mask channels and the latents of the reference frame followed by grey.
        motion_latents: (1, 16, n, h, w), the clean first latent frames.
        audio_windows: (speakers, num_frames, window, layers, channels).
        regions: bool (speakers + 1, h, w), or None for one speaker.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    image_embeds: Tensor
    condition: Tensor
    motion_latents: Tensor
    audio_windows: Tensor
    regions: Tensor | None

    def text_embeds(self, branch: Branch) -> Tensor:
        """The prompt's or the negative prompt's embeddings, as `branch` asks for.

        Raises:
            ValueError: the branch needs a negative prompt and there is none.
        """
        if branch.has_text:
            return self.prompt_embeds
        if self.negative_prompt_embeds is None:
            raise ValueError("negative_prompt_embeds is None; this guidance needs a negative prompt")
        return self.negative_prompt_embeds


@dataclass(frozen=True)
class SampledChunk:
    """Latents (1, 16, t, h, w) of a chunk; network evaluations made for them, and skipped by TeaCache."""

    latents: Tensor
    evaluations: int
    evaluations_skipped: int


def make_scheduler(num_inference_steps: int, shift: float) -> FlowMatchEulerDiscreteScheduler:
    """The published schedule: u = linspace(1000, 1)/1000, then 0, each moved to s·u / (1 + (s - 1)·u), s = `shift`."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, num_inference_steps).tolist())
    return scheduler


def make_guidance(settings: GenerationSettings) -> Guidance:
    """Guidance with a fresh state, for one chunk."""
    scales = GuidanceScales(settings.text_guide_scale, settings.audio_guide_scale)
    if settings.use_apg:
        return AdaptiveProjectedGuidance(scales, settings.apg_momentum, settings.apg_norm_threshold)
    return PlainGuidance(scales)


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that depends on the seed and the chunk's index alone, not on device or chunks before."""
    chunk_seed = int(np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)[0])
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(chunk_seed))


def sample_chunk(
    transformer: InfiniteTalkTransformer3DModel | LeadingTransformer,
    noise: Tensor,
    conditions: ChunkConditions,
    settings: GenerationSettings,
    should_stop: Callable[[], bool],
    on_step: Callable[[int], None],
) -> SampledChunk:
    """Integrate the flow from noise (1, 16, t, h, w) to latents by Euler's method.

    The motion latents are set before every step and after the last. `should_stop` is asked before every evaluation,
    `on_step` told the number of finished steps after each.

    Raises:
        GenerationStopped: `should_stop` said so.
        NotFiniteError: a step has made numbers that are not finite.
    """
    scheduler = make_scheduler(settings.num_inference_steps, settings.shift)
    guidance = make_guidance(settings)
    caches: dict[Branch, TeaCache] = {}
    if settings.teacache_threshold is not None:
        caches = {branch: TeaCache(settings.size, settings.teacache_threshold) for branch in guidance.branches}
    num_motion_latents = conditions.motion_latents.shape[2]

    latents = noise
    for step, timestep in enumerate(scheduler.timesteps, start=1):
        latents[:, :, :num_motion_latents] = conditions.motion_latents
        predictions = {}
        for branch in guidance.branches:
            if should_stop():
                raise GenerationStopped
            predictions[branch] = predict(transformer, latents, timestep, branch, conditions, caches.get(branch))
        latents = scheduler.step(guidance(predictions), timestep, latents).prev_sample
        # Once undefined, numbers stay so, and every further step is paid for nothing. This waits for the device, the
        # loop's only wait but for TeaCache's: one a step, whose evaluations take seconds. It also keeps the CPU from
        # queueing steps ahead, so that what `on_step` tells has happened and a stop need not wait for the queue.
        check_finite(latents, f"the latents after step {step}")
        on_step(step)
    latents[:, :, :num_motion_latents] = conditions.motion_latents

    skipped = sum(cache.skipped for cache in caches.values())
    return SampledChunk(latents, settings.num_inference_steps * len(guidance.branches) - skipped, skipped)


def predict(
    transformer: InfiniteTalkTransformer3DModel | LeadingTransformer,
    latents: Tensor,
    timestep: Tensor,
    branch: Branch,
    conditions: ChunkConditions,
    cache: TeaCache | None,
) -> Tensor:
    """One network evaluation: the velocity (1, 16, t, h, w), float32, as one branch of guidance sees it.

    Without audio there is one speaker, whose embeddings are zero.
    """
    dtype = transformer.dtype
    if branch.has_audio:
        audio_windows, regions = conditions.audio_windows, conditions.regions
    else:
        audio_windows, regions = torch.zeros_like(conditions.audio_windows[:1]), None
    return transformer(
        hidden_states=torch.cat([latents, conditions.condition], dim=1).to(dtype),
        timestep=timestep[None].to(latents.device),
        encoder_hidden_states=conditions.text_embeds(branch).to(dtype),
        encoder_hidden_states_image=conditions.image_embeds.to(dtype),
        encoder_hidden_states_audio=audio_windows.to(dtype),
        regions=regions,
        cache=cache,
        return_dict=False,
    )[0].float()

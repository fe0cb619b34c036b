"""Samples the latents of one chunk from noise: the schedule, the noise, and the sampling loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from infinitetalk.errors import GenerationStopped
from infinitetalk.family import INFINITETALK, Family, Renoising
from infinitetalk.finite import check_finite
from infinitetalk.generation.chunks import ChunkGrid
from infinitetalk.generation.guidance import AdaptiveProjectedGuidance, Branch, Guidance, GuidanceScales, PlainGuidance
from infinitetalk.network.nag import AttentionGuidance
from infinitetalk.network.protocols import Denoiser, DrawNoise, EvaluationInputs, StepCache, Stepper
from infinitetalk.network.teacache import TeaCache

TRAIN_TIMESTEPS = 1000
_DEFAULTS = INFINITETALK.defaults


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of a video. The defaults are those published for InfiniteTalk.

    Attributes:
        size: name of one of the family's tables of resolutions; also names what TeaCache goes by.
        resolution: (height, width) in pixels, in place of the table's; scaled like it for small models.
        frame_num: frames of a chunk, 4n + 1.
        max_frame_num: largest number of frames of the video; `frame_num` for a single chunk.
        motion_frame: frames a chunk takes over from the one before, 1…frame_num - 1.
        crossfade_frame: largest number of these in which the video fades from one chunk to the next; 0 cuts, as the
            published code does.
        num_inference_steps: sampling steps, from noise alone.
        strength: how much of a source video is made anew, above 0 to 1: this share of the steps is made. They start
            from the video's own latents with the noise of the first of them.
        shift: shift of the noise schedule; a larger one spends more steps at high noise.
        text_guide_scale, audio_guide_scale: guidance; 1 leaves a condition unamplified.
        use_apg, apg_momentum, apg_norm_threshold: adaptive projected guidance.
        nag: normalised attention guidance by the negative prompt, where guidance does not use it; None: off.
        teacache_threshold: evaluations are skipped below it; None skips none.
        color_correction_strength: 0 (off) … 1.
        seed: determines the noise, together with the chunk's index.
    """

    size: str = _DEFAULTS.size
    resolution: tuple[int, int] | None = None
    frame_num: int = _DEFAULTS.frame_num
    max_frame_num: int = _DEFAULTS.frame_num
    motion_frame: int = _DEFAULTS.motion_frame
    crossfade_frame: int = _DEFAULTS.crossfade_frame
    num_inference_steps: int = _DEFAULTS.num_inference_steps
    strength: float = 1.0
    shift: float = INFINITETALK.sizes[_DEFAULTS.size].shift
    text_guide_scale: float = _DEFAULTS.text_guide_scale
    audio_guide_scale: float = _DEFAULTS.audio_guide_scale
    use_apg: bool = False
    apg_momentum: float = _DEFAULTS.apg_momentum
    apg_norm_threshold: float = _DEFAULTS.apg_norm_threshold
    nag: AttentionGuidance | None = None
    teacache_threshold: float | None = None
    color_correction_strength: float = _DEFAULTS.color_correction_strength
    seed: int = 42

    @property
    def num_steps(self) -> int:
        """Number of sampling steps that are made: the strength's share of all, at least one."""
        return max(1, math.floor(self.strength * self.num_inference_steps + 0.5))

    @property
    def starts_from_source(self) -> bool:
        """Whether sampling starts from the source's own latents: not where the strength leaves out no step."""
        return self.num_steps < self.num_inference_steps

    @property
    def guides_text(self) -> bool:
        """Whether guidance evaluates the network with the negative prompt."""
        return any(not branch.has_text for branch in self.branches)

    @property
    def nag_in_force(self) -> AttentionGuidance | None:
        """Normalised attention guidance if it has an effect: guidance by the text takes its place."""
        return self.nag if self.nag is not None and self.nag.has_effect and not self.guides_text else None

    @property
    def needs_negative_prompt(self) -> bool:
        """Whether the negative prompt has an effect."""
        return self.guides_text or self.nag_in_force is not None

    def grid(self, family: Family) -> ChunkGrid:
        """The division of a video of this family into chunks."""
        return ChunkGrid(self.frame_num, self.motion_frame, self.crossfade_frame, family)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The guidance branches, each of them an evaluation of every step."""
        return make_guidance(self).branches


@dataclass(frozen=True)
class ChunkConditions:
    """The network's conditions for one chunk.

    Attributes:
        prompt_embeds: (1, text_len, text_dim).
        negative_prompt_embeds: the same, or None if nothing uses them.
        image_embeds: (1, image_tokens, image_dim), CLIP features of the reference frame.
        condition: (1, 20, t, h, w), 4 mask channels and the latents of the reference frame followed by grey.
        motion_latents: (1, 16, n, h, w), the clean first latent frames.
        audio_windows: (speakers, num_frames, window, layers, channels).
        regions: bool (speakers + 1, h, w), or None for one speaker.
        nag_strengths: float32 (3,), normalised attention guidance by the negative prompt; None: off.
        source_latents: (1, 16, t, h, w), of the source's own frames of the chunk, from which sampling starts; None: it
            starts from noise.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    image_embeds: Tensor
    condition: Tensor
    motion_latents: Tensor
    audio_windows: Tensor
    regions: Tensor | None
    nag_strengths: Tensor | None = None
    source_latents: Tensor | None = None

    def text_embeds(self, branch: Branch) -> Tensor:
        """The prompt's or the negative prompt's embeddings, depending on the branch.

        Raises:
            ValueError: the branch needs a negative prompt and there is none.
        """
        if branch.has_text:
            return self.prompt_embeds
        if self.negative_prompt_embeds is None:
            raise ValueError("negative_prompt_embeds is None; this guidance needs a negative prompt")
        return self.negative_prompt_embeds

    @property
    def nag_embeds(self) -> Tensor | None:
        """The negative prompt's embeddings for normalised attention guidance; None if it is off.

        Raises:
            ValueError: it is on and there is no negative prompt.
        """
        return None if self.nag_strengths is None else self.text_embeds(Branch.NEGATIVE_TEXT)


@dataclass(frozen=True)
class Sampler:
    """The parts that sample one chunk; they hold the chunk's state, so each chunk needs new ones.

    Attributes:
        stepper: steps from one noise level to the next.
        guidance: the evaluations that a step needs, and their combination.
        caches: one for each guidance branch; empty if every evaluation is computed.
    """

    stepper: Stepper
    guidance: Guidance
    caches: Mapping[Branch, StepCache] = field(default_factory=dict)

    @property
    def num_evaluations(self) -> int:
        """Network evaluations of a chunk, including those that a cache skips."""
        return len(self.stepper.timesteps) * len(self.guidance.branches)


@dataclass(frozen=True)
class SampledChunk:
    """A chunk's latents (1, 16, t, h, w), and the network evaluations made for them and skipped by the step caches."""

    latents: Tensor
    evaluations: int
    evaluations_skipped: int


class EulerStepper:
    """Euler's method along the published schedule: u = linspace(1000, 1)/1000, then 0, each moved to
    s·u / (1 + (s - 1)·u), s = `shift`.

    Args:
        num_steps: of the whole schedule.
        skipped: number of its first steps that are left out.

    Attributes:
        sigmas: (num_steps - skipped + 1,), the noise levels; the whole schedule's go from 1 to 0.
        timesteps: (num_steps - skipped,), 1000 times the noise level before each step.
    """

    def __init__(self, num_steps: int, shift: float, skipped: int = 0) -> None:
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, num_steps).tolist())
        self.timesteps: Tensor = scheduler.timesteps[skipped:]
        self.sigmas: Tensor = scheduler.sigmas[skipped:]

    def step(self, index: int, velocity: Tensor, latents: Tensor, draw_noise: DrawNoise) -> Tensor:
        """x + (σ' - σ)·v; draws no noise."""
        return latents + (self.sigmas[index + 1] - self.sigmas[index]) * velocity


class RenoisingStepper:
    """The step of models distilled to few steps: to the noiseless latents, then back to the next level with new noise.

    Args:
        timesteps: 1000 times the noise levels u before each step, before the shift: decreasing.
        shift: s; each u, and the final 0, is moved to s·u / (1 + (s - 1)·u).

    Attributes:
        sigmas: (num_steps + 1,), float32, the noise levels, the last is 0.
        timesteps: (num_steps,), float32, 1000 times the noise level before each step.
    """

    def __init__(self, timesteps: Sequence[float], shift: float) -> None:
        levels = torch.tensor([*timesteps, 0.0], dtype=torch.float64) / TRAIN_TIMESTEPS
        levels = shift * levels / (1 + (shift - 1) * levels)
        self.timesteps: Tensor = (levels[:-1] * TRAIN_TIMESTEPS).float()
        self.sigmas: Tensor = levels.float()

    def step(self, index: int, velocity: Tensor, latents: Tensor, draw_noise: DrawNoise) -> Tensor:
        """(1 - σ')·(x - σ·v) + σ'·noise; the last step, where σ' is 0, draws no noise."""
        noiseless = latents - self.sigmas[index] * velocity
        if index + 1 == len(self.timesteps):
            return noiseless
        next_sigma = self.sigmas[index + 1]
        return (1 - next_sigma) * noiseless + next_sigma * draw_noise(index + 1)


def make_sampler(settings: GenerationSettings, family: Family) -> Sampler:
    """The family's sampler with these settings, for one chunk.

    Raises:
        ValueError: TeaCache is asked for, and the family has no size of the settings' name, or no coefficients for it.
    """
    guidance = make_guidance(settings)
    caches: dict[Branch, StepCache] = {}
    if settings.teacache_threshold is not None:
        polynomial = family.size(settings.size).teacache_polynomial
        if not polynomial:
            raise ValueError(f"TeaCache has no coefficients for {family.model_name}; switch it off")
        caches = {branch: TeaCache(polynomial, settings.teacache_threshold) for branch in guidance.branches}
    num_steps = settings.num_inference_steps
    stepper = make_stepper(family.renoising, num_steps, settings.shift, num_steps - settings.num_steps)
    return Sampler(stepper, guidance, caches)


def make_stepper(renoising: Renoising | None, num_steps: int, shift: float, skipped: int = 0) -> Stepper:
    """The stepper of one chunk: re-noising as a family describes it, or Euler's method where it is None.

    Args:
        num_steps: of the whole schedule.
        skipped: number of its first steps that are left out.
    """
    if renoising is None:
        return EulerStepper(num_steps, shift, skipped)
    evenly = np.linspace(TRAIN_TIMESTEPS, 1.0, num_steps).tolist()
    return RenoisingStepper(renoising.timesteps.get(num_steps, evenly)[skipped:], shift)


def make_guidance(settings: GenerationSettings) -> Guidance:
    """Guidance with a fresh state, for one chunk."""
    scales = GuidanceScales(settings.text_guide_scale, settings.audio_guide_scale)
    if settings.use_apg:
        return AdaptiveProjectedGuidance(scales, settings.apg_momentum, settings.apg_norm_threshold)
    return PlainGuidance(scales)


def chunk_noise(seed: int, chunk: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that depends only on the seed and the indices of chunk and draw: it is the same on every
    device and independent of earlier draws. Draw 0 starts the chunk, draw n belongs to step n."""
    draw_seed = int(np.random.SeedSequence([seed, chunk, draw]).generate_state(1, np.uint64)[0])
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(draw_seed))


def sample_chunk(
    denoiser: Denoiser,
    draw_noise: DrawNoise,
    conditions: ChunkConditions,
    sampler: Sampler,
    should_stop: Callable[[], bool],
    on_step: Callable[[int, int], None],
) -> SampledChunk:
    """Sample a chunk to latents, step by step: from noise, or from the source's latents with the first step's noise.

    Before the first step and after each, the first latent frames are set to the motion latents. `should_stop` is called
    before each round of evaluations, `on_step` after each step with the number of finished steps and the number of
    evaluations that the step computed.

    Raises:
        GenerationStopped: `should_stop` returned True.
        NotFiniteError: a step has produced numbers that are not finite.
    """
    denoiser.reset_cache()
    latents = first_latents(draw_noise(0), sampler.stepper.timesteps, conditions.source_latents)
    latents = pin_motion(latents, conditions.motion_latents)
    skipped = 0
    for index, timestep in enumerate(sampler.stepper.timesteps):
        predictions = predict(denoiser, latents, timestep, conditions, sampler, should_stop)
        latents = sampler.stepper.step(index, sampler.guidance(predictions), latents, draw_noise)
        # Numbers that are not finite never recover, and further steps would be wasted. The check waits for the device
        # once per step, which takes seconds. It also keeps the CPU from queueing steps ahead: `on_step` reports steps
        # that have run, and a stop need not wait for a queue.
        check_finite(latents, f"the latents after step {index + 1}")
        latents = pin_motion(latents, conditions.motion_latents)
        skipped_before, skipped = skipped, sum(cache.skipped for cache in sampler.caches.values())
        on_step(index + 1, len(predictions) - (skipped - skipped_before))

    return SampledChunk(latents, sampler.num_evaluations - skipped, skipped)


def first_latents(noise: Tensor, timesteps: Tensor, source_latents: Tensor | None) -> Tensor:
    """What sampling starts from: noise, or (1 - σ)·source + σ·noise, σ the noise level before the first step.

    Args:
        noise, source_latents: float32 (1, 16, t, h, w).
        timesteps: (num_steps,), as of a stepper.
    """
    if source_latents is None:
        return noise
    return torch.lerp(source_latents.to(noise), noise, float(timesteps[0]) / TRAIN_TIMESTEPS)


def pin_motion(latents: Tensor, motion_latents: Tensor) -> Tensor:
    """Replaces the first frames of (1, 16, t, h, w) by the motion latents (1, 16, n, h, w), in a new tensor."""
    return torch.cat([motion_latents.to(latents), latents[:, :, motion_latents.shape[2] :]], dim=2)


def predict(
    denoiser: Denoiser,
    latents: Tensor,
    timestep: Tensor,
    conditions: ChunkConditions,
    sampler: Sampler,
    should_stop: Callable[[], bool],
) -> dict[Branch, Tensor]:
    """The network evaluations of one step: for each branch of guidance the velocity (1, 16, t, h, w), float32.

    Raises:
        GenerationStopped: `should_stop` returned True before a round of evaluations.
    """
    branches = sampler.guidance.branches
    evaluations = evaluations_of(branches, denoiser.dtype, latents, timestep, conditions, sampler.caches)
    velocities: list[Tensor] = []
    for at_once in denoiser.rounds(len(evaluations)):
        if should_stop():
            raise GenerationStopped
        velocities += denoiser.evaluate(evaluations[len(velocities) : len(velocities) + at_once])
    return {branch: velocity.float() for branch, velocity in zip(branches, velocities, strict=True)}


def evaluations_of(
    branches: Sequence[Branch],
    dtype: torch.dtype,
    latents: Tensor,
    timestep: Tensor,
    conditions: ChunkConditions,
    caches: Mapping[Branch, StepCache],
) -> list[EvaluationInputs]:
    """What the network is given for each branch of a step. Without audio there is one speaker with zero embeddings.

    The branches share the tensors that are equal, which several GPUs send to each other once.
    """
    hidden_states = torch.cat([latents, conditions.condition], dim=1).to(dtype)
    timesteps = timestep[None].to(latents.device)
    image_embeds, speech = conditions.image_embeds.to(dtype), conditions.audio_windows.to(dtype)
    silence = torch.zeros_like(speech[:1])
    negative = None if (embeds := conditions.nag_embeds) is None else embeds.to(dtype)
    return [
        EvaluationInputs(
            hidden_states=hidden_states,
            timestep=timesteps,
            encoder_hidden_states=conditions.text_embeds(branch).to(dtype),
            encoder_hidden_states_image=image_embeds,
            encoder_hidden_states_audio=speech if branch.has_audio else silence,
            regions=conditions.regions if branch.has_audio else None,
            encoder_hidden_states_negative=negative,
            nag_strengths=conditions.nag_strengths,
            branch=branch.name,
            cache=caches.get(branch),
        )
        for branch in branches
    ]

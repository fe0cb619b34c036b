"""Interfaces of the parts of sampling: the network, the stepper, the step cache and the split of tokens.

Another network, sampler or cache can be used if it fits these protocols. The protocol that combines the predictions of
one step into one velocity is `infinitetalk.generation.guidance.Guidance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor


class StepCache(Protocol):
    """Lets one guidance branch of one chunk reuse the residual of the network's blocks from an earlier step.

    Attributes:
        skipped: number of evaluations without computed blocks.
    """

    skipped: int

    def should_compute(self, timestep_proj: Tensor) -> bool:
        """Decides for the branch's next step, given the projected time embedding (1, 6, dim)."""

    def store(self, residual: Tensor) -> None:
        """Keeps the blocks' residual, the difference of output and input: (1, tokens, dim)."""

    def apply(self, hidden_states: Tensor) -> Tensor:
        """Adds the stored residual to the blocks' input (1, tokens, dim)."""


@dataclass(frozen=True)
class EvaluationInputs:
    """What one evaluation of the network is given: `InfiniteTalkTransformer3DModel.forward` documents the tensors.

    Attributes:
        branch: name of the guidance branch; diffusers' caches keep one state per name.
        cache: state of the branch's step cache; None computes every block.
    """

    hidden_states: Tensor
    timestep: Tensor
    encoder_hidden_states: Tensor
    encoder_hidden_states_image: Tensor
    encoder_hidden_states_audio: Tensor
    regions: Tensor | None = None
    encoder_hidden_states_negative: Tensor | None = None
    nag_strengths: Tensor | None = None
    branch: str = "conditional"
    cache: StepCache | None = None

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """The tensors, by the names of `forward`'s arguments."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("branch", "cache")
        }


class Denoiser(Protocol):
    """The network that predicts the velocity of noisy latents."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's inputs, except the timestep."""

    def reset_cache(self) -> None:
        """Clears the states of diffusers' caches before the first evaluation of a chunk."""

    def rounds(self, num_evaluations: int) -> list[int]:
        """How many evaluations it makes at once, round by round, for so many in a step; they depend on that alone."""

    def evaluate(self, evaluations: Sequence[EvaluationInputs]) -> list[Tensor]:
        """Makes the evaluations of one round, in the order of the step: velocities (1, 16, t, h, w)."""


class DrawNoise(Protocol):
    """The random draws of one chunk; each depends only on seed, chunk and draw, not on earlier draws."""

    def __call__(self, draw: int) -> Tensor:
        """Standard normal noise (1, channels, t, h, w): draw 0 starts the chunk, draw n belongs to step n."""


class Stepper(Protocol):
    """Takes latents from one noise level to the next; each chunk needs a new one.

    Attributes:
        timesteps: (num_steps,), decreasing, 0…1000, as passed to the network. Each guidance branch is evaluated once
            per timestep.
    """

    timesteps: Tensor

    def step(self, index: int, velocity: Tensor, latents: Tensor, draw_noise: DrawNoise) -> Tensor:
        """Latents at the next noise level; `latents` is not modified.

        Args:
            index: index of the timestep for which `velocity` was predicted, from 0.
            velocity, latents: float32 (1, channels, t, h, w).
            draw_noise: for a stochastic stepper, which uses draw `index + 1`.
        """


class TokenSplit(Protocol):
    """A split of the video tokens over several processes: each has one part of the image in every frame."""

    def part(self, tokens: Tensor, num_frames: int) -> Tensor:
        """This process's part of (1, num_frames · S, …): (1, num_frames · S', …), ordered by frame."""

    def whole(self, part: Tensor, num_frames: int, picture_tokens: int) -> Tensor:
        """The inverse of `part`, in every process; `picture_tokens` is S."""

    def extrema(self, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """The minima and maxima over all processes, element by element."""

"""Where the parts of sampling meet: what a network, a stepper, a step cache and a split of tokens must offer.

Whatever fits these protocols can take the place of what is here: another network, another sampler, another cache. How
the predictions of one step become one velocity is `infinitetalk.generation.guidance.Guidance`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor


class StepCache(Protocol):
    """Lets one guidance branch of one chunk reuse what the network's blocks added at an earlier step.

    Attributes:
        skipped: number of evaluations whose blocks were not computed.
    """

    skipped: int

    def should_compute(self, timestep_proj: Tensor) -> bool:
        """Decides for the branch's next step, given the projected time embedding (1, 6, dim)."""

    def store(self, residual: Tensor) -> None:
        """Keeps what the blocks added to their input: (1, tokens, dim)."""

    def apply(self, hidden_states: Tensor) -> Tensor:
        """Adds the stored residual to the blocks' input (1, tokens, dim)."""


class Denoiser(Protocol):
    """The network that predicts the velocity of noisy latents."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's inputs, except the timestep."""

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Says which guidance branch the evaluation inside belongs to; diffusers' caches keep one state per name."""

    def reset_cache(self) -> None:
        """Clears the states of diffusers' caches: the next evaluation begins a new chunk."""

    def __call__(
        self,
        *,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor,
        encoder_hidden_states_audio: Tensor,
        regions: Tensor | None,
        cache: StepCache | None,
        return_dict: Literal[False],
    ) -> tuple[Tensor]:
        """Evaluates the network: `InfiniteTalkTransformer3DModel.forward` documents the arguments."""


class DrawNoise(Protocol):
    """The random draws of one chunk: the same for the same seed, chunk and draw, whatever was drawn before."""

    def __call__(self, draw: int) -> Tensor:
        """Standard normal noise (1, channels, t, h, w): draw 0 starts the chunk, draw n belongs to step n."""


class Stepper(Protocol):
    """Takes latents from one noise level to the next; made anew for each chunk.

    Attributes:
        timesteps: (num_steps,), decreasing, as the network gets them, 0…1000. Each guidance branch is evaluated once
            for each of them.
    """

    timesteps: Tensor

    def step(self, index: int, velocity: Tensor, latents: Tensor, draw_noise: DrawNoise) -> Tensor:
        """Latents at the next noise level; `latents` stays as it is.

        Args:
            index: of the timestep that `velocity` was predicted for, from 0.
            velocity, latents: float32 (1, channels, t, h, w).
            draw_noise: for a stochastic stepper, which takes draw `index + 1`.
        """


class TokenSplit(Protocol):
    """A split of the video tokens over several processes, each of which has every frame of a part of the picture."""

    def part(self, tokens: Tensor, num_frames: int) -> Tensor:
        """This process's part of (1, num_frames · S, …): (1, num_frames · S', …), ordered by frame."""

    def whole(self, part: Tensor, num_frames: int, picture_tokens: int) -> Tensor:
        """The inverse of `part`, in every process; `picture_tokens` is S."""

    def extrema(self, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest of all processes' values, element by element."""

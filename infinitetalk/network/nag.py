"""Normalised attention guidance (NAG, arXiv 2505.21179): a negative prompt for networks that run without guidance.

In each block's attention to the text, what the tokens read from the prompt is moved away from what they read from the
negative prompt. It takes no further evaluation of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Smallest norm that is divided by.
_LEAST_NORM = 1e-6


@dataclass(frozen=True)
class AttentionGuidance:
    """The strengths of normalised attention guidance.

    Attributes:
        scale: how far it moves away from the negative prompt; 1 does nothing.
        tau: largest growth of a token's L1 norm; 1 allows none.
        alpha: share of the moved value in the result, 0 (nothing) … 1.
    """

    scale: float
    tau: float
    alpha: float

    @property
    def has_effect(self) -> bool:
        """Whether it changes anything."""
        return self.scale != 1.0 and self.alpha != 0.0

    def strengths(self, device: torch.device) -> Tensor:
        """float32 (3,): scale, tau, alpha; a tensor, so that compiled blocks and other GPUs take any values."""
        return torch.tensor([self.scale, self.tau, self.alpha], dtype=torch.float32, device=device)


def guide_attention(positive: Tensor, negative: Tensor, strengths: Tensor) -> Tensor:
    """Moves what was read from the prompt away from what was read from the negative prompt.

    g = positive·scale - negative·(scale - 1); where ‖g‖₁ is more than tau·‖positive‖₁, g is shortened to that; the
    result is alpha·g + (1 - alpha)·positive. Norms are those of single tokens, over all heads.

    Args:
        positive, negative: (1, tokens, dim).
        strengths: float32 (3,): scale, tau, alpha.

    Returns:
        Shape and dtype of `positive`.
    """
    # Tensors without dimensions leave the dtype of the others as it is.
    scale, tau, alpha = strengths.unbind()
    guided = positive + (scale - 1) * (positive - negative)
    share = tau * _norm(positive) / _norm(guided).clamp(min=_LEAST_NORM)
    return positive + alpha * (guided * share.clamp(max=1).to(guided.dtype) - positive)


def _norm(tokens: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tokens, ord=1, dim=-1, keepdim=True, dtype=torch.float32)

"""TeaCache (arXiv 2411.19108): skip the blocks of an evaluation if the time embedding has hardly changed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: Number of a branch's first steps, which are always computed.
WARM_UP_STEPS = 5


class TeaCache:
    """The state of one guidance branch during one chunk.

    Attributes:
        relative_change: relative L1 change of the time embedding since the branch's previous step.
        distance: the accumulated, rescaled change at the last decision; 0 during warm-up.
        skipped: number of evaluations with skipped blocks.
    """

    def __init__(self, polynomial: Sequence[float], threshold: float) -> None:
        """`polynomial` is a `Size.teacache_polynomial`; a step is skipped while distance < threshold."""
        self.polynomial = np.poly1d(polynomial)
        self.threshold = threshold
        self.step = 0
        self.relative_change = 0.0
        self.distance = 0.0
        self.skipped = 0
        self._accumulated = 0.0
        self._previous: Tensor | None = None

    def should_compute(self, timestep_proj: Tensor) -> bool:
        """Decide for the branch's next step, given its projected time embedding (1, 6, dim)."""
        if self._previous is not None:
            change = (timestep_proj - self._previous).abs().mean() / self._previous.abs().mean()
            self.relative_change = change.item()
        self._previous = timestep_proj
        self.step += 1
        if self.step <= WARM_UP_STEPS:
            return True
        self._accumulated += float(self.polynomial(self.relative_change))
        self.distance = self._accumulated
        if self.distance < self.threshold:
            self.skipped += 1
            return False
        self._accumulated = 0.0
        return True

    def store(self, residual: Tensor) -> None:
        """Keep the blocks' residual, the difference of output and input: (1, tokens, dim)."""
        self._residual: Tensor = residual

    def apply(self, hidden_states: Tensor) -> Tensor:
        """Add the residual of the branch's last computed step."""
        return torch.add(hidden_states, self._residual)

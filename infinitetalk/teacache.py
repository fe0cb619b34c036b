"""TeaCache (arXiv 2411.19108): skip the blocks of an evaluation when the time embedding has hardly moved."""

import numpy as np
import torch
from torch import Tensor

#: Polynomials, highest power first, that turn a change of the time embedding into an expected change of the output.
COEFFICIENTS = {
    "infinitetalk-480": (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
    "infinitetalk-720": (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
}
#: A branch's first steps, which are always computed.
WARM_UP_STEPS = 5


class TeaCache:
    """The state of one guidance branch during one chunk.

    Attributes:
        relative_change: relative L1 change of the time embedding since the branch's previous step.
        distance: the accumulated, rescaled change that the last decision looked at; 0 while warming up.
        skipped: evaluations whose blocks were skipped.
    """

    def __init__(self, size: str, threshold: float) -> None:
        """`size` ("infinitetalk-480" or "-720") names the polynomial; a step is skipped while distance < threshold."""
        self.polynomial = np.poly1d(COEFFICIENTS[size])
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
        """Keep what the blocks added to their input: (1, tokens, dim)."""
        self._residual: Tensor = residual

    def apply(self, hidden_states: Tensor) -> Tensor:
        """Add what the blocks added at the branch's last computed step."""
        return torch.add(hidden_states, self._residual)

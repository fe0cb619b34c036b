"""Classifier-free guidance over text and audio: the evaluations that a step needs, and their combination.

With text scale t, audio scale a and branches A (text, audio), B (negative text, audio), C (negative text, no audio),
D (text, no audio): v = C + t·(A - B) + a·(B - C), and v = D + a·(A - D) where t = 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor


class Branch(Enum):
    """One evaluation of the network within a step: with or without the prompt, with or without the speech."""

    CONDITIONAL = (True, True)
    NEGATIVE_TEXT = (False, True)
    NO_AUDIO = (True, False)
    UNCONDITIONAL = (False, False)

    def __init__(self, has_text: bool, has_audio: bool) -> None:
        self.has_text = has_text
        self.has_audio = has_audio


class Guidance(Protocol):
    """Turns the branches' predictions of one step into one velocity."""

    branches: tuple[Branch, ...]

    def __call__(self, predictions: Mapping[Branch, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class GuidanceScales:
    """Text and audio scale; 1 leaves a condition unamplified."""

    text: float
    audio: float

    @property
    def differences(self) -> list[tuple[float, Branch, Branch]]:
        """The terms added to A, (scale - 1) · (first - second), without those of weight zero."""
        if math.isclose(self.text, 1.0):
            terms = [(self.audio, Branch.CONDITIONAL, Branch.NO_AUDIO)]
        else:
            terms = [
                (self.text, Branch.CONDITIONAL, Branch.NEGATIVE_TEXT),
                (self.audio, Branch.NEGATIVE_TEXT, Branch.UNCONDITIONAL),
            ]
        return [(scale - 1, first, second) for scale, first, second in terms if not math.isclose(scale, 1.0)]


class PlainGuidance:
    """The published combination as a weighted sum; branches of weight zero are not evaluated."""

    def __init__(self, scales: GuidanceScales) -> None:
        weights = {Branch.CONDITIONAL: 1.0}
        for scale, first, second in scales.differences:
            weights[first] = weights.get(first, 0.0) + scale
            weights[second] = weights.get(second, 0.0) - scale
        self.weights = {
            branch: weight for branch, weight in weights.items() if not math.isclose(weight, 0.0, abs_tol=1e-9)
        }
        self.branches = tuple(self.weights)

    def __call__(self, predictions: Mapping[Branch, Tensor]) -> Tensor:
        terms = [weight * predictions[branch] for branch, weight in self.weights.items()]
        return torch.stack(terms).sum(dim=0)


class AdaptiveProjectedGuidance:
    """APG (arXiv 2410.02416) with η = 0: each difference gets momentum and a bounded norm, and loses its part along A.

    Holds the running averages of one chunk; each chunk needs a new instance.
    """

    def __init__(self, scales: GuidanceScales, momentum: float, norm_threshold: float) -> None:
        self.differences = scales.differences
        self.momentum = momentum
        self.norm_threshold = norm_threshold
        self.branches = tuple(
            dict.fromkeys([Branch.CONDITIONAL, *(branch for _, *pair in self.differences for branch in pair)])
        )
        self.running_averages: list[Tensor | None] = [None] * len(self.differences)

    def __call__(self, predictions: Mapping[Branch, Tensor]) -> Tensor:
        conditional = predictions[Branch.CONDITIONAL]
        velocity = conditional
        for index, (weight, first, second) in enumerate(self.differences):
            difference = predictions[first] - predictions[second]
            average = self.running_averages[index]
            average = difference if average is None else difference + self.momentum * average
            self.running_averages[index] = average
            velocity = velocity + weight * self._project(average, conditional)
        return velocity

    def _project(self, difference: Tensor, conditional: Tensor) -> Tensor:
        bounded = difference * torch.clamp(self.norm_threshold / difference.norm(), max=1.0)
        direction = conditional.double() / conditional.double().norm()
        wide = bounded.double()
        return (wide - (wide * direction).sum() * direction).to(difference.dtype)

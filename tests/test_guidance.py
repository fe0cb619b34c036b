"""Guidance equals the published formulas and asks for no evaluation that cannot matter."""

import pytest
import torch

from infinitetalk.generation.guidance import AdaptiveProjectedGuidance, Branch, GuidanceScales, PlainGuidance

A, B, D, C = Branch.CONDITIONAL, Branch.NEGATIVE_TEXT, Branch.NO_AUDIO, Branch.UNCONDITIONAL


@pytest.fixture
def predictions() -> dict[Branch, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {branch: torch.randn(1, 16, 2, 4, 4, generator=generator) for branch in Branch}


@pytest.mark.parametrize(("text", "audio"), [(5.0, 4.0), (2.5, 0.0), (0.0, 3.0), (3.0, 1.0), (4.0, 4.0)])
def test_plain_guidance_with_text_equals_the_published_formula(
    predictions: dict[Branch, torch.Tensor], text: float, audio: float
) -> None:
    p = predictions
    published = p[C] + text * (p[A] - p[B]) + audio * (p[B] - p[C])
    torch.testing.assert_close(PlainGuidance(GuidanceScales(text, audio))(p), published, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("audio", [0.0, 1.0, 2.0])
def test_plain_guidance_without_text_equals_the_published_formula(
    predictions: dict[Branch, torch.Tensor], audio: float
) -> None:
    p = predictions
    published = p[D] + audio * (p[A] - p[D])
    torch.testing.assert_close(PlainGuidance(GuidanceScales(1.0, audio))(p), published, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "audio", "branches"),
    [
        (1.0, 1.0, {A}),
        (1.0, 2.0, {A, D}),
        (1.0, 0.0, {D}),
        (5.0, 4.0, {A, B, C}),
        (5.0, 1.0, {A, B}),
        (4.0, 4.0, {A, C}),
        (0.0, 4.0, {B, C}),
    ],
)
def test_evaluations_that_cannot_matter_are_not_asked_for(text: float, audio: float, branches: set[Branch]) -> None:
    assert set(PlainGuidance(GuidanceScales(text, audio)).branches) == branches


@pytest.mark.parametrize(
    ("text", "audio", "branches"),
    [(1.0, 1.0, {A}), (1.0, 2.0, {A, D}), (5.0, 4.0, {A, B, C}), (5.0, 1.0, {A, B})],
)
def test_apg_asks_only_for_the_branches_of_its_differences(text: float, audio: float, branches: set[Branch]) -> None:
    assert set(AdaptiveProjectedGuidance(GuidanceScales(text, audio), -0.75, 55).branches) == branches


def test_apg_change_is_orthogonal_to_the_conditional_prediction_and_bounded(
    predictions: dict[Branch, torch.Tensor],
) -> None:
    guidance = AdaptiveProjectedGuidance(GuidanceScales(1.0, 2.0), momentum=-0.75, norm_threshold=3.0)
    change = guidance(predictions) - predictions[A]
    assert abs((change * predictions[A]).sum().item()) < 1e-3
    assert change.norm().item() <= 3.0 + 1e-4

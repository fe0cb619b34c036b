"""Colour transfer; equality with the published figures is in test_golden."""

import pytest
import torch

from infinitetalk import color
from infinitetalk.color import match_color


def random_frames(num_frames: int, seed: int = 0) -> torch.Tensor:
    """Frames (1, 3, num_frames, 12, 16) well inside the gamut."""
    return torch.rand(1, 3, num_frames, 12, 16, generator=torch.Generator().manual_seed(seed)) * 0.6 - 0.3


def test_frames_like_the_reference_stay_as_they_are() -> None:
    reference = random_frames(1)
    torch.testing.assert_close(match_color(reference, reference, 1.0), reference, atol=1e-4, rtol=0)


def test_strength_blends_with_the_given_frames() -> None:
    frames, reference = random_frames(3, seed=1), random_frames(1)
    full = match_color(frames, reference, 1.0)
    torch.testing.assert_close(match_color(frames, reference, 0.25), frames + 0.25 * (full - frames))
    assert torch.equal(match_color(frames, reference, 0.0), frames)


def test_a_darker_frame_takes_on_the_references_brightness() -> None:
    reference = random_frames(1)
    matched = match_color(reference * 0.5 - 0.4, reference, 1.0)
    assert matched.mean().item() == pytest.approx(reference.mean().item(), abs=0.02)


def test_each_frame_is_corrected_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, reference = random_frames(5, seed=2), random_frames(1)
    alone = torch.cat([match_color(frame, reference, 1.0) for frame in frames.split(1, dim=2)], dim=2)
    monkeypatch.setattr(color, "_FRAMES_AT_ONCE", 2)
    torch.testing.assert_close(match_color(frames, reference, 1.0), alone, atol=1e-6, rtol=0)


def test_a_grey_frame_stays_without_colour_noise() -> None:
    # The published code looks for a deviation of exactly zero: the rounding of a grey frame's a and b (0.001 Lab units)
    # would be blown up to the reference's deviation, here to visible blotches.
    grey = random_frames(1)[:, :1].expand(-1, 3, -1, -1, -1)
    reference = random_frames(1, seed=3)
    matched = match_color(grey, reference, 1.0)
    a_and_b = color._lab_from_rgb((matched + 1) / 2)[:, 1:]
    assert a_and_b.std(dim=(-2, -1)).max().item() < 0.5
    assert color._lab_from_rgb((reference + 1) / 2)[:, 1:].std(dim=(-2, -1)).min().item() > 5

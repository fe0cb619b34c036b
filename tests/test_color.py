"""Colour transfer; equality with the published figures is in test_golden."""

import pytest
import torch

from infinitetalk.generation import color
from infinitetalk.generation.color import _LabConversion, match_color, match_color_

XYZ_FROM_RGB = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
)
WHITE = torch.tensor([[0.95047], [1.0], [1.08883]], dtype=torch.float64)


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


def test_each_frame_is_corrected_by_itself() -> None:
    frames, reference = random_frames(5, seed=2), random_frames(1)
    alone = torch.cat([match_color(frame, reference, 1.0) for frame in frames.split(1, dim=2)], dim=2)
    torch.testing.assert_close(match_color(frames, reference, 1.0), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_frames_that_are_corrected_together_are_corrected_alike(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, also where the last group is smaller."""
    frames, reference = random_frames(5, seed=2), random_frames(1)
    one_by_one = match_color(frames, reference, 0.75)
    monkeypatch.setattr(color, "frames_at_once", lambda device: count)
    torch.testing.assert_close(match_color(frames, reference, 0.75), one_by_one, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_frames_can_be_corrected_where_they_are(strength: float) -> None:
    frames, reference = random_frames(5, seed=2), random_frames(1)
    expected = match_color(frames, reference, strength).clone()
    match_color_(frames[:, :, 1:4], reference, strength)
    assert torch.equal(frames[:, :, 1:4], expected[:, :, 1:4])
    assert torch.equal(frames[:, :, 4:], random_frames(5, seed=2)[:, :, 4:])


def test_a_grey_frame_stays_without_colour_noise() -> None:
    # The published code looks for a deviation of exactly zero: the rounding of a grey frame's a and b (0.001 Lab units)
    # would be blown up to the reference's deviation, here to visible blotches.
    grey = random_frames(1)[:, :1].expand(-1, 3, -1, -1, -1)
    reference = random_frames(1, seed=3)
    matched = match_color(grey, reference, 1.0)
    assert lab_of(matched)[1:].std(dim=1).max().item() < 0.5
    assert lab_of(reference)[1:].std(dim=1).min().item() > 5


def test_curves_without_a_mask_are_those_of_the_definition() -> None:
    """Against powers and lines chosen pixel by pixel, in float64: dark, bright and beyond the gamut, there and back."""
    ramp = torch.linspace(-1.0, 1.0, 4000)
    frame = torch.stack([ramp, ramp.roll(7), ramp.flip(0)])[:, None, None]
    lab = lab_by_definition((frame[:, 0, 0].double() + 1) / 2)
    conversion = _LabConversion(frame.device)
    conversion.take(frame)
    torch.testing.assert_close(conversion.from_rgb()[:, 0], lab.float(), atol=2e-4, rtol=1e-5)
    moved = lab * torch.tensor([[1.3], [1.5], [1.5]]) - torch.tensor([[15.0], [0.0], [0.0]])
    conversion.lab[:, 0] = moved
    torch.testing.assert_close(conversion.to_rgb()[:, 0], rgb_by_definition(moved).float(), atol=2e-5, rtol=0)


def lab_of(frames: torch.Tensor) -> torch.Tensor:
    """Lab (3, pixels) of the first of some frames."""
    conversion = _LabConversion(frames.device)
    conversion.take(frames[0, :, :1])
    return conversion.from_rgb()[:, 0]


def lab_by_definition(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB (3, n) in [0, 1] → CIE Lab for the D65 white point."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = XYZ_FROM_RGB @ linear / WHITE
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def rgb_by_definition(lab: torch.Tensor) -> torch.Tensor:
    """The inverse of `lab_by_definition`, cut to [0, 1]; what lies beyond the gamut has no negative light."""
    y = (lab[0] + 16) / 116
    xyz = torch.stack([y + lab[1] / 500, y, (y - lab[2] / 200).clamp(min=0)])
    xyz = torch.where(xyz > 0.2068966, xyz**3, (xyz - 16 / 116) / 7.787) * WHITE
    linear = XYZ_FROM_RGB.inverse() @ xyz
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0, 1)

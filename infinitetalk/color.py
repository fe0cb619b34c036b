"""Colour transfer: frames take on the colour statistics of a reference frame, in CIE Lab."""

import torch
from torch import Tensor

# sRGB (IEC 61966-2-1) and CIE XYZ with the D65 white point of the 2 degree observer, as in scikit-image.
_XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
#: Below this deviation, in Lab units, a channel holds rounding only (greys have up to 0.001): nothing to amplify.
_FLAT_DEVIATION = 0.01
#: Frames converted at a time: Lab needs some ten temporaries of a frame's size.
_FRAMES_AT_ONCE = 8


def match_color(frames: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Move each frame's L, a and b channels to the reference's mean and standard deviation.

    `frames` is (1, 3, T, H, W) and `reference` (1, 3, 1, H', W'), both RGB in [-1, 1]; the result float32
    (1, 3, T, H, W) in [-1, 1] on the frames' device. `strength` in [0, 1] blends the corrected frames with the given
    ones; 0 returns these. A flat channel becomes the reference's mean.
    """
    if strength == 0.0:
        return frames
    reference_mean, reference_deviation = _lab_statistics(_lab_from_rgb(_unit_range(reference)))
    corrected = [
        _match_frames(part, reference_mean, reference_deviation, strength)
        for part in frames.split(_FRAMES_AT_ONCE, dim=2)
    ]
    return torch.cat(corrected, dim=2)


def _match_frames(frames: Tensor, reference_mean: Tensor, reference_deviation: Tensor, strength: float) -> Tensor:
    rgb = _unit_range(frames)
    lab = _lab_from_rgb(rgb)
    mean, deviation = _lab_statistics(lab)
    gain = torch.where(deviation > _FLAT_DEVIATION, reference_deviation / deviation, 0.0)
    matched = _rgb_from_lab((lab - mean) * gain + reference_mean)
    return torch.lerp(rgb, matched, strength) * 2.0 - 1.0


def _unit_range(frames: Tensor) -> Tensor:
    return ((frames.float() + 1.0) / 2.0).clamp(0.0, 1.0)


def _lab_statistics(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of each frame's channels, (1, 3, T, 1, 1)."""
    deviation, mean = torch.std_mean(lab, dim=(-2, -1), correction=0, keepdim=True)
    return mean, deviation


def _lab_from_rgb(rgb: Tensor) -> Tensor:
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix_channels(linear, rgb.new_tensor(_XYZ_FROM_RGB)) / _per_channel(rgb, _WHITE)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=0.0) ** (1 / 3), 7.787 * xyz + 16.0 / 116.0).unbind(1)
    return torch.stack((116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)), dim=1)


def _rgb_from_lab(lab: Tensor) -> Tensor:
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16.0) / 116.0
    # Out of gamut: there is no negative light.
    xyz = torch.stack((y + a / 500.0, y, (y - b / 200.0).clamp(min=0.0)), dim=1)
    xyz = torch.where(xyz > 0.2068966, xyz**3, (xyz - 16.0 / 116.0) / 7.787) * _per_channel(lab, _WHITE)
    rgb_from_xyz = torch.linalg.inv(torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64)).to(lab)
    linear = _mix_channels(xyz, rgb_from_xyz)
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0.0, 1.0)


def _mix_channels(pixels: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("oc,bcthw->bothw", matrix, pixels)


def _per_channel(like: Tensor, values: tuple[float, float, float]) -> Tensor:
    return like.new_tensor(values).view(1, 3, 1, 1, 1)

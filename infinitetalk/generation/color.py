"""Colour transfer: frames take on the colour statistics of a reference frame, in CIE Lab.

The conversion between sRGB and Lab has two curves. Each is a power above a threshold and a line below it, and the two
meet there. They are computed without a mask, as power(max(x, threshold)) + slope · min(x - threshold, 0), and powers as
2^(exponent · log2 x). The steps between the curves are linear: products with 3×3 matrices.
"""

import torch
from torch import Tensor

# sRGB (IEC 61966-2-1) and CIE XYZ with the D65 white point of the 2 degree observer, as in scikit-image.
_XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
#: L, a and b from the compressed X, Y and Z; 16 is then subtracted from L.
_LAB_FROM_COMPRESSED = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_LIGHTNESS_OFFSET = 16.0
#: Below this deviation, in Lab units, a channel holds rounding errors only (up to 0.001 for greys): not amplified.
_FLAT_DEVIATION = 0.01


def match_color(frames: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Move each frame's L, a and b channels to the reference's mean and standard deviation.

    `frames` is (1, 3, T, H, W) and `reference` (1, 3, 1, H', W'), both RGB in [-1, 1]; the result is float32
    (1, 3, T, H, W) in [-1, 1] on the frames' device. `strength` in [0, 1] blends the corrected frames with the given
    ones; 0 returns `frames`. A flat channel becomes the reference's mean.
    """
    if strength == 0.0:
        return frames
    reference_mean, reference_deviation = _center(_LabConversion(reference[0, :, 0]).from_rgb())
    corrected = torch.empty(frames.shape, device=frames.device)
    conversion = _LabConversion(frames[0, :, 0])
    for frame, place in zip(frames[0].unbind(1), corrected[0].unbind(1), strict=True):
        rgb = conversion.take(frame)
        lab = conversion.from_rgb()
        _, deviation = _center(lab)
        gain = torch.where(deviation > _FLAT_DEVIATION, reference_deviation / deviation, 0.0)
        lab.mul_(gain).add_(reference_mean)
        rgb.lerp_(conversion.to_rgb(), strength)
        torch.sub(rgb.mul_(2.0).view(place.shape), 1.0, out=place)
    return corrected


def _center(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts each channel's mean from (3, n), in place; returns means and population deviations, each (3, 1)."""
    mean = lab.mean(dim=1, keepdim=True)
    lab.sub_(mean)
    return mean, torch.linalg.vector_norm(lab, dim=1, keepdim=True) / lab.shape[1] ** 0.5


class _LabConversion:
    """Converts a frame from RGB in [0, 1] to Lab and back, in memory that is reused for the next frame.

    Attributes:
        rgb, lab: float32 (3, n), n pixels.
    """

    def __init__(self, frame: Tensor) -> None:
        """`frame` is the first frame, (3, H, W) in [-1, 1]; the others must have the same shape."""
        xyz_from_rgb = torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64) / torch.tensor(_WHITE).double()[:, None]
        lab_from_compressed = torch.tensor(_LAB_FROM_COMPRESSED, dtype=torch.float64)
        self._xyz_from_rgb = xyz_from_rgb.to(frame.device, torch.float32)
        self._rgb_from_xyz = xyz_from_rgb.inverse().to(frame.device, torch.float32)
        self._lab_from_compressed = lab_from_compressed.to(frame.device, torch.float32)
        self._compressed_from_lab = lab_from_compressed.inverse().to(frame.device, torch.float32)
        self.rgb, self.lab, self._curve, self._line = torch.empty(4, 3, frame[0].numel(), device=frame.device)
        self.take(frame)

    def take(self, frame: Tensor) -> Tensor:
        """Sets `rgb` to a frame's pixels."""
        torch.add(frame, 1.0, out=self.rgb.view(frame.shape))
        return self.rgb.div_(2.0).clamp_(0.0, 1.0)

    def from_rgb(self) -> Tensor:
        """Converts `rgb` to `lab`."""
        torch.clamp(self.rgb, min=0.04045, out=self._curve)
        _power(self._curve.add_(0.055).div_(1.055), 2.4)
        torch.sub(self.rgb, 0.04045, out=self._line)
        linear = self._curve.add_(self._line.clamp_(max=0.0), alpha=1 / 12.92)
        xyz = torch.mm(self._xyz_from_rgb, linear, out=self._line)
        compressed = _power(torch.clamp(xyz, min=0.008856, out=self._curve), 1 / 3)
        compressed.add_(xyz.sub_(0.008856).clamp_(max=0.0), alpha=7.787)
        torch.mm(self._lab_from_compressed, compressed, out=self.lab)
        self.lab[0] -= _LIGHTNESS_OFFSET
        return self.lab

    def to_rgb(self) -> Tensor:
        """Converts `lab` to RGB, (3, n) in [0, 1]; keeps `rgb`, overwrites `lab`."""
        self.lab[0] += _LIGHTNESS_OFFSET
        compressed = torch.mm(self._compressed_from_lab, self.lab, out=self._line)
        # Out of gamut: there is no negative light.
        compressed[2].clamp_(min=0.0)
        xyz = torch.clamp(compressed, min=0.2068966, out=self._curve).pow_(3)
        xyz.add_(compressed.sub_(0.2068966).clamp_(max=0.0), alpha=1 / 7.787)
        linear = torch.mm(self._rgb_from_xyz, xyz, out=self._line)
        rgb = _power(torch.clamp(linear, min=0.0031308, out=self.lab), 1 / 2.4).mul_(1.055).sub_(0.055)
        rgb.add_(linear.sub_(0.0031308).clamp_(max=0.0), alpha=12.92)
        return rgb.clamp_(0.0, 1.0)


def _power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent of positive numbers, in place."""
    return base.log2_().mul_(exponent).exp2_()

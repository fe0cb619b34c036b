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
FRAMES_AT_ONCE_ON_GPU = 9
"""Frames that a GPU computes together: the CPU starts their kernels in less time than those take."""


def match_color(frames: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Move each frame's L, a and b channels to the reference's mean and standard deviation.

    `frames` is (1, 3, T, H, W) and `reference` (1, 3, 1, H', W'), both RGB in [-1, 1]; the result is float32
    (1, 3, T, H, W) in [-1, 1] on the frames' device. `strength` in [0, 1] blends the corrected frames with the given
    ones; 0 returns `frames`. A flat channel becomes the reference's mean.
    """
    if strength == 0.0:
        return frames
    corrected = torch.empty(frames.shape, device=frames.device)
    _match(frames, reference, strength, corrected)
    return corrected


def match_color_(frames: Tensor, reference: Tensor, strength: float) -> None:
    """Like `match_color`, in the memory of `frames`, float32."""
    if strength != 0.0:
        _match(frames, reference, strength, frames)


def frames_at_once(device: torch.device) -> int:
    """How many frames are best computed together, pixel by pixel: a CPU's cache holds one; a GPU computes one sooner
    than the CPU starts its kernels."""
    return 1 if device.type == "cpu" else FRAMES_AT_ONCE_ON_GPU


def _match(frames: Tensor, reference: Tensor, strength: float, corrected: Tensor) -> None:
    """Writes the result of `match_color` into `corrected`, which may be `frames`."""
    conversion = _LabConversion(frames.device)
    conversion.take(reference[0])
    reference_mean, reference_deviation = _center(conversion.from_rgb())
    count = frames_at_once(frames.device)
    for group, place in zip(frames[0].split(count, dim=1), corrected[0].split(count, dim=1), strict=True):
        rgb = conversion.take(group)
        lab = conversion.from_rgb()
        _, deviation = _center(lab)
        gain = torch.where(deviation > _FLAT_DEVIATION, reference_deviation / deviation, 0.0)
        lab.mul_(gain).add_(reference_mean)
        rgb.lerp_(conversion.to_rgb(), strength)
        torch.sub(rgb.mul_(2.0).view(place.shape), 1.0, out=place)


def _center(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts the mean of each frame's channels from (3, frames, n), in place; returns means and population
    deviations, each (3, frames, 1)."""
    mean = lab.mean(dim=-1, keepdim=True)
    lab.sub_(mean)
    return mean, torch.linalg.vector_norm(lab, dim=-1, keepdim=True) / lab.shape[-1] ** 0.5


class _LabConversion:
    """Converts frames from RGB in [0, 1] to Lab and back, in memory that is reused for the next ones.

    Attributes:
        rgb, lab: float32 (3, frames, n), n pixels.
    """

    def __init__(self, device: torch.device) -> None:
        xyz_from_rgb = torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64) / torch.tensor(_WHITE).double()[:, None]
        lab_from_compressed = torch.tensor(_LAB_FROM_COMPRESSED, dtype=torch.float64)
        self._xyz_from_rgb = xyz_from_rgb.to(device, torch.float32)
        self._rgb_from_xyz = xyz_from_rgb.inverse().to(device, torch.float32)
        self._lab_from_compressed = lab_from_compressed.to(device, torch.float32)
        self._compressed_from_lab = lab_from_compressed.inverse().to(device, torch.float32)
        self.rgb = torch.empty(3, 0, 0, device=device)

    def take(self, frames: Tensor) -> Tensor:
        """Sets `rgb` to the pixels of frames (3, frames, H, W) in [-1, 1]."""
        shape = (3, frames.shape[1], frames.shape[2] * frames.shape[3])
        if self.rgb.shape != shape:
            self.rgb, self.lab, self._curve, self._line = torch.empty(4, *shape, device=frames.device)
        torch.add(frames, 1.0, out=self.rgb.view(frames.shape))
        return self.rgb.div_(2.0).clamp_(0.0, 1.0)

    def from_rgb(self) -> Tensor:
        """Converts `rgb` to `lab`."""
        torch.clamp(self.rgb, min=0.04045, out=self._curve)
        _power(self._curve.add_(0.055).div_(1.055), 2.4)
        torch.sub(self.rgb, 0.04045, out=self._line)
        linear = self._curve.add_(self._line.clamp_(max=0.0), alpha=1 / 12.92)
        xyz = _mix(self._xyz_from_rgb, linear, self._line)
        compressed = _power(torch.clamp(xyz, min=0.008856, out=self._curve), 1 / 3)
        compressed.add_(xyz.sub_(0.008856).clamp_(max=0.0), alpha=7.787)
        _mix(self._lab_from_compressed, compressed, self.lab)
        self.lab[0] -= _LIGHTNESS_OFFSET
        return self.lab

    def to_rgb(self) -> Tensor:
        """Converts `lab` to RGB in [0, 1], of the same shape; keeps `rgb`, overwrites `lab`."""
        self.lab[0] += _LIGHTNESS_OFFSET
        compressed = _mix(self._compressed_from_lab, self.lab, self._line)
        # Out of gamut: there is no negative light.
        compressed[2].clamp_(min=0.0)
        xyz = torch.clamp(compressed, min=0.2068966, out=self._curve).pow_(3)
        xyz.add_(compressed.sub_(0.2068966).clamp_(max=0.0), alpha=1 / 7.787)
        linear = _mix(self._rgb_from_xyz, xyz, self._line)
        rgb = _power(torch.clamp(linear, min=0.0031308, out=self.lab), 1 / 2.4).mul_(1.055).sub_(0.055)
        rgb.add_(linear.sub_(0.0031308).clamp_(max=0.0), alpha=12.92)
        return rgb.clamp_(0.0, 1.0)


def _mix(matrix: Tensor, channels: Tensor, into: Tensor) -> Tensor:
    """The product of a matrix (3, 3) and channels (3, frames, n), into (3, frames, n)."""
    torch.mm(matrix, channels.view(3, -1), out=into.view(3, -1))
    return into


def _power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent of positive numbers, in place."""
    return base.log2_().mul_(exponent).exp2_()

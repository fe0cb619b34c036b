"""The layers of diffusers' Wan VAE with fewer passes over memory: equal parameters, and equal results but for rounding.

A GPU's convolutions want channels as the innermost dimension and transpose every tensor that has them outermost. With
channels innermost, the norm over channels is one kernel in place of five. Zeros at a picture's border are added by the
convolution, not by a copy of the tensor.
"""

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm, WanUpsample
from torch import Tensor, nn

#: diffusers divides by the norm, but at least by 1e-12. Of the mean square, this changes no other number.
_LEAST_MEAN_SQUARE = 1e-24


class ChannelNorm(WanRMS_norm):
    """Divides each pixel's channels by their root mean square and multiplies them by the channels' weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, …) → the same shape."""
        innermost = x.movedim(1, -1)
        normed = F.rms_norm(innermost, innermost.shape[-1:], self.gamma.flatten(), _LEAST_MEAN_SQUARE)
        return normed.movedim(-1, 1)


class CausalConv3d(WanCausalConv3d):
    """A convolution over frames that sees earlier ones only: those of the cache, and zeros before the first."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """(batch, channels, frames, height, width), and the same of the last frames before them, at most as many as the
        kernel reaches back."""
        columns, _, rows, _, missing_frames, _ = self._padding
        if cache_x is not None and missing_frames > 0:
            x = torch.cat([cache_x, x], dim=2)
            missing_frames -= cache_x.shape[2]
        if missing_frames > 0:
            x = F.pad(x, (0, 0, 0, 0, missing_frames, 0))
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, rows, columns), self.dilation, self.groups)


class Upsample(WanUpsample):
    """Repeats pixels; leaves channels innermost, which diffusers' doubling of frames does not."""

    def forward(self, x: Tensor) -> Tensor:
        """(frames, channels, height, width) → (frames, channels, 2 · height, 2 · width)."""
        return nn.Upsample.forward(self, x.contiguous(memory_format=torch.channels_last))


_LEAN: dict[type[nn.Module], type[nn.Module]] = {
    WanRMS_norm: ChannelNorm,
    WanCausalConv3d: CausalConv3d,
    WanUpsample: Upsample,
}


def make_lean(vae: nn.Module) -> None:
    """Gives diffusers' Wan VAE these layers, and channels innermost in the weights of its convolutions."""
    for module in vae.modules():
        module.__class__ = _LEAN.get(type(module), type(module))
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            is_video = isinstance(module, nn.Conv3d)
            memory_format = torch.channels_last_3d if is_video else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=memory_format)

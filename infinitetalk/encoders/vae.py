"""Converts frames to normalised latents and back, with diffusers' `AutoencoderKLWan`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor, nn

from infinitetalk.finite import check_finite


class Vae(Protocol):
    """What frames and latents need of diffusers' `AutoencoderKLWan`; several processes may take its place."""

    @property
    def config(self) -> Any:
        """The mean and the deviation of latents, among others."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""

    def encode(self, x: Tensor, /) -> Any:
        """Frames to the distribution of latents."""

    def decode(self, z: Tensor, /) -> Any:
        """Latents to frames."""


@torch.no_grad()
def encode_frames(vae: Vae, frames: Tensor) -> Tensor:
    """Latents of frames: the mode of the VAE's posterior, normalised per channel.

    `frames` is (1, 3, T, H, W) in [-1, 1]; the result is float32 (1, 16, t, H/8, W/8), t = (T - 1) // 4 + 1. The VAE
    takes frame 0 alone, then groups of four; an incomplete group at the end is dropped.
    """
    with suitable_threads(vae.device):
        mode = vae.encode(frames.to(vae.device, vae.dtype)).latent_dist.mode().float()
    mean, deviation = latent_statistics(vae)
    return (mode - mean) / deviation


@torch.no_grad()
def decode_latents(vae: Vae, latents: Tensor) -> Tensor:
    """Frames of normalised latents, such as those of `encode_frames`.

    `latents` is (1, 16, t, h, w); the result is float32 (1, 3, 4 * (t - 1) + 1, 8 * h, 8 * w), clamped to [-1, 1].

    Raises:
        NotFiniteError: the frames are not finite.
    """
    mean, deviation = latent_statistics(vae)
    scaled = latents.to(vae.device, torch.float32) * deviation + mean
    with suitable_threads(vae.device):
        frames = vae.decode(scaled.to(vae.dtype)).sample
    # Checked before the clamp, which would turn infinity into white.
    check_finite(frames, "the decoded frames")
    return _clamped(frames)


@torch.no_grad()
def decode_in_groups(vae: Vae, latents: Tensor, on_frames: Callable[[Tensor], None]) -> None:
    """Like `decode_latents`, but gives out frames while the next ones are decoded: one, and then four at a time.

    A VAE that decodes in tiles, or by several processes, has no frame before it has all, and gives out all at once.

    Args:
        on_frames: takes each group, float32 (1, 3, n, 8 * h, 8 * w), which nobody else uses; must return quickly.

    Raises:
        NotFiniteError: frames are not finite; all groups have been given out.
    """
    if not isinstance(vae, AutoencoderKLWan) or vae.use_tiling:
        on_frames(decode_latents(vae, latents))
        return

    extremes: list[Tensor] = []

    def give_out(module: nn.Module, given: object, decoded: Tensor) -> None:
        frames = decoded if vae.config.patch_size is None else unpatchify(decoded, vae.config.patch_size)
        extremes.extend(torch.aminmax(frames))
        on_frames(_clamped(frames))

    mean, deviation = latent_statistics(vae)
    scaled = latents.to(vae.device, torch.float32) * deviation + mean
    # diffusers' VAE calls its decoder once for each latent frame.
    hook = vae.decoder.register_forward_hook(give_out)
    try:
        with suitable_threads(vae.device):
            vae.decode(scaled.to(vae.dtype))
    finally:
        hook.remove()
    # At the end: a look at the device's numbers would make each group wait for the one before.
    check_finite(torch.stack(extremes), "the decoded frames")


def _clamped(frames: Tensor) -> Tensor:
    """A copy in [-1, 1]. The VAE may leave channels innermost; what follows works channel by channel."""
    clamped = torch.empty(frames.shape, dtype=frames.dtype, device=frames.device)
    return torch.clamp(frames, -1.0, 1.0, out=clamped).float()


def latent_statistics(vae: Vae) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, float32 (1, 16, 1, 1, 1)."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(shape)
    deviation = torch.tensor(vae.config.latents_std, device=vae.device).view(shape)
    return mean, deviation


@contextmanager
def suitable_threads(device: torch.device) -> Iterator[None]:
    """Uses one torch thread on a CPU, because two make this VAE two to five times slower; restores the count."""
    if device.type != "cpu":
        yield
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Makes convolutions on a GPU compute in plain float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before

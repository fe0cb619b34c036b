"""The networks to load, as one value, and the part of it that affects rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from infinitetalk.runtime.kernels.registry import PUBLISHED, Kernels, Setup
from infinitetalk.runtime.lora import ScaledLora
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.weights.layouts import AdapterKind

#: Everything stays on the device, weights have 16 bits.
DEFAULT_MODE = MemoryMode()


@dataclass(frozen=True)
class NetworkChoice:
    """The networks that a job needs, and their form.

    Attributes:
        dtype: dtype of the unquantised weights of the transformer and the text encoder. Norms, modulation and time
            embedding stay float32, as do the image encoder, the audio encoder and, unless a kernel narrows it, the VAE.
        memory: the memory mode. Its quantisation applies to the transformer's blocks, and to the text encoder if the
            checkpoint holds a quantised one.
        adapter: InfiniteTalk's adapter for one or for several speakers.
        loras: files and scales, in the order in which they are applied.
        kernels: names of the kernels that compute.
    """

    dtype: torch.dtype
    memory: MemoryMode = DEFAULT_MODE
    adapter: AdapterKind = "single"
    loras: tuple[ScaledLora, ...] = ()
    kernels: Kernels = PUBLISHED

    def setup(self, num_devices: int = 1) -> Setup:
        """What kernels have to go with, on so many devices."""
        return Setup(self.memory.quantisation, self.memory.streams_blocks, bool(self.loras), num_devices)


@dataclass(frozen=True)
class Arithmetic:
    """Everything that affects rounding: two workers with equal arithmetic generate the same frames.

    Resident blocks and streaming change no number and are left out.

    Attributes:
        precision: the quantisation, or the dtype of unquantised weights, as in the names of memory modes.
        vae_tiling: whether the VAE works tile by tile.
        kernels: the kernels.
        device: name of the GPU, or "CPU".
        num_devices: number of devices that make the video together.
        shares_evaluations: whether they all share each evaluation.
    """

    precision: str
    vae_tiling: bool
    kernels: Kernels
    device: str
    num_devices: int
    shares_evaluations: bool = False

    def __str__(self) -> str:
        """For results and stored states: different values have different texts."""
        tiles = " with VAE in tiles" if self.vae_tiling else ""
        count = "" if self.num_devices == 1 else f"{self.num_devices} x "
        kernels = [f"attention: {self.kernels.attention}"]
        if self.kernels.products != PUBLISHED.products:
            kernels.append(f"products: {self.kernels.products}")
        if self.kernels.vae != PUBLISHED.vae:
            kernels.append(f"VAE: {self.kernels.vae}")
        if self.kernels.blocks != PUBLISHED.blocks:
            kernels.append(f"blocks: {self.kernels.blocks}")
        if self.shares_evaluations:
            kernels.append("every evaluation shared")
        return f"{self.precision}{tiles} on {count}{self.device} ({', '.join(kernels)})"


def device_name(device: torch.device) -> str:
    """Name of the GPU, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def arithmetic_of(choice: NetworkChoice, device: torch.device, num_devices: int) -> Arithmetic:
    """The arithmetic of the networks of a choice.

    Args:
        device: where they run.
        num_devices: number of devices, all of one kind, that make the video together.
    """
    return Arithmetic(
        precision=choice.memory.precision(choice.dtype),
        vae_tiling=choice.memory.vae_tiling,
        kernels=choice.kernels,
        device=device_name(device),
        num_devices=num_devices,
        shares_evaluations=choice.memory.shares_evaluations,
    )

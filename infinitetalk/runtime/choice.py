"""What is to be loaded, as one value, and what of it decides how numbers are rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND

from infinitetalk.runtime.lora import Lora
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.weights.layouts import AdapterKind

#: Name of the attention kernel that diffusers takes by itself: the environment's DIFFUSERS_ATTN_BACKEND, or "native".
DEFAULT_ATTENTION: str = DIFFUSERS_ATTN_BACKEND
#: Everything stays on the device, weights have 16 bits.
DEFAULT_MODE = MemoryMode()


@dataclass(frozen=True)
class NetworkChoice:
    """The networks that a job needs, and their form.

    Attributes:
        dtype: of the weights of the transformer and the text encoder where they are not quantised. Norms, modulation
            and time embedding stay float32, as do the VAE, the image encoder and the audio encoder.
        memory: the memory mode. Its quantisation applies to the transformer's blocks, and to the text encoder where the
            checkpoint holds a quantised one.
        adapter: InfiniteTalk's adapter for one or for several speakers.
        loras: files and scales, in the order in which they are applied.
        attention: the attention kernel, by its name in diffusers' dispatcher.
    """

    dtype: torch.dtype
    memory: MemoryMode = DEFAULT_MODE
    adapter: AdapterKind = "single"
    loras: tuple[Lora, ...] = ()
    attention: str = DEFAULT_ATTENTION


@dataclass(frozen=True)
class Arithmetic:
    """How the numbers of a video are rounded: two workers that agree in it make the same frames.

    Resident blocks and streaming change no number, so they are not part of it.

    Attributes:
        precision: the quantisation, or the dtype of weights that are not quantised, as memory modes are named.
        vae_tiling: whether the VAE works tile by tile.
        attention: the attention kernel.
        device: name of the card, or "CPU".
        num_devices: how many of them make each evaluation together.
    """

    precision: str
    vae_tiling: bool
    attention: str
    device: str
    num_devices: int

    def __str__(self) -> str:
        """For results and for what is stored: different values have different texts."""
        tiles = " with VAE in tiles" if self.vae_tiling else ""
        count = "" if self.num_devices == 1 else f"{self.num_devices} x "
        return f"{self.precision}{tiles} on {count}{self.device} (attention: {self.attention})"


def arithmetic_of(choice: NetworkChoice, device: torch.device, num_devices: int) -> Arithmetic:
    """The arithmetic of networks that are prepared by a choice.

    Args:
        device: where they run.
        num_devices: how many devices, all of one kind, make each evaluation together.
    """
    return Arithmetic(
        precision=choice.memory.precision(choice.dtype),
        vae_tiling=choice.memory.vae_tiling,
        attention=choice.attention,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        num_devices=num_devices,
    )

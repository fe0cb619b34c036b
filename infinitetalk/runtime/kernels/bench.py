"""The computations on which kernels are tried: one block of the transformer, and a few frames through the VAE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from infinitetalk.encoders.text import TEXT_LENGTH
from infinitetalk.encoders.vae import decode_latents, encode_frames, without_tf32
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.kernels.registry import Candidate, Part
from infinitetalk.runtime.memory import set_tiling
from infinitetalk.weights.layouts import CheckpointPaths, transformer_parts
from infinitetalk.weights.loading import Quantisation
from infinitetalk.weights.networks import empty_transformer, load_transformer_parameters, load_vae
from infinitetalk.weights.sources import TensorSource

SEED = 2508
#: CLIP's tokens of an image.
IMAGE_TOKENS = 257
#: In the middle of the schedule.
TIMESTEP = 500.0
#: Share of a chunk's frames for which the float32 result is computed: it needs twice the memory of 16 bits.
EXACT_SHARE = 1 / 3
#: Video frames that go through the VAE: it takes one alone and then four at a time, whatever their number.
VAE_FRAMES = 9
#: Size of the random pictures that are enlarged to smooth frames.
COARSE_SIDE = 6


@dataclass(frozen=True)
class Case:
    """What kernels are tried on: a worker's usual chunk.

    Attributes:
        paths: the checkpoint; the block and the VAE have its weights.
        device, dtype, quantisation: the form of the transformer.
        num_frames, height, width: video frames of the chunk, and their size in pixels.
        vae_tiling: whether the VAE works tile by tile.
        streams_blocks: whether the worker streams blocks.
    """

    paths: CheckpointPaths
    device: torch.device
    dtype: torch.dtype
    quantisation: Quantisation | None
    num_frames: int
    height: int
    width: int
    vae_tiling: bool
    streams_blocks: bool = False


class Bench(ABC):
    """The computation of one part, with any of its kernels."""

    @abstractmethod
    def use(self, candidate: Candidate) -> None:
        """Puts a kernel in force."""

    @abstractmethod
    def compute(self) -> Tensor:
        """The result at full size, on the device; this is what is timed."""

    @abstractmethod
    def error(self) -> float:
        """The error against float32, relative to what the part adds."""

    @abstractmethod
    def difference(self, found: Tensor, published: Tensor) -> float:
        """The difference of two results of `compute`, relative to what the part adds."""


class BlockBench(Bench):
    """The transformer's first block, with the checkpoint's weights and the inputs that it has for random latents.

    Errors are relative to the difference between the block's output and its input.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        temporal = case.paths.family.vae_scale_factor_temporal
        latent_frames = (case.num_frames - 1) // temporal + 1
        exact_frames = max(1, round(latent_frames * EXACT_SHARE))
        network, sources = _with_one_block(case)
        load_transformer_parameters(network, sources, case.device, case.dtype, case.quantisation)
        self._network = network.to(case.device)
        self._inputs = self._block_inputs(latent_frames)
        self._exact_inputs = self._block_inputs(exact_frames)
        self._exact = self._float32_block()

    def use(self, candidate: Candidate) -> None:
        candidate.apply(self._network)

    def compute(self) -> Tensor:
        return self._network.blocks[0](*self._inputs)

    def error(self) -> float:
        found = self._network.blocks[0](*self._exact_inputs)
        return _relative(found, self._exact, self._exact_inputs[0])

    def difference(self, found: Tensor, published: Tensor) -> float:
        return _relative(found, published, self._inputs[0])

    def _block_inputs(self, latent_frames: int) -> tuple[Tensor, ...]:
        """The arguments of the first block when the network evaluates random latents of this many frames."""
        case, config = self._case, self._network.config
        family = case.paths.family
        scale = family.vae_scale_factor_spatial
        num_frames = (latent_frames - 1) * family.vae_scale_factor_temporal + 1
        generator = torch.Generator().manual_seed(SEED)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(case.device, case.dtype)

        calls: list[tuple[Tensor, ...]] = []
        handle = self._network.blocks[0].register_forward_pre_hook(lambda _, given: calls.append(given))
        try:
            self._network(
                hidden_states=random(1, config.in_channels, latent_frames, case.height // scale, case.width // scale),
                timestep=torch.tensor([TIMESTEP], device=case.device),
                encoder_hidden_states=random(1, TEXT_LENGTH, config.text_dim),
                encoder_hidden_states_image=random(1, IMAGE_TOKENS, config.image_dim),
                encoder_hidden_states_audio=random(
                    1, num_frames, config.audio_window, config.audio_layers, config.audio_channels
                ),
            )
        finally:
            handle.remove()
        return calls[0]

    def _float32_block(self) -> Tensor:
        """The output of the same block in float32, by torch's own attention; quantised weights are widened."""
        network, sources = _with_one_block(self._case)
        block = {name: source for name, source in sources.items() if name.startswith("blocks.")}
        load_transformer_parameters(network, block, self._case.device, torch.float32, self._case.quantisation)
        return network.blocks[0](*_widened(self._exact_inputs))


class VaeBench(Bench):
    """The VAE: smooth frames of the chunk's size are encoded and decoded. Errors are relative to the decoded frames."""

    def __init__(self, case: Case) -> None:
        self._case = case
        generator = torch.Generator().manual_seed(SEED)
        coarse = torch.rand(1, 3, VAE_FRAMES, COARSE_SIDE, COARSE_SIDE, generator=generator) * 2 - 1
        size = (VAE_FRAMES, case.height, case.width)
        self._frames = F.interpolate(coarse, size=size, mode="trilinear").to(case.device)
        self._vae = self._loaded()
        with without_tf32():
            self._exact = self.compute()

    def use(self, candidate: Candidate) -> None:
        # A kernel may have rounded the weights.
        self._vae = self._loaded()
        candidate.apply(self._vae)

    def compute(self) -> Tensor:
        return decode_latents(self._vae, encode_frames(self._vae, self._frames))

    def error(self) -> float:
        return self.difference(self.compute(), self._exact)

    def difference(self, found: Tensor, published: Tensor) -> float:
        return _relative(found, published, torch.zeros_like(published))

    def _loaded(self) -> AutoencoderKLWan:
        vae = load_vae(self._case.paths.base, self._case.device)
        set_tiling(vae, self._case.vae_tiling)
        return vae


BENCHES: dict[Part, Callable[[Case], Bench]] = {
    "attention": BlockBench,
    "products": BlockBench,
    "vae": VaeBench,
    "blocks": BlockBench,
}


def _with_one_block(case: Case) -> tuple[InfiniteTalkTransformer3DModel, dict[str, TensorSource]]:
    """The transformer without its blocks but the first, on the meta device, and the sources of its parameters."""
    base, adapter = transformer_parts(case.paths, "single", case.quantisation)
    network = empty_transformer(case.paths, base, adapter)
    network.blocks = network.blocks[:1]
    sources = {**base.sources, **adapter.sources}
    kept = {name for name, _ in network.named_parameters()}
    return network, {name: source for name, source in sources.items() if name in kept}


def _widened(argument: Any) -> Any:
    """A block's argument in float32: a tensor, None, or a tuple of such, as all its arguments are."""
    if isinstance(argument, tuple):
        return tuple(_widened(part) for part in argument)
    return argument if argument is None else argument.float()


def _relative(found: Tensor, expected: Tensor, start: Tensor) -> float:
    """||found - expected|| / ||expected - start||, in float32."""
    expected = expected.float()
    return float((found.float() - expected).norm() / (expected - start.float()).norm())

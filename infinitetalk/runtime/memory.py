"""What runs in how much GPU memory: the modes, an estimate for each, and the choice between them (docs/memory.md).

Offloading is diffusers' group offloading, quantised weights are torchao's, tiling is the VAE's own.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKLWan
from diffusers.hooks import HookRegistry, apply_group_offloading
from torch import nn

from infinitetalk.errors import DoesNotFitError
from infinitetalk.family import INFINITETALK, Family, ModelSizes
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.layouts import (
    CheckpointPaths,
    NetworkPart,
    image_encoder_part,
    text_encoder_part,
    transformer_parts,
    vae_part,
)
from infinitetalk.weights.loading import Quantisation

GIB = 1 << 30
#: CUDA's context, the workspaces of its libraries, and what the allocator cannot use between blocks.
RESERVE_BYTES = 2 * GIB
#: Bytes a token and channel takes at the widest point of a block. Measured: 24.1 with one speaker, 24.4 with two.
TOKEN_CHANNEL_BYTES = 25
#: Bytes a token and channel takes of what the blocks added, which TeaCache keeps in 16 bits.
CACHED_CHANNEL_BYTES = 2
#: Bytes a pixel of the video's resolution takes in the VAE, which decodes four frames at once in float32: the copies of
#: 96 channels, the last two frames of each convolution kept for the next, cuDNN's workspaces. Measured: 21,600.
VAE_PIXEL_BYTES = 22_000
#: Bytes a parameter of the transformer outside its blocks takes: half of them are float32, the time embedding's.
OUTER_BYTES = 3
#: Tiles of the VAE, by diffusers' defaults.
VAE_TILE_PIXELS = 256 * 256
#: Blocks on the GPU while blocks are streamed: the one that runs and the one that follows.
STREAMED_BLOCKS_HELD = 2

_HOOKS = ("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker")


@dataclass(frozen=True)
class MemoryMode:
    """A mode.

    Attributes:
        quantisation: of the weights of the transformer's blocks; None: 16 bits.
        resident_parameters: how many parameters of the blocks stay on the GPU, the first ones; the other blocks are
            streamed from the CPU's memory at every use. None: all stay.
        stream_text_encoder: the text encoder's layers are streamed too, and take no memory afterwards.
        vae_tiling: the VAE works tile by tile.
    """

    quantisation: Quantisation | None = None
    resident_parameters: int | None = None
    stream_text_encoder: bool = False
    vae_tiling: bool = False

    @property
    def name(self) -> str:
        """As on a GPU: "bf16", "fp8", "int8, with 4000000000 parameters kept and the others streamed" …"""
        return self.describe(torch.bfloat16)

    def precision(self, dtype: torch.dtype) -> str:
        """The quantisation, or the name of `dtype`, which weights have that are not quantised."""
        return self.quantisation or {torch.bfloat16: "bf16", torch.float32: "float32"}[dtype]

    def describe(self, dtype: torch.dtype) -> str:
        """For logs and results; `dtype` is that of the transformer's weights where they are not quantised."""
        parts = [self.precision(dtype)]
        if self.resident_parameters is not None:
            parts.append(f"with {self.resident_parameters} parameters kept and the others streamed")
        if self.stream_text_encoder:
            parts.append("text encoder streamed")
        if self.vae_tiling:
            parts.append("VAE in tiles")
        return ", ".join(parts)


@dataclass(frozen=True)
class Workload:
    """What is computed at once: a chunk of `num_frames` frames of `height` by `width` pixels.

    Attributes:
        cached_branches: guidance branches for each of which TeaCache keeps what the blocks added.
    """

    num_frames: int
    height: int
    width: int
    family: Family = INFINITETALK
    cached_branches: int = 0

    @property
    def num_tokens(self) -> int:
        """Video tokens that the transformer sees."""
        return self.family.num_tokens(self.num_frames, self.height, self.width)


def model_sizes(paths: CheckpointPaths) -> ModelSizes:
    """A checkpoint's sizes.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    base, adapter = transformer_parts(paths, "single", None)
    sources = {**base.sources, **adapter.sources}
    counts = {name: torch.Size(source.shape).numel() for name, source in sources.items()}
    in_blocks = {
        name: count for name, count in counts.items() if name.startswith("blocks.") and len(sources[name].shape) == 2
    }
    return ModelSizes(
        blocks=sum(in_blocks.values()),
        num_blocks=1 + max(int(name.split(".")[1]) for name in in_blocks),
        outer=sum(counts.values()) - sum(in_blocks.values()),
        dim=sources["patch_embedding.bias"].shape[0],
        text_encoder=_num_parameters(text_encoder_part(paths, None)),
        image_encoder=_num_parameters(image_encoder_part(paths.base)),
        vae=_num_parameters(vae_part(paths.base)),
    )


def _num_parameters(part: NetworkPart) -> int:
    return sum(torch.Size(source.shape).numel() for source in part.sources.values())


def weight_bytes(mode: MemoryMode, sizes: ModelSizes) -> int:
    """What the networks take on the GPU: 2 bytes a parameter, 1 where quantised, 4 in image encoder and VAE."""
    bytes_per_weight = 2 if mode.quantisation is None else 1
    if mode.resident_parameters is None:
        blocks_held = sizes.blocks
    else:
        streamed = sizes.blocks // sizes.num_blocks * STREAMED_BLOCKS_HELD
        blocks_held = min(sizes.blocks, mode.resident_parameters + streamed)
    text_encoder = 0 if mode.stream_text_encoder else 2 * sizes.text_encoder
    weights = bytes_per_weight * blocks_held + OUTER_BYTES * sizes.outer + text_encoder
    return weights + 4 * (sizes.image_encoder + sizes.vae) + sizes.lora_bytes


def sampling_bytes(sizes: ModelSizes, workload: Workload) -> int:
    """What an evaluation of the transformer takes beside weights, and what TeaCache keeps of earlier ones."""
    residual = CACHED_CHANNEL_BYTES * workload.cached_branches
    return workload.num_tokens * sizes.dim * (TOKEN_CHANNEL_BYTES + residual)


def vae_bytes(mode: MemoryMode, workload: Workload) -> int:
    """What decoding a chunk takes beside weights: the VAE's own, and the chunk's frames twice in float32."""
    pixels = workload.height * workload.width
    decoded_at_once = min(pixels, VAE_TILE_PIXELS) if mode.vae_tiling else pixels
    return VAE_PIXEL_BYTES * decoded_at_once + 2 * 3 * 4 * workload.num_frames * pixels


def estimate_bytes(mode: MemoryMode, sizes: ModelSizes, workload: Workload) -> int:
    """Peak GPU memory of a job, an estimate: what stays, and the greater of what sampling and the VAE need on top."""
    return weight_bytes(mode, sizes) + max(sampling_bytes(sizes, workload), vae_bytes(mode, workload)) + RESERVE_BYTES


def candidate_modes(sizes: ModelSizes, requested: MemoryMode | None = None) -> Iterator[MemoryMode]:
    """Modes from the fastest to the most frugal. A quantisation or number of parameters that is requested stays."""
    quantisations: tuple[Quantisation | None, ...] = (None, "fp8")
    if requested is not None and requested.quantisation is not None:
        quantisations = (requested.quantisation,)
    wanted = None if requested is None else requested.resident_parameters
    if wanted is None:
        for quantisation in quantisations:
            for stream_text_encoder in (False, True):
                yield MemoryMode(quantisation, None, stream_text_encoder)
        # Tiles cost seconds a chunk, streamed blocks cost some in every evaluation.
        yield MemoryMode(quantisations[-1], None, stream_text_encoder=True, vae_tiling=True)
        for kept in (3, 2, 1, 0):
            yield MemoryMode(quantisations[-1], sizes.blocks * kept // 4, stream_text_encoder=True, vae_tiling=True)
        return
    for quantisation in quantisations:
        for vae_tiling in (False, True):
            yield MemoryMode(quantisation, wanted, stream_text_encoder=True, vae_tiling=vae_tiling)


def choose_mode(
    free_bytes: int, sizes: ModelSizes, workload: Workload, requested: MemoryMode | None = None
) -> MemoryMode:
    """The fastest mode whose estimate fits.

    Args:
        free_bytes: of GPU memory, before any network is on it.
        requested: what a job or the settings fix: quantisation, parameters kept.

    Raises:
        DoesNotFitError: none fits.
    """
    for mode in candidate_modes(sizes, requested):
        if estimate_bytes(mode, sizes, workload) <= free_bytes:
            return mode
    raise DoesNotFitError(what_would_fit(free_bytes, sizes, workload))


def what_would_fit(free_bytes: int, sizes: ModelSizes, workload: Workload) -> str:
    """What to change in a job that does not fit: the most frames that do at its resolution, or the memory to have."""
    frugal = list(candidate_modes(sizes))[-1]
    needed = estimate_bytes(frugal, sizes, workload)
    message = (
        f"{workload.num_frames} frames of {workload.width}x{workload.height} need about {needed / GIB:.0f} GiB of GPU "
        f"memory in the most frugal mode; {free_bytes / GIB:.0f} GiB are free"
    )
    factor = workload.family.vae_scale_factor_temporal
    for num_frames in range(workload.num_frames - factor, 0, -factor):
        if estimate_bytes(frugal, sizes, replace(workload, num_frames=num_frames)) <= free_bytes:
            return f"{message}. Use frame_num {num_frames} or less, or a smaller size"
    return f"{message}. Use a smaller size, or a GPU with more memory"


def free_bytes(device: torch.device) -> int:
    """GPU memory that this process could have: what is free, and what its allocator holds without using."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release_cached_memory() -> None:
    """Gives back what a failed job left: reference cycles of its traceback, and the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# The modes themselves.


def num_resident_blocks(transformer: InfiniteTalkTransformer3DModel, resident_parameters: int) -> int:
    """How many of the first blocks have `resident_parameters` parameters or fewer between them."""
    total = 0
    for index, block in enumerate(transformer.blocks):
        total += sum(parameter.numel() for parameter in block.parameters())
        if total > resident_parameters:
            return index
    return len(transformer.blocks)


def stream_blocks(transformer: InfiniteTalkTransformer3DModel, resident_parameters: int, device: torch.device) -> None:
    """Keeps the first blocks on `device` and streams the others there at every use, each while the one before runs.

    The transformer may be anywhere; blocks that are streamed go to the CPU, in pinned memory where `device` is a GPU.
    """
    blocks = transformer.blocks
    kept = num_resident_blocks(transformer, resident_parameters)
    # diffusers takes all blocks of a module or none: it sees the streamed ones only.
    transformer.blocks = nn.ModuleList(blocks[kept:])
    try:
        _stream(transformer, device, "block_level")
    finally:
        transformer.blocks = blocks
    for block in blocks[:kept]:
        block.to(device)


def stream_layers(module: nn.Module, device: torch.device) -> None:
    """Streams every layer of a network to `device` at its use."""
    _stream(module, device, "leaf_level")


def _stream(module: nn.Module, device: torch.device, level: str) -> None:
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def is_streamed(module: nn.Module) -> bool:
    """Whether diffusers streams the module or something in it."""
    return any(_hook_names(part) for part in module.modules())


def stop_streaming(module: nn.Module) -> None:
    """Undoes `stream_blocks` and `stream_layers`; the weights stay where they are."""
    for part in module.modules():
        for name in _hook_names(part):
            HookRegistry.check_if_exists_or_initialize(part).remove_hook(name, recurse=False)


def _hook_names(module: nn.Module) -> list[str]:
    if not hasattr(module, "_diffusers_hook"):
        return []
    registry = HookRegistry.check_if_exists_or_initialize(module)
    return [name for name in _HOOKS if registry.get_hook(name) is not None]


def set_tiling(vae: AutoencoderKLWan, tiling: bool) -> None:
    """Lets the VAE work tile by tile, or not."""
    if tiling:
        vae.enable_tiling()
    else:
        vae.disable_tiling()

"""GPU memory: the modes, an estimate for each, and the choice between them (docs/memory.md).

diffusers does the offloading (group offloading), torchao the quantisation, the VAE itself the tiling.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKLWan
from diffusers.hooks import HookRegistry, apply_group_offloading
from torch import nn
from torchao.utils import TorchAOBaseTensor

from infinitetalk.errors import DoesNotFitError
from infinitetalk.family import INFINITETALK, Family, ModelSizes
from infinitetalk.network.teams import rounds_of
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
#: CUDA's context, the workspaces of its libraries, and memory lost to fragmentation.
RESERVE_BYTES = 2 * GIB
#: Bytes per token and channel at the peak of a block. Measured: 24.1 with one speaker, 24.4 with two.
TOKEN_CHANNEL_BYTES = 25
#: The same of a GPU's own tokens where several share an evaluation: what does not depend on tokens weighs more.
#: Rehearsed: 24.1 to 26.4, the most with ten.
SHARED_CHANNEL_BYTES = 26.4
#: The same where products quantise their activations in eager mode, on however many GPUs. Rehearsed: 50.7.
QUANTISING_CHANNEL_BYTES = 51
#: Bytes per token and channel, of all tokens, where each GPU has the whole image at the beginning and at the end of an
#: evaluation; the most that many GPUs need. Rehearsed with twenty: 2.2.
WHOLE_CHANNEL_BYTES = 2.3
#: Bytes per token and channel of a block residual that TeaCache keeps in 16 bits.
CACHED_CHANNEL_BYTES = 2
#: Bytes per pixel of the video's resolution in the VAE, which decodes four frames at once in float32: copies of 96
#: channels, the last two frames of each convolution (kept for the next four), cuDNN's workspaces. Measured: 21,600.
VAE_PIXEL_BYTES = 22_000
#: Bytes per pixel of the video's resolution while frames get their colours and become bytes, nine at once; the frames
#: themselves are not in it.
COLOUR_PIXEL_BYTES = 480
#: Bytes per parameter of the transformer outside its blocks: of the published ones 58 % are float32, the time
#: embedding's above all, and the others have 16 bits. They take 3.16 bytes on average.
OUTER_BYTES = 3.17
#: Pixels of a VAE tile, by diffusers' defaults.
VAE_TILE_PIXELS = 256 * 256
#: Blocks on the GPU while blocks are streamed: the one that runs and the one that follows.
STREAMED_BLOCKS_HELD = 2

_HOOKS = ("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker")


@dataclass(frozen=True)
class MemoryMode:
    """A memory mode.

    Attributes:
        quantisation: quantisation of the weights in the transformer's blocks; None: 16 bits.
        resident_parameters: number of parameters that stay on the GPU, those of the first blocks; the other blocks are
            streamed from CPU memory at every use. None: all stay.
        stream_text_encoder: whether the text encoder's layers are streamed too, and then take no memory after use.
        vae_tiling: whether the VAE works tile by tile.
        shares_evaluations: whether all GPUs of a worker share each evaluation. Otherwise they first make a step's
            evaluations at once, which is faster and leaves each of them more tokens. It means nothing on one GPU.
    """

    quantisation: Quantisation | None = None
    resident_parameters: int | None = None
    stream_text_encoder: bool = False
    vae_tiling: bool = False
    shares_evaluations: bool = False

    @property
    def name(self) -> str:
        """The name on a GPU: "bf16", "fp8", "int8, with 4000000000 parameters kept and the others streamed" …"""
        return self.describe(torch.bfloat16)

    @property
    def streams_blocks(self) -> bool:
        """Whether blocks of the transformer stay in the host's memory and pass through the GPU."""
        return self.resident_parameters is not None

    @property
    def is_streaming(self) -> bool:
        """Whether any weights stay in the host's memory and pass through the GPU."""
        return self.streams_blocks or self.stream_text_encoder

    def precision(self, dtype: torch.dtype) -> str:
        """The quantisation, or else the name of `dtype`, the dtype of unquantised weights."""
        return self.quantisation or {torch.bfloat16: "bf16", torch.float32: "float32"}[dtype]

    def describe(self, dtype: torch.dtype) -> str:
        """The text for logs and results; `dtype` is the dtype of the transformer's unquantised weights."""
        parts = [self.precision(dtype)]
        if self.resident_parameters is not None:
            parts.append(f"with {self.resident_parameters} parameters kept and the others streamed")
        if self.stream_text_encoder:
            parts.append("text encoder streamed")
        if self.vae_tiling:
            parts.append("VAE in tiles")
        if self.shares_evaluations:
            parts.append("every evaluation shared")
        return ", ".join(parts)


@dataclass(frozen=True)
class Workload:
    """The work of one chunk: `num_frames` frames of `height` by `width` pixels.

    Attributes:
        family: of the model.
        cached_branches: number of guidance branches with a TeaCache residual.
        gpus: number of GPUs that make the video together.
        branches: number of guidance branches, each of them an evaluation of a step.
        quantises_activations: whether products quantise what they multiply weights with, which takes more memory.
    """

    num_frames: int
    height: int
    width: int
    family: Family = INFINITETALK
    cached_branches: int = 0
    gpus: int = 1
    branches: int = 1
    quantises_activations: bool = False

    @property
    def num_tokens(self) -> int:
        """Number of video tokens in the transformer."""
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
    """GPU memory of the networks: 2 bytes per parameter, 1 if quantised, 4 in the image encoder and the VAE."""
    bytes_per_weight = 2 if mode.quantisation is None else 1
    if mode.resident_parameters is None:
        blocks_held = sizes.blocks
    else:
        streamed = sizes.blocks // sizes.num_blocks * STREAMED_BLOCKS_HELD
        blocks_held = min(sizes.blocks, mode.resident_parameters + streamed)
    text_encoder = 0 if mode.stream_text_encoder else 2 * sizes.text_encoder
    weights = bytes_per_weight * blocks_held + int(OUTER_BYTES * sizes.outer) + text_encoder
    return weights + 4 * (sizes.image_encoder + sizes.vae) + sizes.lora_bytes


def rounds_of_a_step(mode: MemoryMode, workload: Workload) -> list[int]:
    """How many evaluations of a step the GPUs make at once, round by round."""
    return rounds_of(workload.branches, workload.gpus, mode.shares_evaluations)


def sampling_bytes(mode: MemoryMode, sizes: ModelSizes, workload: Workload) -> int:
    """What an evaluation takes on each GPU beside weights, and what TeaCache keeps of earlier ones."""
    sharing = workload.gpus // max(rounds_of_a_step(mode, workload))
    per_channel = TOKEN_CHANNEL_BYTES if sharing == 1 else SHARED_CHANNEL_BYTES
    if workload.quantises_activations:
        per_channel = QUANTISING_CHANNEL_BYTES
    residual = CACHED_CHANNEL_BYTES * workload.cached_branches / workload.gpus
    at_peak = max(per_channel / sharing, WHOLE_CHANNEL_BYTES)
    return int(workload.num_tokens * sizes.dim * (at_peak + residual))


def vae_bytes(mode: MemoryMode, workload: Workload) -> int:
    """What decoding a chunk takes beside weights: the VAE's own, and the chunk's frames twice in float32.

    Of several GPUs each has some rows of the picture, but for tiles; the first one puts the frames together.
    """
    pixels = workload.height * workload.width
    frames = 2 * 3 * 4 * workload.num_frames
    if mode.vae_tiling:
        return VAE_PIXEL_BYTES * min(pixels, VAE_TILE_PIXELS) + frames * pixels
    factor = workload.family.vae_scale_factor_spatial
    own_pixels = workload.width * factor * vae_rows(workload.height // factor, workload.gpus)
    return max((VAE_PIXEL_BYTES + frames) * own_pixels, frames * pixels)


def vae_rows(latent_rows: int, gpus: int) -> int:
    """Rows of latents that the first of several GPUs has in the VAE: its share, or all if there are too few."""
    return -(-latent_rows // gpus) if latent_rows >= gpus else latent_rows


def finishing_bytes(workload: Workload) -> int:
    """What the frames of a decoded chunk take until they are on the CPU: in float32, as bytes, and their colours."""
    return (COLOUR_PIXEL_BYTES + (3 * 4 + 3) * workload.num_frames) * workload.height * workload.width


def can_finish_beside(mode: MemoryMode, sizes: ModelSizes, workload: Workload) -> bool:
    """Whether a chunk can be finished beside the first steps of the next, in the memory that decoding takes anyway."""
    return sampling_bytes(mode, sizes, workload) + finishing_bytes(workload) <= vae_bytes(mode, workload)


def estimate_bytes(mode: MemoryMode, sizes: ModelSizes, workload: Workload) -> int:
    """Peak GPU memory of a job, an estimate: what stays, and the greater of what sampling and the VAE need on top."""
    at_work = max(sampling_bytes(mode, sizes, workload), vae_bytes(mode, workload))
    return weight_bytes(mode, sizes) + at_work + RESERVE_BYTES


def candidate_modes(sizes: ModelSizes, requested: MemoryMode | None = None) -> Iterator[MemoryMode]:
    """Modes from the fastest to the most frugal; a requested quantisation or number of parameters is kept in all."""
    quantisations: tuple[Quantisation | None, ...] = (None, "fp8")
    if requested is not None and requested.quantisation is not None:
        quantisations = (requested.quantisation,)
    wanted = None if requested is None else requested.resident_parameters
    if wanted is None:
        for quantisation in quantisations:
            for stream_text_encoder in (False, True):
                yield MemoryMode(quantisation, None, stream_text_encoder)
        # Tiles cost seconds per chunk, streamed blocks cost seconds per evaluation.
        yield MemoryMode(quantisations[-1], None, stream_text_encoder=True, vae_tiling=True)
        for kept in (3, 2, 1, 0):
            yield MemoryMode(quantisations[-1], sizes.blocks * kept // 4, stream_text_encoder=True, vae_tiling=True)
        return
    for quantisation in quantisations:
        for vae_tiling in (False, True):
            yield MemoryMode(quantisation, wanted, stream_text_encoder=True, vae_tiling=vae_tiling)


def shared_too(mode: MemoryMode, workload: Workload) -> list[MemoryMode]:
    """The mode, and the same with evaluations shared by all GPUs where this is something else: it costs less time than
    any other way to save memory."""
    shared = replace(mode, shares_evaluations=True)
    differs = rounds_of_a_step(mode, workload) != rounds_of_a_step(shared, workload)
    return [mode, shared] if differs else [mode]


def choose_mode(
    free_bytes: int, sizes: ModelSizes, workload: Workload, requested: MemoryMode | None = None
) -> MemoryMode:
    """The fastest mode whose estimate fits.

    Args:
        free_bytes: free GPU memory, before any network is loaded.
        requested: quantisation and resident parameters that a job or the settings fix.

    Raises:
        DoesNotFitError: none fits.
    """
    for candidate in candidate_modes(sizes, requested):
        for mode in shared_too(candidate, workload):
            if estimate_bytes(mode, sizes, workload) <= free_bytes:
                return mode
    raise DoesNotFitError(what_would_fit(free_bytes, sizes, workload))


def what_would_fit(free_bytes: int, sizes: ModelSizes, workload: Workload) -> str:
    """How to make a job fit: the largest number of frames that fits at its resolution, or the memory that it needs."""
    frugal = shared_too(list(candidate_modes(sizes))[-1], workload)[-1]
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
    """GPU memory available to this process: free memory, and unused memory that its allocator holds."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release_cached_memory() -> None:
    """Releases the memory of a failed job: the reference cycles of its traceback, and the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Implementation of the modes.


def num_resident_blocks(transformer: InfiniteTalkTransformer3DModel, resident_parameters: int) -> int:
    """The number of first blocks with at most `resident_parameters` parameters in total."""
    total = 0
    for index, block in enumerate(transformer.blocks):
        total += sum(parameter.numel() for parameter in block.parameters())
        if total > resident_parameters:
            return index
    return len(transformer.blocks)


def stream_blocks(transformer: InfiniteTalkTransformer3DModel, resident_parameters: int, device: torch.device) -> None:
    """Keeps the first blocks and all that is outside blocks on `device`, and streams the other blocks to it at every
    use, each while the one before runs.

    The transformer may be on any device; streamed blocks move to the CPU, into pinned memory if `device` is a GPU.
    """
    blocks = transformer.blocks
    kept = num_resident_blocks(transformer, resident_parameters)
    for block in blocks[:kept]:
        block.to(device)
    # diffusers streams all blocks of a module or none, so it is given only those to stream.
    transformer.blocks = nn.ModuleList(blocks[kept:])
    try:
        if device.type == "cuda":
            pin(transformer.blocks)
        _stream(transformer, device, "block_level")
    finally:
        transformer.blocks = blocks
    _keep_outer(transformer, device)


def pin(module: nn.Module) -> None:
    """Moves a network's weights into pinned memory of the CPU, one tensor at a time: each is freed before the next is
    copied, and one that several layers share is pinned once. diffusers pins what is not pinned yet, all of it before it
    frees the first."""
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if isinstance(parameter, TorchAOBaseTensor):
                pinned = parameter.cpu().pin_memory()
                owner.register_parameter(name, nn.Parameter(pinned, requires_grad=False))
            else:
                parameter.data = parameter.data.cpu().pin_memory()


def _keep_outer(transformer: nn.Module, device: torch.device) -> None:
    """Takes what is outside blocks out of diffusers' streaming, which would copy it to and fro in each evaluation."""
    group = HookRegistry.check_if_exists_or_initialize(transformer).get_hook(_HOOKS[0]).group
    for module in group.modules:
        module.to(device)
    for tensor in (*group.parameters, *group.buffers):
        tensor.data = tensor.data.to(device)
    group.modules, group.parameters, group.buffers = [], [], []


def stream_layers(module: nn.Module, device: torch.device) -> None:
    """Streams every layer of a network to `device` when it is used."""
    if device.type == "cuda":
        pin(module)
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
    for part in module.modules():
        if _HOOKS[0] in _hook_names(part):
            copies = HookRegistry.check_if_exists_or_initialize(part).get_hook(_HOOKS[0]).group.cpu_param_dict
            for parameter, copy in copies.items():
                # Of a pinned tensor of torchao, diffusers takes the parameter itself for its copy on the CPU, and would
                # lose the copy as soon as the parameter is on the GPU. This one shares its numbers.
                if copy is parameter:
                    copies[parameter] = parameter.detach()


def is_streamed(module: nn.Module) -> bool:
    """Whether diffusers streams the module or any submodule."""
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
    """Switches tiling of the VAE on or off."""
    if tiling:
        vae.enable_tiling()
    else:
        vae.disable_tiling()

"""What a worker that streams weights takes of the CPU's memory while it starts, on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from benchmarks.rehearsal.device import DEVICE
from benchmarks.rehearsal.networks import text_encoder_of_published_size
from benchmarks.rehearsal.recorder import tensors_in
from benchmarks.rehearsal.stage import Stage
from benchmarks.rehearsal.storages import Storages
from benchmarks.rehearsal.streams import fake_streams
from infinitetalk.family import INFINITETALK
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.memory import MemoryMode, stream_blocks, stream_layers
from infinitetalk.weights.files import TensorHeader
from infinitetalk.weights.loading import load_parameters, parameter_shapes
from infinitetalk.weights.sources import TensorSource

CPU = torch.device("cpu")


class HostMemory(TorchDispatchMode):
    """Follows what fake tensors take of the CPU's memory while it is entered.

    Attributes:
        storages: what they take.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages = Storages()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts what its result takes."""
        kwargs = kwargs or {}
        if any(is_traceable_wrapper_subclass(tensor) for tensor in tensors_in((args, kwargs))):
            # torchao's tensors make several operations of it, which come here one by one.
            return NotImplemented
        out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            if isinstance(tensor, FakeTensor) and tensor.device == CPU:
                self.storages.count(tensor.untyped_storage())
        return out


@dataclass(frozen=True)
class FakeFile:
    """A file of tensors without numbers."""

    path: Path
    headers: Mapping[str, TensorHeader]

    def prefetch(self, name: str) -> None:
        """Nothing is on a disk."""

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU. It counts as memory, which a mapped file's pages need not be."""
        header = self.headers[name]
        return torch.empty(header.shape, dtype=header.dtype)


def sources_of(module: nn.Module, dtype: torch.dtype) -> dict[str, TensorSource]:
    """A file that holds a network's parameters in one dtype."""
    headers = {
        name: TensorHeader(shape, dtype, torch.Size(shape).numel() * dtype.itemsize)
        for name, shape in parameter_shapes(module).items()
    }
    file = FakeFile(Path("fake.safetensors"), headers)
    return {name: TensorSource(file, name, header.shape) for name, header in headers.items()}


@dataclass(frozen=True)
class Start:
    """The CPU's memory at a worker's start.

    Attributes:
        peak_bytes: the most that was in use.
        kept_bytes: what stays in use: the streamed weights.
    """

    peak_bytes: int
    kept_bytes: int


def start(stage: Stage, mode: MemoryMode, stored: torch.dtype, num_layers: int | None = None) -> Start:
    """A worker loads the text encoder and the transformer, all of it or some blocks, in a mode that streams both.

    Args:
        stored: dtype of the numbers in the files.
    """
    assert mode.resident_parameters is not None
    assert mode.stream_text_encoder
    blocks = INFINITETALK.model_sizes.num_blocks if num_layers is None else num_layers
    with torch.device("meta"):
        text_encoder = text_encoder_of_published_size()
        transformer = InfiniteTalkTransformer3DModel(num_layers=blocks)
    load = partial(load_parameters, device=DEVICE, dtype=torch.bfloat16, home=CPU)
    with fake_streams(), stage.mode, torch.no_grad(), HostMemory() as memory:
        load(text_encoder, sources_of(text_encoder, stored))
        text_encoder.tie_weights()
        stream_layers(text_encoder, DEVICE)
        config = transformer.config
        transformer.rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
        wide = InfiniteTalkTransformer3DModel._keep_in_fp32_modules
        load(transformer, sources_of(transformer, stored), float32_modules=wide, quantise=mode.quantisation)
        stream_blocks(transformer, mode.resident_parameters, DEVICE)
        return Start(memory.storages.peak_bytes, memory.storages.held_bytes)

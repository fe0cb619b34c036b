"""Evaluations in the worker's other modes: streamed blocks, and several GPUs, on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from diffusers.hooks import group_offloading
from diffusers.models import attention_dispatch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from benchmarks.rehearsal import parts
from benchmarks.rehearsal.device import DEVICE
from benchmarks.rehearsal.log import Log
from benchmarks.rehearsal.networks import make_transformer, quantise_blocks
from benchmarks.rehearsal.stage import Stage
from infinitetalk.network.parallel import Group, split_transformer
from infinitetalk.runtime.memory import MemoryMode, Workload, stream_blocks


@dataclass(frozen=True)
class StreamedEvaluation:
    """An evaluation with streamed blocks.

    Attributes:
        log: with the memory of streamed weights, but not of resident ones.
        resident_bytes: of the weights that are always on the device.
    """

    log: Log
    resident_bytes: int


def streamed_evaluation(
    stage: Stage, workload: Workload, mode: MemoryMode, num_layers: int | None = None
) -> StreamedEvaluation:
    """One evaluation with the first blocks resident and the others streamed, and with weights in 8 bits if the mode has
    them."""
    assert mode.resident_parameters is not None
    transformer = make_transformer(stage.mode, num_layers)
    if mode.quantisation is not None:
        quantise_blocks(transformer, stage.mode, mode.quantisation)
    with fake_streams():
        with stage.mode, torch.no_grad():
            stream_blocks(transformer, mode.resident_parameters, DEVICE)
        # Blocks are prefetched in the order of the first evaluation.
        parts.evaluation(stage, workload, transformer=transformer)
        resident_bytes = bytes_on_device(transformer)
        return StreamedEvaluation(parts.evaluation(stage, workload, transformer=transformer), resident_bytes)


def bytes_on_device(module: nn.Module) -> int:
    """What a network's parameters and buffers take on the device; those of torchao consist of several tensors."""
    tensors = []
    for tensor in (*module.parameters(), *module.buffers()):
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            tensors += [getattr(tensor, name) for name in names]
        else:
            tensors.append(tensor)
    return sum(tensor.nbytes for tensor in tensors if tensor.device == DEVICE)


class _Stream:
    """A CUDA stream without a GPU."""

    def synchronize(self) -> None:
        """Waits for nothing."""


class _Streams:
    """What diffusers asks torch about streams for."""

    Stream = _Stream

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stream(self, stream: _Stream) -> Any:
        """Entered while copies are started."""
        return nullcontext()

    def current_stream(self) -> _Stream:
        """The stream of the kernels."""
        return _Stream()


@contextmanager
def fake_streams() -> Iterator[None]:
    """Streams, pinned memory, and parameters that move between CPU and GPU, on a build without CUDA."""
    published = Tensor.data

    def assign(tensor: FakeTensor, value: Tensor) -> None:
        published.__set__(tensor, value)
        tensor.fake_device = value.device

    def move(module: nn.Module, device: torch.device, non_blocking: bool = False) -> nn.Module:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device != device:
                tensor.data = tensor.data.to(device)
        return module

    with ExitStack() as stack:
        stack.enter_context(patch.object(nn.Module, "to", move))
        stack.enter_context(patch.object(group_offloading, "TorchDeviceBackend", _Streams))
        stack.enter_context(patch.object(Tensor, "pin_memory", lambda tensor: tensor.clone()))
        stack.enter_context(patch.object(Tensor, "is_pinned", lambda tensor: True))
        stack.enter_context(patch.object(FakeTensor, "data", property(published.__get__, assign), create=True))
        yield


def split_evaluation(
    stage: Stage, workload: Workload, gpus: int, speakers: int = 1, num_layers: int | None = None
) -> Log:
    """The first GPU's part of an evaluation that several share; its tokens must divide evenly."""
    transformer = make_transformer(stage.mode, num_layers)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        mesh = init_device_mesh("cpu", (1, gpus), mesh_dim_names=("ring", "ulysses"))
        split_transformer(transformer, Group(mesh, DEVICE))
        with patch.object(attention_dispatch, "gather_size_by_comm", lambda size, group: [size] * gpus):
            return parts.evaluation(stage, workload, speakers, transformer)
    finally:
        dist.destroy_process_group()

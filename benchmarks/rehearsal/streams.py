"""Streams, pinned memory, and weights that move between CPU and GPU, on a build of torch without CUDA."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from diffusers.hooks import group_offloading
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def inner_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the numbers of a tensor: those of torchao consist of several."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]


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
    pinned: set[int] = set()

    def is_pinned(tensor: Tensor) -> bool:
        return all(inner.untyped_storage()._cdata in pinned for inner in inner_tensors(tensor))

    def pin_memory(tensor: Tensor) -> Tensor:
        if is_pinned(tensor):
            return tensor
        copied = tensor.clone()
        for storage in (inner.untyped_storage() for inner in inner_tensors(copied)):
            pinned.add(storage._cdata)
            weakref.finalize(storage, pinned.discard, storage._cdata)
        return copied

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
        stack.enter_context(patch.object(Tensor, "pin_memory", pin_memory))
        stack.enter_context(patch.object(Tensor, "is_pinned", is_pinned))
        stack.enter_context(patch.object(FakeTensor, "data", property(published.__get__, assign), create=True))
        yield

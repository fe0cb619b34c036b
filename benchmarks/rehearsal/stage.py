"""Runs a part on the fake device and gives its log."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.rehearsal.device import install_device_guard
from benchmarks.rehearsal.kernels import AttentionKernel, kernels_of_cuda
from benchmarks.rehearsal.log import Log
from benchmarks.rehearsal.networks import make_transformer, make_vae
from benchmarks.rehearsal.recorder import ALLOCATION_BYTES, Recorder
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel


class Stage:
    """The fake device, and the networks that several parts share.

    Args:
        kernel: of attention in half precision.

    Raises:
        RuntimeError: there is no C++ compiler.
    """

    def __init__(self, kernel: AttentionKernel = "cudnn") -> None:
        install_device_guard()
        self.kernel: AttentionKernel = kernel
        # The scheduler's noise levels and the like are real tensors of the CPU.
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def record(self, run: Callable[[], object]) -> Log:
        """What a call does on the device; its result is let go."""
        # Storages of an earlier part that only a cycle holds would be freed in the midst of this one.
        gc.collect()
        with self.mode, torch.no_grad(), kernels_of_cuda(self.kernel), Recorder() as recorder:
            result = run()
            recorder.log.held_bytes = recorder.storages.held_bytes
            del result
        return recorder.log

    @cached_property
    def transformer(self) -> InfiniteTalkTransformer3DModel:
        """The published network."""
        return make_transformer(self.mode)

    @cached_property
    def vae(self) -> nn.Module:
        """The VAE in float32."""
        return make_vae(self.mode)


def bytes_of_modules(modules: Iterable[nn.Module]) -> int:
    """What parameters and buffers of networks take on the device."""
    storages = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = -(-storage.nbytes() // ALLOCATION_BYTES) * ALLOCATION_BYTES
    return sum(storages.values())

"""Streamed blocks and loading from disk, on a part of the network."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.gpu.networks import Shape, inputs, make_transformer, shape_of, working_dtype
from benchmarks.gpu.rows import Figure, Group, Row, device, memory_figure, release, seconds, timed
from infinitetalk.network.quantised import quantise_linear
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.memory import stop_streaming, stream_blocks
from infinitetalk.weights.files import open_file
from infinitetalk.weights.loading import load_parameters, quantised
from infinitetalk.weights.sources import TensorSource

#: Number of blocks, of the published 40.
NUM_LAYERS = 8


@dataclass
class Part:
    """A network with only some of the blocks."""

    shape: Shape
    transformer: InfiniteTalkTransformer3DModel


def prepare(small: bool) -> Part:
    """Eight blocks."""
    shape = shape_of(small)
    return Part(shape, make_transformer(shape, num_layers=2 if small else NUM_LAYERS))


def streamed(state: Part) -> Iterator[Figure]:
    """An evaluation with all blocks on the device, and with all streamed, in bf16 and in fp8."""
    given = inputs(state.shape.chunk, working_dtype())
    layers = len(state.transformer.blocks)
    for what in ("bf16", "fp8 weights"):
        if what != "bf16":
            for module in state.transformer.blocks.modules():
                if isinstance(module, nn.Linear):
                    quantise_linear(module, quantised(module.weight.data.to(device()), "fp8"))
            state.transformer.to(device())
        yield Figure(f"{layers} blocks, {what}", timed(lambda: state.transformer(**given), 2))
        took = seconds(lambda: stream_blocks(state.transformer, 0, device()))
        yield Figure(f"{layers} blocks, {what}: moving them to pinned memory", took)
        release()
        yield Figure(f"{layers} blocks, {what}, streamed", timed(lambda: state.transformer(**given), 2))
        yield memory_figure(f"{layers} blocks, {what}, streamed: peak memory")
        stop_streaming(state.transformer)
        state.transformer.to(device())


def from_disk(state: Part) -> Iterator[Figure]:
    """Loads a file of the blocks: our loader with a cold and a warm page cache, safetensors' own with a warm one."""
    tensors = {
        name: parameter.detach().to("cpu", working_dtype())
        for name, parameter in make_transformer(state.shape, len(state.transformer.blocks)).named_parameters()
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blocks.safetensors"
        save_file(tensors, path)
        del tensors
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        empty = make_transformer(state.shape, len(state.transformer.blocks))

        def ours() -> None:
            opened = open_file(path)
            sources = {name: TensorSource(opened, name, header.shape) for name, header in opened.headers.items()}
            load_parameters(empty, sources, device(), working_dtype(), empty._keep_in_fp32_modules)

        for what, load in (
            ("ours, page cache cold", ours),
            ("ours, page cache warm", ours),
            ("safetensors' own, page cache warm", lambda: load_file(path, device=str(device()))),
        ):
            took = seconds(load)
            yield Figure(f"loading a file of {size / 1e9:.1f} GB, {what}", size / took / 1e9, "GB/s", f"{took:.2f} s")


GROUP = Group("memory", prepare, (Row("streamed", streamed), Row("from disk", from_disk)))

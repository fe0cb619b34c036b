"""Streamed blocks and loading from disk, on a part of the network."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from benchmarks.cold_start import drop_pages
from benchmarks.gpu.networks import Shape, inputs, make_transformer, shape_of, working_dtype
from benchmarks.gpu.rows import Figure, Group, Row, device, memory_figure, release, seconds, timed
from benchmarks.readers import READERS, TENSORS, pack_for_flashpack
from infinitetalk.network.quantised import quantise_linear
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.memory import stop_streaming, stream_blocks
from infinitetalk.weights.loading import quantised

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
    """Loads a file of the blocks to the device with every reader that is installed, page cache cold and warm."""
    tensors = {
        name: parameter.detach().to("cpu", working_dtype())
        for name, parameter in make_transformer(state.shape, len(state.transformer.blocks)).named_parameters()
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(tensors, folder / TENSORS)
        del tensors
        for name, reader in READERS.items():
            figure = f"loading a file of {size / 1e9:.1f} GB, {name}, page cache"
            if (obstacle := reader.obstacle()) is not None:
                yield Figure(f"{figure} cold and warm", None, "GB/s", obstacle)
                continue
            path = folder / reader.file
            if not path.exists():
                pack_for_flashpack(folder)
            drop_pages(path)
            for cache in ("cold", "warm"):
                empty = make_transformer(state.shape, len(state.transformer.blocks))
                took = seconds(partial(reader.fill, empty, path, device()))
                yield Figure(f"{figure} {cache}", size / took / 1e9, "GB/s", f"{took:.2f} s")
                del empty
                release()


GROUP = Group("memory", prepare, (Row("streamed", streamed), Row("from disk", from_disk)))

"""Compiled blocks: few graphs for all sizes, LoRAs that count, and nothing compiled twice on one kind of machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from structlog.testing import capture_logs
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from infinitetalk.embedded.tiny import talker_paths
from infinitetalk.errors import CheckpointError
from infinitetalk.network import regions as regions_module
from infinitetalk.network.audio_attention import rotary_embedding, rotate_pairs
from infinitetalk.network.teacache import TeaCache
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.kernels.compiled import CompiledBlocks
from infinitetalk.runtime.kernels.findings import Machine
from infinitetalk.runtime.kernels.registry import (
    CPP_COMPILERS,
    Kernels,
    Setup,
    compile_blocks,
    run_as_written,
    suitable,
)
from infinitetalk.runtime.lora import ScaledLora
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.worker.engine.kernels import KernelSelection
from infinitetalk.worker.engine.placement import Devices
from infinitetalk.worker.settings import Settings
from tests import checkpoint_factory as factory
from tests.small_network import small_transformer
from tests.test_lora import lightx2v

CPU = torch.device("cpu")
COMPILED = Kernels(blocks="compiled")
MACHINE = Machine(gpu="CPU", driver="none", torch=torch.__version__, code="c0de", subject="a block")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in CPP_COMPILERS),
    reason="there is no C++ compiler (Debian and Ubuntu: apt-get install g++)",
)

Given = dict[str, Any]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPaths:
    folder = tmp_path_factory.mktemp("compiled")
    adapters = factory.save_adapters(folder / "adapters")
    return CheckpointPaths(factory.save_original_base(folder / "base"), factory.adapter_files(adapters), folder)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> ScaledLora:
    file = tmp_path_factory.mktemp("loras") / "lora.safetensors"
    save_file(lightx2v(4, i2v=True)[0], file)
    return ScaledLora(file, 1.0)


def choice(memory: MemoryMode = MemoryMode(), kernels: Kernels = COMPILED, *loras: ScaledLora) -> NetworkChoice:  # noqa: B008
    return NetworkChoice(torch.float32, memory, loras=loras, kernels=kernels)


def test_the_compilers_rotary_embedding_is_that_of_complex_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    heads = torch.randn(1, 6, 2, 16, generator=generator)
    rotary_emb = rotary_embedding(torch.arange(6.0), 16)[:, None]
    expected = rotate_pairs(heads, rotary_emb)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate_pairs(heads, rotary_emb), expected, atol=1e-6, rtol=1e-6)


# Graphs. The compiler's part after the graph is left out, so that no C++ compiler is needed.


@pytest.fixture(scope="module")
def transformer() -> InfiniteTalkTransformer3DModel:
    return small_transformer(audio_context_tokens=10)


def given(speakers: int, latent_frames: int, height: int, width: int) -> Given:
    """Random inputs of a size, with speakers in columns."""
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "hidden_states": (1, 36, latent_frames, height, width),
        "encoder_hidden_states": (1, 7, 8),
        "encoder_hidden_states_image": (1, 5, 12),
        "encoder_hidden_states_audio": (speakers, 4 * (latent_frames - 1) + 1, 5, 3, 4),
    }
    tensors: Given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    regions = None
    if speakers > 1:
        regions = torch.zeros(speakers + 1, height, width, dtype=torch.bool)
        for index, columns in enumerate(torch.arange(width).chunk(speakers + 1)):
            regions[index, :, columns] = True
    return {**tensors, "timestep": torch.tensor([500.0]), "regions": regions}


#: Speakers, latent frames, rows and columns of latents; the last ones have many slices of queries. In the first size of
#: each number of speakers, no two sizes are equal that may differ: the compiler would take them for one.
SIZES = ((1, 3, 4, 4), (1, 3, 8, 6), (1, 21, 6, 8), (1, 9, 12, 16), (2, 4, 6, 8), (2, 6, 12, 16), (2, 21, 8, 12))


@torch.no_grad()
def test_each_number_of_speakers_has_one_graph_for_every_size_and_results_are_equal(
    transformer: InfiniteTalkTransformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions_module, "QUERY_SLICE", 16)
    run_as_written(transformer)
    expected = [transformer(**given(*size)).sample for size in SIZES]
    counter = CompileCounter()
    compile_blocks(transformer, counter)
    for size, sample in zip(SIZES, expected, strict=True):
        torch.testing.assert_close(transformer(**given(*size)).sample, sample, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2
    run_as_written(transformer)


@torch.no_grad()
def test_teacache_skips_compiled_blocks(transformer: InfiniteTalkTransformer3DModel) -> None:
    def samples() -> list[Tensor]:
        cache = TeaCache([0.0, 0.0], threshold=1.0)
        inputs = given(1, 3, 4, 4)
        return [transformer(**inputs, cache=cache).sample for _ in range(8)] + [torch.tensor(cache.skipped)]

    run_as_written(transformer)
    expected = samples()
    counter = CompileCounter()
    compile_blocks(transformer, counter)
    for found, sample in zip(samples(), expected, strict=True):
        torch.testing.assert_close(found, sample, atol=1e-5, rtol=1e-5)
    assert expected[-1] > 0
    assert counter.frame_count == 1
    run_as_written(transformer)


@torch.no_grad()
def test_a_lora_counts_in_blocks_that_were_compiled_before(paths: CheckpointPaths, lora: ScaledLora) -> None:
    eager, compiled = Models(paths, CPU), Models(paths, CPU)
    transformer = compiled.transformer(choice(kernels=Kernels()))
    compile_blocks(transformer, CompileCounter())
    without = factory.evaluate(transformer)
    with_lora = choice(MemoryMode(), Kernels(), lora)
    expected = factory.evaluate(eager.transformer(with_lora))
    assert (expected - without).abs().max() > 0.01
    found = factory.evaluate(compiled.transformer(with_lora))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# What compiled blocks do not go with.


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        (Setup(streams_blocks=True), "streamed blocks cannot be compiled"),
        (Setup("fp8", has_loras=True), "compiled blocks would ignore LoRAs beside quantised weights"),
        (Setup(num_devices=2), "it does not work where several GPUs share an evaluation"),
    ],
)
def test_blocks_that_cannot_be_compiled_run_as_written_and_the_log_says_why(
    setup: Setup, reason: str, tmp_path: Path
) -> None:
    wanted = Kernels("cudnn", blocks="compiled")
    assert suitable(wanted, setup) == (Kernels("cudnn"), {"compiled": reason})
    selection = KernelSelection(Settings(output_dir=tmp_path, kernels="cudnn,compiled"), Devices(CPU, 1))
    with capture_logs() as lines:
        assert selection.suiting(selection.for_job(), setup) == Kernels("cudnn")
    assert [line["details"] for line in lines] == [{"kernel": "compiled", "reason": reason}]


def test_compiled_blocks_go_with_fused_loras_and_with_quantised_weights() -> None:
    for setup in (Setup(has_loras=True), Setup("fp8"), Setup("int8")):
        assert suitable(COMPILED, setup) == (COMPILED, {})


def test_a_choice_that_would_ignore_loras_is_refused(paths: CheckpointPaths, lora: ScaledLora) -> None:
    with pytest.raises(CheckpointError, match="'compiled' cannot be used here: compiled blocks would ignore LoRAs"):
        Models(paths, CPU).transformer(choice(MemoryMode("fp8"), COMPILED, lora))


@needs_compiler
def test_a_change_of_kernels_takes_effect_in_compiled_blocks(paths: CheckpointPaths) -> None:
    models = Models(paths, CPU)
    assert all(block._compiled_call_impl for block in models.transformer(choice()).blocks)
    assert not any(block._compiled_call_impl for block in models.transformer(choice(kernels=Kernels())).blocks)
    before = models.transformer(choice()).blocks[0]._compiled_call_impl
    changed = models.transformer(choice(kernels=Kernels("torch_flash", blocks="compiled")))
    assert changed.blocks[0]._compiled_call_impl is not before
    assert changed.blocks[0].attn1.processor._attention_backend == "_native_flash"


def test_without_a_compiler_the_kernel_is_refused(paths: CheckpointPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CheckpointError, match="'compiled' cannot be used here; leave it out of KERNELS") as refused:
        Models(paths, CPU).transformer(choice())
    assert str(refused.value.__cause__) == "compiled blocks need one of the compilers g++, clang++"


# What has been compiled is kept.


@dataclass(frozen=True)
class Start:
    """What a process found.

    Attributes:
        loaded: number of things that it had from the volume.
        hits, misses: graphs that torch found in its cache, and those that it compiled.
        error: largest difference between an evaluation with compiled blocks and with eager ones.
        stored: whether it stored anything.
        packings: how often it packed what was compiled, in three tries.
    """

    loaded: int
    hits: int
    misses: int
    error: float
    stored: bool
    packings: int


def start(volume: Path, own: Path, machine: Machine = MACHINE) -> Start:
    """A worker's start, in a process of its own with nothing compiled yet on its disk."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(own)
    torch.set_num_threads(1)
    compiled = CompiledBlocks(volume, machine)
    loaded = compiled.load()
    models = Models(talker_paths(), CPU)
    with torch.no_grad():
        config = models.transformer(choice(kernels=Kernels())).config
        inputs = talker_inputs(config)
        expected = models.transformer(choice(kernels=Kernels()))(**inputs).sample
        found = models.transformer(choice())(**inputs).sample
    from torch._dynamo.utils import counters

    counts = counters["inductor"]
    error = float((found - expected).abs().max() / expected.abs().max())
    hits, misses = counts["fxgraph_cache_hit"], counts["fxgraph_cache_miss"]
    with patch.object(torch.compiler, "save_cache_artifacts", wraps=torch.compiler.save_cache_artifacts) as pack:
        stored = compiled.store()
        assert not compiled.store()
        assert not compiled.store()
    return Start(loaded, hits, misses, error, stored, pack.call_count)


def talker_inputs(config: Any) -> Given:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "hidden_states": (1, config.in_channels, 3, 8, 8),
        "encoder_hidden_states": (1, 16, config.text_dim),
        "encoder_hidden_states_image": (1, 257, config.image_dim),
        "encoder_hidden_states_audio": (1, 9, config.audio_window, config.audio_layers, config.audio_channels),
    }
    tensors: Given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "timestep": torch.tensor([500.0])}


def in_process(*arguments: Any) -> Start:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(start, *arguments).result()


@needs_compiler
@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_a_damaged_file_is_ignored(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    first = in_process(volume, tmp_path / "first")
    assert (first.loaded, first.hits, first.stored, first.packings) == (0, 0, True, 1)
    assert first.misses > 0
    assert first.error < 1e-5
    (file,) = volume.iterdir()

    second = in_process(volume, tmp_path / "second")
    assert second.loaded > 0
    assert (second.hits, second.misses, second.stored, second.packings) == (first.misses, 0, False, 1)
    assert second.error == first.error

    file.write_bytes(file.read_bytes()[:-20])
    with capture_logs() as lines:
        assert CompiledBlocks(volume, MACHINE).load() == 0
    assert lines[0]["details"] == {"file": file.name, "reason": "its content is damaged"}
    file.write_bytes(b"nonsense\n")
    with capture_logs() as lines:
        assert CompiledBlocks(volume, MACHINE).load() == 0
    assert lines[0]["details"] == {"file": file.name, "reason": "its first line is damaged"}
    # Of another machine, nothing is loaded.
    with capture_logs() as lines:
        assert CompiledBlocks(volume, MACHINE.model_copy(update={"driver": "580.1"})).load() == 0
    assert not lines

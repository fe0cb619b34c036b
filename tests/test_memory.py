"""Modes of memory: each computes the same, the choice follows the estimate, and a job that fails leaves nothing."""

import copy
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn
from torchao.quantization import Float8Tensor

from infinitetalk.encoders.vae import decode_latents
from infinitetalk.errors import CheckpointError, DoesNotFitError
from infinitetalk.family import INFINITETALK
from infinitetalk.network.quantised import quantise_linear, widened
from infinitetalk.runtime import models as loaders
from infinitetalk.runtime.choice import NetworkChoice, arithmetic_of
from infinitetalk.runtime.kernels.registry import Kernels
from infinitetalk.runtime.memory import (
    GIB,
    TOKEN_CHANNEL_BYTES,
    VAE_PIXEL_BYTES,
    MemoryMode,
    Workload,
    can_finish_beside,
    candidate_modes,
    choose_mode,
    estimate_bytes,
    is_streamed,
    model_sizes,
    num_resident_blocks,
    release_cached_memory,
    stop_streaming,
    stream_blocks,
)
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.loading import Quantisation, quantised
from tests import checkpoint_factory as factory

CPU = torch.device("cpu")
SMALL = Workload(num_frames=81, height=640, width=640)
LARGE = Workload(num_frames=81, height=704, width=1280)
STREAMED = "kept and the others streamed, text encoder streamed, VAE in tiles"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPaths:
    folder = tmp_path_factory.mktemp("memory")
    adapters = factory.save_adapters(folder / "adapters")
    return CheckpointPaths(factory.save_original_base(folder / "base"), factory.adapter_files(adapters), folder)


@pytest.fixture
def models(paths: CheckpointPaths) -> Models:
    return Models(paths, CPU)


def choice(*memory: Any, **others: Any) -> NetworkChoice:
    """A choice by what `MemoryMode` takes, and by adapter and kernels."""
    rest = {name: others.pop(name) for name in ("adapter", "kernels") if name in others}
    return NetworkChoice(torch.float32, MemoryMode(*memory, **others), **rest)


BLOCK_PARAMETERS = sum(parameter.numel() for parameter in factory.plain_transformer().blocks[0].parameters())


@pytest.mark.parametrize(
    ("resident_parameters", "streamed"),
    [(0, [True, True]), (BLOCK_PARAMETERS, [False, True]), (10 * BLOCK_PARAMETERS, [False, False])],
)
def test_streamed_blocks_compute_the_same_and_the_first_parameters_stay(
    resident_parameters: int, streamed: list[bool]
) -> None:
    transformer = factory.plain_transformer()
    expected = factory.evaluate(transformer)
    stream_blocks(transformer, resident_parameters, CPU)
    assert [is_streamed(block) for block in transformer.blocks] == streamed
    assert torch.equal(factory.evaluate(transformer), expected)
    stop_streaming(transformer)
    assert not is_streamed(transformer)
    assert torch.equal(factory.evaluate(transformer), expected)


def test_parameters_kept_are_counted_in_whole_blocks() -> None:
    transformer = factory.plain_transformer()
    assert num_resident_blocks(transformer, BLOCK_PARAMETERS - 1) == 0
    assert num_resident_blocks(transformer, BLOCK_PARAMETERS) == 1


@pytest.mark.parametrize("quantisation", ["fp8", "int8"])
def test_quantised_blocks_can_be_streamed(models: Models, quantisation: str) -> None:
    expected = factory.evaluate(models.transformer(choice(quantisation)))
    streamed = models.transformer(choice(quantisation, resident_parameters=0))
    assert is_streamed(streamed)
    assert torch.equal(factory.evaluate(streamed), expected)


@pytest.mark.parametrize("quantisation", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_zeros_stays_zero_when_it_is_quantised(quantisation: Quantisation, dtype: torch.dtype) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[2] = 0.0
    numbers = quantised(weight, quantisation).dequantize()
    assert torch.equal(numbers[2], torch.zeros(32, dtype=dtype))
    torch.testing.assert_close(numbers, weight, atol=0.02, rtol=1 / 16)


@pytest.mark.parametrize("scales", ["one for each row", "one for all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_layer_computes_what_one_with_its_widened_weight_computes(dtype: torch.dtype, scales: str) -> None:
    generator = torch.Generator().manual_seed(1)
    wide = nn.Linear(32, 24).to(dtype).requires_grad_(False)
    wide.weight.data = torch.randn(24, 32, generator=generator).to(dtype)
    given = torch.randn(1, 5, 32, generator=generator).to(dtype)
    for quantisation in ("fp8", "int8"):
        weight = quantised(wide.weight.data, quantisation)
        if scales == "one for all" and quantisation == "fp8":
            # As in "scaled" files.
            weight = Float8Tensor(weight.qdata, weight.scale[:1, :1], block_size=[24, 32], dtype=dtype)
        layer, expected = copy.deepcopy(wide), copy.deepcopy(wide)
        quantise_linear(layer, weight)
        expected.weight.data = weight.dequantize()
        torch.testing.assert_close(layer(given), expected(given))
        assert (layer(given) - wide(given)).norm() > 1e-3
        if quantisation == "fp8":
            assert torch.equal(widened(layer.weight), weight.dequantize())


def test_gguf_blocks_can_be_streamed(paths: CheckpointPaths, tmp_path: Path) -> None:
    factory.save_gguf(tmp_path / "wan.gguf", factory.base_tensors(), four_bits=True)
    gguf = CheckpointPaths(paths.base, paths.adapters, paths.wav2vec2, transformer=tmp_path / "wan.gguf")
    models = Models(gguf, CPU)
    expected = factory.evaluate(models.transformer(choice("int8")))
    assert torch.equal(factory.evaluate(models.transformer(choice("int8", resident_parameters=0))), expected)


def test_modes_and_adapters_change_from_job_to_job(models: Models) -> None:
    plain = factory.evaluate(factory.plain_transformer())
    for resident in (0, BLOCK_PARAMETERS):
        other = factory.evaluate(models.transformer(choice(resident_parameters=resident, adapter="multi")))
        single = models.transformer(choice(resident_parameters=resident))
        torch.testing.assert_close(factory.evaluate(single), plain, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(other, plain, atol=1e-3)
    del single
    assert hasattr(models.transformer(choice("fp8")).blocks[0].attn1.to_q.weight, "qdata")
    wide = models.transformer(choice())
    torch.testing.assert_close(factory.evaluate(wide), plain, atol=1e-5, rtol=1e-5)
    assert not is_streamed(wide)
    assert models.transformer(NetworkChoice(torch.bfloat16)).blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def test_the_old_transformer_has_gone_when_another_quantisation_is_loaded(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, two of 14B would not fit where one is quantised because it has to be."""
    old = weakref.ref(models.transformer(choice()))
    was_there = []
    load = loaders.load_transformer_parameters

    def load_and_look(*arguments: object) -> None:
        was_there.append(old() is not None)
        load(*arguments)

    monkeypatch.setattr(loaders, "load_transformer_parameters", load_and_look)
    models.transformer(choice("fp8"))
    assert was_there == [False]


def test_a_streamed_text_encoder_and_a_tiled_vae_compute_the_same(models: Models) -> None:
    prompt, latents = "A man sings.", torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    embeddings, frames = models.prompt_encoder(choice())(prompt), decode_latents(models.vae(choice()), latents)
    frugal = choice(stream_text_encoder=True, vae_tiling=True)
    encoder, vae = models.prompt_encoder(frugal), models.vae(frugal)
    assert is_streamed(encoder.text_encoder)
    assert vae.use_tiling
    assert torch.equal(encoder._encode("A man sings."), embeddings)
    torch.testing.assert_close(decode_latents(vae, latents), frames)
    assert not is_streamed(models.prompt_encoder(choice()).text_encoder)
    assert not models.vae(choice()).use_tiling


def test_an_attention_kernel_is_in_force_once_networks_are_prepared_by_it(models: Models) -> None:
    expected = factory.evaluate(models.transformer(choice()))
    for name, backend in (("torch_flash", "_native_flash"), ("native", "native")):
        transformer = models.transformer(choice(kernels=Kernels(attention=name)))
        assert {block.attn1.processor._attention_backend for block in transformer.blocks} == {backend}
        torch.testing.assert_close(factory.evaluate(transformer), expected, atol=1e-4, rtol=1e-4)
        # Another network in this process keeps its own.
        active, _ = _AttentionBackendRegistry.get_active_backend()
        assert active == "native"
    with pytest.raises(CheckpointError, match="kernel 'flash_2' cannot be used here"):
        models.transformer(choice(kernels=Kernels(attention="flash_2")))
    with pytest.raises(CheckpointError, match="there is no kernel 'fastest'; there are native, cudnn"):
        models.transformer(choice(kernels=Kernels(attention="fastest")))


def test_products_of_8_bit_numbers_come_and_go_with_the_choice_also_with_streamed_blocks(models: Models) -> None:
    eight_bit = Kernels(products="fp8_rows")
    widened = factory.evaluate(models.transformer(choice("fp8")))
    found = factory.evaluate(models.transformer(choice("fp8", kernels=eight_bit)))
    assert 1e-3 < float((found - widened).norm() / widened.norm()) < 0.1
    assert torch.equal(factory.evaluate(models.transformer(choice("fp8"))), widened)
    streamed = models.transformer(choice("fp8", resident_parameters=0, kernels=eight_bit))
    assert is_streamed(streamed)
    assert torch.equal(factory.evaluate(streamed), found)
    again = models.transformer(choice("fp8", resident_parameters=0))
    assert torch.equal(factory.evaluate(again), widened)
    # Adapters are not concerned, and may change meanwhile.
    models.transformer(choice("fp8", adapter="multi", kernels=eight_bit))
    assert torch.equal(factory.evaluate(models.transformer(choice("fp8", kernels=eight_bit))), found)


def test_another_vae_kernel_starts_from_the_file(models: Models) -> None:
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = decode_latents(models.vae(choice()), latents)
    narrow = models.vae(choice(kernels=Kernels(vae="vae_bf16")))
    assert narrow.dtype == torch.bfloat16
    frames = decode_latents(narrow, latents)
    assert 0 < float((frames - expected).norm() / expected.norm()) < 0.05
    assert torch.equal(decode_latents(models.vae(choice()), latents), expected)


def test_the_arithmetic_tells_what_changes_numbers_and_nothing_else() -> None:
    def arithmetic(chosen: NetworkChoice, num_devices: int = 1) -> str:
        return str(arithmetic_of(chosen, CPU, num_devices))

    plain = arithmetic(choice())
    assert plain == "float32 on CPU (attention: native)"
    for same in (choice(resident_parameters=0), choice(stream_text_encoder=True), choice(adapter="multi")):
        assert arithmetic(same) == plain
    others = [
        arithmetic(choice("int8")),
        arithmetic(choice("fp8")),
        arithmetic(NetworkChoice(torch.bfloat16)),
        arithmetic(choice(vae_tiling=True)),
        arithmetic(choice(kernels=Kernels(attention="sage"))),
        arithmetic(choice(kernels=Kernels(products="fp8_rows"))),
        arithmetic(choice(kernels=Kernels(vae="vae_bf16"))),
        arithmetic(choice(), num_devices=2),
    ]
    assert len({plain, *others}) == 9


def test_the_text_encoder_follows_the_choice_whatever_was_loaded_before(paths: CheckpointPaths, tmp_path: Path) -> None:
    tensors = factory.text_encoder_tensors()
    factory.save_quanto(tmp_path / "t5_fp8.safetensors", tmp_path / "t5_map_fp8.json", tensors, "fp8")
    paths = replace(paths, quantised=tmp_path)
    wide, quantised = (Models(paths, CPU) for _ in range(2))
    quantised.prompt_encoder(choice("fp8"))
    found = {}
    for quantisation in (None, "fp8", "int8", None):
        embeddings = [models.prompt_encoder(choice(quantisation))("A man sings.") for models in (wide, quantised)]
        assert torch.equal(*embeddings), quantisation
        assert torch.equal(found.setdefault(quantisation, embeddings[0]), embeddings[0])
    assert torch.equal(found[None], found["int8"])
    assert not torch.equal(found[None], found["fp8"])


# The choice.


def test_sizes_come_from_the_files_headers(paths: CheckpointPaths) -> None:
    sizes = model_sizes(paths)
    transformer = factory.plain_transformer()
    assert sizes.blocks + sizes.outer == sum(parameter.numel() for parameter in transformer.parameters())
    assert (sizes.num_blocks, sizes.dim) == (factory.LAYERS, factory.DIM)
    models = Models(paths, CPU)
    for count, network in (
        (sizes.vae, models.vae(choice())),
        (sizes.image_encoder, models.image_encoder.model),
        (sizes.text_encoder, models.prompt_encoder(choice()).text_encoder),
    ):
        assert count == sum(parameter.numel() for parameter in network.parameters())


def test_modes_go_from_the_fastest_to_the_most_frugal() -> None:
    estimates = [
        estimate_bytes(mode, INFINITETALK.model_sizes, LARGE) for mode in candidate_modes(INFINITETALK.model_sizes)
    ]
    assert estimates == sorted(estimates, reverse=True)


def test_the_estimate_is_above_what_an_h200_measured_and_not_far() -> None:
    """docs/measurements/h200.json: a chunk of 81 frames at 640x640, without the text encoder and CUDA's context."""
    figures = json.loads((Path(__file__).parents[1] / "docs" / "measurements" / "h200.json").read_text())["figures"]
    measured = {figure["name"]: figure["value"] for figure in figures}
    estimated = estimate_bytes(MemoryMode(stream_text_encoder=True), INFINITETALK.model_sizes, SMALL) / GIB
    assert 1.0 <= estimated / measured["chunk of 81 frames, audio guidance: peak memory"] <= 1.1
    tokens = SMALL.num_tokens * INFINITETALK.model_sizes.dim * TOKEN_CHANNEL_BYTES / GIB
    for speakers in ("1 speaker", "2 speakers"):
        name = f"one evaluation, 640x640, 81 frames, {speakers}: memory beside weights"
        assert 1.0 <= tokens / measured[name] <= 1.1
    pixels = SMALL.height * SMALL.width
    decoding = (VAE_PIXEL_BYTES + 2 * 3 * 4 * SMALL.num_frames) * pixels / GIB
    assert 1.0 <= decoding / measured["decoding of a chunk, float32 with TF32: memory beside weights"] <= 1.1


@pytest.mark.parametrize(
    ("free_gib", "workload", "name"),
    [
        (79, LARGE, "bf16"),
        (79, SMALL, "bf16"),
        (44.4, SMALL, "fp8"),
        (44.4, LARGE, "fp8, text encoder streamed"),
        (31, SMALL, "fp8, text encoder streamed, VAE in tiles"),
        (23.5, SMALL, f"fp8, with 9279897600 parameters {STREAMED}"),
        (23.5, LARGE, f"fp8, with 4639948800 parameters {STREAMED}"),
        (11, SMALL, f"fp8, with 0 parameters {STREAMED}"),
    ],
)
def test_auto_takes_the_fastest_mode_that_fits(free_gib: float, workload: Workload, name: str) -> None:
    assert choose_mode(int(free_gib * GIB), INFINITETALK.model_sizes, workload).name == name


def test_a_quantisation_or_number_of_parameters_that_is_asked_for_is_kept() -> None:
    assert choose_mode(79 * GIB, INFINITETALK.model_sizes, LARGE, MemoryMode("int8")).quantisation == "int8"
    kept = choose_mode(79 * GIB, INFINITETALK.model_sizes, LARGE, MemoryMode(resident_parameters=10**9))
    assert (kept.quantisation, kept.resident_parameters) == (None, 10**9)


def test_a_job_that_fits_no_mode_is_told_what_would() -> None:
    with pytest.raises(DoesNotFitError, match=r"201 frames of 1280x704 .* Use frame_num \d+ or less"):
        choose_mode(14 * GIB, INFINITETALK.model_sizes, Workload(201, 704, 1280))
    with pytest.raises(DoesNotFitError, match=r"Use a smaller size, or a GPU with more memory"):
        choose_mode(2 * GIB, INFINITETALK.model_sizes, LARGE)


def test_the_next_job_runs_after_one_that_ran_out_of_memory(models: Models) -> None:
    streamed = choice(resident_parameters=0)
    expected = factory.evaluate(models.transformer(streamed))

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("simulated")

    hook = models.transformer(streamed).blocks[1].register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        factory.evaluate(models.transformer(streamed))
    hook.remove()
    release_cached_memory()
    assert torch.equal(factory.evaluate(models.transformer(streamed)), expected)


def test_gpus_share_an_evaluation_before_weights_leave_them() -> None:
    """Two GPUs with a guidance branch each have all of its tokens; sharing them takes less memory and some seconds."""
    sizes, pair = INFINITETALK.model_sizes, replace(LARGE, gpus=2, branches=2)
    tiled = MemoryMode("fp8", stream_text_encoder=True, vae_tiling=True)
    assert choose_mode(int(32.5 * GIB), sizes, pair) == tiled
    assert choose_mode(28 * GIB, sizes, pair) == replace(tiled, shares_evaluations=True)
    assert choose_mode(28 * GIB, sizes, replace(LARGE, gpus=2)) == tiled
    # Three GPUs share each of two evaluations anyway.
    assert choose_mode(28 * GIB, sizes, replace(LARGE, gpus=3, branches=2)) == tiled


@pytest.mark.parametrize(
    ("workload", "tiles", "expected"),
    [(SMALL, False, True), (LARGE, False, True), (SMALL, True, False), (replace(SMALL, num_frames=321), False, False)],
)
def test_chunks_are_finished_beside_the_next_where_decoding_takes_more_memory(
    workload: Workload, tiles: bool, expected: bool
) -> None:
    assert can_finish_beside(MemoryMode(vae_tiling=tiles), INFINITETALK.model_sizes, workload) is expected

"""Modes of memory: each computes the same, the choice follows the estimate, and a job that fails leaves nothing."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infinitetalk import models as loaders
from infinitetalk.family import INFINITETALK
from infinitetalk.memory import (
    GIB,
    TOKEN_CHANNEL_BYTES,
    VAE_PIXEL_BYTES,
    DoesNotFitError,
    MemoryPlan,
    Workload,
    candidate_plans,
    choose_plan,
    estimate_bytes,
    is_streamed,
    model_sizes,
    num_persistent_blocks,
    release_cached_memory,
    stop_streaming,
    stream_blocks,
)
from infinitetalk.models import Models, load_models
from infinitetalk.vae import decode_latents
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
    return CheckpointPaths(
        factory.save_original_base(folder / "base"),
        adapters / "single" / "infinitetalk.safetensors",
        adapters / "multi" / "infinitetalk.safetensors",
        folder,
    )


@pytest.fixture
def models(paths: CheckpointPaths) -> Models:
    return load_models(paths, CPU, torch.float32)


BLOCK_PARAMETERS = sum(parameter.numel() for parameter in factory.plain_transformer().blocks[0].parameters())


@pytest.mark.parametrize(
    ("persistent_parameters", "streamed"),
    [(0, [True, True]), (BLOCK_PARAMETERS, [False, True]), (10 * BLOCK_PARAMETERS, [False, False])],
)
def test_streamed_blocks_compute_the_same_and_the_first_parameters_stay(
    persistent_parameters: int, streamed: list[bool]
) -> None:
    transformer = factory.plain_transformer()
    expected = factory.evaluate(transformer)
    stream_blocks(transformer, persistent_parameters, CPU)
    assert [is_streamed(block) for block in transformer.blocks] == streamed
    assert torch.equal(factory.evaluate(transformer), expected)
    stop_streaming(transformer)
    assert not is_streamed(transformer)
    assert torch.equal(factory.evaluate(transformer), expected)


def test_parameters_kept_are_counted_in_whole_blocks() -> None:
    transformer = factory.plain_transformer()
    assert num_persistent_blocks(transformer, BLOCK_PARAMETERS - 1) == 0
    assert num_persistent_blocks(transformer, BLOCK_PARAMETERS) == 1


@pytest.mark.parametrize("quantisation", ["fp8", "int8"])
def test_quantised_blocks_can_be_streamed(models: Models, quantisation: str) -> None:
    models.use_memory(MemoryPlan(quantisation))
    expected = factory.evaluate(models.transformer)
    models.use_memory(MemoryPlan(quantisation, persistent_parameters=0))
    assert is_streamed(models.transformer)
    assert torch.equal(factory.evaluate(models.transformer), expected)


@pytest.mark.parametrize("quantisation", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_zeros_stays_zero_when_it_is_quantised(quantisation: Quantisation, dtype: torch.dtype) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[2] = 0.0
    widened = quantised(weight, quantisation).dequantize()
    assert torch.equal(widened[2], torch.zeros(32, dtype=dtype))
    torch.testing.assert_close(widened, weight, atol=0.02, rtol=1 / 16)


def test_gguf_blocks_can_be_streamed(paths: CheckpointPaths, tmp_path: Path) -> None:
    factory.save_gguf(tmp_path / "wan.gguf", factory.base_tensors(), four_bits=True)
    gguf = CheckpointPaths(
        paths.base, paths.adapter_single, paths.adapter_multi, paths.wav2vec2, transformer=tmp_path / "wan.gguf"
    )
    models = load_models(gguf, CPU, torch.float32, MemoryPlan("int8"))
    expected = factory.evaluate(models.transformer)
    models.use_memory(MemoryPlan("int8", persistent_parameters=0))
    assert torch.equal(factory.evaluate(models.transformer), expected)


def test_modes_adapters_and_loras_change_from_job_to_job(models: Models) -> None:
    plain = factory.evaluate(factory.plain_transformer())
    for memory in (MemoryPlan(persistent_parameters=0), MemoryPlan(persistent_parameters=BLOCK_PARAMETERS)):
        models.use_memory(memory)
        models.use_adapter(2)
        other = factory.evaluate(models.transformer)
        models.use_adapter(1)
        torch.testing.assert_close(factory.evaluate(models.transformer), plain, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(other, plain, atol=1e-3)
    models.use_memory(MemoryPlan("fp8"))
    assert hasattr(models.transformer.blocks[0].attn1.to_q.weight, "qdata")
    models.use_memory(MemoryPlan())
    torch.testing.assert_close(factory.evaluate(models.transformer), plain, atol=1e-5, rtol=1e-5)
    assert not is_streamed(models.transformer)


def test_the_old_transformer_has_gone_when_another_quantisation_is_loaded(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, two of 14B would not fit where one is quantised because it has to be."""
    old = weakref.ref(models.transformer)
    was_there = []
    load = loaders.load_transformer_parameters

    def load_and_look(*arguments: object) -> None:
        was_there.append(old() is not None)
        load(*arguments)

    monkeypatch.setattr(loaders, "load_transformer_parameters", load_and_look)
    models.use_memory(MemoryPlan("fp8"))
    assert models.transformer is not None
    assert was_there == [False]


def test_a_streamed_text_encoder_and_a_tiled_vae_compute_the_same(models: Models) -> None:
    prompt, latents = "A man sings.", torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    embeddings, frames = models.prompt_encoder(prompt), decode_latents(models.vae, latents)
    models.use_memory(MemoryPlan(stream_text_encoder=True, vae_tiling=True))
    assert is_streamed(models.prompt_encoder.text_encoder)
    assert models.vae.use_tiling
    assert torch.equal(models.prompt_encoder._encode("A man sings."), embeddings)
    torch.testing.assert_close(decode_latents(models.vae, latents), frames)
    models.use_memory(MemoryPlan())
    assert not is_streamed(models.prompt_encoder.text_encoder)
    assert not models.vae.use_tiling


def test_the_text_encoder_follows_the_mode_whatever_the_worker_was_loaded_in(
    paths: CheckpointPaths, tmp_path: Path
) -> None:
    tensors = factory.text_encoder_tensors()
    factory.save_quanto(tmp_path / "t5_fp8.safetensors", tmp_path / "t5_map_fp8.json", tensors, "fp8")
    paths = replace(paths, quantised=tmp_path)
    wide, quantised = (load_models(paths, CPU, torch.float32, memory) for memory in (MemoryPlan(), MemoryPlan("fp8")))
    found = {}
    for memory in (None, "fp8", "int8", None):
        for models in (wide, quantised):
            models.use_memory(MemoryPlan(memory))
        embeddings = [models.prompt_encoder("A man sings.") for models in (wide, quantised)]
        assert torch.equal(*embeddings), memory
        assert torch.equal(found.setdefault(memory, embeddings[0]), embeddings[0])
    assert torch.equal(found[None], found["int8"])
    assert not torch.equal(found[None], found["fp8"])


# The choice.


def test_sizes_come_from_the_files_headers(paths: CheckpointPaths) -> None:
    sizes = model_sizes(paths)
    transformer = factory.plain_transformer()
    assert sizes.blocks + sizes.outer == sum(parameter.numel() for parameter in transformer.parameters())
    assert (sizes.num_blocks, sizes.dim) == (factory.LAYERS, factory.DIM)
    models = load_models(paths, CPU, torch.float32)
    for count, network in (
        (sizes.vae, models.vae),
        (sizes.image_encoder, models.image_encoder.model),
        (sizes.text_encoder, models.prompt_encoder.text_encoder),
    ):
        assert count == sum(parameter.numel() for parameter in network.parameters())


def test_modes_go_from_the_fastest_to_the_most_frugal() -> None:
    estimates = [
        estimate_bytes(plan, INFINITETALK.model_sizes, LARGE) for plan in candidate_plans(INFINITETALK.model_sizes)
    ]
    assert estimates == sorted(estimates, reverse=True)


def test_the_estimate_is_above_what_an_h200_measured_and_not_far() -> None:
    """docs/measurements/h200.json: a chunk of 81 frames at 640x640, without the text encoder and CUDA's context."""
    figures = json.loads((Path(__file__).parents[1] / "docs" / "measurements" / "h200.json").read_text())["figures"]
    measured = {figure["name"]: figure["value"] for figure in figures}
    estimated = estimate_bytes(MemoryPlan(stream_text_encoder=True), INFINITETALK.model_sizes, SMALL) / GIB
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
    assert choose_plan(int(free_gib * GIB), INFINITETALK.model_sizes, workload).name == name


def test_a_quantisation_or_number_of_parameters_that_is_asked_for_is_kept() -> None:
    assert choose_plan(79 * GIB, INFINITETALK.model_sizes, LARGE, MemoryPlan("int8")).quantisation == "int8"
    kept = choose_plan(79 * GIB, INFINITETALK.model_sizes, LARGE, MemoryPlan(persistent_parameters=10**9))
    assert (kept.quantisation, kept.persistent_parameters) == (None, 10**9)


def test_a_job_that_fits_no_mode_is_told_what_would() -> None:
    with pytest.raises(DoesNotFitError, match=r"201 frames of 1280x704 .* Use frame_num \d+ or less"):
        choose_plan(14 * GIB, INFINITETALK.model_sizes, Workload(201, 704, 1280))
    with pytest.raises(DoesNotFitError, match=r"Use a smaller size, or a GPU with more memory"):
        choose_plan(2 * GIB, INFINITETALK.model_sizes, LARGE)
    assert issubclass(DoesNotFitError, torch.OutOfMemoryError)


def test_the_next_job_runs_after_one_that_ran_out_of_memory(models: Models) -> None:
    models.use_memory(MemoryPlan(persistent_parameters=0))
    expected = factory.evaluate(models.transformer)

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("simulated")

    hook = models.transformer.blocks[1].register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        factory.evaluate(models.transformer)
    hook.remove()
    release_cached_memory()
    assert torch.equal(factory.evaluate(models.transformer), expected)

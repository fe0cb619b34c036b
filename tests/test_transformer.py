"""The network's own promises; equality with the published numbers is in test_golden.py."""

import copy
import shutil

import pytest
import torch

from infinitetalk.errors import RegionError
from infinitetalk.family import INFINITETALK
from infinitetalk.network.audio_attention import rotary_embedding, rotate_pairs
from infinitetalk.network.teacache import TeaCache
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel, add_product, modulated_norm, weighted_norm
from tests.small_network import small_transformer


@pytest.fixture(scope="module")
def transformer() -> InfiniteTalkTransformer3DModel:
    return small_transformer()


def inputs(speakers: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "hidden_states": (1, 36, 2, 4, 4),
        "encoder_hidden_states": (1, 6, 8),
        "encoder_hidden_states_image": (1, 5, 12),
        "encoder_hidden_states_audio": (speakers, 5, 5, 3, 4),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "timestep": torch.tensor([500.0])}


def left_and_right() -> torch.Tensor:
    regions = torch.zeros(3, 4, 4, dtype=torch.bool)
    regions[0, :, :2], regions[1, :, 2:] = True, True
    return regions


@torch.no_grad()
def test_a_frames_video_tokens_hear_only_that_latent_frames_speech(
    transformer: InfiniteTalkTransformer3DModel,
) -> None:
    given = inputs()
    block = transformer.blocks[0]
    tokens = torch.randn(1, 8, 32)
    audio = transformer.embed_audio(given["encoder_hidden_states_audio"])
    before = block.audio_cross_attn(tokens, audio)
    changed_audio = audio.clone()
    changed_audio[1] += 1.0
    after = block.audio_cross_attn(tokens, changed_audio)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@torch.no_grad()
def test_which_voice_goes_to_which_region_matters(
    transformer: InfiniteTalkTransformer3DModel,
) -> None:
    given = inputs(speakers=2)
    regions = left_and_right()
    straight = transformer(**given, regions=regions).sample
    swapped_voices = {**given, "encoder_hidden_states_audio": given["encoder_hidden_states_audio"].flip(0)}
    assert not torch.allclose(straight, transformer(**swapped_voices, regions=regions).sample, atol=1e-4)


@torch.no_grad()
def test_several_speakers_need_regions(transformer: InfiniteTalkTransformer3DModel) -> None:
    with pytest.raises(ValueError, match="2 speaker"):
        transformer(**inputs(speakers=2))


@torch.no_grad()
def test_a_vanished_speaker_is_an_error_and_a_vanished_background_is_served(
    transformer: InfiniteTalkTransformer3DModel,
) -> None:
    regions = left_and_right()
    assert transformer(**inputs(speakers=2), regions=regions).sample.isfinite().all()
    regions[1] = False
    with pytest.raises(RegionError, match="person2"):
        transformer(**inputs(speakers=2), regions=regions)


@torch.no_grad()
def test_three_speakers_are_served(transformer: InfiniteTalkTransformer3DModel) -> None:
    regions = torch.zeros(4, 4, 4, dtype=torch.bool)
    regions[0, :2, :2], regions[1, :2, 2:], regions[2, 2:, :2], regions[3, 2:, 2:] = True, True, True, True
    assert transformer(**inputs(speakers=3), regions=regions).sample.isfinite().all()


@torch.no_grad()
def test_a_skipped_evaluation_adds_the_residual_of_the_last_computed_one(
    transformer: InfiniteTalkTransformer3DModel,
) -> None:
    given = inputs()
    cache = TeaCache(INFINITETALK.sizes["infinitetalk-480"].teacache_polynomial, threshold=1e9)
    computed = [transformer(**given, cache=cache).sample for _ in range(5)][-1]
    reused = transformer(**given, cache=cache).sample
    assert cache.skipped == 1
    torch.testing.assert_close(reused, computed)
    torch.testing.assert_close(computed, transformer(**given).sample)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_rotation_by_complex_products_is_the_rotation_of_each_pair(dtype: torch.dtype, tolerance: float) -> None:
    hidden_states = torch.randn(1, 7, 3, 16).to(dtype)
    positions = torch.linspace(0.0, 24.0, 7)
    angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd = hidden_states[..., 0::2].double(), hidden_states[..., 1::2].double()
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    rotated = rotate_pairs(hidden_states, rotary_embedding(positions, 16)[:, None])
    assert rotated.dtype == dtype
    torch.testing.assert_close(rotated.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_that_modulates_rounds_its_modulation_and_its_result(dtype: torch.dtype) -> None:
    norm = torch.nn.LayerNorm(32, 1e-6, elementwise_affine=False)
    hidden_states = torch.randn(1, 9, 32).to(dtype)
    shift, scale = torch.randn(2, 1, 1, 32).unbind()
    exact = norm(hidden_states.float()) * (1 + scale).to(dtype).float() + shift.to(dtype).float()
    modulated = modulated_norm(norm, hidden_states, shift, scale)
    assert modulated.dtype == dtype
    torch.testing.assert_close(modulated.float(), exact, atol=1e-5, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_with_weights_is_rounded_once(dtype: torch.dtype) -> None:
    norm = torch.nn.LayerNorm(32, 1e-6)
    torch.nn.init.normal_(norm.weight, 1.0)
    torch.nn.init.normal_(norm.bias)
    hidden_states = torch.randn(1, 9, 32).to(dtype)
    weight, bias = norm.weight.to(dtype).float(), norm.bias.to(dtype).float()
    exact = torch.nn.functional.layer_norm(hidden_states.float(), (32,), weight, bias, norm.eps)
    normed = weighted_norm(norm, hidden_states)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.float(), exact, atol=1e-5, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_sum_rounds_its_gate_and_its_result(dtype: torch.dtype) -> None:
    hidden_states, factor = torch.randn(2, 1, 9, 32).to(dtype).unbind()
    gate = torch.randn(1, 1, 32)
    exact = (hidden_states.float() + factor.float() * gate.to(dtype).float()).to(dtype)
    torch.testing.assert_close(add_product(hidden_states, factor, gate), exact, atol=0, rtol=2**-8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU by g++, which is not there")
def test_compiled_blocks_give_what_eager_ones_do(transformer: InfiniteTalkTransformer3DModel) -> None:
    """Two speakers: rotary embedding of tokens and of places on the speakers' line, in real arithmetic."""
    given = inputs(speakers=2) | {"regions": left_and_right()}
    blocks = copy.deepcopy(transformer)
    blocks.compile_repeated_blocks(fullgraph=True)
    with torch.no_grad():
        eager, compiled = transformer(**given).sample, blocks(**given).sample
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)


def test_norms_modulation_and_time_embedding_stay_in_float32(
    transformer: InfiniteTalkTransformer3DModel, tmp_path
) -> None:
    transformer.save_pretrained(tmp_path)
    loaded = InfiniteTalkTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    wide = ("norm2.", "norm_x.", "scale_shift_table", "time_embedder", "time_proj")
    assert {dtype for name, dtype in dtypes.items() if any(part in name for part in wide)} == {torch.float32}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["blocks.0.audio_cross_attn.q_linear.weight"] == torch.bfloat16
    with torch.no_grad():
        given = {name: tensor.to(torch.bfloat16) for name, tensor in inputs().items()}
        wide_output, narrow_output = transformer(**inputs()).sample, loaded(**given).sample
    assert narrow_output.dtype == torch.bfloat16
    assert (wide_output - narrow_output).abs().max() < 0.05 * wide_output.abs().max()

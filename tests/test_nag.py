"""Normalised attention guidance: the negative prompt's effect without further evaluations."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.generation.pipeline import InfiniteTalkPipeline
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.media.decode import Picture
from infinitetalk.network.nag import AttentionGuidance, guide_attention
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.kernels.registry import compile_blocks, run_as_written
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks
from tests.small_network import small_transformer
from tests.test_compiled import given

NAG = AttentionGuidance(scale=11.0, tau=2.5, alpha=0.25)
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_formula(positive: np.ndarray, negative: np.ndarray, nag: AttentionGuidance) -> np.ndarray:
    """The paper's steps for one token after the other, in double precision."""
    rows = []
    for wanted, unwanted in zip(positive.astype(np.float64), negative.astype(np.float64), strict=True):
        guided = nag.scale * wanted - (nag.scale - 1) * unwanted
        growth = np.abs(guided).sum() / np.abs(wanted).sum()
        if growth > nag.tau:
            guided = guided / growth * nag.tau
        rows.append(nag.alpha * guided + (1 - nag.alpha) * wanted)
    return np.stack(rows)


@pytest.mark.parametrize("nag", [NAG, AttentionGuidance(1.5, 20.0, 1.0), AttentionGuidance(50.0, 1.0, 0.5)], ids=str)
def test_attention_is_guided_as_the_formula_says(nag: AttentionGuidance) -> None:
    positive, negative = random(1, 9, 32), random(1, 9, 32, seed=1)
    # A token that both prompts give nearly the same, and so is not shortened.
    negative[:, 0] = positive[:, 0] * 1.01
    found = guide_attention(positive, negative, nag.strengths(CPU))
    np.testing.assert_allclose(found[0].numpy(), by_formula(positive[0].numpy(), negative[0].numpy(), nag), rtol=1e-4)


def test_what_is_zero_stays_finite_and_half_precision_stays_half() -> None:
    nothing = torch.zeros(1, 2, 32)
    assert torch.equal(guide_attention(nothing, nothing, NAG.strengths(CPU)), nothing)
    narrow = guide_attention(random(1, 4, 32).bfloat16(), random(1, 4, 32, seed=1).bfloat16(), NAG.strengths(CPU))
    assert narrow.dtype == torch.bfloat16
    wide = guide_attention(random(1, 4, 32), random(1, 4, 32, seed=1), NAG.strengths(CPU))
    torch.testing.assert_close(narrow.float(), wide, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_only_attention_to_the_text_is_guided() -> None:
    transformer = small_transformer()
    attention = transformer.blocks[0].attn2
    tokens, image, text, negative = (random(1, count, 32, seed=count) for count in (12, 5, 7, 6))
    reads: dict[str, Tensor] = {}

    def read(name: str, states: Tensor, to_key: str, to_value: str, norm: str) -> None:
        query = attention.norm_q(attention.to_q(tokens)).unflatten(2, (2, 16)).transpose(1, 2)
        key = getattr(attention, norm)(getattr(attention, to_key)(states)).unflatten(2, (2, 16)).transpose(1, 2)
        value = getattr(attention, to_value)(states).unflatten(2, (2, 16)).transpose(1, 2)
        weights = torch.softmax(query @ key.transpose(2, 3) / 4.0, dim=-1)
        reads[name] = (weights @ value).transpose(1, 2).flatten(2)

    read("text", text, "to_k", "to_v", "norm_k")
    read("negative", negative, "to_k", "to_v", "norm_k")
    read("image", image, "add_k_proj", "add_v_proj", "norm_added_k")
    guided = torch.from_numpy(by_formula(reads["text"][0].numpy(), reads["negative"][0].numpy(), NAG)).float()
    expected = attention.to_out[0](guided + reads["image"])
    found = attention(tokens, (image, text, negative, NAG.strengths(CPU)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_compiled_blocks_take_any_strengths_in_one_more_graph() -> None:
    transformer = small_transformer(audio_context_tokens=10)
    plain = given(1, 3, 4, 4)
    strong, weak = (
        plain | {"encoder_hidden_states_negative": random(1, 6, 8), "nag_strengths": nag.strengths(CPU)}
        for nag in (NAG, AttentionGuidance(3.0, 1.5, 0.5))
    )
    expected = [sample_of(transformer, case) for case in (plain, strong, weak)]
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    assert not torch.allclose(expected[1], expected[2], atol=1e-3)
    counter = CompileCounter()
    compile_blocks(transformer, counter)
    for case, sample in zip((plain, strong, weak), expected, strict=True):
        torch.testing.assert_close(sample_of(transformer, case), sample, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2
    run_as_written(transformer)


def sample_of(transformer: InfiniteTalkTransformer3DModel, case: dict[str, Tensor]) -> Tensor:
    return transformer(**case).sample


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    models = Models(ensure_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), CPU)
    return models.prepare(NetworkChoice(torch.float32))


def video(networks: Networks, nag: AttentionGuidance | None, text_scale: float, negative_prompt: str) -> np.ndarray:
    settings = GenerationSettings(
        frame_num=5, num_inference_steps=2, text_guide_scale=text_scale, audio_guide_scale=2.0, nag=nag
    )
    generator = torch.Generator().manual_seed(0)
    picture = Picture(torch.randint(0, 256, (3, 60, 60), dtype=torch.uint8, generator=generator))
    speech = SpeechEmbeddings.from_tensor(torch.randn(5, 12, 32, generator=generator))
    (chunk,) = InfiniteTalkPipeline(networks)(picture, [speech], "A woman talks", settings, negative_prompt)
    assert chunk.evaluations == (4 if text_scale == 1.0 else 6)
    return chunk.frames


def test_it_makes_the_negative_prompt_work_and_takes_no_further_evaluation(networks: Networks) -> None:
    off = video(networks, None, 1.0, "blur")
    assert np.array_equal(video(networks, None, 1.0, "noise"), off)
    guided = video(networks, NAG, 1.0, "blur")
    assert not np.array_equal(guided, off)
    assert not np.array_equal(video(networks, NAG, 1.0, "noise"), guided)


@pytest.mark.parametrize("nag", [AttentionGuidance(1.0, 2.5, 0.25), AttentionGuidance(11.0, 2.5, 0.0)])
def test_scale_one_is_off_bit_for_bit(networks: Networks, nag: AttentionGuidance) -> None:
    assert np.array_equal(video(networks, nag, 1.0, "blur"), video(networks, None, 1.0, "blur"))


def test_guidance_by_the_text_takes_its_place(networks: Networks) -> None:
    assert np.array_equal(video(networks, NAG, 3.0, "blur"), video(networks, None, 3.0, "blur"))

"""Prompts and reference frames as the network is told of them, on the tiny model's real classes."""

import pytest
import torch

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.text import KEPT_PROMPTS, PromptEncoder
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    paths = ensure_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    return Models(paths, torch.device("cpu")).prepare(NetworkChoice(torch.float32))


def test_positions_beyond_the_prompt_are_zero(networks: Networks) -> None:
    embeddings = networks.prompt_encoder("A woman talks")
    num_tokens = len(networks.prompt_encoder.tokenizer("A woman talks").input_ids)
    assert embeddings.shape == (1, 512, 64)
    assert embeddings[0, :num_tokens].abs().sum(dim=-1).min() > 0
    assert embeddings[0, num_tokens:].abs().max() == 0


def test_a_prompt_is_cleaned_before_it_is_embedded(networks: Networks) -> None:
    clean = networks.prompt_encoder('A "woman" talks')
    assert torch.equal(networks.prompt_encoder("  A &quot;woman&quot;\n\n talks "), clean)


def test_a_prompt_longer_than_the_network_takes_is_cut(networks: Networks) -> None:
    embeddings = networks.prompt_encoder("talks " * 2000)
    assert embeddings.shape == (1, 512, 64)
    assert embeddings[0, -1].abs().sum() > 0


def test_repeated_prompts_are_kept_and_only_so_many(networks: Networks) -> None:
    encoder = PromptEncoder(networks.prompt_encoder.tokenizer, networks.prompt_encoder.text_encoder, text_length=8)
    evaluations = []
    handle = encoder.text_encoder.register_forward_hook(lambda *_: evaluations.append(None))
    first = encoder("A woman talks")
    assert encoder("A  woman talks") is first
    assert len(evaluations) == 1
    for number in range(KEPT_PROMPTS):
        encoder(f"prompt {number}")
    encoder("A woman talks")
    handle.remove()
    assert len(evaluations) == KEPT_PROMPTS + 2


def test_a_frame_gives_the_features_before_the_last_layer(networks: Networks) -> None:
    frame = torch.rand(1, 3, 50, 60) * 2 - 1
    entered: list[torch.Tensor] = []
    last_layer = networks.image_encoder.model.encoder.layers[-1]
    handle = last_layer.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    features = networks.image_encoder(frame)
    handle.remove()
    assert features.shape == (1, 257, 32)
    assert torch.equal(features, entered[0])


def test_features_depend_on_the_picture_not_on_its_size(networks: Networks) -> None:
    encoder: ImageEncoder = networks.image_encoder
    flat = torch.full((1, 3, 40, 40), 0.25)
    torch.testing.assert_close(encoder(flat), encoder(torch.full((1, 3, 90, 30), 0.25)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encoder(flat), encoder(-flat))

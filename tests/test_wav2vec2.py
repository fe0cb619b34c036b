"""Speech embeddings: pieces change nothing, and any length has its rows. Equality with the figures: test_golden."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from infinitetalk.encoders import wav2vec2
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings, SpeechEncoder, resample_features
from infinitetalk.media.speech import SAMPLING_RATE


@pytest.fixture(scope="module", params=["group", "layer"])
def encoder(request: pytest.FixtureRequest) -> SpeechEncoder:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=request.param,
        do_stable_layer_norm=request.param == "layer",
        attn_implementation="sdpa",
    )
    return SpeechEncoder(Wav2Vec2Model(config), Wav2Vec2FeatureExtractor())


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(num_samples).astype(np.float32)


@torch.no_grad()
def whole_embeddings(encoder: SpeechEncoder, waveform: np.ndarray) -> torch.Tensor:
    """The same by transformers' own modules, each in one piece: (F, layers, hidden)."""
    model = encoder.model
    features = model.feature_extractor(encoder.normalise(waveform)[None])[0].T
    features = resample_features(features, len(waveform) // 640)
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
        for layer in model.encoder.layers
    ]
    last = model.encoder(model.feature_projection(features[None])[0]).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return torch.stack([*outputs[:-1], last], dim=1)


@pytest.mark.parametrize("num_samples", [5000, 20800, 33333])
def test_pieces_give_what_one_piece_gives(
    encoder: SpeechEncoder, num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wav2vec2, "_PIECE_POSITIONS", 7)
    monkeypatch.setattr(wav2vec2, "_FEED_FORWARD_ROWS", 5)
    waveform = noise(num_samples)
    with torch.no_grad():
        whole = encoder.model.feature_extractor(encoder.normalise(waveform)[None])[0].T
    torch.testing.assert_close(encoder.convolve(encoder.normalise(waveform)), whole, atol=1e-6, rtol=1e-5)
    embeddings = encoder(waveform)
    got = embeddings.rows(torch.arange(len(embeddings)))
    torch.testing.assert_close(got, whole_embeddings(encoder, waveform), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("num_samples", "num_rows"), [(640, 1), (3200, 5), (3839, 5), (3840, 6)])
def test_every_whole_video_frame_of_speech_has_a_row(encoder: SpeechEncoder, num_samples: int, num_rows: int) -> None:
    embeddings = encoder(noise(num_samples))
    assert embeddings.shape == (num_rows, 3, 32)
    assert embeddings.rows(torch.arange(num_rows)).isfinite().all()


def test_silence_has_finite_embeddings(encoder: SpeechEncoder) -> None:
    assert encoder(np.zeros(SAMPLING_RATE, dtype=np.float32)).rows(torch.arange(25)).isfinite().all()


def test_less_than_a_frame_of_speech_is_refused(encoder: SpeechEncoder) -> None:
    with pytest.raises(ValueError, match="639 samples; give at least 640"):
        encoder(noise(639))


def test_the_model_is_left_as_it_was(encoder: SpeechEncoder) -> None:
    forwards = [layer.feed_forward.forward for layer in encoder.model.encoder.layers]
    encoder(noise(3200))
    assert forwards == [layer.feed_forward.forward for layer in encoder.model.encoder.layers]
    assert not any(layer._forward_hooks for layer in encoder.model.encoder.layers)


def test_rows_come_in_the_order_and_shape_asked_for() -> None:
    embeddings = torch.randn(9, 2, 4)
    kept = SpeechEmbeddings.from_tensor(embeddings)
    assert len(kept) == 9
    for indices in (torch.tensor([[0, 0, 8], [3, 2, 1]]), torch.arange(9).flip(0), torch.tensor(5)):
        assert torch.equal(kept.rows(indices), embeddings[indices])


def test_convolutions_compute_in_plain_float32_and_those_of_others_as_before(
    encoder: SpeechEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code runs this network on a CPU; on a GPU, torch's default is TF32, with 10 bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []
    convolutions = [module for module in encoder.model.modules() if isinstance(module, torch.nn.Conv1d)]
    hooks = [
        module.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32)) for module in convolutions
    ]
    encoder(noise(5000))
    for hook in hooks:
        hook.remove()
    assert len(seen) >= len(convolutions)
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32

"""The networks at their published sizes on the fake device, in the worker's own precision, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from benchmarks.rehearsal.device import DEVICE
from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.wan_layers import make_lean
from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.family import INFINITETALK
from infinitetalk.network.quantised import quantise_linear
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.loading import Quantisation, quantised

#: Of the prompt, and of the picture.
TEXT_TOKENS, TEXT_DIM, IMAGE_TOKENS, IMAGE_DIM = 512, 4096, 257, 1280
AUDIO_CHANNELS = 768

M = TypeVar("M", bound=nn.Module)


@contextmanager
def on_fake_device(mode: FakeTensorMode, device: torch.device = DEVICE) -> Iterator[None]:
    """New tensors are fake ones, of the fake device."""
    with mode, torch.no_grad(), device:
        yield


def placed(
    make: Callable[[], M],
    mode: FakeTensorMode,
    dtype: torch.dtype,
    wide: Collection[str] = (),
    device: torch.device = DEVICE,
) -> M:
    """A network on the fake device.

    Args:
        make: makes the network on the current device.
        dtype: dtype of its parameters.
        wide: parts of names, as in diffusers' `_keep_in_fp32_modules`, of parameters that are float32 instead.
    """
    with torch.device("meta"):
        module = make()
    with on_fake_device(mode, device):
        for path, owner in module.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                is_wide = not {*path.split("."), name}.isdisjoint(wide)
                value = torch.empty(parameter.shape, dtype=torch.float32 if is_wide else dtype)
                owner.register_parameter(name, nn.Parameter(value, requires_grad=False))
            for name, buffer in owner.named_buffers(recurse=False):
                owner._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return module.eval()


def make_transformer(
    mode: FakeTensorMode, num_layers: int | None = None, device: torch.device = DEVICE
) -> InfiniteTalkTransformer3DModel:
    """The network in bf16, with the parts in float32 that the worker keeps so; with all its blocks, or the first."""
    blocks = INFINITETALK.model_sizes.num_blocks if num_layers is None else num_layers
    make = partial(InfiniteTalkTransformer3DModel, num_layers=blocks)
    return placed(make, mode, torch.bfloat16, InfiniteTalkTransformer3DModel._keep_in_fp32_modules, device)


def quantise_blocks(
    transformer: InfiniteTalkTransformer3DModel, mode: FakeTensorMode, quantisation: Quantisation
) -> None:
    """The weights of the blocks' linear layers become 8 bits wide, as the worker makes them."""
    with mode, torch.no_grad():
        for module in transformer.blocks.modules():
            if isinstance(module, nn.Linear):
                quantise_linear(module, quantised(module.weight.data, quantisation))


def make_vae(mode: FakeTensorMode, dtype: torch.dtype = torch.float32, is_lean: bool = True) -> AutoencoderKLWan:
    """The VAE, which the worker runs in float32, with lean layers or those that diffusers gives it."""
    vae = placed(AutoencoderKLWan, mode, dtype)
    if is_lean:
        with mode:
            make_lean(vae)
    return vae


def text_encoder_of_published_size() -> UMT5EncoderModel:
    """UMT5-XXL on the current device."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=256384,
            d_model=TEXT_DIM,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            relative_attention_num_buckets=32,
            feed_forward_proj="gated-gelu",
        )
    )


def make_text_encoder(mode: FakeTensorMode) -> UMT5EncoderModel:
    """UMT5-XXL in bf16."""
    encoder = placed(text_encoder_of_published_size, mode, torch.bfloat16)
    encoder.tie_weights()
    return encoder


def make_image_encoder(mode: FakeTensorMode) -> ImageEncoder:
    """CLIP's vision tower in float32."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        image_size=224,
        hidden_act="gelu",
    )
    return ImageEncoder(placed(partial(CLIPVisionModel, config), mode, torch.float32))


def make_audio_encoder(mode: FakeTensorMode) -> SpeechEncoder:
    """wav2vec2 in float32."""
    config = Wav2Vec2Config(attn_implementation="sdpa")  # type: ignore[call-arg]
    model = placed(partial(Wav2Vec2Model, config), mode, torch.float32)
    return SpeechEncoder(model, Wav2Vec2FeatureExtractor())


def evaluation_inputs(
    mode: FakeTensorMode,
    height: int,
    width: int,
    num_frames: int,
    speakers: int = 1,
    device: torch.device = DEVICE,
    with_nag: bool = False,
) -> dict[str, Tensor | None]:
    """What the transformer's `forward` takes for a chunk of `num_frames` frames of `height` by `width` pixels, without
    or with normalised attention guidance."""
    family = INFINITETALK
    rows, columns = height // family.vae_scale_factor_spatial, width // family.vae_scale_factor_spatial
    latent_frames = (num_frames - 1) // family.vae_scale_factor_temporal + 1
    channels = 2 * family.latent_channels + family.vae_scale_factor_temporal
    audio = (speakers, num_frames, family.audio_window, family.audio_layers, AUDIO_CHANNELS)
    with on_fake_device(mode, device):
        return {
            "hidden_states": torch.empty(1, channels, latent_frames, rows, columns, dtype=torch.bfloat16),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, TEXT_TOKENS, TEXT_DIM, dtype=torch.bfloat16),
            "encoder_hidden_states_image": torch.empty(1, IMAGE_TOKENS, IMAGE_DIM, dtype=torch.bfloat16),
            "encoder_hidden_states_audio": torch.empty(audio, dtype=torch.bfloat16),
            "encoder_hidden_states_negative": torch.empty(1, TEXT_TOKENS, TEXT_DIM, dtype=torch.bfloat16)
            if with_nag
            else None,
            "nag_strengths": torch.empty(3) if with_nag else None,
            "regions": torch.empty(speakers + 1, rows, columns, dtype=torch.bool) if speakers > 1 else None,
        }

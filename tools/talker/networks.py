"""The tiny talker's networks: the published model's classes, at a size that two cores can train."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Wav2Vec2Model

from infinitetalk.embedded.tiny import SPEECH_DIM, TEXT_DIM, _speech_encoder
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel

NAME = "tiny-talker"
#: Factor on the published resolutions: 640x640 becomes 128x128, 448x896 becomes 96x192.
SIZE_SCALE = 0.2

IMAGE_DIM = 32
HEADS, HEAD_DIM = 4, 32
DIM = HEADS * HEAD_DIM
AUDIO_DIM = 64


#: Side in pixels of the squares that are the VAE's input, and of those at half size.
PATCH, HALF_PATCH = 4, 2


def make_vae(patch: int = PATCH) -> AutoencoderKLWan:
    """The VAE: 4 frames to a latent and 16 channels as in the published one, but its input is squares of pixels, as in
    Wan 2.2's, which saves convolutions at full size. A latent covers 4 x 4 squares."""
    return AutoencoderKLWan(
        base_dim=32,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        patch_size=patch,
        scale_factor_spatial=4 * patch,
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )


@torch.no_grad()
def double_vae(half: AutoencoderKLWan) -> AutoencoderKLWan:
    """The VAE for twice the height and width with the same latents: it encodes the means of 2 x 2 pixels as `half`
    does, and decodes each of `half`'s pixels to 2 x 2 equal ones."""
    vae = make_vae()
    tensors = half.state_dict()
    kernel = _spread(tensors["encoder.conv_in.weight"], dim=1) / (PATCH // HALF_PATCH) ** 2
    doubled = {name: _spread(tensors[name], dim=0) for name in ("decoder.conv_out.weight", "decoder.conv_out.bias")}
    vae.load_state_dict({**tensors, **doubled, "encoder.conv_in.weight": kernel})
    vae.register_to_config(latents_mean=half.config.latents_mean, latents_std=half.config.latents_std)
    return vae


def _spread(tensor: Tensor, dim: int) -> Tensor:
    """Repeats the channels of squares of 2 x 2 pixels for squares of 4 x 4; a channel is (colour, column, row)."""
    squares = tensor.unflatten(dim, (3, HALF_PATCH, HALF_PATCH))
    for axis in (dim + 1, dim + 2):
        squares = squares.repeat_interleave(PATCH // HALF_PATCH, dim=axis)
    return squares.flatten(dim, dim + 2)


def make_speech_encoder() -> Wav2Vec2Model:
    """wav2vec2, as small as the random model's."""
    return _speech_encoder().eval()


def make_image_encoder() -> CLIPVisionModel:
    """CLIP's vision tower, with 17 tokens instead of 257."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    return CLIPVisionModel(config).eval()


def make_transformer() -> InfiniteTalkTransformer3DModel:
    """The InfiniteTalk transformer, initialised to attend by position and to ignore the prompt."""
    transformer = InfiniteTalkTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=36,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=2 * DIM,
        num_layers=4,
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=DIM,
        audio_channels=SPEECH_DIM,
        audio_intermediate_dim=128,
        audio_output_dim=AUDIO_DIM,
        audio_context_tokens=4,
    )
    _look_at_own_place(transformer)
    _be_deaf_to_the_prompt(transformer)
    return transformer


@torch.no_grad()
def _look_at_own_place(transformer: InfiniteTalkTransformer3DModel) -> None:
    """Initialises attention as the published network has learned it: half of the self-attention's heads attend to their
    own position in every frame, and audio attention prefers the speaker of a token's own region.

    Both are biases of queries and keys in pairs that the rotary embedding rotates: the biases are equal in all tokens,
    so that their product is largest between equal positions.
    """
    spatial_pair = [HEAD_DIM - 4 * (HEAD_DIM // 6), HEAD_DIM - 2 * (HEAD_DIM // 6)]
    spatial = [start + offset for start in spatial_pair for offset in (0, 1)]
    speaker = [6, 7, 8, 9]
    block: Any
    for block in transformer.blocks:
        attention = block.attn1
        for linear, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
            linear.bias.zero_()
            for head in range(HEADS // 2):
                places = [head * HEAD_DIM + place for place in spatial]
                linear.bias[places] = 3.0
                norm.weight[places] = 1.4
        speech = block.audio_cross_attn
        for head in range(HEADS):
            places = [head * HEAD_DIM + place for place in speaker]
            speech.q_linear.bias[places] = 1.8
            speech.kv_linear.bias[places] = 1.8


@torch.no_grad()
def _be_deaf_to_the_prompt(transformer: InfiniteTalkTransformer3DModel) -> None:
    """Fixes the prompt's values in the cross-attention at zero: no drawing depends on a prompt, so training would only
    learn noise from it, and text guidance would multiply that noise."""
    block: Any
    for block in transformer.blocks:
        for parameter in block.attn2.to_v.parameters():
            parameter.zero_().requires_grad_(False)

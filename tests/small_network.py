"""The transformer with random weights, small enough for any test."""

import torch

from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel


def small_transformer(
    heads: int = 2, head_dim: int = 16, audio_context_tokens: int = 2
) -> InfiniteTalkTransformer3DModel:
    """Two blocks; text of 8, pictures of 12, and audio of 3 layers with 4 channels. Equal at each call."""
    torch.manual_seed(0)
    return InfiniteTalkTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        text_dim=8,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        image_dim=12,
        added_kv_proj_dim=heads * head_dim,
        audio_layers=3,
        audio_channels=4,
        audio_intermediate_dim=8,
        audio_output_dim=16,
        audio_context_tokens=audio_context_tokens,
    ).eval()

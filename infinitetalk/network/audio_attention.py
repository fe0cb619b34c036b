"""Speech in the transformer: AudioProj makes audio tokens, and video tokens attend to them through AudioAttention.

Parameter names are those of the published adapter (`audio_proj.*`, `blocks.N.audio_cross_attn.*`).
"""

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn

ROTARY_BASE = 10_000.0


def group_windows(windows: Tensor, vae_scale_factor_temporal: int) -> tuple[Tensor, Tensor]:
    """Pick the window slots that each latent frame reads.

    Latent frame 0 reads the whole window of video frame 0. Each later latent frame covers `vae_scale_factor_temporal`
    video frames. It reads the first half of its first frame's window, the centres of the middle frames' windows, and
    the second half of its last frame's window.

    Args:
        windows: (speakers, num_frames, window, ...), num_frames = vae_scale_factor_temporal·n + 1, window odd.
        vae_scale_factor_temporal: video frames per latent frame.

    Returns:
        (speakers, 1, window, ...) and (speakers, n, window + vae_scale_factor_temporal - 1, ...).
    """
    centre = windows.shape[2] // 2
    groups = windows[:, 1:].unflatten(1, (-1, vae_scale_factor_temporal))
    later = torch.cat(
        [groups[:, :, 0, : centre + 1], groups[:, :, 1:-1, centre], groups[:, :, -1, centre:]],
        dim=2,
    )
    return windows[:, :1], later


class AudioProj(nn.Module):
    """Projects speech windows to `context_tokens` audio tokens for every speaker and latent frame."""

    def __init__(
        self,
        audio_window: int,
        audio_layers: int,
        audio_channels: int,
        intermediate_dim: int,
        output_dim: int,
        context_tokens: int,
        vae_scale_factor_temporal: int,
    ) -> None:
        super().__init__()
        self.vae_scale_factor_temporal = vae_scale_factor_temporal
        self.context_tokens = context_tokens
        slot_dim = audio_layers * audio_channels
        self.proj1 = nn.Linear(audio_window * slot_dim, intermediate_dim)
        self.proj1_vf = nn.Linear((audio_window + vae_scale_factor_temporal - 1) * slot_dim, intermediate_dim)
        self.proj2 = nn.Linear(intermediate_dim, intermediate_dim)
        self.proj3 = nn.Linear(intermediate_dim, context_tokens * output_dim)
        self.norm = FP32LayerNorm(output_dim)

    def forward(self, windows: Tensor) -> Tensor:
        """(speakers, num_frames, window, layers, channels) → (speakers, latent_frames, context_tokens, output_dim)."""
        first, later = group_windows(windows, self.vae_scale_factor_temporal)
        hidden_states = torch.cat([self.proj1(first.flatten(2)), self.proj1_vf(later.flatten(2))], dim=1).relu()
        hidden_states = self.proj2(hidden_states).relu()
        return self.norm(self.proj3(hidden_states).unflatten(-1, (self.context_tokens, -1)))


def rotate_pairs(hidden_states: Tensor, rotary_emb: Tensor) -> Tensor:
    """Rotate each pair of neighbours in the last dimension by its angle (rotary embedding, arXiv 2104.09864).

    With each pair as a complex number, this is one product. The compiler does not support complex numbers, but fuses
    the same operations on real numbers into one kernel.

    Args:
        hidden_states: (..., head_dim).
        rotary_emb: float32, cosine and sine, broadcastable to (..., head_dim / 2, 2).

    Returns:
        (..., head_dim), dtype of `hidden_states`; computed in float32.
    """
    pairs = hidden_states.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # No torch.stack of two results: the compiler would write both in float32 before it joins them.
        cos, sin = rotary_emb.split(1, dim=-1)
        sign = torch.arange(-1, 2, 2, device=pairs.device)
        rotated = pairs * cos + pairs.flip(-1) * (sin * sign)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary_emb))
    return rotated.flatten(-2).type_as(hidden_states)


def rotary_embedding(positions: Tensor, head_dim: int) -> Tensor:
    """Rotary embedding of real-valued positions (n,), base 10000: float32 (n, head_dim / 2, 2), cosine and sine."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions.double()[:, None] * ROTARY_BASE**-exponents
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


class AudioAttention(nn.Module):
    """Attention of each latent frame's video tokens to that frame's audio tokens.

    With several speakers, 1-D rotary embeddings of `query_positions` and `key_positions` tie each speaker's audio to
    their region (L-RoPE, arXiv 2505.22647); with one speaker both are None and the attention is plain.
    """

    def __init__(self, dim: int, num_heads: int, audio_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(audio_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden_states: Tensor,
        audio_tokens: Tensor,
        query_positions: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """Attend frame by frame.

        Args:
            hidden_states: (1, latent_frames · S, dim), tokens ordered by frame.
            audio_tokens: (latent_frames, speakers · context_tokens, audio_dim), speakers side by side.
            query_positions: (latent_frames · S,), the position of each video token for L-RoPE, or None.
            key_positions: (speakers · context_tokens,), the position of each audio token, or None.

        Returns:
            (1, latent_frames · S, dim).
        """
        latent_frames = audio_tokens.shape[0]
        query = self.q_linear(hidden_states).view(
            latent_frames, -1, self.num_heads, hidden_states.shape[-1] // self.num_heads
        )
        key, value = self.kv_linear(audio_tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if query_positions is not None and key_positions is not None:
            query_rotary_emb = rotary_embedding(query_positions, query.shape[-1])
            query = rotate_pairs(query, query_rotary_emb.view(latent_frames, -1, 1, query.shape[-1] // 2, 2))
            key = rotate_pairs(key, rotary_embedding(key_positions, key.shape[-1])[:, None])
        # Always exact, whatever kernel the other attentions use: lips follow these few tokens.
        attended = dispatch_attention_fn(query, key, value, backend=AttentionBackendName.NATIVE)
        return self.proj(attended.reshape(hidden_states.shape))

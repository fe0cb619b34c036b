"""The InfiniteTalk network: diffusers' Wan 2.1 transformer with an audio attention in every block.

The base model's parameters have diffusers' names, the adapter's their published ones (`audio_proj.*`,
`blocks.N.audio_cross_attn.*`, `blocks.N.norm_x.*`).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.hooks import HookRegistry
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformer3DModel,
    WanTransformerBlock,
)
from torch import Tensor, nn

from infinitetalk.network.audio_attention import AudioAttention, AudioProj, rotate_pairs
from infinitetalk.network.nag import guide_attention
from infinitetalk.network.protocols import EvaluationInputs, StepCache, TokenSplit
from infinitetalk.network.regions import audio_token_positions, reference_attention_map, token_positions, token_regions

#: Parts of names that occur only in an adapter's parameters and not in the base model's.
ADAPTER_PATTERNS = ("audio_proj.", "audio_cross_attn.", "norm_x.")


def add_product(addend: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """addend + factor · weight, computed in float32 and rounded once to the dtype of `factor`.

    In narrow dtypes, the weight is rounded too, see `affine_norm`.

    Args:
        addend, factor: (1, tokens, dim).
        weight: float32 (1, 1, dim).
    """
    if torch.compiler.is_compiling():
        return torch.addcmul(addend, factor, weight).to(factor.dtype)
    return torch.addcmul(addend, factor, weight.to(factor.dtype))


def affine_norm(hidden_states: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of x · weight + bias, computed in float32 and rounded once to the dtype of x.

    In narrow dtypes, weight and bias are rounded too, as all other weights of the network are. That makes one kernel of
    it, which reads and writes narrow numbers: one of mixed dtypes takes four times as long (docs/performance.md).

    Args:
        hidden_states: x, (1, tokens, dim).
        weight, bias: float32 (dim,).

    Returns:
        Shape and dtype of `hidden_states`.
    """
    dtype = hidden_states.dtype
    if torch.compiler.is_compiling():
        # A compiled norm in float32 is one kernel anyway, and rounding the weights would be two more.
        return F.layer_norm(hidden_states.float(), weight.shape, weight, bias, eps).to(dtype)
    return F.layer_norm(hidden_states, weight.shape, weight.to(dtype), bias.to(dtype), eps)


def modulated_norm(norm: nn.LayerNorm, hidden_states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift, as `affine_norm` computes it.

    Args:
        norm: without weights.
        hidden_states: x, (1, tokens, dim).
        shift, scale: float32 (1, 1, dim).

    Returns:
        Shape and dtype of `hidden_states`.
    """
    return affine_norm(hidden_states, 1 + scale.flatten(), shift.flatten(), norm.eps)


def weighted_norm(norm: nn.LayerNorm, hidden_states: Tensor) -> Tensor:
    """norm(x), as `affine_norm` computes it.

    Args:
        norm: with float32 weight and bias.
        hidden_states: x, (1, tokens, dim).

    Returns:
        Shape and dtype of `hidden_states`.
    """
    return affine_norm(hidden_states, norm.weight, norm.bias, norm.eps)


class PatchEmbedding(nn.Conv3d):
    """A convolution whose stride is its kernel's size, as one product of patches.

    The result has the order of tokens in memory, while a convolution's has to be copied into it.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(1, in_channels, t, h, w), each a multiple of the patch's size → (1, out_channels, t', h', w')."""
        frames, height, width = self.kernel_size
        patches = hidden_states.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, frames))
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


class SelfAttnProcessor(WanAttnProcessor):
    """Self-attention over all video tokens; if regions are given, also returns the reference attention map."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: Tensor,
        regions: Tensor | None,
        num_frames: int,
        split: TokenSplit | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: (1, tokens, dim).
            rotary_emb: float32 (1, tokens, 1, head_dim / 2, 2), cosine and sine of each pair.
            regions: bool (speakers + 1, S) over the tokens of latent frame 0, or None.
            num_frames: latent frames.
            split: the split of the tokens over several processes; None for one process.

        Returns:
            (1, tokens, dim), and float32 (speakers + 1, tokens) or None.
        """
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        query, key = rotate_pairs(query, rotary_emb), rotate_pairs(key, rotary_emb)
        attended = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        attention_map = None
        if regions is not None:
            first_frame = key[:, : key.shape[1] // num_frames]
            if split is not None:
                first_frame = split.whole(first_frame, 1, regions.shape[1])
            attention_map = reference_attention_map(query, first_frame, regions)
        return attn.to_out[0](attended.flatten(2)), attention_map


class CrossAttnProcessor(WanAttnProcessor):
    """Attention to the prompt plus attention to the image, for any number of text tokens. With a negative prompt, the
    former is guided by normalised attention guidance."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: tuple[Tensor, ...],
        attention_mask: None,
        rotary_emb: None,
    ) -> Tensor:
        """Attend: hidden_states (1, tokens, dim), encoder_hidden_states as the block takes them."""
        image_states, text_states, *negative = encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        if torch.compiler.is_compiling():
            # The compiler would write the query once for each attention. It makes one tensor of what has strides.
            query = query.as_strided(query.shape, query.stride())
        attended = self._attend_to_text(attn, query, text_states)
        if negative:
            negative_states, strengths = negative
            unwanted = self._attend_to_text(attn, query, negative_states)
            guided = guide_attention(attended.flatten(2), unwanted.flatten(2), strengths)
            attended = guided.unflatten(2, (attn.heads, -1))
        image_key = attn.norm_added_k(attn.add_k_proj(image_states)).unflatten(2, (attn.heads, -1))
        image_value = attn.add_v_proj(image_states).unflatten(2, (attn.heads, -1))
        attended = attended + dispatch_attention_fn(query, image_key, image_value, backend=self._attention_backend)
        return attn.to_out[0](attended.flatten(2))

    def _attend_to_text(self, attn: WanAttention, query: Tensor, text_states: Tensor) -> Tensor:
        """What the queries (1, tokens, heads, head_dim) read from text tokens (1, n, dim), of the queries' shape."""
        key = attn.norm_k(attn.to_k(text_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(text_states).unflatten(2, (attn.heads, -1))
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend)


class InfiniteTalkTransformerBlock(WanTransformerBlock):
    """A Wan block with one more residual step, the audio attention, between cross-attention and feed-forward."""

    def __init__(
        self, dim: int, ffn_dim: int, num_heads: int, eps: float, added_kv_proj_dim: int, audio_dim: int
    ) -> None:
        super().__init__(dim, ffn_dim, num_heads, cross_attn_norm=True, eps=eps, added_kv_proj_dim=added_kv_proj_dim)
        self.attn1.set_processor(SelfAttnProcessor())
        self.attn2.set_processor(CrossAttnProcessor())
        self.norm_x = FP32LayerNorm(dim, eps, elementwise_affine=True)
        self.audio_cross_attn = AudioAttention(dim, num_heads, audio_dim)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: tuple[Tensor, ...],
        timestep_proj: Tensor,
        rotary_emb: Tensor,
        audio_tokens: Tensor,
        regions: Tensor | None = None,
        split: TokenSplit | None = None,
    ) -> Tensor:
        """One block.

        Args:
            hidden_states: (1, tokens, dim).
            encoder_hidden_states: image tokens (1, image_tokens, dim) and text tokens (1, text_len, dim); for
                normalised attention guidance also the negative prompt's tokens, and its strengths, float32 (3,).
            timestep_proj: float32 (1, 6, dim).
            rotary_emb: float32 (1, tokens, 1, head_dim / 2, 2), cosine and sine of each pair.
            audio_tokens: (latent_frames, speakers · context_tokens, audio_dim).
            regions: bool (speakers + 1, S) for several speakers, else None.
            split: the split of the tokens over several processes; None for one process.
        """
        modulation = self.scale_shift_table.float() + timestep_proj
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.chunk(6, dim=1)

        normed = modulated_norm(self.norm1, hidden_states, shift, scale)
        attended, attention_map = self.attn1(
            normed, None, None, rotary_emb, regions=regions, num_frames=len(audio_tokens), split=split
        )
        hidden_states = add_product(hidden_states, attended, gate)

        hidden_states = hidden_states + self.attn2(weighted_norm(self.norm2, hidden_states), encoder_hidden_states)

        query_positions = key_positions = None
        if attention_map is not None and regions is not None:
            speakers = len(regions) - 1
            query_positions = token_positions(attention_map, None if split is None else split.extrema)
            key_positions = audio_token_positions(speakers, audio_tokens.shape[1] // speakers, audio_tokens.device)
        hidden_states = hidden_states + self.audio_cross_attn(
            weighted_norm(self.norm_x, hidden_states), audio_tokens, query_positions, key_positions
        )

        normed = modulated_norm(self.norm3, hidden_states, ffn_shift, ffn_scale)
        return add_product(hidden_states, self.ffn(normed), ffn_gate)


class InfiniteTalkTransformer3DModel(WanTransformer3DModel):
    """Wan 2.1 I2V transformer driven by speech.

    The constructor's arguments are those of `WanTransformer3DModel` for I2V, then the adapter's sizes.

    Attributes:
        token_split: the split of the tokens over several processes that call the network together; None for one.
    """

    token_split: TokenSplit | None = None

    _no_split_modules: ClassVar = ["InfiniteTalkTransformerBlock"]
    _repeated_blocks: ClassVar = ["InfiniteTalkTransformerBlock"]
    _keep_in_fp32_modules: ClassVar = [*WanTransformer3DModel._keep_in_fp32_modules, "time_proj", "norm_x"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int = 1280,
        added_kv_proj_dim: int = 5120,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        audio_window: int = 5,
        audio_layers: int = 12,
        audio_channels: int = 768,
        audio_intermediate_dim: int = 512,
        audio_output_dim: int = 768,
        audio_context_tokens: int = 32,
        vae_scale_factor_temporal: int = 4,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=0,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        self.register_to_config(num_layers=num_layers)
        dim = num_attention_heads * attention_head_dim
        self.patch_embedding = PatchEmbedding(in_channels, dim, patch_size, patch_size)
        self.blocks = nn.ModuleList(
            InfiniteTalkTransformerBlock(dim, ffn_dim, num_attention_heads, eps, added_kv_proj_dim, audio_output_dim)
            for _ in range(num_layers)
        )
        self.audio_proj = AudioProj(
            audio_window,
            audio_layers,
            audio_channels,
            audio_intermediate_dim,
            audio_output_dim,
            audio_context_tokens,
            vae_scale_factor_temporal,
        )

    def enable_cache(self, config: object) -> None:
        """Turns on one of diffusers' caches, such as `FirstBlockCacheConfig`; `disable_cache` turns it off.

        diffusers looks blocks up by class. Our block is registered here and not on import, because the first
        registration imports a dozen of diffusers' models.
        """
        TransformerBlockRegistry.register(
            InfiniteTalkTransformerBlock,
            TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
        )
        super().enable_cache(config)

    def reset_cache(self) -> None:
        """Clears diffusers' caches; called at the start of each chunk."""
        HookRegistry.check_if_exists_or_initialize(self).reset_stateful_hooks()

    def rounds(self, num_evaluations: int) -> list[int]:
        """How many evaluations of a step are made at once, round by round: one GPU makes one after the other."""
        return [1] * num_evaluations

    def evaluate(self, evaluations: Sequence[EvaluationInputs]) -> list[Tensor]:
        """The velocities (1, 16, t, h, w) of several evaluations, each with diffusers' caches of its branch."""
        velocities = []
        for evaluation in evaluations:
            with self.cache_context(evaluation.branch):
                velocities.append(self(**evaluation.tensors, cache=evaluation.cache, return_dict=False)[0])
        return velocities

    def embed_timestep(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding, float32 as in the published model: timestep (1,) in 0…1000 → (1, dim) and (1, 6, dim)."""
        embedder = self.condition_embedder
        temb = embedder.time_embedder(embedder.timesteps_proj(timestep))
        return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1))

    def embed_audio(self, windows: Tensor) -> Tensor:
        """(speakers, num_frames, window, layers, channels) → (latent_frames, speakers · context_tokens, audio_dim)."""
        return self.audio_proj(windows).transpose(0, 1).flatten(1, 2)

    def rotary_embedding(self, latents: Tensor) -> Tensor:
        """3-D rotary embedding of latents (1, channels, t, h, w): (1, tokens, 1, head_dim / 2, 2), cosine and sine."""
        cos, sin = self.rope(latents)
        return torch.stack([cos[..., 0::2], sin[..., 1::2]], dim=-1)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor,
        encoder_hidden_states_audio: Tensor,
        regions: Tensor | None = None,
        encoder_hidden_states_negative: Tensor | None = None,
        nag_strengths: Tensor | None = None,
        cache: StepCache | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the velocity.

        Args:
            hidden_states: (1, 36, t, h, w): 16 noise channels, then 4 mask and 16 condition channels.
            timestep: (1,), 0…1000.
            encoder_hidden_states: prompt embeddings (1, text_len, text_dim).
            encoder_hidden_states_image: CLIP features of the reference frame (1, 257, image_dim).
            encoder_hidden_states_audio: speech windows (speakers, 4·(t - 1) + 1, window, layers, channels).
            regions: bool (speakers + 1, h, w), the regions of each speaker and the background; needed for several
                speakers, None for one.
            encoder_hidden_states_negative: negative prompt embeddings (1, text_len, text_dim) for normalised attention
                guidance; None: without it.
            nag_strengths: its strengths, float32 (3,), as of `AttentionGuidance`.
            cache: state of this guidance branch, or None to compute every block.

        Returns:
            (1, 16, t, h, w), in the form that diffusers' models return.

        Raises:
            ValueError: several speakers without regions.
            RegionError: a speaker's region holds no token.
        """
        speakers = len(encoder_hidden_states_audio)
        if (regions is None) != (speakers == 1):
            raise ValueError(
                f"{speakers} speaker(s) need regions {'None' if speakers == 1 else '(speakers + 1, h, w)'}"
            )
        rotary_emb = self.rotary_embedding(hidden_states)
        temb, timestep_proj = self.embed_timestep(timestep)
        tokens = self.patch_embedding(hidden_states)
        grid = tokens.shape[2:]
        # Not a view in torch's books: the compiler would make graphs for views, too.
        tokens = torch.ops.aten._unsafe_view(tokens.permute(0, 2, 3, 4, 1), (1, grid.numel(), tokens.shape[1]))
        if self.token_split is not None:
            tokens = self.token_split.part(tokens, grid[0])
            rotary_emb = self.token_split.part(rotary_emb, grid[0])

        if cache is None or cache.should_compute(timestep_proj):
            output = self._run_blocks(
                tokens,
                timestep_proj,
                rotary_emb,
                grid,
                encoder_hidden_states,
                encoder_hidden_states_image,
                encoder_hidden_states_audio,
                regions,
                encoder_hidden_states_negative,
                nag_strengths,
            )
            if cache is not None:
                cache.store(output - tokens)
            tokens = output
        else:
            tokens = cache.apply(tokens)

        shift, scale = (self.scale_shift_table.float() + temb[:, None]).chunk(2, dim=1)
        tokens = self.proj_out(modulated_norm(self.norm_out, tokens, shift, scale))
        if self.token_split is not None:
            tokens = self.token_split.whole(tokens, grid[0], grid[1] * grid[2])
        sample = self._unpatchify(tokens, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run_blocks(
        self,
        tokens: Tensor,
        timestep_proj: Tensor,
        rotary_emb: Tensor,
        grid: torch.Size,
        prompt_embeds: Tensor,
        image_embeds: Tensor,
        audio_windows: Tensor,
        regions: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        nag_strengths: Tensor | None,
    ) -> Tensor:
        context: tuple[Tensor, ...] = (
            self.condition_embedder.image_embedder(image_embeds),
            self.condition_embedder.text_embedder(prompt_embeds),
        )
        if negative_prompt_embeds is not None and nag_strengths is not None:
            context += (self.condition_embedder.text_embedder(negative_prompt_embeds), nag_strengths)
        audio_tokens = self.embed_audio(audio_windows)
        reference_regions = None if regions is None else token_regions(regions, grid[1], grid[2])
        for block in self.blocks:
            tokens = block(
                tokens, context, timestep_proj, rotary_emb, audio_tokens, reference_regions, self.token_split
            )
        return tokens

    def _unpatchify(self, tokens: Tensor, grid: torch.Size) -> Tensor:
        """(1, tokens, patch elements · channels) → (1, channels, t, h, w)."""
        patch = self.config.patch_size
        video = tokens.unflatten(2, (*patch, -1)).unflatten(1, grid)
        return video.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

"""Cases 01, 02, 05, 06, 07: the transformer and its parts."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from infinitetalk.network.audio_attention import group_windows, rotate_pairs
from infinitetalk.network.regions import audio_token_positions, token_positions
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from tests.golden.folder import Case, Outcome
from tests.golden.weights import build_transformer


def time_embedding(case: Case) -> Outcome:
    """Case 01."""
    transformer = build_transformer(case)
    timesteps = torch.tensor(case.inputs["t"], dtype=torch.float32)
    embedding, projection = transformer.embed_timestep(timesteps)
    sinusoid = transformer.condition_embedder.timesteps_proj(timesteps)
    return Outcome({"sinusoid": sinusoid, "e": embedding, "e0": projection})


def rotary_embedding(case: Case) -> Outcome:
    """Case 02."""
    return Outcome({f"{name}_rot": _rotate(case.input(name), given["grid"]) for name, given in case.inputs.items()})


def _rotate(query: Tensor, grid: list[int]) -> Tensor:
    transformer = InfiniteTalkTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=query.shape[-1],
        num_layers=0,
        text_dim=1,
        freq_dim=2,
        added_kv_proj_dim=1,
        audio_intermediate_dim=1,
        audio_output_dim=1,
        audio_context_tokens=1,
    )
    latent_size = [tokens * patch for tokens, patch in zip(grid, transformer.config.patch_size, strict=True)]
    return rotate_pairs(query, transformer.rotary_embedding(torch.zeros(1, 1, *latent_size)))


def audio_projection(case: Case) -> Outcome:
    """Case 05."""
    transformer = build_transformer(case)
    windows = speech_windows(case)
    num_frames, window = windows.shape[1:3]
    slots = torch.arange(num_frames * window).view(1, num_frames, window)
    first, later = group_windows(slots, transformer.config.vae_scale_factor_temporal)
    tensors = {"slots_first": first[0], "slots_latter": later[0], "tokens_one": transformer.audio_proj(windows[:1])}
    if len(windows) > 1:
        tensors["tokens_two"] = transformer.audio_proj(windows[:2])
    return Outcome(tensors)


def forward(case: Case) -> Outcome:
    """Cases 06 and 07: outputs at each timestep, and what the first evaluation holds inside."""
    transformer = build_transformer(case)
    inputs = case.inputs
    windows = speech_windows(case)
    text_length = case.manifest()["config"]["text_len"]
    regions = None
    if len(windows) > 1:
        regions = torch.from_numpy(case.tensors[_tensor_name(inputs["ref_target_masks"])]) > 0
    inside = _Inside(transformer)
    tensors = {}
    for index, timestep in enumerate(inputs["t"]):
        tensors[f"out_{index}"] = transformer(
            hidden_states=torch.cat([case.input("x"), case.input("y")])[None],
            timestep=torch.tensor([timestep], dtype=torch.float32),
            encoder_hidden_states=pad_prompt(case.input("context"), text_length),
            encoder_hidden_states_image=case.input("clip"),
            encoder_hidden_states_audio=windows,
            regions=regions,
        ).sample[0]
    tensors |= {name: inside.value(name, case) for name in case.tensors if name not in tensors}
    return Outcome(tensors)


def speech_windows(case: Case) -> Tensor:
    """The windows of every speaker, audio1, audio2 …: (speakers, num_frames, window, layers, channels)."""
    return torch.stack([case.input(name) for name in speaker_inputs(case.inputs)])


def speaker_inputs(inputs: dict[str, Any]) -> list[str]:
    """The names audio1, audio2 … that there are, in order."""
    return sorted((name for name in inputs if re.fullmatch(r"audio\d+", name)), key=lambda name: int(name[5:]))


def pad_prompt(prompt_embeds: Tensor, text_length: int) -> Tensor:
    """(rows, dim) → (1, text_length, dim), zero beyond the rows."""
    return nn.functional.pad(prompt_embeds, (0, 0, 0, text_length - len(prompt_embeds)))[None]


def _tensor_name(text: str) -> str:
    found = re.match(r"tensor (\w+)", text)
    if found is None:
        raise ValueError(f"{text!r} names no tensor of the file")
    return found[1]


class _Inside:
    """What the transformer's modules gave at their first call, by the names of the cases."""

    def __init__(self, transformer: InfiniteTalkTransformer3DModel) -> None:
        self.outputs: dict[str, Any] = {}
        embedder = transformer.condition_embedder
        self._watch("tokens", transformer.patch_embedding)
        self._watch("text", embedder.text_embedder)
        self._watch("img", embedder.image_embedder)
        self._watch("audio_tokens", transformer.audio_proj)
        for index, block in enumerate(transformer.blocks):
            self._watch(f"block{index}", block)
            self._watch(f"block{index}_self_attn", block.attn1)
            self._watch(f"block{index}_cross_attn", block.attn2)
            self._watch(f"block{index}_audio_attn", block.audio_cross_attn)

    def _watch(self, name: str, module: nn.Module) -> None:
        def keep_first(module: nn.Module, args: Any, output: Any) -> None:
            self.outputs.setdefault(name, output)

        module.register_forward_hook(keep_first)

    def value(self, name: str, case: Case) -> Tensor:
        """The tensor that a case calls `name`."""
        block = re.search(r"block (\d+)", case.meaning(name))
        attention_map = self.outputs[f"block{block[1] if block else 0}_self_attn"][1]
        match name:
            case "tokens":
                return self.outputs["tokens"][0].flatten(1).T
            case "img_norm":
                return self.outputs["img"][0].norm(dim=-1)
            case "img_head":
                return self.outputs["img"][0, : len(case.tensors[name])]
            case "audio_tokens":
                return self.outputs["audio_tokens"]
            case "x_ref_attn_map":
                return attention_map
            case "normalized_pos":
                return token_positions(attention_map)
            case "encoder_pos":
                speakers, latent_frames, context_tokens = self.outputs["audio_tokens"].shape[:3]
                return audio_token_positions(speakers, context_tokens).repeat(latent_frames)
            case "ref_target_masks":
                return torch.from_numpy(case.tensors[name])
        output = self.outputs[name]
        return (output[0] if isinstance(output, tuple) else output)[0]

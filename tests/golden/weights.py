"""The project's networks at a manifest's sizes, with formula weights under the published names."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.network.transformer import ADAPTER_PATTERNS, InfiniteTalkTransformer3DModel
from tests.golden.folder import Case
from tests.golden.formulas import formula_weight, scaled_weight


def build_transformer(case: Case) -> InfiniteTalkTransformer3DModel:
    """The transformer of the case's manifest, the case's overridden weights in place."""
    manifest = case.manifest()
    config, shapes = manifest["config"], manifest["keys"]
    weights = make_weights(manifest)
    for name, text in case.entry.get("weight_override", {}).items():
        weights[name] *= scaled_weight(text)
    adapter = {name: weights.pop(name) for name in list(weights) if any(part in name for part in ADAPTER_PATTERNS)}
    transformer = InfiniteTalkTransformer3DModel(
        patch_size=tuple(config["patch_size"]),
        num_attention_heads=config["num_heads"],
        attention_head_dim=config["dim"] // config["num_heads"],
        in_channels=config["in_dim"],
        out_channels=config["out_dim"],
        text_dim=config["text_dim"],
        freq_dim=config["freq_dim"],
        ffn_dim=config["ffn_dim"],
        num_layers=config["num_layers"],
        eps=config["eps"],
        image_dim=shapes["img_emb.proj.0.weight"][0],
        added_kv_proj_dim=config["dim"],
        audio_window=config["audio_window"],
        audio_layers=config["audio_blocks"],
        audio_channels=config["audio_channels"],
        audio_intermediate_dim=config["intermediate_dim"],
        audio_output_dim=config["output_dim"],
        audio_context_tokens=config["context_tokens"],
        vae_scale_factor_temporal=config["vae_scale"],
    )
    transformer.load_state_dict(convert_wan_transformer_to_diffusers(weights) | adapter)
    return transformer.eval()


def build_vae(case: Case, manifest_field: str) -> AutoencoderKLWan:
    """The VAE of the manifest that this field of the case names."""
    manifest = case.manifest(manifest_field)
    config = manifest["config"]
    vae = AutoencoderKLWan(
        base_dim=config["dim"],
        z_dim=config["z_dim"],
        dim_mult=config["dim_mult"],
        num_res_blocks=config["num_res_blocks"],
        temperal_downsample=config["temporal_downsample"],
    )
    vae.load_state_dict(convert_wan_vae_to_diffusers(make_weights(manifest)))
    return vae.eval()


def build_speech_encoder(case: Case) -> SpeechEncoder:
    """The speech encoder of the case's manifest."""
    manifest = case.manifest()
    weights = {
        name.replace("conv.weight_g", "conv.parametrizations.weight.original0").replace(
            "conv.weight_v", "conv.parametrizations.weight.original1"
        ): weight
        for name, weight in make_weights(manifest).items()
    }
    model = Wav2Vec2Model(Wav2Vec2Config(**manifest["config"], attn_implementation="sdpa"))
    model.load_state_dict(weights)
    return SpeechEncoder(model, Wav2Vec2FeatureExtractor())


def make_weights(manifest: dict[str, Any]) -> dict[str, Tensor]:
    """Formula weights of every key; the key that seeds one is the manifest's prefix followed by the name."""
    prefix = manifest.get("prefix", "")
    return {name: torch.from_numpy(formula_weight(prefix + name, shape)) for name, shape in manifest["keys"].items()}

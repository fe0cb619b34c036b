"""Tensor names: from each published layout to the names in our networks.

diffusers converts the base model's names; the adapter's stay as published. transformers has no conversion for the
original text and image encoders, so this module has one.
"""

from collections.abc import Mapping
from dataclasses import replace

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

from infinitetalk.network.transformer import ADAPTER_PATTERNS
from infinitetalk.weights.sources import TensorSource

#: Prefixes of the network's names in single files.
_WRAPPERS = ("model.diffusion_model.", "diffusion_model.")


def is_adapter_name(name: str) -> bool:
    """Whether a parameter belongs to the InfiniteTalk adapter."""
    return any(pattern in name for pattern in ADAPTER_PATTERNS)


def transformer_names(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Tensors of a base model, an adapter or both, original or Diffusers, under our transformer's names."""
    unwrapped = {_without_wrapper(name): source for name, source in sources.items()}
    # diffusers renames by substring and would also rename the "cross_attn" in "audio_cross_attn".
    adapter = {name: source for name, source in unwrapped.items() if is_adapter_name(name)}
    base = {name: source for name, source in unwrapped.items() if name not in adapter}
    if any(name.startswith("condition_embedder.") for name in base):
        return {**base, **adapter}
    return {**convert_wan_transformer_to_diffusers(base), **adapter}


def transformer_module_name(name: str) -> str:
    """Our transformer's name for a module or parameter of the original model."""
    if is_adapter_name(f"{name}."):
        return name
    (converted,) = convert_wan_transformer_to_diffusers({f"{name}.": None})
    return converted.removesuffix(".")


def _without_wrapper(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def vae_names(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Tensors of `Wan2.1_VAE.pth` under the names of `AutoencoderKLWan`."""
    return convert_wan_vae_to_diffusers(dict(sources))


_TEXT_ENCODER_MODULES = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_TEXT_ENCODER_ENDS = {"token_embedding.": "shared.", "norm.": "encoder.final_layer_norm."}


def text_encoder_names(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Tensors of the original UMT5 encoder, quantised or not, under the names of `UMT5EncoderModel`."""
    return {_text_encoder_name(name): source for name, source in sources.items()}


def _text_encoder_name(name: str) -> str:
    for original, ours in _TEXT_ENCODER_ENDS.items():
        if name.startswith(original):
            return ours + name.removeprefix(original)
    if not name.startswith("blocks."):
        return name
    _, block, rest = name.split(".", 2)
    for original, ours in _TEXT_ENCODER_MODULES.items():
        if rest.startswith(f"{original}."):
            return f"encoder.block.{block}.{ours}{rest.removeprefix(original)}"
    return name


_IMAGE_ENCODER_MODULES = {
    "patch_embedding": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
}
_IMAGE_ENCODER_LAYER_MODULES = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def image_encoder_names(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """The image half of the original CLIP under the names of `CLIPVisionModel`.

    The text half and the projection into the shared space are left out: only the second to last layer's output is used.
    """
    found: dict[str, TensorSource] = {}
    for name, source in sources.items():
        if name.startswith("textual.") or name in ("log_scale", "visual.head"):
            continue
        found.update(_image_encoder_sources(name.removeprefix("visual."), source))
    return found


def _image_encoder_sources(name: str, source: TensorSource) -> dict[str, TensorSource]:
    match name:
        case "cls_embedding":
            return {"embeddings.class_embedding": replace(source, shape=source.shape[-1:])}
        case "pos_embedding":
            return {"embeddings.position_embedding.weight": replace(source, shape=source.shape[-2:])}
    module, _, leaf = name.rpartition(".")
    if module in _IMAGE_ENCODER_MODULES:
        return {f"{_IMAGE_ENCODER_MODULES[module]}.{leaf}": source}
    if not name.startswith("transformer."):
        return {name: source}
    _, layer, module = module.split(".", 2)
    prefix = f"encoder.layers.{layer}"
    if module == "attn.to_qkv":
        third = source.shape[0] // 3
        return {
            f"{prefix}.self_attn.{part}_proj.{leaf}": replace(
                source, shape=(third, *source.shape[1:]), rows=(index * third, (index + 1) * third)
            )
            for index, part in enumerate("qkv")
        }
    return {f"{prefix}.{_IMAGE_ENCODER_LAYER_MODULES.get(module, module)}.{leaf}": source}


def transformers_vision_names(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Tensors of a Diffusers `image_encoder/`; their prefix and extras depend on the version that saved them."""
    return {
        name.removeprefix("vision_model."): source
        for name, source in sources.items()
        if name not in ("visual_projection.weight", "vision_model.embeddings.position_ids", "embeddings.position_ids")
    }

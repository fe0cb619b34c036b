"""Loads the networks of a checkpoint: each is created on the meta device, without memory, and filled from its files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from infinitetalk.encoders.wan_layers import make_lean
from infinitetalk.errors import CheckpointError
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.files import open_file
from infinitetalk.weights.layouts import (
    CheckpointPaths,
    NetworkPart,
    image_encoder_config,
    image_encoder_part,
    text_encoder_config,
    text_encoder_part,
    tokenizer_folder,
    transformer_config,
    vae_config,
    vae_part,
)
from infinitetalk.weights.loading import Quantisation, check_match, load_parameters, parameter_shapes
from infinitetalk.weights.names import is_adapter_name
from infinitetalk.weights.sources import TensorSource

#: Modules that only wav2vec2's pretraining uses.
_WAV2VEC2_PRETRAINING = ("quantizer.", "project_q.", "project_hid.")

#: transformers' `from_pretrained` replaces functions of its classes while it runs. A model that another thread makes
#: meanwhile would lack its tied weights.
_MAKING = threading.Lock()


def empty_transformer(
    paths: CheckpointPaths, base: NetworkPart, adapter: NetworkPart
) -> InfiniteTalkTransformer3DModel:
    """The transformer on the meta device, checked against its files.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    with torch.device("meta"):
        transformer = InfiniteTalkTransformer3DModel(**transformer_config(paths, base, adapter))
    config = transformer.config
    transformer.rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
    shapes = parameter_shapes(transformer)
    check_match({name: shape for name, shape in shapes.items() if not is_adapter_name(name)}, base.sources, base.label)
    check_adapter(shapes, adapter)
    return transformer.eval().requires_grad_(False)


def check_adapter(shapes: Mapping[str, tuple[int, ...]], adapter: NetworkPart) -> None:
    """Checks an adapter against the transformer's parameters.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    own = {name: shape for name, shape in shapes.items() if is_adapter_name(name)}
    check_match(own, adapter.sources, adapter.label)


def load_transformer_parameters(
    transformer: InfiniteTalkTransformer3DModel,
    sources: Mapping[str, TensorSource],
    device: torch.device,
    dtype: torch.dtype,
    quantisation: Quantisation | None,
    home: torch.device | None = None,
) -> None:
    """Sets parameters of the transformer: all of them, or an adapter's. Norms, modulation and time embedding become
    float32. `device` and `home` are as in `load_parameters`."""
    load_parameters(
        transformer,
        sources,
        device,
        dtype,
        float32_modules=transformer._keep_in_fp32_modules,
        quantise=quantisation,
        keep_quantised=quantisation is not None,
        home=home,
    )


def empty_text_encoder(paths: CheckpointPaths, part: NetworkPart) -> UMT5EncoderModel:
    """UMT5 on the meta device, checked against its files.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    config = UMT5Config(**text_encoder_config(paths, part))
    with _MAKING, torch.device("meta"):
        text_encoder = UMT5EncoderModel(config)
    check_match(parameter_shapes(text_encoder), part.sources, part.label)
    return text_encoder


def text_encoder_form(paths: CheckpointPaths, quantisation: Quantisation | None) -> tuple[Path | None, bool]:
    """Identifies the result of `load_text_encoder` as far as the mode affects it: equal forms compute equal numbers.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    part = text_encoder_part(paths, quantisation)
    is_stored_quantised = any(source.quantisation is not None for source in part.sources.values())
    return paths.quantised_text_encoder(quantisation), is_stored_quantised and quantisation is not None


def load_text_encoder(
    paths: CheckpointPaths,
    device: torch.device,
    dtype: torch.dtype,
    quantisation: Quantisation | None = None,
    home: torch.device | None = None,
) -> UMT5EncoderModel:
    """UMT5, quantised only if the files are; `device` and `home` are as in `load_parameters`.

    Raises:
        CheckpointError: a file is missing or damaged; a tensor is missing, left over or misshapen.
    """
    part = text_encoder_part(paths, quantisation)
    text_encoder = empty_text_encoder(paths, part)
    _fill(text_encoder, part, device, dtype, keep_quantised=quantisation is not None, home=home)
    with _MAKING:
        text_encoder.tie_weights()
    return text_encoder


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The text encoder's tokenizer.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    folder = tokenizer_folder(base)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder.relative_to(base)} in {base.name}")
    try:
        return AutoTokenizer.from_pretrained(folder)
    # tokenizers and transformers raise arbitrary exceptions for damaged files.
    except Exception as error:
        raise CheckpointError(f"the tokenizer in {folder.name} cannot be read; fetch it again") from error


def empty_image_encoder(base: Path, part: NetworkPart) -> CLIPVisionModel:
    """The vision tower of CLIP on the meta device, checked against its files.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    config = CLIPVisionConfig(**image_encoder_config(base, part))
    with _MAKING, torch.device("meta"):
        image_encoder = CLIPVisionModel(config)
    check_match(parameter_shapes(image_encoder), part.sources, part.label)
    return image_encoder


def load_image_encoder(base: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> CLIPVisionModel:
    """The vision tower of CLIP.

    Raises:
        CheckpointError: a file is missing or damaged; a tensor is missing, left over or misshapen.
    """
    part = image_encoder_part(base)
    image_encoder = empty_image_encoder(base, part)
    _fill(image_encoder, part, device, dtype)
    num_positions = part.sources["embeddings.position_embedding.weight"].shape[0]
    image_encoder.get_submodule("embeddings").position_ids = torch.arange(num_positions, device=device)[None]
    return image_encoder


def empty_vae(base: Path, part: NetworkPart) -> AutoencoderKLWan:
    """The VAE on the meta device, checked against its files.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    with torch.device("meta"):
        vae = AutoencoderKLWan(**vae_config(base, part))
    check_match(parameter_shapes(vae), part.sources, part.label)
    return vae


def load_vae(base: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """The VAE.

    Raises:
        CheckpointError: a file is missing or damaged; a tensor is missing, left over or misshapen.
    """
    part = vae_part(base)
    vae = empty_vae(base, part)
    _fill(vae, part, device, dtype)
    # A CPU gains nothing by them: decoding takes as long, encoding longer.
    if device.type == "cuda":
        make_lean(vae)
    return vae


def _fill(
    module: nn.Module,
    part: NetworkPart,
    device: torch.device,
    dtype: torch.dtype,
    keep_quantised: bool = False,
    home: torch.device | None = None,
) -> None:
    load_parameters(module, part.sources, device, dtype, keep_quantised=keep_quantised, home=home)
    module.eval().requires_grad_(False)


def load_audio_encoder(folder: Path, device: torch.device) -> tuple[Wav2Vec2Model, Wav2Vec2FeatureExtractor]:
    """wav2vec2, from `model.safetensors` or `pytorch_model.bin`; transformers reads its 0.4 GB.

    Raises:
        CheckpointError: a file is missing or damaged; a tensor is missing, left over or misshapen.
    """
    weights = folder / "model.safetensors"
    if not weights.exists():
        weights = folder / "pytorch_model.bin"
    open_file(weights)
    try:
        with _MAKING:
            loaded: Any = Wav2Vec2Model.from_pretrained(
                folder, attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True
            )
        feature_extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{weights.name} or a JSON file beside it does not fit Wav2Vec2Model") from error
    model, found = loaded
    left_over = [name for name in found["unexpected_keys"] if not name.startswith(_WAV2VEC2_PRETRAINING)]
    for problem, names in (("lacks", found["missing_keys"]), ("holds the unknown", left_over)):
        for name in sorted(names):
            raise CheckpointError(f"{weights.name} {problem} tensor {name}; fetch it again")
    return model.to(device).eval().requires_grad_(False), feature_extractor

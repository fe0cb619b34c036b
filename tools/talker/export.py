"""Exports the trained networks as a checkpoint in the published layout, in float16, and loads each for the training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel, Wav2Vec2FeatureExtractor

from infinitetalk.embedded.tiny import FLASHTALK_FILE, _text_encoder, _tokenizer
from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.weights.layouts import DESCRIPTION_FILE
from infinitetalk.weights.lora_files import BLOCK_LAYERS, OUTER_LAYERS
from infinitetalk.weights.names import is_adapter_name
from tools.talker.networks import (
    HALF_PATCH,
    NAME,
    PATCH,
    SIZE_SCALE,
    make_image_encoder,
    make_speech_encoder,
    make_transformer,
    make_vae,
)

#: Seed of the untrained networks: the text encoder and CLIP.
FROZEN_SEED = 2508

T = TypeVar("T", UMT5EncoderModel, CLIPVisionModel)


def load_half_vae(folder: Path) -> AutoencoderKLWan:
    """The trained VAE of half size, with the statistics of its latents in its config if they have been measured."""
    return _load_vae(folder, torch.load(folder / "chunks.pt")["average"], HALF_PATCH)


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE with the sharpened decoder: the mean of the weights before and after the training on edges. Those after
    it draw the sharpest edges, but dotted ones."""
    soft, sharp = (torch.load(folder / name)["average"] for name in ("sharp_chunks.pt", "sharp.pt"))
    return _load_vae(folder, {name: (tensor + sharp[name]) / 2 for name, tensor in soft.items()}, PATCH)


def _load_vae(folder: Path, tensors: dict[str, Tensor], patch: int) -> AutoencoderKLWan:
    vae = make_vae(patch)
    vae.load_state_dict(tensors)
    statistics = folder / "latents.json"
    if statistics.exists():
        vae.register_to_config(**json.loads(statistics.read_text()))
    return vae.half().float().eval().requires_grad_(False)


def load_speech_encoder(folder: Path) -> SpeechEncoder:
    """The trained wav2vec2."""
    model = make_speech_encoder()
    average = torch.load(folder / "speech.pt")["average"]
    prefix = "encoder."
    model.load_state_dict({name.removeprefix(prefix): t for name, t in average.items() if name.startswith(prefix)})
    return SpeechEncoder(model.half().float(), Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE))


def load_image_encoder() -> ImageEncoder:
    """CLIP with random weights."""
    return ImageEncoder(_frozen_image_encoder())


def export(folder: Path, output: Path) -> None:
    """Write the checkpoint of the networks trained in `folder`."""
    output.mkdir(parents=True, exist_ok=True)
    transformer = make_transformer()
    tensors = torch.load(folder / "silence.pt")["average"]
    transformer.load_state_dict(tensors)
    adapter = {name: tensors.pop(name).half() for name in list(tensors) if is_adapter_name(name)}
    (output / "infinitetalk").mkdir(exist_ok=True)
    for kind in ("single", "multi"):
        save_file(adapter, output / "infinitetalk" / f"{kind}.safetensors")
    config = {name: transformer.config[name] for name in BASE_CONFIG}
    base = WanTransformer3DModel(**config)
    base.load_state_dict(tensors)
    base.half().save_pretrained(output / "transformer")
    load_vae(folder).half().save_pretrained(output / "vae")
    _tokenizer().save_pretrained(output / "tokenizer")
    _frozen_text_encoder().half().save_pretrained(output / "text_encoder")
    _frozen_image_encoder().half().save_pretrained(output / "image_encoder")
    speech_encoder = load_speech_encoder(folder)
    speech_encoder.model.half().save_pretrained(output / "wav2vec2")
    speech_encoder.feature_extractor.save_pretrained(output / "wav2vec2")
    (output / DESCRIPTION_FILE).write_text(json.dumps({"name": NAME, "size_scale": SIZE_SCALE}) + "\n")


def export_flashtalk(folder: Path, output: Path) -> None:
    """Write the distilled transformer in FlashTalk's published layout: one file with the original names, for base and
    adapter, and a `config.json`. Its other networks are those of the guided talker."""
    output.mkdir(parents=True, exist_ok=True)
    tensors = torch.load(folder / "flashtalk.pt")["average"]
    transformer = make_transformer()
    transformer.load_state_dict(tensors)
    config = transformer.config
    names = original_names(config["num_layers"])
    stored = {
        name if is_adapter_name(name) else names[name]: tensor.half().contiguous() for name, tensor in tensors.items()
    }
    save_file(stored, output / FLASHTALK_FILE)
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    described = {
        "model_type": "i2v",
        "dim": dim,
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "text_len": 512,
        "eps": config["eps"],
    }
    (output / "config.json").write_text(json.dumps(described, indent=2) + "\n")


#: Norms of the original release's base model outside its blocks, and parameters of a block beside its layers.
_OUTER_NORMS = ("img_emb.proj.0", "img_emb.proj.4")
_BLOCK_OTHERS = (
    *(f"{part}.norm_{name}.weight" for part in ("self_attn", "cross_attn") for name in "qk"),
    "cross_attn.norm_k_img.weight",
    "modulation",
)


def original_names(num_layers: int) -> dict[str, str]:
    """Our transformer's parameters of the base model -> their names in the original release."""
    outer = [f"{layer}.{leaf}" for layer in (*OUTER_LAYERS, *_OUTER_NORMS) for leaf in ("weight", "bias")]
    block = [f"{layer}.{leaf}" for layer in BLOCK_LAYERS for leaf in ("weight", "bias")] + [*_BLOCK_OTHERS]
    names = [*outer, "head.modulation", *(f"blocks.{index}.{name}" for index in range(num_layers) for name in block)]
    return convert_wan_transformer_to_diffusers({name: name for name in names})


#: Fields of the transformer's config that describe the base model.
BASE_CONFIG = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "image_dim",
    "added_kv_proj_dim",
)


def _frozen_text_encoder() -> UMT5EncoderModel:
    return _frozen(_text_encoder)


def _frozen_image_encoder() -> CLIPVisionModel:
    return _frozen(make_image_encoder)


def _frozen(make: Callable[[], T]) -> T:
    """A network with its initial weights, rounded to float16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FROZEN_SEED)
        return make().half().float().eval()

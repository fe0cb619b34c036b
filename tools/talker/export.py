"""Exports the trained networks as a checkpoint in the published layout, in float16, and loads each for the training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import CLIPVisionModel, UMT5EncoderModel, Wav2Vec2FeatureExtractor

from infinitetalk.embedded.tiny import _text_encoder, _tokenizer
from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.network.transformer import ADAPTER_PATTERNS
from infinitetalk.weights.layouts import DESCRIPTION_FILE
from tools.talker.networks import (
    NAME,
    SIZE_SCALE,
    make_image_encoder,
    make_speech_encoder,
    make_transformer,
    make_vae,
)

#: Seed of the untrained networks: the text encoder and CLIP.
FROZEN_SEED = 2508

T = TypeVar("T", UMT5EncoderModel, CLIPVisionModel)


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The trained VAE, with the statistics of its latents in its config if they have been measured."""
    vae = make_vae()
    vae.load_state_dict(torch.load(folder / "chunks.pt")["average"])
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
    adapter = {name: tensors.pop(name).half() for name in list(tensors) if any(p in name for p in ADAPTER_PATTERNS)}
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

"""Small checkpoints in every published layout, with the true file names and tensor names.

Weights follow a formula of their name, that of the reference vectors: a network filled with them can be held against
what the published code computed.
"""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from optimum.quanto import freeze, qfloat8, qint8, quantization_map, quantize
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor

from infinitetalk.embedded.tiny import SIZE_SCALE, SPEECH_DIM, _speech_encoder, _tokenizer
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.runtime.models import TransformerLoader
from infinitetalk.weights.layouts import (
    DESCRIPTION_FILE,
    IMAGE_ENCODER_FILE,
    TEXT_ENCODER_FILE,
    VAE_FILE,
    AdapterKind,
    CheckpointPaths,
)
from infinitetalk.weights.loading import Quantisation

Tensors = dict[str, Tensor]

DIM, FFN_DIM, LAYERS, HEADS = 128, 256, 2, 4
TEXT_DIM, IMAGE_DIM, FREQ_DIM = 64, 1280, 64
AUDIO_LAYERS, AUDIO_CHANNELS, AUDIO_TOKENS, AUDIO_DIM, AUDIO_HIDDEN = 12, 768, 8, 64, 16

TRANSFORMER_CONFIG = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": DIM,
    "eps": 1e-06,
    "ffn_dim": FFN_DIM,
    "freq_dim": FREQ_DIM,
    "in_dim": 36,
    "model_type": "i2v",
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "out_dim": 16,
    "text_len": 512,
}

#: Names in the original transformer outside its blocks, those in diffusers, and shapes.
OUTER = {
    "patch_embedding.weight": ("patch_embedding.weight", (DIM, 36, 1, 2, 2)),
    "patch_embedding.bias": ("patch_embedding.bias", (DIM,)),
    "text_embedding.0.weight": ("condition_embedder.text_embedder.linear_1.weight", (DIM, TEXT_DIM)),
    "text_embedding.0.bias": ("condition_embedder.text_embedder.linear_1.bias", (DIM,)),
    "text_embedding.2.weight": ("condition_embedder.text_embedder.linear_2.weight", (DIM, DIM)),
    "text_embedding.2.bias": ("condition_embedder.text_embedder.linear_2.bias", (DIM,)),
    "time_embedding.0.weight": ("condition_embedder.time_embedder.linear_1.weight", (DIM, FREQ_DIM)),
    "time_embedding.0.bias": ("condition_embedder.time_embedder.linear_1.bias", (DIM,)),
    "time_embedding.2.weight": ("condition_embedder.time_embedder.linear_2.weight", (DIM, DIM)),
    "time_embedding.2.bias": ("condition_embedder.time_embedder.linear_2.bias", (DIM,)),
    "time_projection.1.weight": ("condition_embedder.time_proj.weight", (6 * DIM, DIM)),
    "time_projection.1.bias": ("condition_embedder.time_proj.bias", (6 * DIM,)),
    "img_emb.proj.0.weight": ("condition_embedder.image_embedder.norm1.weight", (IMAGE_DIM,)),
    "img_emb.proj.0.bias": ("condition_embedder.image_embedder.norm1.bias", (IMAGE_DIM,)),
    "img_emb.proj.1.weight": ("condition_embedder.image_embedder.ff.net.0.proj.weight", (IMAGE_DIM, IMAGE_DIM)),
    "img_emb.proj.1.bias": ("condition_embedder.image_embedder.ff.net.0.proj.bias", (IMAGE_DIM,)),
    "img_emb.proj.3.weight": ("condition_embedder.image_embedder.ff.net.2.weight", (DIM, IMAGE_DIM)),
    "img_emb.proj.3.bias": ("condition_embedder.image_embedder.ff.net.2.bias", (DIM,)),
    "img_emb.proj.4.weight": ("condition_embedder.image_embedder.norm2.weight", (DIM,)),
    "img_emb.proj.4.bias": ("condition_embedder.image_embedder.norm2.bias", (DIM,)),
    "head.modulation": ("scale_shift_table", (1, 2, DIM)),
    "head.head.weight": ("proj_out.weight", (64, DIM)),
    "head.head.bias": ("proj_out.bias", (64,)),
}
#: The same inside a block.
BLOCK = {
    "modulation": ("scale_shift_table", (1, 6, DIM)),
    "norm3.weight": ("norm2.weight", (DIM,)),
    "norm3.bias": ("norm2.bias", (DIM,)),
    "ffn.0.weight": ("ffn.net.0.proj.weight", (FFN_DIM, DIM)),
    "ffn.0.bias": ("ffn.net.0.proj.bias", (FFN_DIM,)),
    "ffn.2.weight": ("ffn.net.2.weight", (DIM, FFN_DIM)),
    "ffn.2.bias": ("ffn.net.2.bias", (DIM,)),
    "self_attn.norm_q.weight": ("attn1.norm_q.weight", (DIM,)),
    "self_attn.norm_k.weight": ("attn1.norm_k.weight", (DIM,)),
    "cross_attn.norm_q.weight": ("attn2.norm_q.weight", (DIM,)),
    "cross_attn.norm_k.weight": ("attn2.norm_k.weight", (DIM,)),
    "cross_attn.norm_k_img.weight": ("attn2.norm_added_k.weight", (DIM,)),
    **{
        f"{original}.{leaf}": (f"{ours}.{leaf}", (DIM, DIM) if leaf == "weight" else (DIM,))
        for leaf in ("weight", "bias")
        for original, ours in {
            "self_attn.q": "attn1.to_q",
            "self_attn.k": "attn1.to_k",
            "self_attn.v": "attn1.to_v",
            "self_attn.o": "attn1.to_out.0",
            "cross_attn.q": "attn2.to_q",
            "cross_attn.k": "attn2.to_k",
            "cross_attn.v": "attn2.to_v",
            "cross_attn.o": "attn2.to_out.0",
            "cross_attn.k_img": "attn2.add_k_proj",
            "cross_attn.v_img": "attn2.add_v_proj",
        }.items()
    },
}
ADAPTER_OUTER = {
    "audio_proj.proj1.weight": (AUDIO_HIDDEN, 5 * AUDIO_LAYERS * AUDIO_CHANNELS),
    "audio_proj.proj1.bias": (AUDIO_HIDDEN,),
    "audio_proj.proj1_vf.weight": (AUDIO_HIDDEN, 8 * AUDIO_LAYERS * AUDIO_CHANNELS),
    "audio_proj.proj1_vf.bias": (AUDIO_HIDDEN,),
    "audio_proj.proj2.weight": (AUDIO_HIDDEN, AUDIO_HIDDEN),
    "audio_proj.proj2.bias": (AUDIO_HIDDEN,),
    "audio_proj.proj3.weight": (AUDIO_TOKENS * AUDIO_DIM, AUDIO_HIDDEN),
    "audio_proj.proj3.bias": (AUDIO_TOKENS * AUDIO_DIM,),
    "audio_proj.norm.weight": (AUDIO_DIM,),
    "audio_proj.norm.bias": (AUDIO_DIM,),
}
ADAPTER_BLOCK = {
    "audio_cross_attn.q_linear.weight": (DIM, DIM),
    "audio_cross_attn.q_linear.bias": (DIM,),
    "audio_cross_attn.proj.weight": (DIM, DIM),
    "audio_cross_attn.proj.bias": (DIM,),
    "audio_cross_attn.kv_linear.weight": (2 * DIM, AUDIO_DIM),
    "audio_cross_attn.kv_linear.bias": (2 * DIM,),
    "norm_x.weight": (DIM,),
    "norm_x.bias": (DIM,),
}


def formula_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight of a name and shape, float32: the formula of the reference vectors."""
    numbers = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    scale, mean = 1 / math.sqrt(math.prod(shape[1:])), 0.0
    if name.endswith(".bias"):
        scale, mean = 0.02, 0.0
    elif name.endswith("modulation"):
        scale, mean = 0.1, 0.0
    elif name.endswith((".gamma", ".weight_g")) or (name.endswith(".weight") and len(shape) == 1):
        scale, mean = 0.1, 1.0
    return torch.from_numpy(numbers * np.float32(scale) + np.float32(mean))


def _transformer_names() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for original, (ours, shape) in OUTER.items():
        yield original, ours, shape
    for layer in range(LAYERS):
        for original, (ours, shape) in BLOCK.items():
            yield f"blocks.{layer}.{original}", f"blocks.{layer}.{ours}", shape


def base_tensors() -> Tensors:
    """The base transformer under its original names."""
    return {original: formula_weight(original, shape) for original, _, shape in _transformer_names()}


def adapter_tensors(kind: str = "single") -> Tensors:
    """An adapter; that for several speakers differs from the one for a single speaker by half."""
    shapes = ADAPTER_OUTER | {
        f"blocks.{i}.{name}": shape for i in range(LAYERS) for name, shape in ADAPTER_BLOCK.items()
    }
    factor = 1.0 if kind == "single" else 1.5
    return {name: formula_weight(name, shape) * factor for name, shape in shapes.items()}


def diffusers_names(tensors: Tensors) -> Tensors:
    """Tensors of the original transformer under the names in diffusers; others keep theirs."""
    renamed = {original: ours for original, ours, _ in _transformer_names()}
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def load_transformer(
    paths: CheckpointPaths,
    adapter: AdapterKind = "single",
    dtype: torch.dtype = torch.float32,
    quantisation: Quantisation | None = None,
) -> InfiniteTalkTransformer3DModel:
    """A checkpoint's transformer, as a job gets it, on the CPU."""
    choice = NetworkChoice(dtype, MemoryMode(quantisation), adapter)
    return TransformerLoader(paths, torch.device("cpu")).load(choice)


def plain_transformer(tensors: Tensors | None = None) -> InfiniteTalkTransformer3DModel:
    """The transformer in float32, built in memory and filled by `load_state_dict`: the plainest way there is.

    Args:
        tensors: under their original names; the formula's for a single speaker where None.
    """
    transformer = InfiniteTalkTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=DIM // HEADS,
        text_dim=TEXT_DIM,
        freq_dim=FREQ_DIM,
        ffn_dim=FFN_DIM,
        num_layers=LAYERS,
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=DIM,
        audio_layers=AUDIO_LAYERS,
        audio_channels=AUDIO_CHANNELS,
        audio_intermediate_dim=AUDIO_HIDDEN,
        audio_output_dim=AUDIO_DIM,
        audio_context_tokens=AUDIO_TOKENS,
    )
    transformer.load_state_dict(diffusers_names(tensors or {**base_tensors(), **adapter_tensors()}))
    return transformer.eval()


def transformer_inputs(dtype: torch.dtype = torch.float32) -> Tensors:
    """One evaluation's inputs: 5 video frames of 32x32 pixels, one speaker."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "hidden_states": (1, 36, 2, 4, 4),
        "encoder_hidden_states": (1, 6, TEXT_DIM),
        "encoder_hidden_states_image": (1, 5, IMAGE_DIM),
        "encoder_hidden_states_audio": (1, 5, 5, AUDIO_LAYERS, AUDIO_CHANNELS),
    }
    inputs = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return inputs | {"timestep": torch.tensor([500.0])}


@torch.no_grad()
def evaluate(transformer: InfiniteTalkTransformer3DModel, dtype: torch.dtype = torch.float32) -> Tensor:
    """One forward pass."""
    return transformer(**transformer_inputs(dtype)).sample


# Base model, original layout.


def save_original_base(folder: Path, dtype: torch.dtype = torch.float32, tensors: Tensors | None = None) -> Path:
    """Wan 2.1 I2V as first published: shards with an index, three pickles, a tokenizer.

    Args:
        tensors: the transformer's; the formula's where None.
    """
    save_original_transformer(folder, tensors or base_tensors(), dtype)
    torch.save({name: tensor.bfloat16() for name, tensor in text_encoder_tensors().items()}, folder / TEXT_ENCODER_FILE)
    torch.save({name: tensor.half() for name, tensor in clip_tensors().items()}, folder / IMAGE_ENCODER_FILE)
    torch.save(vae_tensors(), folder / VAE_FILE)
    _tokenizer().save_pretrained(folder / "google" / "umt5-xxl")
    return folder


def save_original_transformer(
    folder: Path, tensors: Tensors, dtype: torch.dtype = torch.float32, shards: int = 7
) -> None:
    """`config.json` and the transformer at the root of an original folder, in one file or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TRANSFORMER_CONFIG))
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    else:
        save_original_shards(folder, tensors, shards)


def save_original_shards(folder: Path, tensors: Tensors, shards: int = 7) -> None:
    """`diffusion_pytorch_model-0000N-of-00007.safetensors` with their index."""
    weight_map = {}
    names = list(tensors)
    for index in range(shards):
        file = f"diffusion_pytorch_model-{index + 1:05}-of-{shards:05}.safetensors"
        part = names[index::shards]
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def save_adapters(folder: Path, dtype: torch.dtype = torch.float32, tensors: Tensors | None = None) -> Path:
    """`single/infinitetalk.safetensors` and `multi/infinitetalk.safetensors`.

    Args:
        tensors: of both; the formula's, different for each, where None.
    """
    for kind, file in adapter_files(folder).items():
        file.parent.mkdir(parents=True)
        save_file({name: tensor.to(dtype) for name, tensor in (tensors or adapter_tensors(kind)).items()}, file)
    return folder


def adapter_files(folder: Path) -> dict[AdapterKind, Path]:
    """The files of `save_adapters`."""
    return {kind: folder / kind / "infinitetalk.safetensors" for kind in ("single", "multi")}


# Checkpoints that make videos: the transformer fits the encoders here.


def served_tensors(tensors: Tensors, factor: float = 1.0) -> Tensors:
    """A transformer's tensors by the formula, in the sizes of the image encoder here and the tiny speech encoder."""
    sizes = {IMAGE_DIM: CLIP_DIM}
    sizes |= {rows * AUDIO_LAYERS * AUDIO_CHANNELS: rows * AUDIO_LAYERS * SPEECH_DIM for rows in (5, 8)}
    shapes = {name: tuple(sizes.get(length, length) for length in tensor.shape) for name, tensor in tensors.items()}
    return {name: factor * formula_weight(name, shape) for name, shape in shapes.items()}


def describe_as_small(base: Path) -> None:
    """Makes the videos of an original folder as small as the tiny model's."""
    (base / DESCRIPTION_FILE).write_text(json.dumps({"name": f"small-{base.name}", "size_scale": SIZE_SCALE}))


def save_served_infinitetalk(folder: Path) -> tuple[Path, Path]:
    """A base model and adapters that make small videos; returns their folders."""
    base = save_original_base(folder / "wan", tensors=served_tensors(base_tensors()))
    describe_as_small(base)
    return base, save_adapters(folder / "adapters", tensors=served_tensors(adapter_tensors()))


def save_served_flashtalk(folder: Path, dtype: torch.dtype = torch.float32, shards: int = 3) -> Path:
    """FlashTalk's published folder, which makes small videos."""
    save_flashtalk(folder, dtype, shards, served_tensors(flashtalk_tensors(), 0.9))
    describe_as_small(folder)
    return folder


# FlashTalk: the original layout, with the adapter among the base model's tensors.


def flashtalk_tensors() -> Tensors:
    """FlashTalk's transformer under its published names: InfiniteTalk's, trained on."""
    return {name: 0.9 * tensor for name, tensor in {**base_tensors(), **adapter_tensors()}.items()}


def save_flashtalk(
    folder: Path, dtype: torch.dtype = torch.float32, shards: int = 3, tensors: Tensors | None = None
) -> Path:
    """SoulX-FlashTalk-14B as published, in one file or in shards with an index, with Wan's encoders beside them."""
    save_original_base(folder)
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    save_original_transformer(folder, tensors or flashtalk_tensors(), dtype, shards)
    return folder


TEXT_VOCABULARY, TEXT_FFN, TEXT_HEADS, TEXT_LAYERS = 512, 128, 4, 2


def text_encoder_tensors() -> Tensors:
    """The original UMT5 encoder."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (TEXT_VOCABULARY, TEXT_DIM),
        "norm.weight": (TEXT_DIM,),
    }
    for layer in range(TEXT_LAYERS):
        prefix = f"blocks.{layer}."
        shapes |= {f"{prefix}attn.{name}.weight": (TEXT_DIM, TEXT_DIM) for name in "qkvo"}
        shapes |= {f"{prefix}norm{index}.weight": (TEXT_DIM,) for index in (1, 2)}
        shapes |= {f"{prefix}ffn.{name}.weight": (TEXT_FFN, TEXT_DIM) for name in ("gate.0", "fc1")}
        shapes[f"{prefix}ffn.fc2.weight"] = (TEXT_DIM, TEXT_FFN)
        shapes[f"{prefix}pos_embedding.embedding.weight"] = (32, TEXT_HEADS)
    return {name: formula_weight(name, shape) for name, shape in shapes.items()}


CLIP_DIM, CLIP_HEADS, CLIP_LAYERS, CLIP_PATCH, CLIP_SIDE = 64, 16, 3, 14, 28


def clip_tensors() -> Tensors:
    """The original CLIP: all of the vision tower, and some of the text tower, which is not used."""
    positions = (CLIP_SIDE // CLIP_PATCH) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "log_scale": (1,),
        "visual.cls_embedding": (1, 1, CLIP_DIM),
        "visual.pos_embedding": (1, positions, CLIP_DIM),
        "visual.head": (CLIP_DIM, 32),
        "visual.patch_embedding.weight": (CLIP_DIM, 3, CLIP_PATCH, CLIP_PATCH),
        "visual.pre_norm.weight": (CLIP_DIM,),
        "visual.pre_norm.bias": (CLIP_DIM,),
        "visual.post_norm.weight": (CLIP_DIM,),
        "visual.post_norm.bias": (CLIP_DIM,),
        "textual.token_embedding.weight": (16, CLIP_DIM),
    }
    for layer in range(CLIP_LAYERS):
        prefix = f"visual.transformer.{layer}."
        for name, rows, columns in (
            ("attn.to_qkv", 3 * CLIP_DIM, CLIP_DIM),
            ("attn.proj", CLIP_DIM, CLIP_DIM),
            ("mlp.0", 4 * CLIP_DIM, CLIP_DIM),
            ("mlp.2", CLIP_DIM, 4 * CLIP_DIM),
        ):
            shapes |= {f"{prefix}{name}.weight": (rows, columns), f"{prefix}{name}.bias": (rows,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{prefix}{norm}.weight": (CLIP_DIM,), f"{prefix}{norm}.bias": (CLIP_DIM,)}
    return {name: formula_weight(name, shape) for name, shape in shapes.items()}


def vae_tensors() -> Tensors:
    """The original VAE: `dim` 8, two residual blocks a level, as the published one has."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, rows: int, columns: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns, *kernel)
        shapes[f"{name}.bias"] = (rows,)

    def residual(name: str, columns: int, rows: int) -> None:
        shapes[f"{name}.residual.0.gamma"] = (columns, 1, 1, 1)
        convolution(f"{name}.residual.2", rows, columns, 3, 3, 3)
        shapes[f"{name}.residual.3.gamma"] = (rows, 1, 1, 1)
        convolution(f"{name}.residual.6", rows, rows, 3, 3, 3)
        if rows != columns:
            convolution(f"{name}.shortcut", rows, columns, 1, 1, 1)

    def middle(name: str, dim: int) -> None:
        residual(f"{name}.0", dim, dim)
        shapes[f"{name}.1.norm.gamma"] = (dim, 1, 1)
        convolution(f"{name}.1.to_qkv", 3 * dim, dim, 1, 1)
        convolution(f"{name}.1.proj", dim, dim, 1, 1)
        residual(f"{name}.2", dim, dim)

    convolution("encoder.conv1", 8, 3, 3, 3, 3)
    index = 0
    for level, (columns, rows) in enumerate(((8, 8), (8, 16), (16, 32), (32, 32))):
        for block_columns in (columns, rows):
            residual(f"encoder.downsamples.{index}", block_columns, rows)
            index += 1
        if level < 3:
            convolution(f"encoder.downsamples.{index}.resample.1", rows, rows, 3, 3)
            if level > 0:
                convolution(f"encoder.downsamples.{index}.time_conv", rows, rows, 3, 1, 1)
            index += 1
    middle("encoder.middle", 32)
    shapes["encoder.head.0.gamma"] = (32, 1, 1, 1)
    convolution("encoder.head.2", 32, 32, 3, 3, 3)
    convolution("conv1", 32, 32, 1, 1, 1)
    convolution("conv2", 16, 16, 1, 1, 1)
    convolution("decoder.conv1", 32, 16, 3, 3, 3)
    middle("decoder.middle", 32)
    index = 0
    for level, (columns, rows) in enumerate(((32, 32), (16, 32), (16, 16), (8, 8))):
        for block_columns in (columns, rows, rows):
            residual(f"decoder.upsamples.{index}", block_columns, rows)
            index += 1
        if level < 3:
            convolution(f"decoder.upsamples.{index}.resample.1", rows // 2, rows, 3, 3)
            if level < 2:
                convolution(f"decoder.upsamples.{index}.time_conv", 2 * rows, rows, 3, 1, 1)
            index += 1
    shapes["decoder.head.0.gamma"] = (8, 1, 1, 1)
    convolution("decoder.head.2", 3, 8, 3, 3, 3)
    return {name: formula_weight(name, shape) for name, shape in shapes.items()}


# Quantised files.


def save_quanto(path: Path, map_path: Path, tensors: Tensors, kind: str) -> Tensors:
    """A file as optimum-quanto writes it, with its map; returns the numbers that it stands for."""
    module = _linear_modules(tensors)
    quantize(module, weights={"int8": qint8, "fp8": qfloat8}[kind])
    freeze(module)
    stored: Tensors = dict(module.state_dict())
    quantised = {name: parameter for name, parameter in module.named_parameters() if name.endswith("weight")}
    others = {name: tensor for name, tensor in tensors.items() if name not in quantised and name not in stored}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**stored, **others}, path)
    map_path.write_text(json.dumps(quantization_map(module)))
    dequantised = {name: parameter.detach().dequantize() for name, parameter in quantised.items()}
    return tensors | dequantised


def _linear_modules(tensors: Tensors) -> nn.Module:
    """A tree of modules with a linear layer for each weight of two dimensions that is no embedding."""
    root = nn.Module()
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not name.endswith(".weight") or "embedding.weight" in name:
            continue
        path = name.removesuffix(".weight")
        linear = nn.Linear(tensor.shape[1], tensor.shape[0], bias=f"{path}.bias" in tensors)
        linear.weight = nn.Parameter(tensor)
        if linear.bias is not None:
            linear.bias = nn.Parameter(tensors[f"{path}.bias"])
        owner = root
        *parents, leaf = path.split(".")
        for parent in parents:
            if parent not in dict(owner.named_children()):
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        owner.add_module(leaf, linear)
    return root


def is_block_weight(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is the weight of a linear layer in a block: what people quantise."""
    return name.startswith("blocks.") and tensor.ndim == 2


def save_fp8(path: Path, tensors: Tensors, prefix: str = "") -> Tensors:
    """A file of plain fp8 e4m3fn; returns the numbers that it stands for."""
    stored = {
        name: tensor.to(torch.float8_e4m3fn) if is_block_weight(name, tensor) else tensor.bfloat16()
        for name, tensor in tensors.items()
    }
    save_file({prefix + name: tensor for name, tensor in stored.items()}, path)
    return {name: tensor.float() for name, tensor in stored.items()}


def save_scaled_fp8(path: Path, tensors: Tensors) -> Tensors:
    """A file of "scaled" fp8, one scale for each weight; returns the numbers that it stands for."""
    stored: Tensors = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    numbers: Tensors = {}
    for name, tensor in tensors.items():
        if not is_block_weight(name, tensor):
            stored[name] = tensor.half()
            numbers[name] = stored[name].float()
            continue
        scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[name.removesuffix("weight") + "scale_weight"] = scale
        numbers[name] = stored[name].float() * scale
    save_file(stored, path)
    return numbers


def save_gguf(path: Path, tensors: Tensors, four_bits: bool) -> Tensors:
    """A GGUF file, Q8_0 or a mixture of Q4_K, Q8_0 and plain numbers as Q4_K_M has; returns what it stands for.

    gguf cannot write Q4_K: those blocks are made of random bytes, with scales that keep the weights near 1/sqrt(256).
    """
    writer = gguf.GGUFWriter(path, "wan")
    numbers: Tensors = {}
    random = np.random.RandomState(0)
    for name, tensor in tensors.items():
        array = tensor.numpy()
        if not is_block_weight(name, tensor):
            writer.add_tensor(name, array)
            numbers[name] = tensor
            continue
        if four_bits and tensor.shape[1] % 256 == 0:
            kind = gguf.GGMLQuantizationType.Q4_K
            blocks = random.randint(0, 256, (tensor.shape[0], tensor.shape[1] // 256, 144)).astype(np.uint8)
            blocks[..., :4] = np.array([3e-4, 2e-3], np.float16).view(np.uint8)
            data = blocks.reshape(tensor.shape[0], -1)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        numbers[name] = torch.from_numpy(gguf.quants.dequantize(data, kind)).view(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


# Speech.


def save_speech_encoder(folder: Path) -> Path:
    """chinese-wav2vec2-base."""
    folder.mkdir(parents=True)
    save_pickled_wav2vec2(folder, _speech_encoder())
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    return folder


def save_pickled_wav2vec2(folder: Path, model: Any) -> None:
    """`pytorch_model.bin` of chinese-wav2vec2-base: `weight_g` and `weight_v`, and what pretraining left."""
    model.config.save_pretrained(folder)
    state_dict = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state_dict[f"wav2vec2.{name.replace('parametrizations.weight.original1', 'weight_v')}"] = tensor
    state_dict |= {"quantizer.codevectors": torch.zeros(1, 4, 2), "project_hid.weight": torch.zeros(2, 2)}
    torch.save(state_dict, folder / "pytorch_model.bin")

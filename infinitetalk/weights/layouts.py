"""Layouts of a checkpoint: the published folders, their file names and their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinitetalk.errors import CheckpointError
from infinitetalk.family import INFINITETALK, AdapterKind, Family
from infinitetalk.weights.files import is_tensor_file, open_file, open_shards, read_json
from infinitetalk.weights.loading import Quantisation
from infinitetalk.weights.names import (
    image_encoder_names,
    is_adapter_name,
    text_encoder_names,
    transformer_names,
    transformers_vision_names,
    vae_names,
)
from infinitetalk.weights.sources import TensorFiles, TensorSource, join_scales, merge

#: Files of the original Wan 2.1 I2V release.
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
IMAGE_ENCODER_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
#: File in the base model's folder with the name and scale of a checkpoint that is not the published one.
DESCRIPTION_FILE = "infinitetalk.json"

#: Heads of the original CLIP's vision tower; its file does not say.
IMAGE_ENCODER_HEADS = 16
#: optimum-quanto's names of the supported weight types.
_QUANTO_TYPES = ("qint8", "qfloat8", "qfloat8_e4m3fn")


@dataclass(frozen=True)
class CheckpointPaths:
    """Locations of a checkpoint's parts.

    Attributes:
        base: Wan 2.1 I2V, in the original or the Diffusers layout.
        adapters: files of the adapters for one and for several speakers; none if the adapter is in `base`.
        wav2vec2: the speech encoder's folder.
        transformer: a single file that replaces the transformer of `base`; if it also holds an adapter, that replaces
            the adapters' files.
        quantised: folder of the published quantised files, used if int8 or fp8 is asked for.
        loras: folders of LoRA files; of two of the same name, the first one counts.
        kokoro: folder of the text-to-speech model.
        kernels: folders of kernels that were fetched from the Hugging Face Hub.
        findings: folder of kernel choices and compiled blocks that came with the weights.
        family: the checkpoint's model family.
    """

    base: Path
    adapters: Mapping[AdapterKind, Path]
    wav2vec2: Path
    transformer: Path | None = None
    quantised: Path | None = None
    loras: tuple[Path, ...] = ()
    kokoro: Path | None = None
    kernels: tuple[Path, ...] = ()
    findings: Path | None = None
    family: Family = INFINITETALK

    def quantised_transformer(self, kind: AdapterKind, quantisation: Quantisation | None) -> Path | None:
        """The published quantised file with this adapter, or None."""
        return self._quantised_file(f"{self.family.name}_{kind}_{quantisation}.safetensors")

    def quantised_text_encoder(self, quantisation: Quantisation | None) -> Path | None:
        """The published quantised text encoder, or None."""
        return self._quantised_file(f"t5_{quantisation}.safetensors")

    def _quantised_file(self, name: str) -> Path | None:
        if self.quantised is None or not (self.quantised / name).exists():
            return None
        return self.quantised / name


def adapter_kind(num_speakers: int) -> AdapterKind:
    """The published adapter for this number of speakers."""
    return "single" if num_speakers == 1 else "multi"


def find_adapter(folder: Path, kind: AdapterKind) -> Path:
    """The adapter's file below INFINITETALK_DIR: `single/` and `multi/` hold one file each.

    Raises:
        CheckpointError: there are several.
    """
    files = [file for file in sorted((folder / kind).glob("*")) if is_tensor_file(file)]
    if len(files) > 1:
        raise CheckpointError(f"the folder {kind} holds {', '.join(file.name for file in files)}; leave one adapter")
    return files[0] if files else folder / kind / "infinitetalk.safetensors"


def is_diffusers(base: Path) -> bool:
    """Whether a base model has the Diffusers layout (otherwise, the original one)."""
    return (base / "transformer").is_dir()


def tensor_files(folder: Path) -> TensorFiles:
    """The safetensors files of a folder: those of its index, or the only one.

    Raises:
        CheckpointError: there is none, or several without an index; a file is damaged.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        return TensorFiles(index.name, tuple(open_shards(index)))
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(
            f"the folder {folder.name} needs one .safetensors file, or an index of several; it has {found}"
        )
    return single_file(files[0])


def single_file(path: Path) -> TensorFiles:
    """A part that is one file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return TensorFiles(path.name, (open_file(path),))


@dataclass(frozen=True)
class NetworkPart:
    """One part of a network and the files it comes from.

    Attributes:
        label: name of the files in messages.
        sources: the tensors, under the network's names.
    """

    label: str
    sources: Mapping[str, TensorSource]


def transformer_parts(
    paths: CheckpointPaths, kind: AdapterKind, quantisation: Quantisation | None
) -> tuple[NetworkPart, NetworkPart]:
    """The transformer's base model and adapter.

    Raises:
        CheckpointError: a file is missing or damaged, both hold the same tensor, or the checkpoint has no such adapter.
    """
    if kind not in paths.family.adapters:
        raise CheckpointError(f"{paths.family.model_name} has an adapter for one speaker only")
    whole = paths.quantised_transformer(kind, quantisation) or paths.transformer
    base_files = tensor_files(_transformer_folder(paths.base)) if whole is None else single_file(whole)
    stored = base_files.sources()
    if whole is not None:
        check_quanto_map(whole.with_suffix(".json"), stored)
    sources = join_scales(transformer_names(stored))
    base = NetworkPart(
        base_files.label, {name: source for name, source in sources.items() if not is_adapter_name(name)}
    )
    adapter = NetworkPart(base_files.label, {name: source for name, source in sources.items() if is_adapter_name(name)})
    if adapter.sources and paths.adapters and whole is None:
        raise CheckpointError(
            f"the folder {paths.base.name} holds an adapter among the base model's tensors, as SoulX-FlashTalk-14B "
            f"does; {paths.family.model_name} needs a base model without one: set FLASHTALK_DIR to this folder, and "
            "CKPT_DIR to Wan 2.1"
        )
    if not adapter.sources:
        if kind not in paths.adapters:
            raise CheckpointError(
                f"the folder {paths.base.name} holds no adapter among the base model's tensors, as "
                f"{paths.family.model_name} does: it may be Wan 2.1, which CKPT_DIR is for"
            )
        adapter = adapter_part(paths.adapters[kind])
    merge((base.sources, adapter.sources))
    return base, adapter


def adapter_part(path: Path) -> NetworkPart:
    """The adapter of one file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    files = single_file(path)
    return NetworkPart(files.label, join_scales(transformer_names(files.sources())))


def _transformer_folder(base: Path) -> Path:
    return base / "transformer" if is_diffusers(base) else base


def transformer_config(paths: CheckpointPaths, base_part: NetworkPart, adapter: NetworkPart) -> dict[str, Any]:
    """Arguments of our transformer's constructor: from `config.json`, and missing sizes from the tensors.

    Raises:
        CheckpointError: the model is not I2V, or a tensor that a size is read from is missing.
    """
    base, family = paths.base, paths.family
    config = read_json(_transformer_folder(base) / "config.json")
    sizes = _adapter_sizes(adapter, family)
    if is_diffusers(base):
        return {name: value for name, value in config.items() if not name.startswith("_")} | sizes
    if config["model_type"] != "i2v":
        raise CheckpointError(f"config.json says model_type {config['model_type']!r}; InfiniteTalk needs Wan 2.1 I2V")
    dim, num_heads = config["dim"], config["num_heads"]
    return {
        "num_attention_heads": num_heads,
        "attention_head_dim": dim // num_heads,
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "text_dim": _shape(base_part, "condition_embedder.text_embedder.linear_1.weight")[1],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "eps": config["eps"],
        "image_dim": _shape(base_part, "condition_embedder.image_embedder.norm1.weight")[0],
        "added_kv_proj_dim": dim,
        **sizes,
    }


def _adapter_sizes(adapter: NetworkPart, family: Family) -> dict[str, int]:
    intermediate_dim, first_dim = _shape(adapter, "audio_proj.proj1.weight")
    output_dim = _shape(adapter, "audio_proj.norm.weight")[0]
    return {
        # No file contains these two.
        "audio_window": family.audio_window,
        "audio_layers": family.audio_layers,
        "audio_channels": first_dim // (family.audio_window * family.audio_layers),
        "audio_intermediate_dim": intermediate_dim,
        "audio_output_dim": output_dim,
        "audio_context_tokens": _shape(adapter, "audio_proj.proj3.weight")[0] // output_dim,
    }


def _shape(part: NetworkPart, name: str) -> tuple[int, ...]:
    if name not in part.sources:
        raise CheckpointError(f"{part.label} lacks the tensor {name}; check that it is the right file")
    return part.sources[name].shape


def check_quanto_map(map_path: Path, stored: Mapping[str, TensorSource]) -> None:
    """Compares optimum-quanto's map of quantised modules with the tensors of its file.

    Raises:
        CheckpointError: the file needs a map and has none; the map names other modules, or an unsupported kind of
            quantisation.
    """
    held = {name.removesuffix(".weight._data") for name in stored if name.endswith(".weight._data")}
    if not held:
        return
    quantisation_map: dict[str, dict[str, str]] = read_json(map_path)
    listed = set()
    for module, kinds in quantisation_map.items():
        if kinds["activations"] != "none" or kinds["weights"] not in ("none", *_QUANTO_TYPES):
            raise CheckpointError(
                f"{map_path.name}: {module} has weights {kinds['weights']} and activations {kinds['activations']}; "
                "only weights in int8 or fp8 are served"
            )
        if kinds["weights"] != "none":
            listed.add(module)
    for module in sorted(held ^ listed):
        problem = "does not list" if module in held else "lists"
        raise CheckpointError(
            f"{map_path.name} {problem} {module} as quantised, unlike the tensors; fetch both files of one release"
        )


def text_encoder_part(paths: CheckpointPaths, quantisation: Quantisation | None) -> NetworkPart:
    """The text encoder under the names of `UMT5EncoderModel`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    whole = paths.quantised_text_encoder(quantisation)
    if whole is None and is_diffusers(paths.base):
        files = tensor_files(paths.base / "text_encoder")
        sources = files.sources()
        # transformers ties the two, and its versions differ in which one they save.
        tied = sources.pop("encoder.embed_tokens.weight", None)
        if tied is not None:
            sources.setdefault("shared.weight", tied)
        return NetworkPart(files.label, join_scales(sources))
    files = single_file(whole or paths.base / TEXT_ENCODER_FILE)
    stored = files.sources()
    if whole is not None:
        check_quanto_map(whole.with_name(whole.name.replace("t5_", "t5_map_")).with_suffix(".json"), stored)
    return NetworkPart(files.label, join_scales(text_encoder_names(stored)))


def text_encoder_config(paths: CheckpointPaths, part: NetworkPart) -> dict[str, Any]:
    """Arguments of `UMT5Config`: from `config.json` of the Diffusers layout, else from the tensors' shapes."""
    if is_diffusers(paths.base):
        return read_json(paths.base / "text_encoder" / "config.json")
    attention = "encoder.block.0.layer.0.SelfAttention"
    num_buckets, num_heads = _shape(part, f"{attention}.relative_attention_bias.weight")
    vocab_size, d_model = _shape(part, "shared.weight")
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": _shape(part, f"{attention}.q.weight")[0] // num_heads,
        "d_ff": _shape(part, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
        "num_layers": _num_layers(part, "encoder.block."),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
    }


def image_encoder_part(base: Path) -> NetworkPart:
    """The image encoder under the names of `CLIPVisionModel`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if is_diffusers(base):
        files = tensor_files(base / "image_encoder")
        return NetworkPart(files.label, transformers_vision_names(files.sources()))
    files = single_file(base / IMAGE_ENCODER_FILE)
    return NetworkPart(files.label, image_encoder_names(files.sources()))


def image_encoder_config(base: Path, part: NetworkPart) -> dict[str, Any]:
    """Arguments of `CLIPVisionConfig`: from `config.json` of the Diffusers layout, else from the tensors' shapes."""
    if is_diffusers(base):
        return read_json(base / "image_encoder" / "config.json")
    hidden_size, _, patch_size, _ = _shape(part, "embeddings.patch_embedding.weight")
    num_positions = _shape(part, "embeddings.position_embedding.weight")[0]
    return {
        "hidden_size": hidden_size,
        "intermediate_size": _shape(part, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _num_layers(part, "encoder.layers."),
        "num_attention_heads": IMAGE_ENCODER_HEADS,
        "patch_size": patch_size,
        "image_size": round((num_positions - 1) ** 0.5) * patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def _num_layers(part: NetworkPart, prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in part.sources if name.startswith(prefix))


def vae_part(base: Path) -> NetworkPart:
    """The VAE under the names of `AutoencoderKLWan`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if is_diffusers(base):
        files = tensor_files(base / "vae")
        return NetworkPart(files.label, files.sources())
    files = single_file(base / VAE_FILE)
    return NetworkPart(files.label, vae_names(files.sources()))


def vae_config(base: Path, part: NetworkPart) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan`: from `config.json` of the Diffusers layout, else from the tensors' shapes."""
    if is_diffusers(base):
        config = read_json(base / "vae" / "config.json")
        return {name: value for name, value in config.items() if not name.startswith("_")}
    return {"base_dim": _shape(part, "encoder.conv_in.weight")[0], "z_dim": _shape(part, "post_quant_conv.weight")[0]}


def tokenizer_folder(base: Path) -> Path:
    """Folder of the text encoder's tokenizer."""
    return base / "tokenizer" if is_diffusers(base) else base / TOKENIZER_FOLDER

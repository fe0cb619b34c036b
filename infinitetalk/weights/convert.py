"""Converts a checkpoint to a Diffusers folder that a cold start loads fastest.

It holds safetensors in the order of use and in their final dtype: nothing to unpickle, nothing to convert.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchao.quantization import Float8Tensor

from infinitetalk.errors import CheckpointError
from infinitetalk.family import AdapterKind
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.files import SAFETENSORS_DTYPES
from infinitetalk.weights.layouts import (
    DESCRIPTION_FILE,
    CheckpointPaths,
    NetworkPart,
    adapter_part,
    image_encoder_config,
    image_encoder_part,
    text_encoder_config,
    text_encoder_part,
    tokenizer_folder,
    transformer_config,
    transformer_parts,
    vae_config,
    vae_part,
)
from infinitetalk.weights.loading import parameter_shapes, quantised
from infinitetalk.weights.networks import (
    check_adapter,
    empty_image_encoder,
    empty_text_encoder,
    empty_transformer,
    empty_vae,
)
from infinitetalk.weights.sources import TensorSource

CPU = torch.device("cpu")
#: What a converted checkpoint consists of, in the order of use.
CONVERTED_FOLDERS = ("text_encoder", "tokenizer", "image_encoder", "vae", "transformer", "infinitetalk")
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
#: Prefixes of the transformer's parameters, in the order of use.
_ORDER_OF_USE = ("patch_embedding.", "condition_embedder.", "audio_proj.", "blocks.", "scale_shift_table", "proj_out.")


@dataclass(frozen=True)
class Entry:
    """A tensor to write; `make` returns it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, entries: Iterable[Entry]) -> None:
    """Writes tensors in the given order with one in memory at a time (safetensors' own function sorts and needs all).

    The file gets its name only when it is complete.
    """
    entries = list(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        offsets = [offset, offset + entry.num_bytes]
        header[entry.name] = {"dtype": _DTYPE_NAMES[entry.dtype], "shape": entry.shape, "data_offsets": offsets}
        offset += entry.num_bytes
    encoded = json.dumps(header).encode()
    # The first tensor starts at a multiple of 64 bytes, for vector instructions.
    encoded += b" " * (-(8 + len(encoded)) % 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for entry in entries:
            file.write(entry.make().contiguous().view(-1).view(torch.uint8).numpy().data)
    unfinished.rename(path)


def convert(
    paths: CheckpointPaths, folder: Path, fp8: bool = False, on_part: Callable[[str], None] = lambda part: None
) -> CheckpointPaths:
    """Writes a checkpoint into `folder`.

    Args:
        folder: must be empty or absent.
        fp8: whether the linear layers' weights in the transformer's blocks become e4m3 with a scale for each row.
        on_part: called with the name of each part before it is written.

    Returns:
        The locations of its parts.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor does not fit, or the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"the folder {folder.name} is not empty; give another")
    base, single = transformer_parts(paths, "single", None)
    transformer = empty_transformer(paths, base, single)
    adapters: dict[AdapterKind, NetworkPart] = {"single": single} if paths.adapters else {}
    for kind, file in paths.adapters.items():
        # The adapter for several speakers may be left out: only their jobs need it.
        if kind != "single" and file.exists():
            adapters[kind] = adapter_part(file)
            check_adapter(parameter_shapes(transformer), adapters[kind])
    converted = CheckpointPaths(
        base=folder,
        adapters={kind: folder / "infinitetalk" / kind / "infinitetalk.safetensors" for kind in adapters},
        wav2vec2=paths.wav2vec2,
        loras=paths.loras,
        kokoro=paths.kokoro,
        family=paths.family,
    )

    folder.mkdir(parents=True, exist_ok=True)
    if (description := paths.base / DESCRIPTION_FILE).exists():
        shutil.copyfile(description, folder / DESCRIPTION_FILE)
    on_part("text encoder")
    part = text_encoder_part(paths, None)
    order = parameter_shapes(empty_text_encoder(paths, part))
    config = {"architectures": ["UMT5EncoderModel"], **text_encoder_config(paths, part)}
    _write_config(folder / "text_encoder", config)
    write_safetensors(folder / "text_encoder" / "model.safetensors", _entries(part.sources, order, torch.bfloat16))
    shutil.copytree(tokenizer_folder(paths.base), folder / "tokenizer")

    on_part("image encoder")
    part = image_encoder_part(paths.base)
    order = parameter_shapes(empty_image_encoder(paths.base, part))
    config = {"architectures": ["CLIPVisionModel"], **image_encoder_config(paths.base, part)}
    _write_config(folder / "image_encoder", config)
    write_safetensors(folder / "image_encoder" / "model.safetensors", _entries(part.sources, order, torch.float32))

    on_part("VAE")
    part = vae_part(paths.base)
    order = parameter_shapes(empty_vae(paths.base, part))
    _write_config(folder / "vae", {"_class_name": "AutoencoderKLWan", **vae_config(paths.base, part)})
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    write_safetensors(file, _entries(part.sources, order, torch.float32))

    on_part("transformer")
    sizes = transformer_config(paths, base, single)
    base_sizes = {name: value for name, value in sizes.items() if not name.startswith("audio_")}
    _write_config(folder / "transformer", {"_class_name": "WanTransformer3DModel", **base_sizes})
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    sources = base.sources if adapters else {**base.sources, **single.sources}
    write_safetensors(file, _transformer_entries(transformer, sources, fp8))
    for kind, adapter in adapters.items():
        on_part(f"adapter {kind}")
        write_safetensors(converted.adapters[kind], _transformer_entries(transformer, adapter.sources, fp8))
    return converted


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _entries(sources: Mapping[str, TensorSource], order: Iterable[str], dtype: torch.dtype) -> Iterable[Entry]:
    for name in order:
        yield Entry(name, dtype, sources[name].shape, partial(sources[name].load, CPU, dtype))


def _transformer_entries(
    transformer: InfiniteTalkTransformer3DModel, sources: Mapping[str, TensorSource], fp8: bool
) -> Iterable[Entry]:
    names = [name for prefix in _ORDER_OF_USE for name in parameter_shapes(transformer) if name.startswith(prefix)]
    float32_parts = set(transformer._keep_in_fp32_modules)
    for name in names:
        if name not in sources:
            continue
        dtype = torch.float32 if float32_parts.intersection(name.split(".")) else torch.bfloat16
        if fp8 and name.startswith("blocks.") and len(sources[name].shape) == 2:
            yield from _fp8_entries(name, sources[name])
        else:
            yield from _entries(sources, [name], dtype)


def _fp8_entries(name: str, source: TensorSource) -> Iterable[Entry]:
    def quantise() -> Float8Tensor:
        weight = quantised(source.load(CPU, torch.float32), "fp8")
        assert isinstance(weight, Float8Tensor)
        return weight

    scale_name = name.removesuffix("weight") + "scale_weight"
    yield Entry(name, torch.float8_e4m3fn, source.shape, lambda: quantise().qdata)
    yield Entry(scale_name, torch.float32, (source.shape[0],), lambda: quantise().scale.view(-1))

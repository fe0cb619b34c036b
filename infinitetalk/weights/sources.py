"""Sources of a network's parameters: a tensor of a file, or part of one, and its quantisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, GGUFParameter, dequantize_functions
from torch import Tensor
from torchao.quantization import Float8Tensor, Int8Tensor

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.files import TensorFile

FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class TensorSource:
    """The tensor of a file that a parameter is loaded from.

    Attributes:
        file: the file.
        name: the tensor's name in the file.
        shape: the parameter's shape; the tensor may have more dimensions of length 1.
        rows: if the tensor holds several parameters, this one's first row and the row after its last; None: all.
        scale: the factor on a quantised tensor's numbers: one number, or one for each row.
    """

    file: TensorFile
    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    scale: TensorSource | None = None

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The dtype in the file; None for GGUF's blocks."""
        return self.file.headers[self.name].dtype

    @property
    def quantisation(self) -> str | None:
        """ "fp8", "int8", "gguf" or None for plain numbers."""
        if self.stored_dtype is None:
            return "gguf"
        if self.stored_dtype in FLOAT8_DTYPES:
            return "fp8"
        return "int8" if self.stored_dtype == torch.int8 and self.scale is not None else None

    @property
    def num_bytes(self) -> int:
        """Number of bytes read from the file, including the scale."""
        header = self.file.headers[self.name]
        scale_bytes = 0 if self.scale is None else self.scale.num_bytes
        if self.rows is None:
            return header.num_bytes + scale_bytes
        first, end = self.rows
        return header.num_bytes * (end - first) // header.shape[0] + scale_bytes

    def prefetch(self) -> None:
        """Brings the tensor from the disk into the page cache."""
        self.file.prefetch(self.name)

    def read(self) -> Tensor:
        """The numbers as stored, on the CPU, without the scale."""
        stored = self.file.read(self.name)
        if isinstance(stored, GGUFParameter):
            return stored
        if self.rows is not None:
            stored = stored[self.rows[0] : self.rows[1]]
        return stored.view(self.shape)

    def load(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The numbers in `dtype` on `device`; they are copied in the stored dtype and converted there."""
        stored = self.read()
        if isinstance(stored, GGUFParameter):
            block_size, type_size = GGML_QUANT_SIZES[stored.quant_type]
            blocks = stored.as_tensor().to(device).view(torch.uint8).reshape(-1, type_size)
            # diffusers dequantises layers to float16; here, the conversion happens once and float32 costs little.
            numbers = dequantize_functions[stored.quant_type](blocks, block_size, type_size, dtype=torch.float32)
            return numbers.view(self.shape).to(dtype)
        if self.quantisation is None:
            return stored.to(device).to(dtype)
        numbers = stored.to(device).to(torch.float32)
        return (numbers * self.load_scale(device)).view(self.shape).to(dtype)

    def load_quantised(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The stored numbers on `device`, in a quantised tensor that acts as one of `dtype`.

        It is a torchao tensor for fp8 and int8, a `GGUFParameter` for GGUF. For weights of linear layers only.
        """
        stored = self.read()
        if isinstance(stored, GGUFParameter):
            return GGUFParameter(stored.to(device), quant_type=stored.quant_type)
        scale = self.load_scale(device)
        if self.quantisation == "fp8":
            block_size = [self.shape[0] // scale.shape[0], self.shape[1]]
            return Float8Tensor(stored.to(device), scale, block_size=block_size, dtype=dtype)
        rows_of_scale = scale.expand(self.shape[0], 1).contiguous()
        return Int8Tensor(stored.to(device), rows_of_scale, [1, self.shape[1]], dtype)

    def load_scale(self, device: torch.device) -> Tensor:
        """float32 (1, 1) or (rows, 1, …), with as many dimensions as the tensor."""
        dimensions = max(len(self.shape), 1)
        if self.scale is None:
            return torch.ones((1,) * dimensions, device=device)
        scale = self.scale.read().to(device, torch.float32).reshape(-1)
        return scale.view(-1, *(1,) * (dimensions - 1))


@dataclass(frozen=True)
class TensorFiles:
    """Files that together hold one part of a checkpoint.

    Attributes:
        label: their name in messages.
        files: their readers.
    """

    label: str
    files: tuple[TensorFile, ...]

    def sources(self) -> dict[str, TensorSource]:
        """Every tensor under its own name.

        Raises:
            CheckpointError: two of the files hold the same tensor.
        """
        found: dict[str, TensorSource] = {}
        for file in self.files:
            for name, header in file.headers.items():
                if name in found:
                    raise CheckpointError(f"tensor {name} is in {found[name].file.path.name} and in {file.path.name}")
                found[name] = TensorSource(file, name, header.shape)
        return found


def merge(parts: Iterable[Mapping[str, TensorSource]]) -> dict[str, TensorSource]:
    """The sources of several parts, merged.

    Raises:
        CheckpointError: two parts hold the same tensor.
    """
    merged: dict[str, TensorSource] = {}
    for part in parts:
        for name in merged.keys() & part.keys():
            raise CheckpointError(
                f"tensor {name} is in {merged[name].file.path.name} and in {part[name].file.path.name}; "
                "give the base model and the adapter once each"
            )
        merged.update(part)
    return merged


#: Suffix of a weight → suffix of its scale: in optimum-quanto's files, and in "scaled" fp8 files.
_SCALE_SUFFIXES = {"weight._data": "weight._scale", "weight": "scale_weight"}
#: Scales for 8-bit activations in quantised files. They are unused: activations stay in 16 bits.
_ACTIVATION_SUFFIXES = ("input_scale", "output_scale", "scale_input")
#: The tensor that marks a "scaled" fp8 file; it has the dtype of the weights.
_SCALED_MARKER = "scaled_fp8"


def join_scales(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Joins each quantised weight and its scale under the name of the weight.

    Raises:
        CheckpointError: a scale does not fit its weight, or optimum-quanto's is missing.
    """
    joined: dict[str, TensorSource] = {}
    used: set[str] = set()
    for name, source in sources.items():
        module, leaf = _split(name)
        if leaf in _ACTIVATION_SUFFIXES or name == _SCALED_MARKER:
            used.add(name)
        if leaf not in _SCALE_SUFFIXES:
            continue
        used.add(name)
        scale = sources.get(f"{module}.{_SCALE_SUFFIXES[leaf]}")
        if scale is not None:
            used.add(f"{module}.{_SCALE_SUFFIXES[leaf]}")
            _check_scale(source, scale)
        elif leaf == "weight._data":
            raise CheckpointError(f"{source.file.path.name} lacks the tensor {module}.weight._scale")
        joined[f"{module}.weight"] = replace(source, scale=scale)
    joined.update({name: source for name, source in sources.items() if name not in used})
    return joined


def _split(name: str) -> tuple[str, str]:
    """A tensor's name split into its module's name and the rest: "weight", "weight._data" …"""
    module, _, leaf = name.rpartition(".")
    if leaf in ("_data", "_scale"):
        return module.removesuffix(".weight"), f"weight.{leaf}"
    return module, leaf


def _check_scale(source: TensorSource, scale: TensorSource) -> None:
    length = torch.Size(scale.shape).numel()
    if length not in (1, source.shape[0]):
        raise CheckpointError(
            f"{scale.file.path.name}: tensor {scale.name} has {length} numbers; "
            f"{source.name} needs one, or one for each of its {source.shape[0]} rows"
        )

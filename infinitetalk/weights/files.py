"""Readers of tensor files: the list of tensors from the header alone, and the tensors one at a time.

Every reader maps the file: a tensor's bytes are read on first use, and a tensor that is used in its stored dtype is
never copied on a CPU. Pickles are read with `weights_only=True`.
"""

import errno
import json
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gguf
import torch
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter
from torch import Tensor

from infinitetalk.errors import CheckpointError

#: Names of dtypes in a safetensors header (https://github.com/huggingface/safetensors, "Format").
SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

#: GGUF types that hold plain numbers.
_GGUF_PLAIN_TYPES = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
    gguf.GGMLQuantizationType.BF16: torch.bfloat16,
}


@dataclass(frozen=True)
class TensorHeader:
    """A file's description of a tensor.

    Attributes:
        shape: the tensor's shape; if it is quantised, the shape of the numbers that it represents.
        dtype: the stored dtype; None for GGUF's blocks, which are bytes.
        num_bytes: size in the file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    num_bytes: int


class TensorFile(Protocol):
    """A file of named tensors."""

    path: Path

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """The header of each tensor, in file order."""
        ...

    def prefetch(self, name: str) -> None:
        """Brings a tensor from the disk into the page cache, if that is faster than using it directly."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, as stored. Its pages are shared with the file until they are written to."""
        ...


#: Largest header of a safetensors file, as in the format's own library.
_MAX_HEADER_BYTES = 100_000_000
#: Longest name of a tensor, in characters: names appear in messages.
_LONGEST_NAME = 256
#: Bytes of a piece that is read unless its first byte is in the page cache already.
_PIECE_BYTES = 8 << 20
#: Bytes per read from the disk. They are thrown away: a buffer of this size stays in the processor's cache, and a
#: larger one would be memory that the kernel has to find and clear for each tensor.
_READ_BYTES = 1 << 20


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether the byte at `offset` of a file is in the page cache; False if the file system cannot say."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError as error:
        # Network, overlay and memory file systems may not know the flag.
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False


def read_ahead(path: Path, begin: int, end: int) -> None:
    """Brings bytes of a file from the disk into the page cache, in large pieces one after another.

    Reading pages through a mapping happens in small pieces and is several times slower.
    """
    with path.open("rb", buffering=0) as file:
        pieces = range(begin, end, _PIECE_BYTES)
        if missing := [offset for offset in pieces if not _is_cached(file.fileno(), offset)]:
            scratch = bytearray(_READ_BYTES)
            for piece in missing:
                for offset in range(piece, min(piece + _PIECE_BYTES, end), _READ_BYTES):
                    os.preadv(file.fileno(), [scratch], offset)


def mapped(path: Path, begin: int, end: int) -> Tensor:
    """Bytes of a file as uint8 (end - begin,); pages are shared with the file until they are written to.

    Each call makes a mapping of its own, so that dropping the tensor releases its pages.
    """
    if begin == end:
        return torch.empty(0, dtype=torch.uint8)
    page_start = begin - begin % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapping = mmap.mmap(
            file.fileno(),
            end - page_start,
            flags=mmap.MAP_PRIVATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=page_start,
        )
    return torch.frombuffer(mapping, dtype=torch.uint8, count=end - begin, offset=begin - page_start)


class SafetensorsFile:
    """A safetensors file; each tensor has its own mapping, so that dropping the tensor releases its pages.

    Attributes:
        metadata: the file's metadata, text by name.
        header_bytes: size of the header at the start of the file.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            CheckpointError: the file is not safetensors, or shorter or longer than its header says.
        """
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            try:
                (header_size,) = struct.unpack("<Q", file.read(8))
                if header_size > min(size - 8, _MAX_HEADER_BYTES):
                    raise ValueError("the header is too large, or does not fit in the file")
                entries = parse_json(file.read(header_size))
                if not isinstance(entries, dict):
                    raise ValueError("the header is not a JSON object")
            except (struct.error, ValueError) as error:
                raise CheckpointError(f"{path.name} is truncated or not a safetensors file; fetch it again") from error
        self.metadata = _metadata(entries.pop("__metadata__", {}), path)
        self.header_bytes = self._start = 8 + header_size
        self._spans: dict[str, tuple[int, int]] = {}
        self.headers: dict[str, TensorHeader] = {}
        for name, entry in entries.items():
            if len(name) > _LONGEST_NAME:
                raise CheckpointError(f"{path.name} is damaged: a tensor's name has {len(name)} characters")
            dtype_name, shape, (begin, end) = _described_tensor(entry, name, path)
            if dtype_name not in SAFETENSORS_DTYPES:
                raise CheckpointError(f"{path.name}: tensor {name} has the dtype {dtype_name[:20]}, which is not known")
            dtype = SAFETENSORS_DTYPES[dtype_name]
            if self._start + end > size:
                raise CheckpointError(f"{path.name} is truncated: tensor {name} is cut off; fetch the file again")
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise CheckpointError(
                    f"{path.name} is damaged: tensor {name} has {end - begin} bytes, which do not fit its shape "
                    f"{list(shape)}; fetch the file again"
                )
            self._spans[name], self.headers[name] = (begin, end), TensorHeader(shape, dtype, end - begin)
        expected = self._start + max((end for _, end in self._spans.values()), default=0)
        if size != expected:
            raise CheckpointError(
                f"{path.name} has {size} bytes where its header says {expected}; fetch the file again"
            )

    @property
    def spans(self) -> Mapping[str, tuple[int, int]]:
        """Each tensor's first byte in the file, and the byte after its last."""
        return {name: (self._start + begin, self._start + end) for name, (begin, end) in self._spans.items()}

    def prefetch(self, name: str) -> None:
        """Brings a tensor from the disk into the page cache."""
        begin, end = self._spans[name]
        read_ahead(self.path, self._start + begin, self._start + end)

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, as stored; pages are shared with the file until they are written to."""
        header, (begin, end) = self.headers[name], self._spans[name]
        assert header.dtype is not None
        return mapped(self.path, self._start + begin, self._start + end).view(header.dtype).view(header.shape)


def _described_tensor(entry: Any, name: str, path: Path) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """A tensor's dtype, shape, and first and last offset, from an entry of a safetensors header."""
    fields = (entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else ()
    match fields:
        case (str() as dtype, [*shape], [begin, end]) if all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            return dtype, tuple(shape), (begin, end)
    raise CheckpointError(f"{path.name} is damaged: its header does not describe tensor {name}; fetch the file again")


def _metadata(entry: Any, path: Path) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise CheckpointError(f"{path.name} has metadata that are not text by name; save it again")
    return entry


class PickleFile:
    """A `.pth`, `.pt` or `.bin` file: a state dict, unpickled with `weights_only=True`."""

    def __init__(self, path: Path) -> None:
        """Unpickles the names; tensors stay in the file.

        Raises:
            CheckpointError: the file is damaged, or holds anything other than tensors and plain values.
        """
        self.path = path
        try:
            # Only the format in a zip archive, torch's since 1.6, can be mapped. The other is read as a whole here.
            is_archive = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
            # On the meta device, torch tells where in the file each tensor's numbers are.
            places = torch.load(path, map_location="meta", weights_only=True) if is_archive else {}
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path.name} is truncated or holds more than tensors, which is refused: reading it could run code"
            ) from error
        except Exception as error:
            raise CheckpointError(f"{path.name} is truncated or not a pickled state dict; fetch it again") from error
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path.name} holds {type(content).__name__}, not a state dict")
        self._tensors = dict(_tensors_in(content))
        self.headers = {
            name: TensorHeader(tuple(tensor.shape), tensor.dtype, tensor.nbytes)
            for name, tensor in self._tensors.items()
        }
        self._spans = {name: _span(tensor) for name, tensor in _tensors_in(places)}

    def prefetch(self, name: str) -> None:
        """Brings a tensor from the disk into the page cache; nothing for a file that has been read as a whole."""
        if name in self._spans:
            read_ahead(self.path, *self._spans[name])

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, as stored; pages are shared with the file until they are written to."""
        return self._tensors[name].detach()


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte in the file, and the byte after the last, of the storage of a tensor on the meta device."""
    storage = tensor.untyped_storage()
    begin = storage._checkpoint_offset
    # `torch.load` has set it.
    assert begin is not None
    return begin, begin + storage.nbytes()


def _tensors_in(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of a state dict, or of a dict of several, by their names joined with dots."""
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Mapping):
            yield from _tensors_in(value, f"{prefix}{name}.")


class GgufFile:
    """A GGUF file; quantised tensors are read as diffusers' `GGUFParameter`, which holds the stored blocks of bytes."""

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            CheckpointError: the file is damaged, or a tensor has a type that diffusers cannot compute with.
        """
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:
            raise CheckpointError(f"{path.name} is truncated or not a GGUF file; fetch it again") from error
        self._types: dict[str, gguf.GGMLQuantizationType] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        self.headers = {}
        for tensor in reader.tensors:
            name = tensor.name
            if tensor.tensor_type not in {*_GGUF_PLAIN_TYPES, *SUPPORTED_GGUF_QUANT_TYPES}:
                raise CheckpointError(
                    f"{path.name}: tensor {name} has the type {tensor.tensor_type.name}, which is not served; "
                    "use a Q8_0 or Q4_K_M file"
                )
            # GGUF lists the innermost dimension first.
            shape = tuple(int(length) for length in reversed(tensor.shape))
            num_bytes, begin = int(tensor.n_bytes), int(tensor.data_offset)
            self.headers[name] = TensorHeader(shape, _GGUF_PLAIN_TYPES.get(tensor.tensor_type), num_bytes)
            self._types[name], self._spans[name] = tensor.tensor_type, (begin, begin + num_bytes)

    def prefetch(self, name: str) -> None:
        """Brings a tensor from the disk into the page cache."""
        read_ahead(self.path, *self._spans[name])

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU; if it is quantised, a `GGUFParameter` of bytes, (rows, bytes of a row).

        Pages are shared with the file until they are written to.
        """
        header, data = self.headers[name], mapped(self.path, *self._spans[name])
        if header.dtype is None:
            return GGUFParameter(data.view(*header.shape[:-1], -1), quant_type=self._types[name])
        return data.view(header.dtype).view(header.shape)


FORMATS: dict[str, Callable[[Path], TensorFile]] = {
    ".safetensors": SafetensorsFile,
    ".pth": PickleFile,
    ".pt": PickleFile,
    ".bin": PickleFile,
    ".gguf": GgufFile,
}


def open_file(path: Path) -> TensorFile:
    """A reader of one file, by its suffix.

    Raises:
        CheckpointError: there is no such file, it is damaged or of an unknown kind.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path.name} in the folder {path.parent.name}")
    if not is_tensor_file(path):
        raise CheckpointError(f"{path.name} is none of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()](path)


def is_tensor_file(path: Path) -> bool:
    """Whether a file has the suffix of a tensor file, in any case."""
    return path.suffix.lower() in FORMATS


def open_shards(index_path: Path) -> list[TensorFile]:
    """Readers of the shards that an index (`*.safetensors.index.json`) lists, in the order of their names.

    Raises:
        CheckpointError: a shard is missing or damaged, or lacks a tensor that the index places in it.
    """
    index = read_json(index_path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_path.name} does not list its shards (weight_map); fetch it again")
    shards = {name: open_file(index_path.parent / name) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].headers:
            raise CheckpointError(f"{shard} lacks the tensor {tensor}, which {index_path.name} places in it")
    return list(shards.values())


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` if it is not JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: there is no such file, or it is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path.name} in the folder {path.parent.name}") from error
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON; fetch it again") from error

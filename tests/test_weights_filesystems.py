"""Weights load from slow file systems, and from those that do not tell what is in the page cache, as network volumes
and overlays may."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infinitetalk.weights import files
from infinitetalk.weights.files import SafetensorsFile, TensorHeader, open_file
from infinitetalk.weights.loading import READERS, load_parameters
from infinitetalk.weights.sources import TensorSource

MEMORY = Path("/dev/shm")


def tells_what_is_cached(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError:
            return False
        return True


def test_a_tensor_is_read_where_the_file_system_does_not_tell_what_is_cached():
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({"weight": torch.arange(12.0)}, path)
        if tells_what_is_cached(path):
            pytest.skip("/dev/shm tells what is cached here")
        file = SafetensorsFile(path)
        file.prefetch("weight")
        assert file.read("weight").equal(torch.arange(12.0))


def save_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"model": tensors}, path)


def save_quantised_gguf(path: Path, tensors: dict[str, Tensor]) -> None:
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in tensors.items():
        blocks = gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.safetensors", lambda path, tensors: save_file(tensors, path)),
        ("a.pth", save_pickle),
        ("a.gguf", save_quantised_gguf),
    ],
)
def test_every_kind_of_file_is_read_ahead_in_large_pieces(
    name: str, save: Callable[[Path, dict[str, Tensor]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a mapping, the pages of a network volume come a few at a time."""
    generator = torch.Generator().manual_seed(0)
    save(tmp_path / name, {each: torch.randn(64, 96, generator=generator) for each in ("one", "two", "three")})
    content = (tmp_path / name).read_bytes()
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "read_ahead", lambda path, begin, end: read.append((begin, end)))
    file = open_file(tmp_path / name)
    for tensor_name in file.headers:
        file.prefetch(tensor_name)
        stored = np.asarray(file.read(tensor_name).view(torch.uint8)).tobytes()
        (begin, end), *_ = read[::-1]
        assert content[begin:end] == stored
    assert len(set(read)) == 3


@dataclass(frozen=True)
class SlowFile:
    """A file of which a tensor comes only when all readers ask for one."""

    path: Path
    headers: dict[str, TensorHeader]
    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(READERS, timeout=10))

    def prefetch(self, name: str) -> None:
        self.together.wait()

    def read(self, name: str) -> Tensor:
        return torch.ones(self.headers[name].shape)


def test_many_tensors_are_read_at_once() -> None:
    """One reader gets a fraction of what a network file system can give."""
    assert READERS >= 16
    network = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(2 * READERS))
    file = SlowFile(Path("slow"), {name: TensorHeader((2, 2), torch.float32, 16) for name in network.state_dict()})
    sources = {name: TensorSource(file, name, (2, 2)) for name in file.headers}
    load_parameters(network, sources, torch.device("cpu"), torch.float32)
    assert all((parameter == 1).all() for parameter in network.parameters())

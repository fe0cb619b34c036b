"""Weights load from file systems that do not tell what is in the page cache, as network volumes and overlays may."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import save_file

from infinitetalk.weights.files import SafetensorsFile

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

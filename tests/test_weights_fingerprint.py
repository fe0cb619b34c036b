"""Weights are told apart by what they hold, whatever their names, sizes and times say."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infinitetalk.weights.fingerprint import PIECE_BYTES, WHOLE_BYTES, contents_of, files_that_count
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.worker.engine.checkpoint import PublishedCheckpoint
from tests import checkpoint_factory as factory

LARGE = {f"layer.{number}.weight": torch.full((256, 1024), float(number)) for number in range(12)}


def keep_time(path: Path, times: os.stat_result) -> None:
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("layer", [0, 7, 11])
def test_a_layer_trained_on_is_another_file(suffix: str, layer: int, tmp_path: Path) -> None:
    save = save_file if suffix == "safetensors" else torch.save
    # torch writes a file's name into it.
    file, copy, other = (tmp_path / name / f"weights.{suffix}" for name in ("file", "copy", "other"))
    for path in (file, copy, other):
        path.parent.mkdir()
    save(LARGE, file)
    shutil.copy(file, copy)
    save(LARGE | {f"layer.{layer}.weight": LARGE[f"layer.{layer}.weight"] + 1e-3}, other)
    assert file.stat().st_size == other.stat().st_size > WHOLE_BYTES + PIECE_BYTES
    assert contents_of([file]) == contents_of([copy]) != contents_of([other])


def test_a_file_written_anew_in_its_place_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    save_file(LARGE, file)
    before = contents_of([file])
    other = tmp_path / "other.safetensors"
    save_file({name: -tensor for name, tensor in LARGE.items()}, other)
    other.replace(file)
    assert contents_of([file]) != before


def test_of_a_folder_what_decides_the_numbers_counts(tmp_path: Path) -> None:
    for name in ("config.json", "model.SAFETENSORS", "tokenizer/spiece.model", "README.md", ".cache/fetched.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [str(file.relative_to(tmp_path)) for file in files_that_count(tmp_path)]
    assert names == ["config.json", "model.SAFETENSORS", "tokenizer/spiece.model"]


@pytest.mark.parametrize("part", ["base", "adapter", "quantised"])
def test_a_checkpoint_trained_on_is_another_one(part: str, tmp_path: Path) -> None:
    adapters = factory.save_adapters(tmp_path / "adapters")
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    tensors = factory.text_encoder_tensors()
    factory.save_quanto(quantised / "t5_fp8.safetensors", quantised / "t5_map_fp8.json", tensors, "fp8")
    paths = CheckpointPaths(
        factory.save_original_base(tmp_path / "base"),
        factory.adapter_files(adapters),
        adapters,
        quantised=quantised,
    )
    file = {
        "base": paths.base / "diffusion_pytorch_model-00003-of-00007.safetensors",
        "adapter": paths.adapters["multi"],
        "quantised": quantised / "t5_fp8.safetensors",
    }[part]

    def weights(paths: CheckpointPaths) -> str:
        return PublishedCheckpoint(paths).fingerprint

    before = weights(paths)
    assert weights(replace(paths)) == before
    times = file.stat()
    trained = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = max(trained, key=lambda name: trained[name].nbytes)
    trained[name].view(torch.uint8).bitwise_xor_(1)
    save_file(trained, file)
    assert file.stat().st_size == times.st_size
    keep_time(file, times)
    # Another worker: within one, a file of the same place, number, size and time is the same.
    from infinitetalk.weights import fingerprint

    fingerprint._read.cache_clear()
    assert weights(paths) != before

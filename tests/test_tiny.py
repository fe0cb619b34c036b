"""The embedded tiny model: the same bytes every time, complete, and small."""

import hashlib
import threading
from pathlib import Path

import pytest
import torch

from infinitetalk.embedded.tiny import ensure_tiny_model, make_tiny_model
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import adapter_kind


def digest(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    make_tiny_model(tmp_path / "first")
    torch.manual_seed(2)
    make_tiny_model(tmp_path / "second")
    assert digest(tmp_path / "first") == digest(tmp_path / "second")


def test_it_is_a_few_megabytes_in_the_published_layout(tmp_path: Path) -> None:
    ensure_tiny_model(tmp_path / "model")
    files = digest(tmp_path / "model")
    assert sum((tmp_path / "model" / name).stat().st_size for name in files) < 12_000_000
    for name in (
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "image_encoder/model.safetensors",
        "infinitetalk/single.safetensors",
        "infinitetalk/multi.safetensors",
        "wav2vec2/model.safetensors",
    ):
        assert name in files


def test_it_is_made_once_when_several_ask_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    threads = [threading.Thread(target=ensure_tiny_model, args=(folder,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ensure_tiny_model(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("num_speakers", "other"), [(1, 2), (2, 3)])
def test_adapters_for_one_and_for_several_differ_over_one_base(tmp_path: Path, num_speakers: int, other: int) -> None:
    models = Models(ensure_tiny_model(tmp_path / "model"), torch.device("cpu"))
    choices = [NetworkChoice(torch.float32, adapter=adapter_kind(number)) for number in (num_speakers, other)]
    transformer = models.transformer(choices[0])
    base = transformer.blocks[0].attn1.to_q.weight
    first = transformer.audio_proj.proj1.weight.clone()
    transformer = models.transformer(choices[1])
    assert transformer.blocks[0].attn1.to_q.weight is base
    is_same = torch.equal(transformer.audio_proj.proj1.weight, first)
    assert is_same == (min(num_speakers, 2) == min(other, 2))

"""The documented training runs from nothing to weights that the worker's loading code takes, and can be interrupted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples.tiny import loop
from examples.tiny.data import ClipMaker
from examples.tiny.loop import TrainingLoop
from examples.tiny.train import SEED
from examples.tiny.train_transformer import train_transformer
from examples.tiny.voices import HELD_OUT_VOICES, TRAINING_VOICES, random_speech
from infinitetalk.models import load_models
from infinitetalk.tiny import TALKER_FOLDER, paths_in, talker_paths

REPOSITORY = Path(__file__).parents[1]
FEW = "--picture-steps 1 --clip-steps 2 --chunk-steps 1 --speech-steps 1 --clips 2"


def test_a_text_is_said_the_same_whatever_was_said_before():
    def speech(number: int) -> np.ndarray:
        return random_speech(np.random.default_rng(number), TRAINING_VOICES, 16_000)

    first = speech(1)
    assert first.std() > 0.01
    assert not np.array_equal(first, speech(2))
    assert np.array_equal(first, speech(1))


def test_no_voice_of_the_measures_is_one_of_the_training():
    assert not set(TRAINING_VOICES) & set(HELD_OUT_VOICES)


def noisy_steps(path: Path, until: int) -> dict[str, Tensor]:
    """Weights after a training by noise, of which only the steps before `until` are made now."""
    path.parent.mkdir(exist_ok=True)
    torch.manual_seed(1)
    network = nn.Linear(4, 4)
    training = TrainingLoop(path, network, 6, SEED, learning_rate=0.1, muon_prefix="weight")
    for generator in training:
        if training.step == until:
            break
        wanted = torch.randn(4) + float(generator.random())
        training.learn((network(torch.randn(4)) - wanted).square().sum())
    return network.state_dict()


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = noisy_steps(tmp_path / "a" / "noise.pt", 6)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    broken_off = noisy_steps(tmp_path / "b" / "noise.pt", 3)
    resumed = noisy_steps(tmp_path / "b" / "noise.pt", 6)
    assert not torch.equal(broken_off["weight"], whole["weight"])
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_clip_of_the_training_teaches_the_transformer(tmp_path):
    models = load_models(talker_paths(), torch.device("cpu"), torch.float32)
    clip = ClipMaker(models.vae, models.speech_encoder, models.image_encoder).make(SEED, 0)
    for num_steps in (1, 2):
        train_transformer(tmp_path, [clip], num_steps, SEED)
    state = torch.load(tmp_path / "transformer.pt")
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["network"].values())


def train(folder: Path, output: Path, transformer_steps: int) -> str:
    command = [sys.executable, "-m", "examples.tiny.train", "--folder", str(folder), "--output", str(output)]
    command += [*FEW.split(), "--transformer-steps", str(transformer_steps)]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.long
def test_a_training_of_a_few_steps_writes_a_checkpoint_that_loads_and_goes_on_where_it_was(tmp_path):
    folder, output = tmp_path / "training", tmp_path / "talker"
    train(folder, output, transformer_steps=1)
    first = load_models(paths_in(output), torch.device("cpu"), torch.float32).transformer.state_dict()
    train(folder, output, transformer_steps=2)
    models = load_models(paths_in(output), torch.device("cpu"), torch.float32)
    assert any(not torch.equal(tensor, first[name]) for name, tensor in models.transformer.state_dict().items())
    assert torch.load(folder / "transformer.pt")["step"] == 2

    def files(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    assert files(output) == files(TALKER_FOLDER)

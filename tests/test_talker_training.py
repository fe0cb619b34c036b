"""The documented training runs from nothing to weights that the worker's loading code takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infinitetalk.models import load_models
from infinitetalk.tiny import TALKER_FOLDER, paths_in

REPOSITORY = Path(__file__).parents[1]
FEW = "--picture-steps 1 --clip-steps 2 --decoder-steps 2 --chunk-steps 1 --speech-steps 1 --clips 2"


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

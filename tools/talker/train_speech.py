"""Trains the tiny wav2vec2 to hear what mouths follow: a linear map from all its layers must predict the rule's opening
and width of the mouth. The transformer gets only the layers, as in the published model."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Model

from tools.talker.loop import TrainingLoop
from tools.talker.networks import make_speech_encoder
from tools.talker.rule import SAMPLES_A_FRAME, follow_speech
from tools.talker.voices import TRAINING_VOICES, random_speech

FRAMES = 100
BATCH = 6


class MouthReader(nn.Module):
    """wav2vec2 and the linear map that reads the mouth off its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: Wav2Vec2Model = make_speech_encoder()
        config = self.encoder.config
        self.read = nn.Linear(config.num_hidden_layers * config.hidden_size, 2)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) to opening and width, (batch, samples // 640, 2), in the worker's order of steps."""
        deviation = (waveforms.var(dim=1, correction=0, keepdim=True) + 1e-7).sqrt()
        normalised = (waveforms - waveforms.mean(dim=1, keepdim=True)) / deviation
        features = self.encoder.feature_extractor(normalised)
        resampled = nn.functional.interpolate(
            features, size=waveforms.shape[1] // SAMPLES_A_FRAME, mode="linear", align_corners=True
        )
        hidden_states, _ = self.encoder.feature_projection(resampled.transpose(1, 2))
        layers: list[Tensor] = []
        with ExitStack() as stack:
            for layer in self.encoder.encoder.layers:
                hook = layer.register_forward_hook(lambda _layer, _arguments, output: layers.append(output))
                stack.callback(hook.remove)
            self.encoder.encoder(hidden_states)
        return self.read(torch.cat(layers, dim=-1))


def train_speech(folder: Path, num_steps: int, seed: int) -> None:
    """Trains the speech encoder into `folder`/speech.pt."""
    torch.manual_seed(seed)
    generator = np.random.default_rng([seed, 4])
    samples = FRAMES * SAMPLES_A_FRAME
    waveforms = [_with_silence(generator, random_speech(generator, TRAINING_VOICES, samples)) for _ in range(120)]
    tracks = [follow_speech(waveform) for waveform in waveforms]
    targets = [torch.from_numpy(np.stack([track.opening, track.width], axis=1)).float() for track in tracks]
    loop = TrainingLoop(folder / "speech.pt", MouthReader().eval(), num_steps, seed, learning_rate=2e-3)
    for generator in loop:
        chosen = generator.integers(len(waveforms), size=BATCH)
        read = loop.network(torch.from_numpy(np.stack([waveforms[index] for index in chosen])))
        error = (read - torch.stack([targets[index] for index in chosen])).square().mean(dim=(0, 1))
        loop.learn(error[0] + 0.2 * error[1])


def _with_silence(generator: np.random.Generator, waveform: np.ndarray) -> np.ndarray:
    """Silences parts of the speech: some speakers wait, fall silent, or say nothing at all."""
    kind = generator.random()
    waveform = waveform.copy()
    place = int(generator.uniform(0.2, 0.8) * len(waveform))
    if kind < 0.15:
        waveform[:place] = 0.0
    elif kind < 0.3:
        waveform[place:] = 0.0
    elif kind < 0.36:
        waveform[:] = 0.0
    return waveform

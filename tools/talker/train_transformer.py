"""Trains the tiny InfiniteTalk transformer by flow matching, as it is sampled: the worker's schedule of noise, its
motion latents, its windows of speech, its regions."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infinitetalk.embedded.tiny import TEXT_DIM
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from tools.talker.data import Clip
from tools.talker.loop import TrainingLoop
from tools.talker.networks import make_transformer

#: The worker's `sample_shift` for infinitetalk-480.
SHIFT = 7.0
#: How often the network is not told the speech, so that guidance by it means something.
AUDIO_DROPOUT = 0.1
#: The same where it is taught what that means.
SILENCE_DROPOUT = 0.25
#: How much the first new latents count, where a chunk joins what was there, and how many they are.
JOIN_WEIGHT = 4.0
JOIN_LATENTS = 2
#: Largest deviation of the noise on given motion latents, whose errors a sampled chunk shall not hand on.
GIVEN_NOISE = 0.08


def train_transformer(folder: Path, clips: list[Clip], num_steps: int, seed: int) -> None:
    """The transformer, from clips into `folder`/transformer.pt. Told no speech, it expects any."""
    torch.manual_seed(seed)
    path, transformer = folder / "transformer.pt", make_transformer()
    loop = TrainingLoop(path, transformer, num_steps, seed, learning_rate=2e-3, decay_share=0.5, muon_prefix="blocks.")
    for generator in loop:
        clip = clips[generator.integers(len(clips))]
        loop.learn(flow_matching_loss(transformer, clip, generator, AUDIO_DROPOUT))


def train_on_silence(folder: Path, clips: list[Clip], silent_clips: list[Clip], num_steps: int, seed: int) -> None:
    """The same, from `folder`/transformer.pt into `folder`/silence.pt: told no speech, it expects closed mouths.

    Guidance leads away from what the network expects without speech. Away from mouths that are half open, closed ones
    would lose their lips.
    """
    begin, path = folder / "transformer.pt", folder / "silence.pt"
    if path.exists() and path.stat().st_mtime < begin.stat().st_mtime:
        # The transformer has been trained on since.
        path.unlink()
    transformer = make_transformer()
    transformer.load_state_dict(torch.load(begin)["average"])
    loop = TrainingLoop(path, transformer, num_steps, seed, learning_rate=5e-4, decay_share=1.0, muon_prefix="blocks.")
    for generator in loop:
        is_told = bool(generator.random() >= SILENCE_DROPOUT)
        choice = clips if is_told else silent_clips
        clip = choice[generator.integers(len(choice))]
        loop.learn(flow_matching_loss(transformer, clip, generator, audio_dropout=0.0 if is_told else 1.0))


def flow_matching_loss(
    transformer: InfiniteTalkTransformer3DModel, clip: Clip, generator: np.random.Generator, audio_dropout: float
) -> Tensor:
    """Of a clip at a random level of noise: the squared error of the velocity, noise - clean, by the clip's weights.

    Args:
        audio_dropout: how often the network does not hear the clip's speech.
    """
    clean = clip.latents.float()[None]
    uniform = float(generator.random())
    noise_level = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    noise = torch.randn_like(clean)
    noisy = (1 - noise_level) * clean + noise_level * noise
    given = clip.given.float()[None]
    num_given = given.shape[2]
    if num_given > 1:
        given = given + GIVEN_NOISE * float(generator.random()) * torch.randn_like(given)
    noisy[:, :, :num_given] = given
    windows, regions = clip.windows(), clip.regions()
    if generator.random() < audio_dropout:
        windows, regions = torch.zeros_like(windows[:1]), None
    velocity = predict_velocity(transformer, clip, noisy, noise_level, windows, regions)
    error = (velocity - (noise - clean))[:, :, num_given:].square().mean(dim=(0, 1))
    weights = clip.weights.float().repeat(len(error), 1, 1)
    weights[:JOIN_LATENTS] *= JOIN_WEIGHT
    return (error * weights).mean() / weights.mean()


def predict_velocity(
    transformer: InfiniteTalkTransformer3DModel,
    clip: Clip,
    noisy: Tensor,
    noise_level: float,
    windows: Tensor,
    regions: Tensor | None,
) -> Tensor:
    """The transformer's velocity for noisy latents (1, 16, t, h, w) of a clip."""
    return transformer(
        hidden_states=torch.cat([noisy, clip.condition()], dim=1),
        timestep=torch.tensor([1000.0 * noise_level]),
        # One token stands for the prompt, which is not heard.
        encoder_hidden_states=torch.zeros(1, 1, TEXT_DIM),
        encoder_hidden_states_image=clip.image_embeds.float()[None],
        encoder_hidden_states_audio=windows,
        regions=regions,
        return_dict=False,
    )[0]

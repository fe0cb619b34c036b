"""Trains the tiny InfiniteTalk transformer by flow matching under the conditions of sampling: the worker's noise
schedule, motion latents, speech windows and regions."""

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
#: Share of steps without the speech, so that audio guidance works.
AUDIO_DROPOUT = 0.1
#: The same in the training on silence.
SILENCE_DROPOUT = 0.25
#: Weight of the first new latents, where a chunk joins the previous one, and their number.
JOIN_WEIGHT = 4.0
JOIN_LATENTS = 2
#: Largest deviation of the noise on given motion latents, so that a sampled chunk does not pass their errors on.
GIVEN_NOISE = 0.08


def train_transformer(folder: Path, clips: list[Clip], num_steps: int, seed: int) -> None:
    """Trains the transformer on clips, into `folder`/transformer.pt. Without speech input, it expects any speech."""
    torch.manual_seed(seed)
    path, transformer = folder / "transformer.pt", make_transformer()
    loop = TrainingLoop(path, transformer, num_steps, seed, learning_rate=2e-3, decay_share=0.5, muon_prefix="blocks.")
    for generator in loop:
        clip = clips[generator.integers(len(clips))]
        loop.learn(flow_matching_loss(transformer, clip, generator, AUDIO_DROPOUT))


def train_on_silence(folder: Path, clips: list[Clip], silent_clips: list[Clip], num_steps: int, seed: int) -> None:
    """Continues from `folder`/transformer.pt into `folder`/silence.pt: without speech, it then expects closed mouths.

    Guidance leads away from the network's prediction without speech. If that had half-open mouths, closed ones would
    lose their lips.
    """
    begin, path = folder / "transformer.pt", folder / "silence.pt"
    if path.exists() and path.stat().st_mtime < begin.stat().st_mtime:
        # The transformer has been trained further since.
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
    """The weighted squared error of the velocity, noise - clean, for a clip at a random noise level.

    Args:
        audio_dropout: probability that the network does not get the clip's speech.
    """
    clean = clip.latents.float()[None]
    uniform = float(generator.random())
    noise_level = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    noise = torch.randn_like(clean)
    noisy = (1 - noise_level) * clean + noise_level * noise
    given = given_with_errors(clip, generator)
    noisy[:, :, : given.shape[2]] = given
    windows, regions = clip.windows(), clip.regions()
    if generator.random() < audio_dropout:
        windows, regions = torch.zeros_like(windows[:1]), None
    velocity = predict_velocity(transformer, clip, noisy, noise_level, windows, regions)
    return error_of_new_latents(velocity - (noise - clean), clip)


def given_with_errors(clip: Clip, generator: np.random.Generator) -> Tensor:
    """The latents that a clip's chunk is given, (1, 16, n, h, w), with noise if they are of the chunk before."""
    given = clip.given.float()[None]
    if given.shape[2] > 1:
        given = given + GIVEN_NOISE * float(generator.random()) * torch.randn_like(given)
    return given


def error_of_new_latents(difference: Tensor, clip: Clip) -> Tensor:
    """The weighted mean square of a difference, (1, 16, t, h, w), in the latents that are not given."""
    error = difference[:, :, clip.given.shape[1] :].square().mean(dim=(0, 1))
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
        # One token stands for the prompt, which the network ignores.
        encoder_hidden_states=torch.zeros(1, 1, TEXT_DIM),
        encoder_hidden_states_image=clip.image_embeds.float()[None],
        encoder_hidden_states_audio=windows,
        regions=regions,
        return_dict=False,
    )[0]

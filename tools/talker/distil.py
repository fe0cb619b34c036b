"""Distils the guided talker to FlashTalk's way of sampling: four steps, one evaluation each, without guidance.

The transformer starts with the guided talker's weights. At each of the four noise levels it learns to give the clean
latents at once, from what it meets there in the worker: noise at first, then its own last answer with new noise.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infinitetalk.family import FLASHTALK
from infinitetalk.generation.sampling import RenoisingStepper, pin_motion
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from tools.talker.data import Clip
from tools.talker.loop import TrainingLoop
from tools.talker.networks import make_transformer
from tools.talker.train_transformer import error_of_new_latents, given_with_errors, predict_velocity

#: Steps after which the learning rate is zero. The running average of the weights is good before.
PLAN_STEPS = 4000
#: Share of clips without speech.
SILENT_SHARE = 0.15
#: Share of steps that start from the network's own answers; the others start from the clip's latents.
OWN_SHARE = 0.7


def distil(folder: Path, clips: list[Clip], silent_clips: list[Clip], num_steps: int, seed: int) -> None:
    """Trains from the guided talker in `folder`/silence.pt into `folder`/flashtalk.pt."""
    transformer = make_transformer()
    transformer.load_state_dict(torch.load(folder / "silence.pt")["average"])
    stepper = flashtalk_stepper()
    path = folder / "flashtalk.pt"
    loop = TrainingLoop(
        path,
        transformer,
        num_steps,
        seed,
        learning_rate=1e-3,
        decay_share=0.8,
        muon_prefix="blocks.",
        planned_steps=PLAN_STEPS,
    )
    for generator in loop:
        choice = silent_clips if generator.random() < SILENT_SHARE else clips
        clip = choice[generator.integers(len(choice))]
        loop.learn(_answer_error(transformer, clip, stepper, generator))


def flashtalk_stepper() -> RenoisingStepper:
    """FlashTalk's published schedule."""
    defaults, renoising = FLASHTALK.defaults, FLASHTALK.renoising
    assert renoising is not None
    return RenoisingStepper(renoising.timesteps[defaults.num_inference_steps], FLASHTALK.size(defaults.size).shift)


def _answer_error(
    transformer: InfiniteTalkTransformer3DModel, clip: Clip, stepper: RenoisingStepper, generator: np.random.Generator
) -> Tensor:
    """The weighted squared error of the clean latents that the network gives at a random step."""
    clean, given = clip.latents.float()[None], given_with_errors(clip, generator)
    windows = clip.windows()
    last_step = int(generator.integers(len(stepper.timesteps)))
    is_own = bool(generator.random() < OWN_SHARE)
    latents = torch.randn_like(clean)
    for step in range(last_step if is_own else 0):
        with torch.no_grad():
            answer = _answer(transformer, clip, stepper, step, pin_motion(latents, given), windows)
        latents = _with_noise(answer, stepper, step + 1)
    if not is_own:
        latents = _with_noise(clean, stepper, last_step)
    answer = _answer(transformer, clip, stepper, last_step, pin_motion(latents, given), windows)
    return error_of_new_latents(answer - clean, clip)


def _answer(
    transformer: InfiniteTalkTransformer3DModel,
    clip: Clip,
    stepper: RenoisingStepper,
    step: int,
    latents: Tensor,
    windows: Tensor,
) -> Tensor:
    """The clean latents by the network's velocity at a step."""
    noise_level = float(stepper.sigmas[step])
    return latents - noise_level * predict_velocity(transformer, clip, latents, noise_level, windows, regions=None)


def _with_noise(clean: Tensor, stepper: RenoisingStepper, step: int) -> Tensor:
    """Clean latents at the noise level of a step."""
    noise_level = float(stepper.sigmas[step])
    return (1 - noise_level) * clean + noise_level * torch.randn_like(clean)

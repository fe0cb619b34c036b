"""The schedules: every one that a job may ask for comes to its end, and re-noising takes the published steps."""

from dataclasses import replace

import pytest
import torch

from infinitetalk.family import FLASHTALK, INFINITETALK
from infinitetalk.generation.sampling import (
    EulerStepper,
    GenerationSettings,
    RenoisingStepper,
    Sampler,
    make_sampler,
)

#: FlashTalk's published values.
SETTINGS = GenerationSettings(num_inference_steps=4, shift=5.0, text_guide_scale=1.0, audio_guide_scale=1.0)


def no_draws(draw: int) -> torch.Tensor:
    raise AssertionError("this step draws no noise")


@pytest.mark.parametrize("shift", [0.01, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("num_steps", [1, 2, 8, 200])
def test_a_schedule_leads_from_noise_to_nothing(num_steps: int, shift: float) -> None:
    """A velocity of 1 throughout takes away 1 in all, whatever the steps' lengths."""
    stepper = EulerStepper(num_steps, shift)
    sample = torch.ones(1)
    for index in range(num_steps):
        sample = stepper.step(index, torch.ones(1), sample, no_draws)
    assert len(stepper.timesteps) == num_steps
    assert sample.item() == pytest.approx(0, abs=1e-3)


def test_each_step_goes_to_the_noiseless_latents_and_back_with_its_own_noise() -> None:
    """Without a shift the levels are those of the timesteps: x0 = 3 - 0.5·2 = 2, then 0.75·2 + 0.25·(draw 1 = 10)."""
    stepper = RenoisingStepper((500.0, 250.0), shift=1.0)
    given = torch.full((1, 2), 3.0)
    moved = stepper.step(0, torch.full((1, 2), 2.0), given, lambda draw: torch.full((1, 2), 10.0 * draw))
    assert moved.tolist() == [[4.0, 4.0]]
    assert given.tolist() == [[3.0, 3.0]]


def test_the_last_step_ends_at_the_noiseless_latents_and_draws_nothing() -> None:
    stepper = RenoisingStepper((500.0, 250.0), shift=1.0)
    assert stepper.step(1, torch.full((1,), 2.0), torch.full((1,), 3.0), no_draws).item() == 2.5


@pytest.mark.parametrize(
    ("num_steps", "shift", "timesteps"),
    [
        (1, 5.0, [1000.0]),
        (2, 5.0, [1000.0, 833.333]),
        (4, 5.0, [1000.0, 937.5, 833.333, 625.0]),
        (4, 1.0, [1000.0, 750.0, 500.0, 250.0]),
        (3, 1.0, [1000.0, 500.5, 1.0]),
    ],
)
def test_a_family_lists_the_timesteps_of_its_numbers_of_steps(
    num_steps: int, shift: float, timesteps: list[float]
) -> None:
    stepper = sampler_of(num_inference_steps=num_steps, shift=shift).stepper
    assert stepper.timesteps.tolist() == pytest.approx(timesteps, abs=1e-3)
    assert stepper.timesteps.dtype == torch.float32


def test_twelve_steps_are_spread_evenly_and_then_shifted() -> None:
    """The later published configuration: 12 steps, shift 3."""
    stepper = sampler_of(num_inference_steps=12, shift=3.0).stepper
    assert len(stepper.timesteps) == 12
    evenly = torch.linspace(1.0, 0.001, 12)
    torch.testing.assert_close(stepper.timesteps, 1000 * 3 * evenly / (1 + 2 * evenly))


def test_the_family_says_which_stepper_and_its_values_need_one_evaluation_a_step() -> None:
    sampler = sampler_of()
    assert isinstance(sampler.stepper, RenoisingStepper)
    assert sampler.num_evaluations == 4
    assert isinstance(make_sampler(SETTINGS, INFINITETALK).stepper, EulerStepper)


def test_teacache_is_refused_where_a_family_has_no_coefficients() -> None:
    with pytest.raises(ValueError, match="TeaCache has no coefficients for SoulX-FlashTalk-14B"):
        sampler_of(teacache_threshold=0.2)


def sampler_of(**changes: object) -> Sampler:
    """FlashTalk's sampler with its published values, some of them changed."""
    return make_sampler(replace(SETTINGS, **changes), FLASHTALK)

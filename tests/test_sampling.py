"""The schedule: every one that a job may ask for comes to its end."""

import pytest
import torch

from infinitetalk.generation.sampling import EulerStepper


def no_draws(draw: int) -> torch.Tensor:
    raise AssertionError("Euler's method draws no noise after the first")


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

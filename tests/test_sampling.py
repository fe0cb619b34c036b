"""The schedule: every one that a job may ask for comes to its end."""

import pytest
import torch

from infinitetalk.sampling import make_scheduler


@pytest.mark.parametrize("shift", [0.01, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("num_steps", [1, 2, 8, 200])
def test_a_schedule_leads_from_noise_to_nothing(num_steps: int, shift: float) -> None:
    """A velocity of 1 throughout takes away 1 in all, whatever the steps' lengths."""
    scheduler = make_scheduler(num_steps, shift)
    sample = torch.ones(1)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(torch.ones(1), timestep, sample).prev_sample
    assert len(scheduler.timesteps) == num_steps
    assert sample.item() == pytest.approx(0, abs=1e-3)

"""A training loop that can be interrupted: Adam, a warm-up, a decay at the end, a running average of the weights."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 40
#: Share of the steps at the end over which the learning rate falls to zero.
DECAY_SHARE = 0.35
AVERAGE_DECAY = 0.995
SAVE_EVERY_S = 60.0
REPORT_EVERY = 50


class TrainingLoop:
    """Yields the steps that are still to be made; `learn` makes one.

    Its state is `path`, from which it goes on: the network, its average over the last steps, Adam's moments, the step.
    """

    def __init__(self, path: Path, network: nn.Module, num_steps: int, learning_rate: float) -> None:
        self.path, self.network, self.num_steps, self.learning_rate = path, network, num_steps, learning_rate
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.98))
        self.average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.first_step = 0
        self._losses: list[float] = []
        if path.exists():
            state = torch.load(path)
            network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.first_step = state["average"], state["step"]

    def __iter__(self) -> Iterator[int]:
        saved = began = time.monotonic()
        for step in range(self.first_step, self.num_steps):
            yield step
            if (step + 1) % REPORT_EVERY == 0:
                seconds = (time.monotonic() - began) / (step + 1 - self.first_step)
                loss = sum(self._losses) / len(self._losses)
                print(f"{self.path.stem} step {step + 1}: loss {loss:.4f}, {seconds:.2f} s a step", flush=True)
                self._losses.clear()
            if time.monotonic() - saved > SAVE_EVERY_S:
                self._save(step + 1)
                saved = time.monotonic()
        self._save(self.num_steps)

    def learn(self, loss: Tensor, step: int) -> None:
        """One step down the gradient of `loss`."""
        decay = (self.num_steps - step) / (DECAY_SHARE * self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min((step + 1) / WARM_UP_STEPS, 1.0, decay)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        keep = min(AVERAGE_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                self.average[name].lerp_(tensor, 1.0 - keep)
        self._losses.append(loss.item())

    def _save(self, step: int) -> None:
        scratch = self.path.with_suffix(".part")
        torch.save(
            {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "step": step,
            },
            scratch,
        )
        scratch.rename(self.path)

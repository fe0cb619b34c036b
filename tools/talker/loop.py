"""A resumable training loop: Adam or Muon, a warm-up, a decay at the end, a running average of the weights."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP_STEPS = 40
AVERAGE_DECAY = 0.995
SAVE_EVERY_S = 60.0
REPORT_EVERY = 50
ADAM_BETAS = (0.9, 0.98)


class Muon(torch.optim.Optimizer):
    """Adam for vectors; orthogonalised momentum for matrices and kernels (K. Jordan's Muon), which needs fewer steps.

    An orthogonal step is scaled to the size of Adam's, so that both can use one learning rate. torch's own Muon accepts
    only matrices, and no kernels of convolutions.
    """

    MOMENTUM = 0.95
    #: Root mean square of Adam's steps, in units of the learning rate.
    ADAM_STEP = 0.2

    def __init__(self, network: nn.Module, learning_rate: float, prefix: str) -> None:
        """Matrices of the network with names that start with `prefix` take orthogonal steps."""
        named = [p for name, p in network.named_parameters() if name.startswith(prefix)]
        matrices = [p for p in named if p.ndim > 1 and min(p.shape[0], p[0].numel()) > 1]
        known = set(map(id, matrices))
        vectors = [p for p in network.parameters() if id(p) not in known]
        groups = [{"params": matrices, "is_matrix": True}, {"params": vectors, "is_matrix": False}]
        super().__init__(groups, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the current gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = self._matrix_step if group["is_matrix"] else self._vector_step
                    parameter.sub_(move(parameter.grad, self.state[parameter]), alpha=group["lr"])

    def _matrix_step(self, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - self.MOMENTUM)
        matrix = orthogonalise(gradient.lerp(momentum, self.MOMENTUM).flatten(1))
        return matrix.mul_(self.ADAM_STEP * max(matrix.shape) ** 0.5).view_as(gradient)

    def _vector_step(self, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        for name in ("first", "second"):
            state.setdefault(name, torch.zeros_like(gradient))
        count = state["count"] = state.get("count", torch.tensor(0.0)) + 1
        first, second = ADAM_BETAS
        state["first"].lerp_(gradient, 1 - first)
        state["second"].lerp_(gradient.square(), 1 - second)
        deviation = (state["second"] / (1 - second**count)).sqrt() + 1e-8
        return state["first"] / (1 - first**count) / deviation


def orthogonalise(matrix: Tensor) -> Tensor:
    """An approximation of the orthogonal matrix nearest to `matrix`, (rows, columns): five Newton-Schulz steps."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    result = matrix.T if is_tall else matrix
    result = result / (result.norm() + 1e-7)
    for _ in range(5):
        square = result @ result.T
        result = 3.4445 * result + (-4.7750 * square + 2.0315 * square @ square) @ result
    return (result.T if is_tall else result).contiguous()


class TrainingLoop:
    """Yields a generator of random numbers for each remaining step; `learn` makes the step.

    Its state is saved in `path`, from which it resumes: the network, its average over the last steps, the optimiser's
    moments, the step. All random numbers of a step, including torch's, depend only on the seed, the file's name and the
    step, so that an interrupted training gives the same result as an uninterrupted one.
    """

    def __init__(
        self,
        path: Path,
        network: nn.Module,
        num_steps: int,
        seed: int,
        learning_rate: float,
        decay_share: float = 0.35,
        muon_prefix: str | None = None,
        planned_steps: int | None = None,
    ) -> None:
        """Starts the training of a network, or resumes it from `path`.

        Args:
            decay_share: share of the steps, at the end, in which the learning rate falls to zero.
            muon_prefix: Muon trains the matrices with names that start so; None: Adam trains all.
            planned_steps: number of steps after which the learning rate is zero; None: the last.
        """
        self.path, self.network, self.num_steps, self.seed = path, network, num_steps, seed
        self.learning_rate, self.decay_share = learning_rate, decay_share
        self.planned_steps = planned_steps or num_steps
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(network.parameters(), lr=learning_rate, betas=ADAM_BETAS)
            if muon_prefix is None
            else Muon(network, learning_rate, muon_prefix)
        )
        self.average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.step = 0
        self._losses: list[float] = []
        if path.exists():
            state = torch.load(path)
            network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]

    def __iter__(self) -> Iterator[np.random.Generator]:
        saved = began = time.monotonic()
        first_step = self.step
        print(f"{self.path.stem}: steps {first_step} to {self.num_steps}", flush=True)
        while self.step < self.num_steps:
            generator = np.random.default_rng([self.seed, *self.path.stem.encode(), self.step])
            torch.manual_seed(int(generator.integers(2**63)))
            yield generator
            self.step += 1
            if self.step % REPORT_EVERY == 0:
                seconds = (time.monotonic() - began) / (self.step - first_step)
                loss = sum(self._losses) / len(self._losses)
                print(f"{self.path.stem} step {self.step}: loss {loss:.4f}, {seconds:.2f} s a step", flush=True)
                self._losses.clear()
            if time.monotonic() - saved > SAVE_EVERY_S:
                self._save()
                saved = time.monotonic()
        if self.step > first_step:
            self._save()

    def learn(self, loss: Tensor) -> None:
        """One step along the gradient of `loss`."""
        step = self.step
        decay = (self.planned_steps - step) / (self.decay_share * self.planned_steps)
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

    def _save(self) -> None:
        scratch = self.path.with_suffix(".part")
        torch.save(
            {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
            },
            scratch,
        )
        scratch.rename(self.path)

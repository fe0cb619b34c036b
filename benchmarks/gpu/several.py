"""Several GPUs that make a step together: seconds, agreement with one GPU, and the loss of a process.

Without a GPU, two processes of the CPU test the benchmark.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import AutoencoderKLWan

from benchmarks.gpu.networks import Shape, inputs, make_transformer, make_vae, shape_of, working_dtype
from benchmarks.gpu.rows import Figure, Group, Row, device, relative_error, timed
from infinitetalk.encoders.row_split import LeadingVae, VaePass, take_part
from infinitetalk.encoders.vae import decode_latents, encode_frames
from infinitetalk.errors import ParallelError
from infinitetalk.network.parallel import Division, Lead, LeadingTransformer
from infinitetalk.network.protocols import Denoiser, EvaluationInputs
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.followers import TIMEOUT_S, Followed, Followers

ALONE = Division(teams=1, team=0, team_size=1, token_split=None, attention=None)


@dataclass
class Several:
    """The transformer and the VAE of this process, and the processes of the other GPUs."""

    shape: Shape
    transformer: InfiniteTalkTransformer3DModel
    vae: AutoencoderKLWan
    followers: Followers

    @property
    def num_gpus(self) -> int:
        """Number of GPUs, or of processes of the CPU."""
        return len(self.followers.connections) + 1

    def alone(self) -> InfiniteTalkTransformer3DModel:
        """The transformer, as on one GPU."""
        ALONE.put_in_force(self.transformer)
        return self.transformer

    def together(self, shares_evaluations: bool = False) -> LeadingTransformer:
        """The transformer of all GPUs."""
        self.followers.command(None)
        lead = Lead(self.followers.wait(), self.followers.connections, self.followers.has_lost, TIMEOUT_S)
        return LeadingTransformer(self.transformer, lead, shares_evaluations)

    def step(self, num_evaluations: int) -> list[EvaluationInputs]:
        """A step's evaluations, of which each but the first has other text."""
        given = inputs(self.shape.chunk, working_dtype())
        text = given.pop("encoder_hidden_states")
        return [
            EvaluationInputs(**given, encoder_hidden_states=text / (1 + number), branch=str(number))
            for number in range(num_evaluations)
        ]


def make_loader(small: bool, gpu: torch.device) -> Callable[[None], Followed]:
    """A follower's: every process makes the same weights, on its current device."""
    transformer, vae = make_transformer(shape_of(small)), make_vae(shape_of(small))
    return lambda command: Followed(transformer, {VaePass: partial(take_part, vae)})


def prepare(small: bool) -> Several:
    """The 14B network on each GPU.

    Raises:
        RuntimeError: there is one GPU.
    """
    is_cuda = device().type == "cuda"
    count = torch.cuda.device_count() if is_cuda else 2
    if count < 2:
        raise RuntimeError("there is one GPU here")
    others = [torch.device("cuda", number) if is_cuda else device() for number in range(1, count)]
    followers = Followers(device(), others, partial(make_loader, small))
    followers.start()
    return Several(shape_of(small), make_transformer(shape_of(small)), make_vae(shape_of(small)), followers)


def evaluate(denoiser: Denoiser, step: list[EvaluationInputs]) -> list[torch.Tensor]:
    """All evaluations of a step."""
    made: list[torch.Tensor] = []
    for at_once in denoiser.rounds(len(step)):
        made += denoiser.evaluate(step[len(made) : len(made) + at_once])
    return made


def steps(state: Several) -> Iterator[Figure]:
    """Seconds of a step of one to three evaluations: by one GPU, by all with branches first, and with tokens alone."""
    for count in (1, 2, 3):
        step = state.step(count)
        expected = evaluate(state.alone(), step)
        alone_s = timed(lambda step=step: evaluate(state.alone(), step), 1)
        for shares in (False, True):
            together = state.together(shares)
            error = max(
                relative_error(found, one) for found, one in zip(evaluate(together, step), expected, strict=True)
            )
            took = timed(lambda together=together, step=step: evaluate(together, step))
            name = (
                f"a step of {count} evaluations by {state.num_gpus}, {'tokens alone' if shares else 'branches first'}"
            )
            yield Figure(name, took, detail=f"{alone_s / took:.2f} times as fast as one")
            yield Figure(f"{name}: difference from one", error, "relative error")


def vae(state: Several) -> Iterator[Figure]:
    """Seconds of a chunk through the VAE, by one GPU and by all, each with some rows of the picture."""
    together = LeadingVae(state.vae, state.together().lead)
    latents = torch.randn(1, state.vae.config.z_dim, *state.shape.chunk).to(device())
    for name, run, given in (
        ("decoding", decode_latents, latents),
        ("encoding", encode_frames, decode_latents(state.vae, latents)),
    ):
        error = relative_error(run(together, given), run(state.vae, given))
        alone_s, took = (timed(partial(run, each, given), 1) for each in (state.vae, together))
        name = f"{name} of a chunk by {state.num_gpus}"
        yield Figure(name, took, detail=f"{alone_s / took:.2f} times as fast as one")
        yield Figure(f"{name}: difference from one", error, "relative error")


def loss(state: Several) -> Iterator[Figure]:
    """Seconds from the end of another process, in the midst of an evaluation, to the error; then a new group's step."""
    together, step = state.together(), state.step(1)
    took = timed(lambda: evaluate(together, step))
    killed_at = []

    def kill() -> None:
        multiprocessing.active_children()[0].kill()
        killed_at.append(time.monotonic())

    timer = threading.Timer(took / 3, kill)
    timer.start()
    try:
        while True:
            evaluate(together, step)
    except ParallelError:
        yield Figure("a lost process is told of", time.monotonic() - killed_at[0])
    state.followers.end()
    state.followers.start()
    yield Figure("a step by the next group", timed(lambda: evaluate(state.together(), step), 1))
    state.followers.end()


GROUP = Group("several", prepare, (Row("steps", steps), Row("vae", vae), Row("loss", loss)))

"""One video on several GPUs: teams that make a step's evaluations at once, and context parallelism within each team.

Guidance asks for up to three evaluations in a step, which are independent: they are made by teams of equal size, which
exchange nothing but results (`teams.rounds_of`). The GPUs of a team split the tokens of their evaluation over
torch.distributed, with diffusers' sequence-parallel attention, so that each process has one part of the image in every
frame. Self-attention is diffusers' Ulysses attention, which exchanges heads for tokens. The audio attention works per
frame and communicates nothing. With several speakers, the keys of the first latent frame and the extrema of the
reference attention map are shared.

One process, the leader, has the job and all networks. The others, the followers, have only the transformer and share
each step with the leader, which sends them the inputs. `infinitetalk.runtime.followers` starts and ends them.
"""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import PartitionAnythingSharder
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from infinitetalk.errors import CheckpointError, ParallelError
from infinitetalk.network.protocols import EvaluationInputs, StepCache
from infinitetalk.network.teams import rounds_of, team_counts
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel

LEADER = 0
LOST = "a process of the group has ended or does not answer"


#: Pause between two looks at whether the GPU has finished.
_PAUSE_S = 0.0005


@dataclass(frozen=True)
class Division:
    """The group in teams of equal size, each of which makes whole evaluations, as this process sees it.

    Attributes:
        teams: number of teams.
        team: this process's team, counted from 0.
        team_size: number of processes of a team.
        token_split: the split of an evaluation's tokens over this process's team; None for a team of one.
        attention: the same for diffusers' attention.
    """

    teams: int
    team: int
    team_size: int
    token_split: PictureSplit | None
    attention: ParallelConfig | None

    def first_rank(self, team: int) -> int:
        """The number of a team's first process in the group."""
        return team * self.team_size

    def put_in_force(self, transformer: InfiniteTalkTransformer3DModel) -> None:
        """Makes the next evaluation of this process's transformer its part of one that the whole team makes."""
        for module in transformer.modules():
            if isinstance(module, WanAttention):
                module.processor._parallel_config = self.attention
        transformer.token_split = self.token_split


@dataclass(frozen=True)
class Group:
    """The processes that generate one video together.

    Attributes:
        divisions: by their number of teams.
        device: this process's device.
    """

    divisions: Mapping[int, Division]
    device: torch.device

    @property
    def rank(self) -> int:
        """This process's number, 0 for the leader."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size()

    def abort(self) -> None:
        """Makes this process's GPU give up whatever it exchanges with the others, which may not be there any more.

        Kernels of NCCL wait for a lost process for ever. gloo notices by itself that one has gone.
        """
        if self.device.type != "cuda":
            return
        world = dist.group.WORLD
        assert world is not None
        splits = [division.token_split for division in self.divisions.values() if division.token_split is not None]
        for group in (*(split.group for split in splits), world):
            group._get_backend(self.device).abort()


def join(rank: int, size: int, address: str, device: torch.device, timeout_s: float) -> Group:
    """Makes this process join a group; returns when all have joined.

    Args:
        rank: 0 for the leader, then counting up.
        size: the number of processes, at least 2.
        address: their meeting point, "tcp://127.0.0.1:PORT" or "file:///PATH" of a file that does not exist yet.
        device: this process's device.
        timeout_s: a process that does not answer within this time counts as lost.

    Raises:
        ParallelError: not all have joined in time.
    """
    if device.type == "cuda":
        # Otherwise NCCL's watchdog would end the process when another one is lost; the leader watches them itself.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    backend = "cpu:gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    with lost_processes():
        dist.init_process_group(
            backend, init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
        )
        try:
            return make_group(device.type, device)
        except BaseException:
            # Otherwise this process could join no other group.
            leave()
            raise


def make_group(mesh_type: str, device: torch.device) -> Group:
    """The group of all processes that torch.distributed knows.

    Args:
        mesh_type: type of the devices whose memory is exchanged.
        device: this process's device.
    """
    return Group({teams: _divide(mesh_type, device, teams) for teams in team_counts(dist.get_world_size())}, device)


def _divide(mesh_type: str, device: torch.device, teams: int) -> Division:
    rank, size = dist.get_rank(), dist.get_world_size()
    team_size = size // teams
    if team_size == 1:
        return Division(teams, rank, team_size, None, None)
    # Every process makes every mesh: torch.distributed asks for that.
    mesh = init_device_mesh(mesh_type, (teams, 1, team_size), mesh_dim_names=("teams", "ring", "ulysses"))
    own = mesh["ring", "ulysses"]
    attention = ParallelConfig(
        context_parallel_config=ContextParallelConfig(ulysses_degree=team_size, ulysses_anything=True, mesh=own)
    )
    attention.setup(rank, size, device, mesh=own)
    return Division(teams, rank // team_size, team_size, PictureSplit(own), attention)


def leave() -> None:
    """Makes this process leave the group."""
    dist.destroy_process_group()


class PictureSplit:
    """The split of the tokens over a team: each process has one part of the image in every frame.

    Args:
        mesh: diffusers' mesh of the team, "ring" by "ulysses".
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh["ulysses"]

    @property
    def group(self) -> dist.ProcessGroup:
        """The team."""
        return self._mesh.get_group()

    def part(self, tokens: Tensor, num_frames: int) -> Tensor:
        """This process's part of (1, num_frames · S, …): (1, num_frames · S', …), ordered by frame.

        Raises:
            ValueError: the image has fewer tokens than the team has processes.
        """
        by_frame = tokens.unflatten(1, (num_frames, -1))
        check_divisible(by_frame.shape[2], self._mesh.size())
        return PartitionAnythingSharder.shard_anything(by_frame, 2, self._mesh).flatten(1, 2)

    def whole(self, part: Tensor, num_frames: int, picture_tokens: int) -> Tensor:
        """The inverse of `part`, in every process; `picture_tokens` is S. Parts are padded to the largest size."""
        by_frame = part.unflatten(1, (num_frames, -1))
        sizes = [len(numbers) for numbers in torch.arange(picture_tokens).tensor_split(self._mesh.size())]
        padded = by_frame.new_zeros(*by_frame.shape[:2], sizes[0], *by_frame.shape[3:])
        padded[:, :, : by_frame.shape[2]] = by_frame
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([each[:, :, :size] for each, size in zip(parts, sizes, strict=True)], dim=2).flatten(1, 2)

    def extrema(self, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """The minima and maxima over all processes, element by element."""
        both = torch.stack([-smallest, largest])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group)
        return -both[0], both[1]


def check_divisible(picture_tokens: int, size: int) -> None:
    """Checks that an image has at least one token for each of `size` processes.

    Raises:
        ValueError: it has too few.
    """
    if picture_tokens < size:
        raise ValueError(f"an image of {picture_tokens} tokens cannot be split over {size} processes")


def check_heads(num_heads: int, size: int) -> None:
    """Checks that a network's heads can be distributed to `size` processes so that the last one gets at least one.

    Raises:
        CheckpointError: they cannot.
    """
    heads_of_each = -(-num_heads // size)
    if heads_of_each * (size - 1) >= num_heads:
        raise CheckpointError(f"the network's {num_heads} heads cannot be distributed to {size} GPUs; use fewer")


@dataclass(frozen=True)
class Evaluation:
    """What a follower is told about an evaluation.

    Attributes:
        inputs: for each argument of the transformer, the number of its tensor in the round.
        branch: name of the guidance branch, for diffusers' caches.
        cache: number of the guidance branch's step cache; None without one.
        new_cache: the cache, if its number is new.
    """

    inputs: Mapping[str, int]
    branch: str
    cache: int | None
    new_cache: StepCache | None


@dataclass(frozen=True)
class Round:
    """The message about evaluations that are made at once, one by each team. Their tensors follow.

    Attributes:
        evaluations: one for each team.
        tensors: shape and dtype of each tensor; evaluations share them.
        resets_cache: whether diffusers' caches are cleared first.
        live_caches: numbers of the step caches that are still in use.
    """

    evaluations: tuple[Evaluation, ...]
    tensors: tuple[tuple[torch.Size, torch.dtype], ...]
    resets_cache: bool
    live_caches: frozenset[int]


class Lead:
    """The leader's end of a group.

    Args:
        group: the group that this process leads.
        followers: connections to the other processes, each in `follow`.
        has_lost: whether a process of the group has ended.
        timeout_s: a process that does not answer within this time counts as lost.

    Attributes:
        group: the group.
        is_lost: whether something that all do together has failed, which makes the group unusable.
    """

    def __init__(
        self, group: Group, followers: Sequence[Connection], has_lost: Callable[[], bool], timeout_s: float
    ) -> None:
        self.group = group
        self.is_lost = False
        self._followers, self._has_lost, self._timeout_s = followers, has_lost, timeout_s

    @contextmanager
    def asking(self, message: object) -> Iterator[None]:
        """Sends a message to the others; what is inside is this process's part of what it asks for. At the end, the GPU
        has computed it.

        Raises:
            ParallelError: a process has ended, or does not answer.
        """
        try:
            with lost_processes():
                # By pipe: a follower may wait for hours between two jobs, and waiting in a collective times out.
                for follower in self._followers:
                    follower.send(message)
                yield
                self._wait()
        except BaseException:
            # After any error, the others are still in the middle of it.
            self.is_lost = True
            raise

    def _wait(self) -> None:
        """Waits until the GPU has everything. With NCCL, all calls before return at once, and what is computed
        after the loss of a process is worth nothing.

        Raises:
            ParallelError: a process has ended, or does not answer.
        """
        if self.group.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
            deadline = time.monotonic() + self._timeout_s
            while not done.query():
                if self._has_lost() or time.monotonic() > deadline:
                    raise ParallelError(LOST)
                time.sleep(_PAUSE_S)
        if self._has_lost():
            raise ParallelError(LOST)


class LeadingTransformer:
    """Takes the place of the transformer in the leader: the whole group shares each step.

    Args:
        transformer: this process's transformer.
        lead: the group that this process leads.
        shares_evaluations: whether the whole group shares each evaluation, which takes the least memory; otherwise,
            teams make several at once.

    Attributes:
        dtype: dtype of the weights.
        lead: the group.

    Raises:
        CheckpointError: the network has too few heads for the group.
    """

    def __init__(
        self,
        transformer: InfiniteTalkTransformer3DModel,
        lead: Lead,
        shares_evaluations: bool = False,
    ) -> None:
        check_heads(transformer.config.num_attention_heads, lead.group.size)
        self.dtype = transformer.dtype
        self.lead = lead
        self._transformer = transformer
        self._group = lead.group
        self._shares_evaluations = shares_evaluations
        self._resets_cache = False
        self._numbers = itertools.count()
        self._caches: weakref.WeakKeyDictionary[StepCache, int] = weakref.WeakKeyDictionary()

    def reset_cache(self) -> None:
        """Like the transformer's; every process does so before its next evaluation."""
        self._resets_cache = True

    def rounds(self, num_evaluations: int) -> list[int]:
        """Like the transformer's: each team makes one evaluation of a round."""
        return rounds_of(num_evaluations, self._group.size, self._shares_evaluations)

    def evaluate(self, evaluations: Sequence[EvaluationInputs]) -> list[Tensor]:
        """Like the transformer's.

        Raises:
            ParallelError: a process has ended, or does not answer.
        """
        tensors: list[Tensor] = []
        described = tuple(self._describe(evaluation, tensors) for evaluation in evaluations)
        message = Round(
            evaluations=described,
            tensors=tuple((tensor.shape, tensor.dtype) for tensor in tensors),
            resets_cache=self._resets_cache,
            live_caches=frozenset(self._caches.values()),
        )
        with self.lead.asking(message):
            for tensor in tensors:
                dist.broadcast(tensor.contiguous(), LEADER)
            predictions = take_part(self._transformer, self._group, message.resets_cache, evaluations)
            self._count_skipped(evaluations)
        self._resets_cache = False
        return predictions

    def _describe(self, evaluation: EvaluationInputs, tensors: list[Tensor]) -> Evaluation:
        """An evaluation for followers; `tensors` gets those of its tensors that are new."""
        places = {}
        for name, tensor in evaluation.tensors.items():
            if tensor is None:
                continue
            known = [place for place, each in enumerate(tensors) if each is tensor]
            places[name] = known[0] if known else len(tensors)
            tensors += [] if known else [tensor]
        cache = evaluation.cache
        number, new_cache = None, None
        if cache is not None:
            if cache not in self._caches:
                self._caches[cache], new_cache = next(self._numbers), cache
            number = self._caches[cache]
        return Evaluation(places, evaluation.branch, number, new_cache)

    def _count_skipped(self, evaluations: Sequence[EvaluationInputs]) -> None:
        """Has the step caches of other teams' evaluations decide here too: each counts what it skips."""
        own = self._group.divisions[len(evaluations)].team
        for team, evaluation in enumerate(evaluations):
            if team != own and evaluation.cache is not None:
                _, timestep_proj = self._transformer.embed_timestep(evaluation.timestep)
                evaluation.cache.should_compute(timestep_proj)


def take_part(
    transformer: InfiniteTalkTransformer3DModel,
    group: Group,
    resets_cache: bool,
    evaluations: Sequence[EvaluationInputs],
) -> list[Tensor]:
    """One process's share of a round: part of its team's evaluation. Returns all predictions of the round."""
    division = group.divisions[len(evaluations)]
    division.put_in_force(transformer)
    if resets_cache:
        transformer.reset_cache()
    (own,) = transformer.evaluate([evaluations[division.team]])
    own = own.contiguous()
    predictions = [own if team == division.team else torch.empty_like(own) for team in range(division.teams)]
    if division.teams > 1:
        for team, prediction in enumerate(predictions):
            dist.broadcast(prediction, division.first_rank(team))
    return predictions


def follow(
    transformer: InfiniteTalkTransformer3DModel,
    group: Group,
    leader: Connection,
    others: Mapping[type, Callable[[Any], None]],
) -> object:
    """Takes part in what the leader asks for: in the rounds of its `LeadingTransformer`, and in other work.

    Args:
        others: by their types, how to answer messages about other work.

    Returns:
        The first message of another kind.

    Raises:
        ParallelError: a process has ended, or does not answer.
    """
    caches: dict[int, StepCache] = {}
    with lost_processes(), torch.no_grad():
        while True:
            message = leader.recv()
            if type(message) in others:
                others[type(message)](message)
            elif isinstance(message, Round):
                _take_part_in_round(transformer, group, message, caches)
            else:
                return message


def _take_part_in_round(
    transformer: InfiniteTalkTransformer3DModel, group: Group, message: Round, caches: dict[int, StepCache]
) -> None:
    for number in caches.keys() - message.live_caches:
        del caches[number]
    for each in message.evaluations:
        if each.cache is not None and each.new_cache is not None:
            caches[each.cache] = each.new_cache
    tensors = [torch.empty(shape, dtype=dtype, device=group.device) for shape, dtype in message.tensors]
    for tensor in tensors:
        dist.broadcast(tensor, LEADER)
    evaluations = [
        EvaluationInputs(
            branch=each.branch,
            cache=None if each.cache is None else caches[each.cache],
            **{name: tensors[place] for name, place in each.inputs.items()},
        )
        for each in message.evaluations
    ]
    take_part(transformer, group, message.resets_cache, evaluations)


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turns the errors of torch.distributed and pipes about a lost process into `ParallelError`."""
    try:
        yield
    except (dist.DistError, EOFError, ConnectionError) as error:
        raise ParallelError(LOST) from error
    except RuntimeError as error:
        # gloo's errors, and the meeting point's, can only be recognised by their text.
        if not any(
            text in str(error) for text in ("gloo/transport", "Gloo connectFullMesh", "Timed out", "Wait timeout")
        ):
            raise
        raise ParallelError(LOST) from error

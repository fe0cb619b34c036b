"""One video on several GPUs: context parallelism over torch.distributed, with diffusers' sequence-parallel attention.

The tokens are split so that each process has one part of the image in every frame. Self-attention is diffusers' Ulysses
attention, which exchanges heads for tokens. The audio attention works per frame and communicates nothing. With several
speakers, the keys of the first latent frame and the extrema of the reference attention map are shared.

One process, the leader, has the job and all networks. The others, the followers, have only the transformer and share
each evaluation with the leader, which sends them the inputs. `infinitetalk.runtime.followers` starts and ends them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
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
from infinitetalk.network.protocols import StepCache
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel

LEADER = 0
LOST = "a process of the group has ended or does not answer"


@dataclass(frozen=True)
class Group:
    """The processes that generate one video together.

    Attributes:
        mesh: diffusers' mesh, "ring" by "ulysses", over all processes.
        device: this process's device.
    """

    mesh: DeviceMesh
    device: torch.device

    @property
    def rank(self) -> int:
        """This process's number, 0 for the leader."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size()


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
        torch.cuda.set_device(device)
    backend = "cpu:gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    with lost_processes():
        dist.init_process_group(
            backend, init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
        )
        mesh = init_device_mesh(device.type, (1, size), mesh_dim_names=("ring", "ulysses"))
        return Group(mesh, device)


def leave() -> None:
    """Makes this process leave the group."""
    dist.destroy_process_group()


class PictureSplit:
    """The split of the tokens over a group: each process has one part of the image in every frame."""

    def __init__(self, group: Group) -> None:
        self._mesh = group.mesh["ulysses"]

    def part(self, tokens: Tensor, num_frames: int) -> Tensor:
        """This process's part of (1, num_frames · S, …): (1, num_frames · S', …), ordered by frame.

        Raises:
            ValueError: the image has fewer tokens than the group has processes.
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
        dist.all_gather(parts, padded, group=self._mesh.get_group())
        return torch.cat([each[:, :, :size] for each, size in zip(parts, sizes, strict=True)], dim=2).flatten(1, 2)

    def extrema(self, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """The minima and maxima over all processes, element by element."""
        both = torch.stack([-smallest, largest])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self._mesh.get_group())
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


def split_transformer(transformer: InfiniteTalkTransformer3DModel, group: Group) -> None:
    """Splits the transformer over the group: all processes must then call it together, with the same inputs.

    Each gets the whole result.

    diffusers' `enable_parallelism` does not serve: it cannot make the mesh on a machine without an accelerator, and
    splits the tokens in time.

    Raises:
        CheckpointError: the network has too few heads for the group.
    """
    check_heads(transformer.config.num_attention_heads, group.size)
    config = ParallelConfig(
        context_parallel_config=ContextParallelConfig(ulysses_degree=group.size, ulysses_anything=True, mesh=group.mesh)
    )
    config.setup(group.rank, group.size, group.device, mesh=group.mesh)
    for module in transformer.modules():
        if isinstance(module, WanAttention):
            module.processor._parallel_config = config
    transformer.token_split = PictureSplit(group)


@dataclass(frozen=True)
class Evaluation:
    """The message about an evaluation that a follower gets before its tensors.

    Attributes:
        tensors: name, shape and dtype of each.
        branch: name of the guidance branch, for diffusers' caches; None outside a branch.
        resets_cache: whether diffusers' caches are cleared first.
        cache: number of the guidance branch's step cache; None without one.
        new_cache: the cache, if its number is new.
        live_caches: numbers of the caches that are still in use.
    """

    tensors: tuple[tuple[str, torch.Size, torch.dtype], ...]
    branch: str | None
    resets_cache: bool
    cache: int | None
    new_cache: StepCache | None
    live_caches: frozenset[int]


class LeadingTransformer:
    """Takes the place of the transformer in the leader: the whole group shares each evaluation.

    Args:
        transformer: this process's transformer.
        group: the group that this process leads.
        followers: connections to the other processes, each in `follow`.

    Attributes:
        dtype: dtype of the weights.
        is_lost: whether an evaluation has failed, which makes the group unusable.
    """

    def __init__(
        self, transformer: InfiniteTalkTransformer3DModel, group: Group, followers: Sequence[Connection]
    ) -> None:
        split_transformer(transformer, group)
        self.dtype = transformer.dtype
        self._transformer = transformer
        self.is_lost = False
        self._followers = followers
        self._branch: str | None = None
        self._resets_cache = False
        self._numbers = itertools.count()
        self._caches: weakref.WeakKeyDictionary[StepCache, int] = weakref.WeakKeyDictionary()

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Like the transformer's; every process enters the context for the evaluations inside."""
        self._branch = name
        try:
            yield
        finally:
            self._branch = None

    def reset_cache(self) -> None:
        """Like the transformer's; every process does so before its next evaluation."""
        self._resets_cache = True

    def __call__(self, cache: StepCache | None = None, return_dict: bool = True, **inputs: Tensor | None) -> Any:
        """Like the transformer's `forward`; the inputs are tensors.

        Raises:
            ParallelError: a process has ended, or does not answer.
        """
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        number, new_cache = None, None
        if cache is not None:
            if cache not in self._caches:
                self._caches[cache], new_cache = next(self._numbers), cache
            number = self._caches[cache]
        message = Evaluation(
            tensors=tuple((name, tensor.shape, tensor.dtype) for name, tensor in given.items()),
            branch=self._branch,
            resets_cache=self._resets_cache,
            cache=number,
            new_cache=new_cache,
            live_caches=frozenset(self._caches.values()),
        )
        try:
            with lost_processes():
                # By pipe: a follower may wait for hours between two jobs, and waiting in a collective times out.
                for follower in self._followers:
                    follower.send(message)
                for tensor in given.values():
                    dist.broadcast(tensor.contiguous(), LEADER)
                prediction = evaluate(self._transformer, message, cache=cache, return_dict=return_dict, **given)
        except BaseException:
            # After any error, the others are still in the middle of the same evaluation.
            self.is_lost = True
            raise
        self._resets_cache = False
        return prediction


def evaluate(transformer: InfiniteTalkTransformer3DModel, evaluation: Evaluation, **arguments: Any) -> Any:
    """One process's share of an evaluation, in its cache context."""
    if evaluation.resets_cache:
        transformer.reset_cache()
    if evaluation.branch is None:
        return transformer(**arguments)
    with transformer.cache_context(evaluation.branch):
        return transformer(**arguments)


def follow(transformer: InfiniteTalkTransformer3DModel, group: Group, leader: Connection) -> object:
    """Takes part in the evaluations that the leader's `LeadingTransformer` sends, until another message comes.

    Returns:
        That message.

    Raises:
        ParallelError: a process has ended, or does not answer.
    """
    split_transformer(transformer, group)
    caches: dict[int, StepCache] = {}
    with lost_processes(), torch.no_grad():
        while isinstance(message := leader.recv(), Evaluation):
            caches = {number: cache for number, cache in caches.items() if number in message.live_caches}
            if message.cache is not None and message.new_cache is not None:
                caches[message.cache] = message.new_cache
            inputs = {
                name: torch.empty(shape, dtype=dtype, device=group.device) for name, shape, dtype in message.tensors
            }
            for tensor in inputs.values():
                dist.broadcast(tensor, LEADER)
            evaluate(transformer, message, cache=None if message.cache is None else caches[message.cache], **inputs)
    return message


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turns the errors of torch.distributed and pipes about a lost process into `ParallelError`."""
    try:
        yield
    except (dist.DistError, EOFError, ConnectionError) as error:
        raise ParallelError(LOST) from error
    except RuntimeError as error:
        # gloo's errors can only be recognised by their text.
        if "gloo/transport" not in str(error) and "Timed out" not in str(error):
            raise
        raise ParallelError(LOST) from error

"""The VAE by several processes: each has some rows of every frame, from the top of the picture to its bottom.

Convolutions ask the processes above and below for the rows that they reach, one at most, so that the result is that of
one process but for rounding; nothing is blended. The attention within a frame, at the size of the latents, is made by
every process for the whole frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLOutput,
    DecoderOutput,
    WanAttentionBlock,
    WanCausalConv3d,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from infinitetalk.encoders.vae import suitable_threads
from infinitetalk.network.parallel import LEADER, Lead

Way = Literal["encode", "decode"]


@dataclass(frozen=True)
class Rows:
    """This process's place among those that share a picture.

    Attributes:
        counts: rows of latents that each process has.
        rank: this process's number, from the top.
    """

    counts: tuple[int, ...]
    rank: int

    def part(self, picture: Tensor, rank: int) -> Tensor:
        """A process's part of (…, rows, columns): of latents, of frames, or of what is between them."""
        factor = picture.shape[-2] // sum(self.counts)
        return picture.narrow(-2, factor * sum(self.counts[:rank]), factor * self.counts[rank])

    def with_neighbours(self, part: Tensor, above: bool, below: bool) -> Tensor:
        """This process's part (…, rows, columns) with one more row above and below it, as far as asked for: the
        neighbours' nearest, or zeros at the picture's border. Every process must ask for the same."""
        has_above, has_below = self.rank > 0, self.rank + 1 < len(self.counts)
        over, under = (_border(part, has_neighbour) for has_neighbour in (has_above, has_below))
        exchanges = []
        if has_above:
            exchanges += [dist.P2POp(dist.irecv, over, self.rank - 1)] if above else []
            exchanges += [dist.P2POp(dist.isend, part[..., :1, :].contiguous(), self.rank - 1)] if below else []
        if has_below:
            exchanges += [dist.P2POp(dist.isend, part[..., -1:, :].contiguous(), self.rank + 1)] if above else []
            exchanges += [dist.P2POp(dist.irecv, under, self.rank + 1)] if below else []
        for exchange in dist.batch_isend_irecv(exchanges):
            exchange.wait()
        rows = [_as_laid_out(over, part)] if above else []
        rows += [part, _as_laid_out(under, part)] if below else [part]
        return torch.cat(rows, dim=-2)

    def whole(self, part: Tensor) -> Tensor:
        """The whole picture, in every process."""
        factor = part.shape[-2] // self.counts[self.rank]
        padded = F.pad(part, (0, 0, 0, factor * max(self.counts) - part.shape[-2])).contiguous()
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded)
        picture = torch.cat(
            [each[..., : factor * count, :] for each, count in zip(parts, self.counts, strict=True)], dim=-2
        )
        return _as_laid_out(picture, part)


def _border(part: Tensor, has_neighbour: bool) -> Tensor:
    """A row beside a part, to be received from a neighbour, or of zeros."""
    shape = (*part.shape[:-2], 1, part.shape[-1])
    return part.new_empty(shape) if has_neighbour else part.new_zeros(shape)


def _as_laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor with channels innermost where another of as many dimensions has them so."""
    innermost = torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last
    return tensor.contiguous(memory_format=innermost) if like.is_contiguous(memory_format=innermost) else tensor


def rows_of(latent_rows: int, size: int, rank: int) -> Rows:
    """The rows of latents of each of `size` processes, as equal as can be."""
    return Rows(tuple(len(each) for each in torch.arange(latent_rows).tensor_split(size)), rank)


@contextmanager
def split(vae: AutoencoderKLWan, rows: Rows) -> Iterator[None]:
    """While this is entered, the VAE's layers compute this process's part of a picture."""
    with ExitStack() as undo:
        for module in vae.modules():
            for hook in _hooks_of(module, rows, undo):
                undo.callback(hook.remove)
        yield


def _hooks_of(module: nn.Module, rows: Rows, undo: ExitStack) -> list[Any]:
    """Hooks by which a layer gets the rows that it reaches; its own padding of rows is off until it is undone."""
    if isinstance(module, WanCausalConv3d):
        left, right, rows_above, _, *frames = module._padding
        if rows_above == 0:
            return []
        undo.callback(setattr, module, "_padding", module._padding)
        module._padding = (left, right, 0, 0, *frames)
        # The second argument is the last frames before these, if any.
        return [
            module.register_forward_pre_hook(
                lambda _, given: tuple(
                    None if each is None else rows.with_neighbours(each, above=True, below=True) for each in given
                )
            )
        ]
    if isinstance(module, nn.Conv2d) and module.padding == (1, 1):
        undo.callback(setattr, module, "padding", module.padding)
        module.padding = (0, 1)
        return [module.register_forward_pre_hook(lambda _, given: rows.with_neighbours(given[0], True, True))]
    if isinstance(module, nn.ZeroPad2d):
        undo.callback(setattr, module, "padding", module.padding)
        left, right, _, _ = module.padding
        module.padding = (left, right, 0, 0)
        return [module.register_forward_pre_hook(lambda _, given: rows.with_neighbours(given[0], False, True))]
    if isinstance(module, WanAttentionBlock):
        return [
            module.register_forward_pre_hook(lambda _, given: rows.whole(given[0])),
            module.register_forward_hook(lambda _, given, made: rows.part(made, rows.rank)),
        ]
    return []


@dataclass(frozen=True)
class VaePass:
    """The message about a pass of the VAE. Each process then gets its rows, and sends back what it makes of them.

    Attributes:
        way: "encode" or "decode".
        shape: of the whole picture: of frames, or of latents.
        latent_rows: its rows, counted in latents.
    """

    way: Way
    shape: torch.Size
    latent_rows: int


@torch.no_grad()
def take_part(vae: AutoencoderKLWan, message: VaePass) -> None:
    """A follower's share of a pass: it receives its rows from the leader and sends its result."""
    rows = rows_of(message.latent_rows, dist.get_world_size(), dist.get_rank())
    factor = message.shape[-2] // message.latent_rows
    shape = (*message.shape[:-2], factor * rows.counts[rows.rank], message.shape[-1])
    given = torch.empty(shape, dtype=vae.dtype, device=vae.device)
    dist.recv(given, LEADER)
    dist.send(_compute(vae, message.way, given, rows).contiguous(), LEADER)


def _compute(vae: AutoencoderKLWan, way: Way, given: Tensor, rows: Rows) -> Tensor:
    """This process's rows of what the VAE makes of its rows."""
    with split(vae, rows), suitable_threads(vae.device):
        return vae._encode(given) if way == "encode" else vae._decode(given).sample


class LeadingVae:
    """Takes the place of the VAE in the leader: the whole group shares each pass.

    Where the VAE works in tiles, or a picture has fewer rows of latents than there are processes, the leader does it
    alone.

    Args:
        vae: this process's VAE.
        lead: the group that this process leads; each follower answers a `VaePass` by `take_part`.
    """

    def __init__(self, vae: AutoencoderKLWan, lead: Lead) -> None:
        self._vae, self._lead = vae, lead
        self.config, self.device, self.dtype = vae.config, vae.device, vae.dtype

    def encode(self, frames: Tensor) -> AutoencoderKLOutput:
        """Like the VAE's.

        Raises:
            ParallelError: a process has ended, or does not answer.
        """
        latent_rows = frames.shape[-2] // self.config.scale_factor_spatial
        if not self._is_shared(latent_rows):
            return self._vae.encode(frames)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(self._run("encode", frames, latent_rows)))

    def decode(self, latents: Tensor) -> DecoderOutput:
        """Like the VAE's.

        Raises:
            ParallelError: a process has ended, or does not answer.
        """
        latent_rows = latents.shape[-2]
        if not self._is_shared(latent_rows):
            return self._vae.decode(latents)
        return DecoderOutput(sample=self._run("decode", latents, latent_rows))

    def _is_shared(self, latent_rows: int) -> bool:
        return not self._vae.use_tiling and latent_rows >= self._lead.group.size

    def _run(self, way: Way, whole: Tensor, latent_rows: int) -> Tensor:
        rows = rows_of(latent_rows, self._lead.group.size, LEADER)
        with self._lead.asking(VaePass(way, whole.shape, latent_rows)):
            for rank in range(1, len(rows.counts)):
                dist.send(rows.part(whole, rank).contiguous(), rank)
            made = [_compute(self._vae, way, rows.part(whole, LEADER), rows)]
            factor = made[0].shape[-2] // rows.counts[LEADER]
            for rank in range(1, len(rows.counts)):
                shape = (*made[0].shape[:-2], factor * rows.counts[rank], made[0].shape[-1])
                made.append(torch.empty(shape, dtype=made[0].dtype, device=made[0].device))
                dist.recv(made[rank], rank)
            return torch.cat(made, dim=-2)

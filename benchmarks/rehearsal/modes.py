"""Evaluations in the worker's other modes: streamed blocks, and several GPUs, on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from diffusers.models import attention_dispatch
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.rehearsal import parts
from benchmarks.rehearsal.device import DEVICE
from benchmarks.rehearsal.log import Log
from benchmarks.rehearsal.networks import make_transformer, on_fake_device, quantise_blocks
from benchmarks.rehearsal.stage import Stage
from benchmarks.rehearsal.streams import fake_streams, inner_tensors
from infinitetalk.encoders.row_split import rows_of, split
from infinitetalk.family import INFINITETALK
from infinitetalk.network.parallel import make_group
from infinitetalk.network.teams import rounds_of
from infinitetalk.runtime.memory import MemoryMode, Workload, set_tiling, stream_blocks


@dataclass(frozen=True)
class StreamedEvaluation:
    """An evaluation with streamed blocks.

    Attributes:
        log: with the memory of streamed weights, but not of resident ones.
        resident_bytes: of the weights that are always on the device.
    """

    log: Log
    resident_bytes: int


def streamed_evaluation(
    stage: Stage, workload: Workload, mode: MemoryMode, num_layers: int | None = None
) -> StreamedEvaluation:
    """One evaluation with the first blocks resident and the others streamed, and with weights in 8 bits if the mode has
    them."""
    assert mode.resident_parameters is not None
    transformer = make_transformer(stage.mode, num_layers)
    if mode.quantisation is not None:
        quantise_blocks(transformer, stage.mode, mode.quantisation)
    with fake_streams():
        with stage.mode, torch.no_grad():
            stream_blocks(transformer, mode.resident_parameters, DEVICE)
        # Blocks are prefetched in the order of the first evaluation.
        parts.evaluation(stage, workload, transformer=transformer)
        resident_bytes = bytes_on_device(transformer)
        return StreamedEvaluation(parts.evaluation(stage, workload, transformer=transformer), resident_bytes)


def bytes_on_device(module: nn.Module) -> int:
    """What a network's parameters and buffers take on the device."""
    tensors = [inner for each in (*module.parameters(), *module.buffers()) for inner in inner_tensors(each)]
    return sum(tensor.nbytes for tensor in tensors if tensor.device == DEVICE)


def split_evaluation(
    stage: Stage, workload: Workload, gpus: int, speakers: int = 1, num_layers: int | None = None
) -> Log:
    """The first GPU's part of a round of evaluations, as many at once as the workload's guidance branches allow; the
    tokens of an evaluation must divide evenly."""
    transformer = make_transformer(stage.mode, num_layers)
    with _group_of(gpus, rank=0):
        division = make_group("cpu", DEVICE).divisions[rounds_of(workload.branches, gpus)[0]]
        division.put_in_force(transformer)
        with patch.object(attention_dispatch, "gather_size_by_comm", lambda size, group: [size] * division.team_size):
            return parts.evaluation(stage, workload, speakers, transformer)


def split_decode(stage: Stage, workload: Workload, gpus: int) -> Log:
    """A GPU's part of decoding a chunk: some rows of the picture, below those of another GPU."""
    family = INFINITETALK
    rows = rows_of(workload.height // family.vae_scale_factor_spatial, gpus, 1)
    latent_frames = (workload.num_frames - 1) // family.vae_scale_factor_temporal + 1
    columns = workload.width // family.vae_scale_factor_spatial
    with on_fake_device(stage.mode):
        latents = torch.empty(1, family.latent_channels, latent_frames, rows.counts[rows.rank], columns)
    vae = stage.vae
    assert isinstance(vae, AutoencoderKLWan)
    set_tiling(vae, False)
    with _group_of(gpus, rows.rank), split(vae, rows):
        return stage.record(lambda: vae._decode(latents).sample)


@contextmanager
def _group_of(gpus: int, rank: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=gpus)
    try:
        yield
    finally:
        dist.destroy_process_group()

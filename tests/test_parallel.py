"""Several processes on the CPU make what one makes."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.errors import CheckpointError, ParallelError
from infinitetalk.family import INFINITETALK
from infinitetalk.network import parallel
from infinitetalk.network.parallel import LeadingTransformer
from infinitetalk.network.teacache import TeaCache
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.followers import TIMEOUT_S, Followers
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import adapter_kind

CPU = torch.device("cpu")


def make_transformer(heads: int) -> InfiniteTalkTransformer3DModel:
    torch.manual_seed(0)
    return InfiniteTalkTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        image_dim=12,
        added_kv_proj_dim=12 * heads,
        audio_layers=3,
        audio_channels=4,
        audio_intermediate_dim=8,
        audio_output_dim=16,
        audio_context_tokens=2,
    ).eval()


def inputs(
    speakers: int, height: int, width: int, text_dim: int = 8, image_dim: int = 12, layers: int = 3, channels: int = 4
) -> dict[str, Tensor]:
    """For three latent frames; each further speaker has a column of the picture."""
    generator = torch.Generator().manual_seed(2)
    given = {
        "hidden_states": torch.randn(1, 36, 3, height, width, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 6, text_dim, generator=generator),
        "encoder_hidden_states_image": torch.randn(1, 5, image_dim, generator=generator),
        "encoder_hidden_states_audio": torch.randn(speakers, 9, 5, layers, channels, generator=generator),
    }
    if speakers > 1:
        regions = torch.zeros(speakers + 1, height, width, dtype=torch.bool)
        for speaker in range(speakers):
            regions[speaker, 2:, 4 * speaker : 4 * speaker + 4] = True
        regions[-1] = ~regions[:-1].any(dim=0)
        given["regions"] = regions
    return given


def make_loader(device: torch.device):
    """What followers load with: a command is the number of heads."""
    torch.set_num_threads(1)
    return make_transformer


def make_fragile_loader(device: torch.device):
    """A follower's that has no checkpoint of one head, and is killed in the midst of an evaluation with three."""

    def make_fragile(heads: int) -> InfiniteTalkTransformer3DModel:
        if heads == 1:
            raise CheckpointError("block-3 is cut short")
        transformer = make_transformer(heads)
        if heads == 3:
            transformer.blocks[1].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return transformer

    return make_fragile


@contextmanager
def followers(size: int, make: Callable = make_loader) -> Iterator[Followers]:
    """The other processes of a group of `size`, started."""
    others = Followers(CPU, [CPU] * (size - 1), make)
    others.start()
    try:
        yield others
    finally:
        others.end()


def leading(others: Followers, heads: int) -> LeadingTransformer:
    """The transformer of the whole group."""
    others.command(heads)
    return LeadingTransformer(make_transformer(heads), others.wait(), others.connections)


def check_equal_to_one_process(together: LeadingTransformer, heads: int) -> None:
    """One, two and three speakers; pictures whose tokens cannot be divided evenly; TeaCache."""
    cases = [inputs(1, 8, 8), inputs(1, 6, 10), inputs(2, 6, 10), inputs(2, 10, 14), inputs(3, 6, 14)]
    alone = make_transformer(heads)
    for case in cases:
        torch.testing.assert_close(together(**case).sample, alone(**case).sample, atol=1e-5, rtol=1e-5)
    caches = [TeaCache(INFINITETALK.sizes["infinitetalk-480"].teacache_polynomial, threshold=1e9) for _ in range(2)]
    together.reset_cache()
    for _ in range(6):
        for name, cache in zip(("first", "second"), caches, strict=True):
            with together.cache_context(name):
                last = together(**cases[-1], cache=cache, return_dict=False)[0]
    torch.testing.assert_close(last, alone(**cases[-1]).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "heads"), [(2, 2), pytest.param(4, 4, marks=pytest.mark.long)])
@torch.no_grad()
def test_several_processes_give_the_result_of_one(size: int, heads: int) -> None:
    with followers(size) as others:
        check_equal_to_one_process(leading(others, heads), heads)
        # Another command is what another adapter, LoRA or mode is.
        check_equal_to_one_process(leading(others, 2 * heads), 2 * heads)


@pytest.mark.slow
@torch.no_grad()
def test_a_process_that_fails_says_why_and_one_that_dies_is_an_error_after_which_the_group_starts_anew() -> None:
    with followers(3, make_fragile_loader) as others:
        others.command(1)
        with pytest.raises(CheckpointError, match="block-3 is cut short"):
            others.wait()
        assert others.are_there
        # Each process has answered: none of the answers is taken for one to the next command.
        others.command(5)
        others.wait()
        others.end()
        assert not multiprocessing.active_children()

        others.start()
        together = leading(others, 3)
        begin = time.monotonic()
        with pytest.raises(ParallelError, match="has ended"):
            together(**inputs(1, 8, 8))
        assert time.monotonic() - begin < TIMEOUT_S / 2
        assert together.is_lost
        others.end()

        others.start()
        check_equal_to_one_process(leading(others, 5), 5)


@pytest.mark.slow
@torch.no_grad()
def test_a_checkpoint_is_loaded_by_every_process_as_its_job_needs_it(tmp_path: Path) -> None:
    paths = ensure_tiny_model(tmp_path)
    alone, together = Models(paths, CPU), Models(paths, CPU, other_devices=[CPU])
    config = alone.transformer(NetworkChoice(torch.float32)).config
    sizes = (config.text_dim, config.image_dim, config.audio_layers, config.audio_channels)
    for num_speakers in (1, 2, 1):
        case = inputs(num_speakers, 8, 8, *sizes)
        choice = NetworkChoice(torch.float32, adapter=adapter_kind(num_speakers))
        expected = alone.transformer(choice)(**case).sample
        torch.testing.assert_close(together.transformer(choice)(**case).sample, expected, atol=1e-5, rtol=1e-5)
    for follower in multiprocessing.active_children():
        follower.kill()


def test_a_picture_too_small_for_the_group_is_an_error() -> None:
    with pytest.raises(ValueError, match="an image of 3 tokens cannot be split over 4 processes"):
        parallel.check_divisible(3, 4)


def test_heads_that_leave_a_process_without_work_are_an_error() -> None:
    for size in (2, 3, 4, 8):
        parallel.check_heads(40, size)
    with pytest.raises(CheckpointError, match="40 heads cannot be distributed to 16 GPUs"):
        parallel.check_heads(40, 16)

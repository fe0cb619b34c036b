"""Several processes on the CPU make what one makes."""

import gc
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch import Tensor

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.row_split import LeadingVae, VaePass, take_part
from infinitetalk.encoders.vae import decode_latents, encode_frames
from infinitetalk.encoders.wan_layers import make_lean
from infinitetalk.errors import CheckpointError, ParallelError
from infinitetalk.family import INFINITETALK
from infinitetalk.network import parallel
from infinitetalk.network.nag import AttentionGuidance
from infinitetalk.network.parallel import Lead, LeadingTransformer
from infinitetalk.network.protocols import Denoiser, EvaluationInputs
from infinitetalk.network.teacache import TeaCache
from infinitetalk.network.teams import rounds_of
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.followers import TIMEOUT_S, Followed, Followers, ProcessWatch, follow_until_dismissed
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import adapter_kind
from tests.small_network import small_transformer

CPU = torch.device("cpu")
#: A lost process is told of within this time.
PATIENCE_S = 10.0


def make_transformer(heads: int) -> InfiniteTalkTransformer3DModel:
    return small_transformer(heads, head_dim=12)


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


def make_vae(heads: int) -> AutoencoderKLWan:
    """The published VAE's layers, or with many heads the worker's on a GPU; or a VAE of squares of pixels."""
    torch.manual_seed(0)
    if heads == 2:
        return AutoencoderKLWan(
            base_dim=4, num_res_blocks=1, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16
        ).eval()
    vae = AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval()
    make_lean(vae)
    return vae


def make_loader(device: torch.device):
    """What followers load with: a command is the number of heads."""
    torch.set_num_threads(1)
    return lambda heads: Followed(make_transformer(heads), {VaePass: partial(take_part, make_vae(heads))})


def make_fragile_loader(device: torch.device):
    """A follower's that has no checkpoint of one head, is killed in the midst of an evaluation with three, and has no
    memory for a second transformer."""
    earlier: list[weakref.ref[InfiniteTalkTransformer3DModel]] = []

    def make_fragile(heads: int) -> Followed:
        if heads == 1:
            raise CheckpointError("block-3 is cut short")
        gc.collect()
        if any(each() is not None for each in earlier):
            raise CheckpointError("two transformers are in memory")
        transformer = make_transformer(heads)
        earlier.append(weakref.ref(transformer))
        if heads == 3:
            transformer.blocks[1].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return Followed(transformer)

    return make_fragile


@pytest.fixture(autouse=True)
def leaves_no_group() -> Iterator[None]:
    """A process can be in one group: one that a test left would fail those of later files."""
    yield
    assert not dist.is_initialized()


@contextmanager
def followers(size: int, make: Callable = make_loader) -> Iterator[Followers]:
    """The other processes of a group of `size`, started."""
    others = Followers(CPU, [CPU] * (size - 1), make)
    others.start()
    try:
        yield others
    finally:
        others.end()


def leading(
    others: Followers, heads: int, shares_evaluations: bool = False, on_forward: Callable[[], None] = lambda: None
) -> LeadingTransformer:
    """The transformer of the whole group; `on_forward` is called after each evaluation in this process."""
    others.command(heads)
    group = others.wait()
    transformer = make_transformer(heads)
    transformer.register_forward_hook(lambda *_: on_forward())
    lead = Lead(group, others.connections, others.has_lost, TIMEOUT_S)
    return LeadingTransformer(transformer, lead, shares_evaluations)


def evaluate_step(denoiser: Denoiser, evaluations: Sequence[EvaluationInputs]) -> list[Tensor]:
    """All evaluations of a step, as many at once as the network makes."""
    made: list[Tensor] = []
    for at_once in denoiser.rounds(len(evaluations)):
        made += denoiser.evaluate(evaluations[len(made) : len(made) + at_once])
    return made


def evaluate_one(denoiser: Denoiser, given: dict[str, Tensor]) -> Tensor:
    (prediction,) = denoiser.evaluate([EvaluationInputs(**given)])
    return prediction


def check_equal_to_one_process(together: LeadingTransformer, heads: int) -> None:
    """One, two and three speakers; pictures whose tokens cannot be divided evenly; steps of one to three evaluations,
    which share tensors; TeaCache."""
    cases = [inputs(1, 8, 8), inputs(1, 6, 10), inputs(2, 6, 10), inputs(2, 10, 14), inputs(3, 6, 14)]
    cases.append(with_nag(inputs(1, 6, 10)))
    alone = make_transformer(heads)
    for case in cases:
        torch.testing.assert_close(evaluate_one(together, case), evaluate_one(alone, case), atol=1e-5, rtol=1e-5)
    together.reset_cache()
    for count in (2, 3):
        for step in (step_of(count, made) for made in (inputs(1, 6, 10), inputs(2, 6, 10))):
            expected = evaluate_step(alone, step)
            assert not torch.allclose(expected[0], expected[1], atol=1e-3)
            for found, one in zip(evaluate_step(together, step), expected, strict=True):
                torch.testing.assert_close(found, one, atol=1e-5, rtol=1e-5)
    check_teacache(together, alone)


def with_nag(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """With normalised attention guidance, whose norms are those of single tokens."""
    strengths = AttentionGuidance(11.0, 2.5, 0.25).strengths(CPU)
    return given | {
        "encoder_hidden_states_negative": given["encoder_hidden_states"].flip(1),
        "nag_strengths": strengths,
    }


def step_of(count: int, given: dict[str, Tensor]) -> list[EvaluationInputs]:
    """A step's evaluations: the first with speech, the others with less of it and another prompt."""
    silent = {name: tensor for name, tensor in given.items() if name != "regions"}
    silent["encoder_hidden_states_audio"] = torch.zeros_like(given["encoder_hidden_states_audio"][:1])
    other = silent | {"encoder_hidden_states": given["encoder_hidden_states"].flip(1)}
    names = ("first", "second", "third")
    return [EvaluationInputs(**each, branch=name) for name, each in zip(names, (given, silent, other), strict=True)][
        :count
    ]


def check_teacache(together: LeadingTransformer, alone: InfiniteTalkTransformer3DModel) -> None:
    """Seven steps, whose last two are skipped by each branch's cache, wherever the branch is evaluated."""
    found: dict[str, list[Tensor]] = {}
    skipped = {}
    for name, denoiser in (("together", together), ("alone", alone)):
        polynomial = INFINITETALK.sizes["infinitetalk-480"].teacache_polynomial
        caches = [TeaCache(polynomial, threshold=1e9) for _ in range(3)]
        denoiser.reset_cache()
        for number in range(7):
            given = inputs(2, 6, 10)
            # What a skipped step gives depends on the latents and on what the last computed step has left.
            given["hidden_states"] = given["hidden_states"] * (1 + number)
            step = [replace(each, cache=cache) for each, cache in zip(step_of(3, given), caches, strict=True)]
            found[name] = evaluate_step(denoiser, step)
        skipped[name] = [cache.skipped for cache in caches]
    assert skipped == {"together": [2, 2, 2], "alone": [2, 2, 2]}
    for one, other in zip(found["together"], found["alone"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def check_vae_equal_to_one_process(lead: Lead, heads: int) -> None:
    """Pictures whose rows cannot be divided evenly, one with fewer rows of latents than there are processes, and one in
    tiles."""
    alone = make_vae(heads)
    factor = alone.config.scale_factor_spatial
    together = LeadingVae(alone, lead)
    generator = torch.Generator().manual_seed(3)
    for latent_rows, num_frames in ((7, 9), (lead.group.size, 5), (lead.group.size - 1, 5)):
        frames = torch.rand(1, 3, num_frames, factor * latent_rows, 2 * factor, generator=generator) * 2 - 1
        latents = encode_frames(alone, frames)
        torch.testing.assert_close(encode_frames(together, frames), latents, atol=1e-5, rtol=1e-5)
        decoded = decode_latents(alone, latents)
        torch.testing.assert_close(decode_latents(together, latents), decoded, atol=1e-5, rtol=1e-5)
        # Nothing is left of it.
        assert torch.equal(decode_latents(alone, latents), decoded)
    alone.enable_tiling(2 * factor, 2 * factor, factor, factor)
    assert torch.equal(decode_latents(together, latents), decode_latents(alone, latents))


@pytest.mark.parametrize(
    ("num_evaluations", "size", "expected"),
    [
        (1, 4, [1]),
        (2, 2, [2]),
        (3, 2, [2, 1]),
        (3, 3, [3]),
        (2, 3, [1, 1]),
        (3, 4, [2, 1]),
        (2, 4, [2]),
        (3, 5, [1, 1, 1]),
        (3, 6, [3]),
    ],
)
def test_a_step_is_divided_over_teams_of_equal_size(num_evaluations: int, size: int, expected: list[int]) -> None:
    assert rounds_of(num_evaluations, size) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("size", "heads"), [(2, 2), pytest.param(4, 4, marks=pytest.mark.long)])
@torch.no_grad()
def test_several_processes_give_the_result_of_one(size: int, heads: int) -> None:
    with followers(size) as others:
        together = leading(others, heads)
        check_equal_to_one_process(together, heads)
        check_vae_equal_to_one_process(together.lead, heads)
        # Another command is what another adapter, LoRA or mode is.
        together = leading(others, 2 * heads, shares_evaluations=True)
        check_vae_equal_to_one_process(together.lead, 2 * heads)
        check_equal_to_one_process(together, 2 * heads)


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
            evaluate_one(together, inputs(1, 8, 8))
        assert time.monotonic() - begin < PATIENCE_S
        assert together.lead.is_lost
        others.end()

        others.start()
        check_equal_to_one_process(leading(others, 5), 5)
        check_late_loss(others)


def check_late_loss(others: Followers) -> None:
    """A process is lost after the last exchange of an evaluation: what has been computed is not used.

    NCCL's calls return before the other processes have done their part, and its kernels give up when the group is
    aborted. Then what they were to compute is garbage.
    """

    def lose_a_follower() -> None:
        multiprocessing.active_children()[0].kill()
        wait_until(others.has_lost)

    together = leading(others, 7, on_forward=lose_a_follower)
    with pytest.raises(ParallelError, match="has ended"):
        evaluate_one(together, inputs(1, 8, 8))
    assert together.lead.is_lost


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lost_process_aborts_the_group_within_seconds_whatever_the_leader_waits_for() -> None:
    """The leader's thread may stand in a call of NCCL that never returns."""
    aborted = threading.Event()
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    watch = ProcessWatch([process], aborted.set)
    assert not watch.has_lost()
    process.kill()
    assert aborted.wait(PATIENCE_S)
    assert watch.has_lost()
    watch.close()


def test_the_end_of_a_group_is_no_loss() -> None:
    aborted = threading.Event()
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    watch = ProcessWatch([process], aborted.set)
    watch.close()
    process.kill()
    process.join()
    assert not aborted.wait(0.2)
    assert not watch.has_lost()


def test_a_follower_selects_its_gpu_before_it_loads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and pinned memory that are made before would belong to the first GPU, with half a GB for its context."""
    done: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    leaders, own = multiprocessing.Pipe()
    leaders.close()
    gpu = torch.device("cuda", 3)
    with pytest.raises(SystemExit):
        follow_until_dismissed(3, 4, "file:///nowhere", gpu, lambda device: done.append("loader"), own)
    assert done == [gpu, "loader"]


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
        expected = evaluate_one(alone.transformer(choice), case)
        torch.testing.assert_close(evaluate_one(together.transformer(choice), case), expected, atol=1e-5, rtol=1e-5)
    together.release()
    assert not multiprocessing.active_children()


def test_a_picture_too_small_for_the_group_is_an_error() -> None:
    with pytest.raises(ValueError, match="an image of 3 tokens cannot be split over 4 processes"):
        parallel.check_divisible(3, 4)


def test_heads_that_leave_a_process_without_work_are_an_error() -> None:
    for size in (2, 3, 4, 8):
        parallel.check_heads(40, size)
    with pytest.raises(CheckpointError, match="40 heads cannot be distributed to 16 GPUs"):
        parallel.check_heads(40, 16)

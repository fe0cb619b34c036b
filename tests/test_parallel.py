"""Several processes on the CPU make what one makes."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from infinitetalk import parallel
from infinitetalk.parallel import ParallelError
from infinitetalk.teacache import TeaCache
from infinitetalk.transformer import InfiniteTalkTransformer3DModel

CPU = torch.device("cpu")
TIMEOUT_S = 60.0
PATIENCE_S = 120.0


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


def inputs(speakers: int, height: int, width: int) -> dict[str, Tensor]:
    """For three latent frames; each further speaker has a column of the picture."""
    generator = torch.Generator().manual_seed(2)
    given = {
        "hidden_states": torch.randn(1, 36, 3, height, width, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 6, 8, generator=generator),
        "encoder_hidden_states_image": torch.randn(1, 5, 12, generator=generator),
        "encoder_hidden_states_audio": torch.randn(speakers, 9, 5, 3, 4, generator=generator),
    }
    if speakers > 1:
        regions = torch.zeros(speakers + 1, height, width, dtype=torch.bool)
        for speaker in range(speakers):
            regions[speaker, 2:, 4 * speaker : 4 * speaker + 4] = True
        regions[-1] = ~regions[:-1].any(dim=0)
        given["regions"] = regions
    return given


def follow(rank: int, size: int, address: str, heads: int) -> None:
    """A follower's whole process."""
    torch.set_num_threads(1)
    group = parallel.join(rank, size, address, CPU, TIMEOUT_S)
    parallel.follow(lambda command: make_transformer(command), group)
    parallel.leave()


def lead(address: str, size: int, heads: int, cases: list[dict[str, Tensor]], results) -> None:
    """A leader's whole process: puts the result of each case, the last case five more times with a TeaCache."""
    torch.set_num_threads(1)
    group = parallel.join(0, size, address, CPU, TIMEOUT_S)
    parallel.command(heads)
    transformer = parallel.lead(make_transformer(heads), group)
    with torch.no_grad():
        for case in cases:
            results.put(transformer(**case).sample.numpy())
        caches = [TeaCache("infinitetalk-480", threshold=1e9) for _ in range(2)]
        for _ in range(6):
            for cache in caches:
                last = transformer(**cases[-1], cache=cache, return_dict=False)[0]
        results.put(last.numpy())
    parallel.dismiss()
    parallel.leave()


def run_all(folder: Path, size: int, heads: int, cases: list[dict[str, Tensor]]) -> list[Tensor]:
    """What a group of this size makes of the cases, then of the last one with a TeaCache."""
    context = multiprocessing.get_context("spawn")
    address, results = f"file://{folder}/meeting", context.Queue()
    processes = [context.Process(target=follow, args=(rank, size, address, heads)) for rank in range(1, size)]
    processes.append(context.Process(target=lead, args=(address, size, heads, cases, results)))
    for process in processes:
        process.start()
    made = [torch.from_numpy(results.get(timeout=PATIENCE_S)) for _ in range(len(cases) + 1)]
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("size", "heads"), [(2, 2), (3, 5), pytest.param(4, 4, marks=pytest.mark.long)])
@torch.no_grad()
def test_several_processes_give_the_result_of_one(tmp_path: Path, size: int, heads: int) -> None:
    """One, two and three speakers; pictures whose tokens cannot be divided evenly; odd heads."""
    cases = [inputs(1, 8, 8), inputs(1, 6, 10), inputs(2, 6, 10), inputs(2, 10, 14), inputs(3, 6, 14)]
    transformer = make_transformer(heads)
    expected = [transformer(**case).sample for case in cases]
    made = run_all(tmp_path, size, heads, cases)
    for result, alone in zip(made, [*expected, expected[-1]], strict=True):
        torch.testing.assert_close(result, alone, atol=1e-5, rtol=1e-5)


def follow_until_killed(rank: int, size: int, address: str, heads: int) -> None:
    """A follower whose machine is lost in the middle of an evaluation."""
    torch.set_num_threads(1)
    group = parallel.join(rank, size, address, CPU, TIMEOUT_S)

    def make_fragile(command: int) -> InfiniteTalkTransformer3DModel:
        transformer = make_transformer(command)
        transformer.blocks[1].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return transformer

    parallel.follow(make_fragile, group)


def lead_and_tell(address: str, size: int, heads: int, case: dict[str, Tensor], results) -> None:
    """A leader that puts the error that it meets, and how long it took."""
    torch.set_num_threads(1)
    group = parallel.join(0, size, address, CPU, TIMEOUT_S)
    parallel.command(heads)
    transformer = parallel.lead(make_transformer(heads), group)
    begin = time.monotonic()
    try:
        with torch.no_grad():
            transformer(**case)
    except ParallelError as error:
        results.put((str(error), time.monotonic() - begin))


@pytest.mark.slow
def test_a_process_that_dies_is_an_error_and_no_hang(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    address, results = f"file://{tmp_path}/meeting", context.Queue()
    lost = context.Process(target=follow_until_killed, args=(1, 3, address, 3))
    left = context.Process(target=follow, args=(2, 3, address, 3))
    leader = context.Process(target=lead_and_tell, args=(address, 3, 3, inputs(1, 8, 8), results))
    for process in (lost, left, leader):
        process.start()
    message, seconds = results.get(timeout=PATIENCE_S)
    assert "has ended" in message
    assert seconds < TIMEOUT_S / 2
    left.join(PATIENCE_S)
    assert left.exitcode == 1
    lost.join(PATIENCE_S)
    leader.join(PATIENCE_S)
    assert lost.exitcode == -signal.SIGKILL


def test_a_picture_too_small_for_the_group_is_an_error() -> None:
    with pytest.raises(ValueError, match="a picture of 3 tokens cannot be split over 4 processes"):
        parallel.check_divisible(3, 4)


def test_heads_that_leave_a_process_without_work_are_an_error() -> None:
    for size in (2, 3, 4, 8):
        parallel.check_heads(40, size)
    with pytest.raises(ValueError, match="40 heads cannot be dealt out to 16 processes"):
        parallel.check_heads(40, 16)

"""The worker on fake CUDA tensors of the published sizes: devices, waits, memory, and seconds by a roofline.

The bounds on seconds are a per cent or less above what the code takes now, at the H100's ideal rates: what is added to
a block in a cast or a copy fails a test. A bound goes down when the code becomes faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rehearsal import compiled, host, parts, prices, report
from benchmarks.rehearsal.device import DEVICE, missing
from benchmarks.rehearsal.log import Log, Operation, Place, Wait
from benchmarks.rehearsal.measured import figure
from benchmarks.rehearsal.modes import split_decode, split_evaluation, streamed_evaluation
from benchmarks.rehearsal.networks import (
    make_image_encoder,
    make_text_encoder,
    make_transformer,
    make_vae,
    quantise_blocks,
)
from benchmarks.rehearsal.rates import CARDS
from benchmarks.rehearsal.stage import Stage, bytes_of_modules
from benchmarks.rehearsal.steps import steps
from infinitetalk.family import INFINITETALK, ModelSizes
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.network import transformer as transformer_module
from infinitetalk.network.transformer import add_product
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime import memory
from infinitetalk.runtime.kernels.registry import quantise_activations
from infinitetalk.runtime.memory import GIB, MemoryMode, Workload
from infinitetalk.weights import loading
from infinitetalk.weights.loading import Quantisation, quantised
from infinitetalk.worker.engine.estimate import chunk_seconds, chunk_work
from infinitetalk.worker.engine.rehearsed import card_named

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

IDEAL = CARDS["h100"].ideal
SIZES = INFINITETALK.model_sizes
#: The VAE at these frames takes per frame what it takes in a whole chunk, and is rehearsed in a tenth of the time.
FEW_FRAMES = Workload(9, 640, 640)
#: Nine tiles.
SMALL_PICTURE = Workload(9, 448, 448)
#: Seconds of an evaluation: a third of a per cent above what it takes, less than one cast in each block.
EVALUATION_BOUND_S = 2.650
#: The same with compiled blocks: a third of a per cent above the 2.542 s that the compiler's count of a block gives.
COMPILED_BOUND_S = 2.551
TEACACHE_STEPS = 7
STREAMED_LAYERS = 3

#: Waits of a sampling step, each with the reason why it is there.
WAITS_OF_A_STEP = {
    Wait("tensor to the GPU", "infinitetalk/generation/sampling.py", "evaluations_of"): (
        "the timestep, one number before each step"
    ),
    Wait("number to the CPU", "infinitetalk/finite.py", "check_finite"): (
        "once a step: numbers that are not finite stay so, and every further step would be paid for nothing"
    ),
    Wait("number to the CPU", "infinitetalk/network/regions.py", "token_regions"): (
        "once a speaker and evaluation: a region without tokens is an error of the job"
    ),
    Wait("number to the CPU", "infinitetalk/network/teacache.py", "TeaCache.should_compute"): (
        "TeaCache decides on the CPU whether blocks are computed"
    ),
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The fake device."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Stage()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def evaluation(stage: Stage) -> Log:
    """One evaluation of the usual chunk."""
    return parts.evaluation(stage, parts.SMALL)


@pytest.fixture(scope="module")
def sampling(stage: Stage) -> Log:
    """Two speakers with TeaCache and three branches of guidance, by one block."""
    settings = GenerationSettings(num_inference_steps=TEACACHE_STEPS, teacache_threshold=1e9)
    return steps(stage, parts.SMALL, settings, speakers=2)


def seconds(log: Log) -> float:
    return log.seconds(IDEAL)


def test_no_operation_mixes_devices(evaluation: Log, sampling: Log, stage: Stage) -> None:
    adaptive = GenerationSettings(num_inference_steps=2, use_apg=True, text_guide_scale=1.0)
    for log in (evaluation, sampling, steps(stage, FEW_FRAMES, adaptive), parts.vae_decode(stage, FEW_FRAMES)):
        assert log.mixed == []
        assert len(log.operations) > 100


def test_a_step_waits_for_the_gpu_only_where_there_is_a_reason(evaluation: Log, sampling: Log) -> None:
    assert not evaluation.waits
    assert sampling.waits.keys() == WAITS_OF_A_STEP.keys()
    to_gpu, finite, regions, teacache = (sampling.waits[wait] for wait in WAITS_OF_A_STEP)
    assert to_gpu == TEACACHE_STEPS
    assert finite == TEACACHE_STEPS
    # The branch without audio has one speaker; steps after the fifth are skipped.
    assert regions == 2 * 2 * 5
    assert teacache == 3 * (TEACACHE_STEPS - 1)


def test_a_tensor_that_is_left_on_the_cpu_is_found(stage: Stage) -> None:
    with stage.mode:
        video, index = torch.empty(8, 8, device="cuda:0"), torch.empty(8, dtype=torch.long)
    log = stage.record(lambda: (video[index], video.sum().item(), video.cpu()))
    assert [mixture.split()[0] for mixture in log.mixed] == ["index"]
    assert sorted(wait.what for wait in log.waits) == ["number to the CPU", "tensor to the CPU"]


@pytest.mark.parametrize("speakers", [1, 2])
@pytest.mark.parametrize("workload", [parts.SMALL, parts.LARGE], ids=parts.label)
def test_an_evaluation_takes_no_more_memory_than_the_estimate(stage: Stage, workload: Workload, speakers: int) -> None:
    rehearsed = parts.evaluation(stage, workload, speakers, make_transformer(stage.mode, 2)).peak_bytes
    estimated = memory.sampling_bytes(MemoryMode(), SIZES, workload)
    print(f"estimate {estimated / rehearsed:.3f} of the rehearsed {rehearsed / GIB:.2f} GiB")
    assert rehearsed <= estimated <= 1.1 * rehearsed


def test_what_teacache_keeps_is_in_the_estimate(sampling: Log) -> None:
    estimated = memory.sampling_bytes(MemoryMode(), SIZES, replace(parts.SMALL, cached_branches=3))
    print(f"estimate {estimated / sampling.peak_bytes:.3f} of the rehearsed {sampling.peak_bytes / GIB:.2f} GiB")
    assert sampling.peak_bytes <= estimated <= 1.1 * sampling.peak_bytes


def test_quantised_activations_take_no_more_memory_than_the_estimate(stage: Stage) -> None:
    transformer = make_transformer(stage.mode, 2)
    quantise_blocks(transformer, stage.mode, "fp8")
    quantise_activations(transformer)
    rehearsed = parts.evaluation(stage, parts.SMALL, transformer=transformer).peak_bytes
    estimated = memory.sampling_bytes(MemoryMode("fp8"), SIZES, replace(parts.SMALL, quantises_activations=True))
    print(f"estimate {estimated / rehearsed:.3f} of the rehearsed {rehearsed / GIB:.2f} GiB")
    assert rehearsed <= estimated <= 1.1 * rehearsed


@pytest.mark.parametrize("speakers", [1, 2])
@pytest.mark.parametrize(("gpus", "branches"), [(2, 1), (4, 1), (8, 1), (10, 1), (20, 1), (2, 3), (4, 2), (8, 3)])
def test_a_share_of_an_evaluation_takes_no_more_memory_than_the_estimate(
    stage: Stage, gpus: int, branches: int, speakers: int
) -> None:
    # A second block begins with what the first one left, as every further one does.
    workload = replace(parts.SMALL, gpus=gpus, branches=branches)
    log = split_evaluation(stage, workload, gpus, speakers, num_layers=2)
    assert log.mixed == []
    estimated = memory.sampling_bytes(MemoryMode(), SIZES, workload)
    print(f"estimate {estimated / log.peak_bytes:.3f} of the rehearsed {log.peak_bytes / GIB:.2f} GiB")
    assert log.peak_bytes <= estimated <= 1.1 * log.peak_bytes


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("quantisation", [None, "fp8"])
def test_streamed_blocks_take_no_more_memory_than_the_estimate(
    stage: Stage, quantisation: Quantisation | None, kept: int
) -> None:
    """And nothing but blocks is copied in an evaluation.

    Where a block is kept, one block fewer is held than estimated: 5 % of the whole model's memory, but more than a
    tenth of a model of a few blocks.
    """
    sizes = sizes_of(make_transformer(stage.mode, STREAMED_LAYERS))
    mode = MemoryMode(quantisation, kept * sizes.blocks // STREAMED_LAYERS)
    streamed = streamed_evaluation(stage, parts.SMALL, mode, STREAMED_LAYERS)
    assert streamed.log.mixed == []
    assert not streamed.log.waits
    rehearsed = streamed.resident_bytes + streamed.log.peak_bytes
    estimated = memory.weight_bytes(mode, sizes) + memory.sampling_bytes(mode, sizes, parts.SMALL)
    print(f"estimate {estimated / rehearsed:.3f} of the rehearsed {rehearsed / GIB:.2f} GiB")
    spare_block = kept * memory.weight_bytes(MemoryMode(quantisation), sizes_of_a_block(sizes))
    assert rehearsed <= estimated <= 1.1 * rehearsed + spare_block


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("quantisation", [None, "fp8"])
def test_a_worker_that_streams_has_its_weights_once_in_the_hosts_memory_from_its_start(
    stage: Stage, quantisation: Quantisation | None, stored: torch.dtype
) -> None:
    """Beside the tensor at work: it has been read, converted, and copied into pinned memory."""
    mode = MemoryMode(quantisation, resident_parameters=0, stream_text_encoder=True)
    begun = host.start(stage, mode, stored, STREAMED_LAYERS)
    sizes = sizes_of(make_transformer(stage.mode, STREAMED_LAYERS))
    weights = 2 * SIZES.text_encoder + (1 if quantisation else 2) * sizes.blocks
    largest_tensor = 256384 * 4096
    print(f"peak {begun.peak_bytes / 1e9:.2f} GB, kept {begun.kept_bytes / 1e9:.2f} GB, weights {weights / 1e9:.2f} GB")
    assert weights <= begun.kept_bytes <= 1.01 * weights
    assert begun.peak_bytes <= begun.kept_bytes + 3 * 4 * largest_tensor


def test_weights_that_will_be_streamed_are_quantised_on_the_gpu(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core of the CPU quantises 79 million numbers a second: that would be four minutes of each start."""
    devices = []

    def watched(weight: Tensor, quantisation: Quantisation) -> Tensor:
        devices.append(weight.device)
        return quantised(weight, quantisation)

    monkeypatch.setattr(loading, "quantised", watched)
    mode = MemoryMode("fp8", resident_parameters=0, stream_text_encoder=True)
    host.start(stage, mode, torch.bfloat16, num_layers=1)
    assert len(devices) > 10
    assert set(devices) == {DEVICE}


def sizes_of_a_block(sizes: ModelSizes) -> ModelSizes:
    """One block and nothing else."""
    return replace(sizes, blocks=sizes.blocks // sizes.num_blocks, num_blocks=1, outer=0)


def sizes_of(transformer: nn.Module) -> ModelSizes:
    """A transformer's sizes without other networks, as `memory.model_sizes` counts them."""
    names = dict(transformer.named_parameters())
    blocks = sum(each.numel() for name, each in names.items() if name.startswith("blocks.") and each.dim() == 2)
    outer = sum(each.numel() for each in names.values()) - blocks
    return replace(
        SIZES, blocks=blocks, num_blocks=STREAMED_LAYERS, outer=outer, text_encoder=0, image_encoder=0, vae=0
    )


@pytest.mark.parametrize(
    ("workload", "in_tiles"), [(FEW_FRAMES, False), (SMALL_PICTURE, True)], ids=["whole", "in tiles"]
)
def test_decoding_takes_no_more_memory_than_the_estimate(stage: Stage, workload: Workload, in_tiles: bool) -> None:
    rehearsed = parts.vae_decode(stage, workload, in_tiles).peak_bytes
    estimated = memory.vae_bytes(MemoryMode(vae_tiling=in_tiles), workload)
    # cuDNN's workspaces, which the rehearsal does not know of, are in the estimate.
    print(f"estimate {estimated / rehearsed:.3f} of the rehearsed {rehearsed / GIB:.2f} GiB")
    assert rehearsed <= estimated <= 1.2 * rehearsed


def test_a_gpus_rows_of_a_picture_take_no_more_memory_than_the_estimate(stage: Stage) -> None:
    gpus = 4
    log = split_decode(stage, FEW_FRAMES, gpus)
    assert log.mixed == []
    assert not log.waits
    estimated = memory.vae_bytes(MemoryMode(), replace(FEW_FRAMES, gpus=gpus))
    print(f"estimate {estimated / log.peak_bytes:.3f} of the rehearsed {log.peak_bytes / GIB:.2f} GiB")
    assert log.peak_bytes <= estimated <= 1.2 * log.peak_bytes


def test_weights_take_no_more_memory_than_the_estimate(stage: Stage) -> None:
    networks: list[nn.Module] = [
        stage.transformer,
        make_vae(stage.mode),
        make_text_encoder(stage.mode),
        make_image_encoder(stage.mode).model,
    ]
    rehearsed, estimated = bytes_of_modules(networks), memory.weight_bytes(MemoryMode(), SIZES)
    print(f"estimate {estimated / rehearsed:.4f} of the rehearsed {rehearsed / GIB:.2f} GiB")
    assert rehearsed <= estimated <= 1.01 * rehearsed


def test_an_evaluation_stays_under_its_bound(evaluation: Log) -> None:
    assert 2.39 < evaluation.floor_seconds(IDEAL) < 2.41
    assert seconds(evaluation) < EVALUATION_BOUND_S
    assert len(evaluation.operations) <= 2_172


@pytest.fixture(scope="module")
def compiled_evaluation(stage: Stage) -> Log:
    """One evaluation of the usual chunk with compiled blocks."""
    return compiled.evaluation(stage, parts.SMALL)


def test_compiled_blocks_stay_under_their_bounds(evaluation: Log, compiled_evaluation: Log) -> None:
    assert compiled_evaluation.floor_seconds(IDEAL) == pytest.approx(evaluation.floor_seconds(IDEAL), rel=1e-4)
    assert seconds(compiled_evaluation) < COMPILED_BOUND_S


def test_widened_weights_stay_under_their_bound(stage: Stage) -> None:
    plain = parts.evaluation(stage, parts.SMALL, transformer=make_transformer(stage.mode, 2))
    for quantisation, bound, kernels in (("fp8", 0.046, 2), ("int8", 0.021, 1)):
        widened_weights = parts.weight_only_evaluation(stage, parts.SMALL, quantisation, num_layers=2)
        assert not widened_weights.mixed
        assert (seconds(widened_weights) - seconds(plain)) / 2 * SIZES.num_blocks < bound
        layers = sum(isinstance(each, nn.Linear) for each in stage.transformer.blocks[0].modules())
        assert len(widened_weights.operations) - len(plain.operations) == 2 * layers * kernels
        assert widened_weights.peak_bytes <= plain.peak_bytes


def test_two_speakers_stay_under_their_bound(stage: Stage) -> None:
    assert seconds(parts.evaluation(stage, parts.SMALL, speakers=2)) < 2.782


def test_the_vae_stays_under_its_bounds(stage: Stage) -> None:
    assert seconds(parts.vae_decode(stage, FEW_FRAMES)) < 0.1415
    assert seconds(parts.vae_encode(stage, FEW_FRAMES)) < 0.0865


def test_lean_layers_of_the_vae_spare_a_quarter_of_the_bytes(stage: Stage) -> None:
    for part in (parts.vae_decode, parts.vae_encode):
        published, lean = (part(stage, FEW_FRAMES, is_lean=is_lean) for is_lean in (False, True))
        print(f"{published.bytes / 1e9:.1f} GB, lean {lean.bytes / 1e9:.1f} GB")
        assert lean.flop == published.flop
        assert lean.bytes < 0.75 * published.bytes


def test_colours_stay_under_their_bound(stage: Stage) -> None:
    colours = parts.colours(stage, FEW_FRAMES)
    assert seconds(colours) < 0.00185
    assert len(colours.operations) <= 90


def test_finishing_a_chunk_takes_no_more_memory_than_the_estimate(stage: Stage) -> None:
    """What it takes beside the decoded frames, which are there before."""
    decoded = 3 * 4 * FEW_FRAMES.num_frames * FEW_FRAMES.height * FEW_FRAMES.width
    rehearsed = max(part(stage, FEW_FRAMES).peak_bytes for part in (parts.colours, parts.frames_out))
    estimated = memory.finishing_bytes(FEW_FRAMES) - decoded
    print(f"estimate {estimated / rehearsed:.3f} of the rehearsed {rehearsed / GIB:.2f} GiB")
    assert rehearsed <= estimated <= 1.3 * rehearsed


def widened(addend: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """The gated sum with casts before and after it."""
    return (addend.float() + factor.float() * weight).type_as(factor)


def copied(addend: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """The gated sum of a copy."""
    return add_product(addend, factor.clone(), weight)


@pytest.mark.parametrize("slower", [widened, copied])
def test_an_added_cast_or_copy_breaks_the_bound(
    stage: Stage, evaluation: Log, slower: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_blocks = make_transformer(stage.mode, 2)
    before = parts.evaluation(stage, parts.SMALL, transformer=two_blocks)
    monkeypatch.setattr(transformer_module, "add_product", slower)
    after = parts.evaluation(stage, parts.SMALL, transformer=two_blocks)
    added = (seconds(after) - seconds(before)) / 2 * SIZES.num_blocks
    assert seconds(evaluation) + added > EVALUATION_BOUND_S


def test_attention_by_flash_is_the_same_work(evaluation: Log) -> None:
    """Every card's seconds are made of one log, whichever kernel its attention has."""
    flash = Stage("flash")
    log = parts.evaluation(flash, parts.SMALL, transformer=make_transformer(flash.mode, 1))
    cudnn = Stage("cudnn")
    other = parts.evaluation(cudnn, parts.SMALL, transformer=make_transformer(cudnn.mode, 1))
    assert log.flop == other.flop
    assert log.bytes == pytest.approx(other.bytes, rel=0.01)


@pytest.fixture(scope="module")
def short_evaluation(stage: Stage) -> Log:
    """One evaluation of FlashTalk's chunk."""
    return parts.evaluation(stage, parts.SHORT)


@pytest.mark.parametrize("card", CARDS)
def test_the_workers_table_has_the_rehearsals_evaluations(evaluation: Log, short_evaluation: Log, card: str) -> None:
    rates, row = CARDS[card].typical, card_named(CARDS[card].name)
    for workload, log in ((parts.SMALL, evaluation), (parts.SHORT, short_evaluation)):
        assert row.evaluation.seconds(workload.num_tokens) == pytest.approx(log.seconds(rates), rel=0.005)


def test_the_estimate_of_a_chunk_is_the_rehearsals_sum(stage: Stage, short_evaluation: Log) -> None:
    """A first chunk of FlashTalk, on every card."""
    recipe = RECIPES["flashtalk"]
    settings = prices.settings_of(recipe, prices.SIZES["480"], parts.SHORT.num_frames)
    workload = replace(parts.SHORT, family=recipe.family, branches=len(settings.branches))
    work = chunk_work(settings, workload, MemoryMode(), speakers=1)
    motion = Workload(settings.motion_frame, 640, 640)
    logs = [
        *[short_evaluation] * settings.num_inference_steps,
        parts.vae_decode(stage, parts.SHORT),
        parts.vae_encode(stage, parts.SHORT),
        parts.vae_encode(stage, motion),
        parts.colours(stage, parts.SHORT),
        parts.frames_out(stage, parts.SHORT),
        parts.image_encoder(stage),
    ]
    for card in CARDS.values():
        rehearsed = sum(log.seconds(card.typical) for log in logs)
        estimated = chunk_seconds(card_named(card.name), work, work.evaluations, encodes_reference=True)
        print(f"{card.name}: estimate {estimated:.2f} s, rehearsed {rehearsed:.2f} s")
        assert estimated == pytest.approx(rehearsed, rel=0.03)


def sum_in_mixed_dtypes(addend: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """The gated sum as the H200 computed it: its gate in float32."""
    return torch.addcmul(addend, factor, weight, out=torch.empty_like(factor))


def norm_in_mixed_dtypes(norm: nn.LayerNorm, hidden_states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The modulated norm as the H200 computed it: in two kernels."""
    return sum_in_mixed_dtypes(shift, nn.functional.layer_norm(hidden_states, norm.normalized_shape), 1 + scale)


def norm_in_float32(norm: nn.LayerNorm, hidden_states: Tensor) -> Tensor:
    """The norm with weights as the H200 computed it: with casts before and after it."""
    return norm(hidden_states)


def test_typical_rates_and_memory_agree_with_an_h200(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels that it had; they have become fewer since."""
    monkeypatch.setattr(transformer_module, "add_product", sum_in_mixed_dtypes)
    monkeypatch.setattr(transformer_module, "modulated_norm", norm_in_mixed_dtypes)
    monkeypatch.setattr(transformer_module, "weighted_norm", norm_in_float32)
    evaluation = parts.evaluation(stage, parts.SMALL, 1)
    name = "one evaluation, 640x640, 81 frames, 1 speaker"
    measured_s, measured_gib = figure(name, 1), figure(f"{name}: memory beside weights", 1)
    assert measured_s is not None
    assert measured_gib is not None
    print(f"estimate {evaluation.seconds(CARDS['h200'].typical):.3f} s, measured {measured_s:.3f} s")
    assert evaluation.seconds(CARDS["h200"].typical) == pytest.approx(measured_s, rel=0.01)
    assert evaluation.peak_bytes / GIB == pytest.approx(measured_gib, rel=0.01)


def test_the_budget_has_a_line_for_each_card_and_size() -> None:
    """Each part is a second of products and a second of bytes on an H100."""
    place = Place("file", "function", 1)
    product = Operation("mm", "linear", "bf16", "plain", 790e12, 3.35e12, place, place)
    add = Operation("add", "elementwise", "bf16", "plain", 0.0, 3.35e12, place, place)
    logs = {name: Log([product, add]) for name in (*parts.CHUNK_PARTS, *parts.JOB_PARTS)}
    lines = report.budget_table([(parts.SMALL, logs), (parts.LARGE, logs)], CARDS.values()).splitlines()
    assert len(lines) == 2 + 2 * len(CARDS)
    (line,) = (line for line in lines if line.startswith("| H100 | 640x640x81"))
    assert [cell.split()[0] for cell in line.strip("| ").split(" | ")[2:7]] == ["2.00", "2.00", "2.00", "48.00", "256"]
    assert line.endswith("| bf16 |")

"""The estimate of seconds and dollars before a video is made, against what an H200 measured and what documents say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rehearsal import prices
from infinitetalk.family import INFINITETALK
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.worker.engine.estimate import (
    FOLLOWING_S_PER_PIXEL,
    LAYING_S_PER_PIXEL,
    READING_S_PER_PIXEL,
    ChunkWork,
    FilmWork,
    Speed,
    VideoWork,
    chunk_seconds,
    chunk_work,
    evaluation_seconds,
    exchange_seconds,
    film_seconds,
    step_seconds,
    vae_seconds,
    video_seconds,
)
from infinitetalk.worker.engine.rehearsed import Gpu, card_named, cards, likeness_of
from infinitetalk.worker.settings import Settings

CHECKOUT = Path(__file__).parents[1]
H200, H100, RTX_4090 = (card_named(name) for name in ("H200", "H100", "RTX 4090"))
H200_GPU = Gpu("NVIDIA H200", 9.0, 132)


def work_of(recipe: str, size: str = "480", speakers: int = 1, mode: MemoryMode | None = None) -> ChunkWork:
    found = RECIPES[recipe]
    settings = prices.settings_of(found, prices.SIZES[size], prices.MINUTE)
    workload = prices.usual_workload(found.family, prices.SIZES[size], settings.frame_num)
    workload = replace(workload, branches=len(settings.branches))
    return chunk_work(settings, workload, mode or MemoryMode(), speakers)


def test_nag_adds_a_small_share_to_an_evaluation_and_one_prompt() -> None:
    plain = work_of("lora-8")
    with_nag = replace(plain, has_nag=True)
    for card in cards():
        assert 1.01 < evaluation_seconds(card, with_nag) / evaluation_seconds(card, plain) < 1.08
    assert [work.uses_negative_prompt for work in (plain, with_nag, work_of("quality"))] == [False, True, True]


def test_a_films_own_frames_take_as_long_as_a_reference_and_fewer_steps_save_theirs() -> None:
    plain = work_of("lora-8")
    half = replace(plain, encodes_source=True, steps=plain.steps // 2)
    encoding = vae_seconds(H100, plain, "encode", plain.workload.num_frames)
    saved = (plain.evaluations - half.evaluations) * evaluation_seconds(H100, plain)
    seconds = [chunk_seconds(H100, work, work.evaluations, False) for work in (plain, half)]
    assert seconds[0] - seconds[1] == pytest.approx(saved - encoding)


def measured(name: str) -> float:
    """A figure of the first run on an H200."""
    figures = json.loads((CHECKOUT / "docs" / "measurements" / "h200.json").read_text(encoding="utf-8"))["figures"]
    return next(figure["value"] for figure in figures if (figure["name"], figure["run"]) == (name, 1))


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("lora-8", "chunk of 81 frames, audio guidance"), ("flashtalk", "chunk of 33 frames, no guidance")],
)
def test_a_chunk_is_estimated_as_an_h200_measured_it(recipe: str, name: str) -> None:
    work = work_of(recipe)
    seconds = work.steps * measured(f"{name}: one step of the second chunk")
    seconds += measured(f"{name}: from the last step to the frames, second chunk")
    # The chunk that was measured is the last: it encodes no motion frames.
    estimated = chunk_seconds(H200, work, work.evaluations, False) - vae_seconds(H200, work, "encode", 9)
    # The VAE that was measured had diffusers' own layers, and norms and gates were of mixed dtypes: by the rehearsal,
    # both take longer than today's.
    assert 0.85 * seconds < estimated < 1.05 * seconds


def test_fp8_weights_and_a_vae_in_tiles_are_estimated_as_an_h200_measured_them() -> None:
    work = work_of("quality", mode=MemoryMode("fp8", vae_tiling=True))
    plain = measured("one evaluation, fp8 weights widened at each use")
    # They were widened by more kernels than today, and norms and gates were of mixed dtypes.
    assert 0.91 * plain < evaluation_seconds(H200, work) < plain
    tiled = measured("decoding of a chunk, float32 with TF32, in tiles")
    # The VAE that was measured had diffusers' own layers, most of whose kernels in tiles are gone.
    assert 0.65 * tiled < vae_seconds(H200, work, "decode", 81) < 1.2 * tiled
    motion = measured("encoding of 9 motion frames")
    assert vae_seconds(H200, replace(work, memory=MemoryMode()), "encode", 9) == pytest.approx(motion, rel=0.2)


def test_a_video_costs_its_parts_and_further_speakers_more() -> None:
    chunk = work_of("flashtalk")
    one, two = (video_seconds(H100, VideoWork(chunk, chunks, 1, 60.0)) for chunks in (1, 2))
    assert two - one == pytest.approx(chunk_seconds(H100, chunk, 4, encodes_reference=False))
    of_video = video_seconds(H100, VideoWork(chunk, 2, references=2, speech_s=60.0))
    assert of_video > two
    of_prompts = video_seconds(H100, VideoWork(chunk, 2, 1, 60.0, prompts=3))
    assert of_prompts - two == pytest.approx(2 * H100.prompt)
    speakers = [evaluation_seconds(H100, work_of("quality", speakers=count)) for count in (1, 2, 3)]
    # Two of three branches have audio.
    assert speakers[1] - speakers[0] == pytest.approx(speakers[2] - speakers[1])
    assert 1.01 < speakers[1] / speakers[0] < 1.05


def test_a_film_adds_what_is_not_done_beside_sampling() -> None:
    chunk = work_of("flashtalk")
    plain = VideoWork(chunk, 10, 1, 12.0)
    film = FilmWork(300, 200, 1280 * 720, is_kept=True)
    pixels = film.num_frames * film.pixels
    follows = FOLLOWING_S_PER_PIXEL * 200 * film.pixels
    lays = LAYING_S_PER_PIXEL * pixels / 10
    dubbed = replace(plain, film=film)
    assert film_seconds(plain, 100.0) == 0
    assert film_seconds(dubbed, 1e6) == pytest.approx(follows + lays)
    # Nine chunks wait until the one before is laid over.
    assert film_seconds(dubbed, 10 * (lays - 1)) == pytest.approx(follows + lays + 9)
    assert film_seconds(replace(plain, film=replace(film, num_followed=0)), 1e6) == pytest.approx(lays)
    started = replace(plain, chunk=replace(chunk, encodes_source=True))
    starts = film_seconds(replace(started, film=FilmWork(300, 0, 1280 * 720, is_kept=False)), 1e6)
    assert starts == pytest.approx(READING_S_PER_PIXEL * pixels)
    for likeness in (likeness_of(H200_GPU), None):
        speed = Speed(likeness)
        speed.record(8.0, chunk, chunk.evaluations, encodes_reference=False)
        alone, with_film = speed.seconds(plain), speed.seconds(dubbed)
        assert alone is not None and with_film == pytest.approx(alone + film_seconds(dubbed, alone))


def test_blocks_that_are_streamed_and_gpus_that_share_cost_what_they_exchange() -> None:
    resident = evaluation_seconds(RTX_4090, work_of("quality", mode=MemoryMode("fp8")))
    sizes = INFINITETALK.model_sizes
    half, none = (
        evaluation_seconds(RTX_4090, work_of("quality", mode=MemoryMode("fp8", sizes.blocks * kept // 4)))
        for kept in (2, 0)
    )
    assert none - resident == pytest.approx(2 * (half - resident), rel=0.01)
    assert 0 < none - resident < 0.1 * resident
    alone = work_of("quality")
    for gpus in (2, 4, 8):
        shared = evaluation_seconds(H100, replace(alone, workload=replace(alone.workload, gpus=gpus)))
        assert evaluation_seconds(H100, alone) / gpus < shared < 1.5 * evaluation_seconds(H100, alone) / gpus


@pytest.mark.parametrize("recipe", ["quality", "lora-8"])
def test_no_card_is_faster_with_tokens_divided_before_branches(recipe: str) -> None:
    """With guidance by three and by two branches."""
    alone = work_of(recipe)
    for card in cards():
        for gpus in (2, 3, 4, 6, 8):
            branches = replace(alone, workload=replace(alone.workload, gpus=gpus))
            tokens = replace(branches, memory=MemoryMode(shares_evaluations=True))
            assert step_seconds(card, branches) <= step_seconds(card, tokens)
    as_many = replace(alone, workload=replace(alone.workload, gpus=len(alone.branches)))
    # Each GPU evaluates a branch alone and exchanges nothing.
    assert step_seconds(H100, as_many) == pytest.approx(step_seconds(H100, alone) / len(alone.branches))
    if recipe == "quality":
        pair = replace(alone, workload=replace(alone.workload, gpus=2))
        in_rounds = step_seconds(H100, alone) / 2 + exchange_seconds(H100, alone, 2)
        assert step_seconds(H100, pair) == pytest.approx(in_rounds, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "card", "factor"),
    [
        (H200_GPU, "H200", 1.0),
        (Gpu("NVIDIA H100 PCIe", 9.0, 114), "H100", 132 / 114),
        (Gpu("NVIDIA RTX A6000", 8.6, 84), "RTX 4090", 128 / 84),
        (Gpu("NVIDIA RTX 6000 Ada Generation", 8.9, 142), "L40S", 1.0),
        (Gpu("NVIDIA B300", 10.3, 148), "B200", 1.0),
    ],
)
def test_an_unknown_gpu_is_estimated_by_the_nearest_card(gpu: Gpu, card: str, factor: float) -> None:
    likeness = likeness_of(gpu)
    assert (likeness.card.name, likeness.factor) == (card, pytest.approx(factor))
    is_known = gpu == H200_GPU
    assert likeness.origin == f"table: {card}" if is_known else likeness.origin.endswith(f"the nearest to {gpu.name}")


def test_after_a_chunk_the_worker_goes_by_its_own_speed() -> None:
    speed, work = Speed(likeness_of(H200_GPU)), work_of("flashtalk")
    video = VideoWork(work, 54, 1, 60.0)
    by_table = speed.seconds(video)
    assert speed.origin == "table: H200"
    # Half of the evaluations were skipped, and it took twice as long as the table says.
    speed.record(2 * chunk_seconds(H200, work, 2, True), work, 2, encodes_reference=True)
    assert by_table is not None
    assert speed.seconds(video) == pytest.approx(2 * by_table)
    assert speed.origin == "this worker"


def test_where_nothing_is_assumed_nothing_is_known_until_a_chunk_is_made() -> None:
    speed, work = Speed(None), work_of("flashtalk")
    video = VideoWork(work, 2, 1, 2.0)
    assert (speed.seconds(video), speed.origin) == (None, None)
    speed.record(8.0, work, work.evaluations, encodes_reference=True)
    assert speed.seconds(video) == pytest.approx(16.0)


def test_dollars_need_a_price() -> None:
    assert Settings(gpu_price_per_s=0.002).price_of(10.0) == pytest.approx(0.02)
    assert Settings().price_of(10.0) is None


def test_every_card_of_the_price_list_is_in_the_table() -> None:
    assert prices.PRICES.keys() <= {card.name for card in cards()}


@pytest.mark.parametrize("file", prices.DOCUMENTS, ids=lambda file: file.name)
def test_the_documents_prices_are_those_of_the_estimate(file: Path) -> None:
    expected = prices.filled()[file]
    assert file.read_text(encoding="utf-8") == expected, "run python -m benchmarks.rehearsal --tables"

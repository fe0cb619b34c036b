"""Chunks cover the speech without gap or overlap, and each frame reads the right rows of it."""

import pytest
import torch

from infinitetalk.generation.chunks import ChunkGrid

GRID = ChunkGrid(frame_num=17, motion_frame=9)
FADING = ChunkGrid(frame_num=17, motion_frame=9, crossfade_frame=4)


@pytest.mark.parametrize("motion_frame", [1, 9, 11, 16])
@pytest.mark.parametrize("max_frame_num", [17, 30, 1000])
@pytest.mark.parametrize("num_rows", [1, 5, 16, 17, 18, 25, 40, 41, 100])
def test_new_frames_add_up_to_the_speech_or_the_limit(num_rows: int, max_frame_num: int, motion_frame: int) -> None:
    plans = ChunkGrid(17, motion_frame).plans(min(num_rows, max_frame_num))
    assert sum(plan.num_new_frames for plan in plans) == min(num_rows, max_frame_num)


def test_new_frames_of_neighbouring_chunks_meet() -> None:
    plans = GRID.plans(200)
    ends = [plan.start + plan.num_motion_frames + plan.num_new_frames for plan in plans]
    starts = [plan.start + plan.num_motion_frames for plan in plans]
    assert starts[1:] == ends[:-1]


def test_chunks_fade_in_the_last_of_the_frames_that_both_have() -> None:
    assert [plan.num_fade_frames for plan in FADING.plans(40)] == [0, 4, 4, 4]
    assert [plan.num_fade_frames for plan in GRID.plans(40)] == [0, 0, 0, 0]


def test_a_fade_is_no_longer_than_what_both_chunks_have() -> None:
    assert [plan.num_fade_frames for plan in ChunkGrid(17, 5, 9).plans(40)] == [0, 5, 5]


@pytest.mark.parametrize(("motion_frame", "held", "fade"), [(9, 4, 4), (10, 5, 4), (12, 7, 4), (13, 4, 4), (4, 4, 1)])
def test_chunks_fade_in_frames_that_the_motion_latents_hold(motion_frame: int, held: int, fade: int) -> None:
    _, *plans = ChunkGrid(17, motion_frame, 4).plans(40)
    assert {(plan.num_held_frames, plan.num_fade_frames) for plan in plans} == {(held, fade)}


def test_no_chunk_is_made_for_nothing() -> None:
    for num_rows in range(1, 120):
        assert all(plan.num_new_frames > 0 for plan in GRID.plans(num_rows))


def test_windows_are_clamped_at_the_beginning() -> None:
    (plan,) = GRID.plans(17)
    rows = GRID.window_rows(plan, 40)
    assert rows.shape == (17, 5)
    assert rows[0].tolist() == [0, 0, 0, 1, 2]
    assert rows[16].tolist() == [14, 15, 16, 17, 18]


def test_speech_shorter_than_a_chunk_goes_on_with_its_reversed_tail() -> None:
    """The published code refuses speech of at most frame_num frames; here the video is as long as the speech."""
    (plan,) = GRID.plans(10)
    assert plan.num_new_frames == 10
    # ten rows, then all ten reversed (the last repeats), clamped at the end of those
    centres = GRID.window_rows(plan, 10)[:, 2]
    assert centres.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 8, 7, 6, 5, 4, 3]


def test_only_the_last_chunk_reads_the_reversed_tail() -> None:
    for num_rows in range(18, 60):
        *plans, last = GRID.plans(num_rows)
        for plan in plans:
            centres = GRID.window_rows(plan, num_rows)[:, 2]
            assert torch.equal(centres, torch.arange(plan.start, plan.start + 17))
        reads_tail = last.start + 17 >= num_rows
        assert bool((GRID.window_rows(last, num_rows).diff(dim=0) < 0).any()) == reads_tail


def test_a_single_chunk_takes_nothing_over() -> None:
    (plan,) = ChunkGrid(9, 9).plans(9)
    assert (plan.num_motion_frames, plan.num_new_frames) == (0, 9)


def test_chunks_that_would_add_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="motion_frame is 9"):
        ChunkGrid(9, 9).plans(40)


@pytest.mark.parametrize("max_frame_num", [9, 17, 18, 30, 100])
def test_speech_cut_to_what_is_usable_is_read_as_if_it_went_on(max_frame_num: int) -> None:
    rows = GRID.usable_rows(max_frame_num)
    for plan in GRID.plans(max_frame_num):
        assert torch.equal(GRID.window_rows(plan, rows), GRID.window_rows(plan, 500))

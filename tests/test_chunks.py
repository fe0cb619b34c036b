"""Chunks cover the speech without gap or overlap, and each frame reads the right rows of it."""

import pytest
import torch

from infinitetalk.chunks import plan_chunks, usable_rows, window_rows


@pytest.mark.parametrize("motion_frame", [1, 9, 11, 16])
@pytest.mark.parametrize("max_frame_num", [17, 30, 1000])
@pytest.mark.parametrize("num_rows", [1, 5, 16, 17, 18, 25, 40, 41, 100])
def test_new_frames_add_up_to_the_speech_or_the_limit(num_rows: int, max_frame_num: int, motion_frame: int) -> None:
    plans = plan_chunks([num_rows], 17, max_frame_num, motion_frame)
    assert sum(plan.num_new_frames for plan in plans) == min(num_rows, max_frame_num)


def test_new_frames_of_neighbouring_chunks_meet() -> None:
    plans = plan_chunks([200], 17, 1000, 9)
    ends = [plan.start + plan.num_motion_frames + plan.num_new_frames for plan in plans]
    starts = [plan.start + plan.num_motion_frames for plan in plans]
    assert starts[1:] == ends[:-1]


def test_chunks_fade_in_the_last_of_the_frames_that_both_have() -> None:
    assert [plan.num_fade_frames for plan in plan_chunks([40], 17, 1000, 9, 4)] == [0, 4, 4, 4]
    assert [plan.num_fade_frames for plan in plan_chunks([40], 17, 1000, 9)] == [0, 0, 0, 0]


def test_a_fade_is_no_longer_than_what_both_chunks_have() -> None:
    assert [plan.num_fade_frames for plan in plan_chunks([40], 17, 1000, 5, 9)] == [0, 5, 5]


@pytest.mark.parametrize(("motion_frame", "held", "fade"), [(9, 4, 4), (10, 5, 4), (12, 7, 4), (13, 4, 4), (4, 4, 1)])
def test_chunks_fade_in_frames_that_the_motion_latents_hold(motion_frame: int, held: int, fade: int) -> None:
    _, *plans = plan_chunks([40], 17, 1000, motion_frame, 4)
    assert {(plan.num_held_frames, plan.num_fade_frames) for plan in plans} == {(held, fade)}


def test_nothing_fades_into_a_chunk_that_is_not_shown() -> None:
    plans = plan_chunks([40, 20], 17, 1000, 9, 4)
    assert [(plan.num_new_frames, plan.num_fade_frames) for plan in plans] == [(17, 0), (3, 4), (0, 0), (0, 0)]
    assert [plan.num_held_frames for plan in plans] == [0, 4, 0, 0]


def test_no_chunk_is_made_for_nothing() -> None:
    for num_rows in range(1, 120):
        assert all(plan.num_new_frames > 0 for plan in plan_chunks([num_rows], 17, 1000, 9))


def test_windows_are_clamped_at_the_beginning() -> None:
    (plan,) = plan_chunks([40], 17, 17, 9)
    rows = window_rows(plan, 40)
    assert rows.shape == (17, 5)
    assert rows[0].tolist() == [0, 0, 0, 1, 2]
    assert rows[16].tolist() == [14, 15, 16, 17, 18]


def test_speech_shorter_than_a_chunk_goes_on_with_its_reversed_tail() -> None:
    """The published code refuses speech of at most frame_num frames; here the video is as long as the speech."""
    (plan,) = plan_chunks([10], 17, 1000, 9)
    assert plan.num_new_frames == 10
    # ten rows, then all ten reversed (the last repeats), clamped at the end of those
    centres = window_rows(plan, 10)[:, 2]
    assert centres.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 8, 7, 6, 5, 4, 3]


def test_a_shorter_second_speaker_ends_the_video_when_last() -> None:
    assert sum(plan.num_new_frames for plan in plan_chunks([40, 34], 17, 1000, 9)) == 34
    assert sum(plan.num_new_frames for plan in plan_chunks([34, 40], 17, 1000, 9)) == 40


def test_only_the_last_chunk_reads_the_reversed_tail() -> None:
    plans = plan_chunks([40, 20], 17, 1000, 9)
    first_end = next(plan for plan in plans if plan.start + plan.num_frames > 20)
    assert not first_end.extends_tail
    assert torch.equal(window_rows(first_end, 20)[-1], torch.full((5,), 19))


def test_a_single_chunk_takes_nothing_over() -> None:
    (plan,) = plan_chunks([9], 9, 9, 9)
    assert (plan.num_motion_frames, plan.num_new_frames) == (0, 9)


def test_chunks_that_would_add_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="motion_frame is 9"):
        plan_chunks([40], 9, 40, 9)


@pytest.mark.parametrize("max_frame_num", [9, 17, 18, 30, 100])
def test_speech_cut_to_what_is_usable_is_read_as_if_it_went_on(max_frame_num: int) -> None:
    rows = usable_rows(max_frame_num, 17, 9)
    cut, whole = plan_chunks([rows], 17, max_frame_num, 9), plan_chunks([500], 17, max_frame_num, 9)
    assert cut == whole
    for plan in whole:
        assert torch.equal(window_rows(plan, rows), window_rows(plan, 500))

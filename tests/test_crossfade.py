"""One decoding of some frames fades into another of the same frames."""

import numpy as np

from infinitetalk.generation.crossfade import cross_fade


def test_shares_grow_by_the_same_from_frame_to_frame() -> None:
    before = np.full((4, 2, 3, 3), 100, dtype=np.uint8)
    after = np.full((4, 2, 3, 3), 110, dtype=np.uint8)
    faded = cross_fade(before, after)
    assert faded.dtype == np.uint8
    assert faded[:, 0, 0, 0].tolist() == [102, 104, 106, 108]


def test_darker_frames_fade_without_wrapping() -> None:
    faded = cross_fade(np.full((1, 1, 1, 3), 255, dtype=np.uint8), np.zeros((1, 1, 1, 3), dtype=np.uint8))
    assert faded.ravel().tolist() == [128] * 3


def test_frames_that_are_the_same_stay_as_they_are() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    assert np.array_equal(cross_fade(frames, frames), frames)

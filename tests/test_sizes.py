"""The video's size follows the source's shape, and pictures and masks are cropped alike."""

import pytest
import torch

from infinitetalk.family import INFINITETALK
from infinitetalk.media.sizes import (
    choose_bucket,
    choose_resolution,
    cropped_share,
    resize_and_crop,
    resize_and_crop_mask,
)


def test_the_first_bucket_wins_a_tie() -> None:
    # 0.25 apart from both 2.50 and 2.00, which a double holds exactly.
    assert (
        choose_bucket(INFINITETALK, "infinitetalk-480", 2250, 1000)
        == INFINITETALK.sizes["infinitetalk-480"].buckets[2.00]
    )


@pytest.mark.parametrize("size", INFINITETALK.sizes)
def test_scale_one_leaves_every_bucket_as_published(size: str) -> None:
    for height, width in INFINITETALK.sizes[size].buckets.values():
        assert choose_bucket(INFINITETALK, size, height, width, scale=1.0) in INFINITETALK.sizes[size].buckets.values()


@pytest.mark.parametrize("size", INFINITETALK.sizes)
@pytest.mark.parametrize("scale", [0.01, 0.125, 0.2])
def test_scaled_sides_are_multiples_of_sixteen_and_never_zero(size: str, scale: float) -> None:
    for height, width in INFINITETALK.sizes[size].buckets.values():
        sides = choose_bucket(INFINITETALK, size, height, width, scale)
        assert all(side >= 16 and side % 16 == 0 for side in sides)


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"infinitetalk-1080.*infinitetalk-480, infinitetalk-720"):
        choose_bucket(INFINITETALK, "infinitetalk-1080", 100, 100)


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    picture = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    assert torch.equal(resize_and_crop(picture, 32, 48), picture)


def test_the_centre_is_kept() -> None:
    picture = torch.zeros(3, 20, 60, dtype=torch.uint8)
    picture[:, :, 20:40] = 255
    assert (resize_and_crop(picture, 20, 20) == 255).all()


def test_half_a_pixel_of_excess_goes_to_the_even_neighbour() -> None:
    columns = torch.arange(13, dtype=torch.uint8).expand(3, 8, 13)
    # An excess of 5 columns: the half, 2.5, is rounded to 2; of 3, 1.5, to 2 as well.
    assert resize_and_crop(columns, 8, 8)[0, 0, 0] == 2
    assert resize_and_crop(columns[:, :, :11], 8, 8)[0, 0, 0] == 2


def test_masks_stay_masks_and_meet_the_picture() -> None:
    mask = torch.zeros(2, 50, 37, dtype=torch.uint8)
    mask[0, :25], mask[1, 25:] = 1, 1
    resized = resize_and_crop_mask(mask, 96, 64)
    assert resized.shape == (2, 96, 64)
    assert set(resized.unique().tolist()) == {0, 1}
    assert (resized.sum(0) == 1).all()


def test_a_resolution_of_ones_own_takes_the_tables_place_and_is_scaled_like_it() -> None:
    own = (480, 832)
    assert choose_resolution(INFINITETALK, "infinitetalk-720", own, 100, 100) == own
    assert choose_resolution(INFINITETALK, "infinitetalk-720", own, 100, 100, scale=0.2) == (96, 160)
    bucket = choose_bucket(INFINITETALK, "infinitetalk-480", 100, 100, 0.2)
    assert choose_resolution(INFINITETALK, "infinitetalk-480", None, 100, 100, 0.2) == bucket


@pytest.mark.parametrize(
    ("source", "share"), [((640, 640), 0.0), ((320, 320), 0.0), ((640, 1280), 0.5), ((100, 25), 0.75)]
)
def test_the_share_that_is_cut_off_is_known(source: tuple[int, int], share: float) -> None:
    assert cropped_share(*source, 640, 640) == pytest.approx(share)

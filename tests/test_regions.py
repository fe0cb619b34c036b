"""Regions: who is where in the picture, and what the network makes of it."""

import pytest
import torch

from infinitetalk.errors import RegionError
from infinitetalk.network.regions import (
    BACKGROUND_POSITION,
    audio_token_positions,
    box_regions,
    check_boxes,
    default_regions,
    latent_regions,
    reference_attention_map,
    token_positions,
    token_regions,
)


def test_default_regions_go_from_left_to_right_and_do_not_touch() -> None:
    regions = default_regions(3, 100, 300)
    left_edges = [region.any(dim=0).nonzero()[0].item() for region in regions]
    right_edges = [region.any(dim=0).nonzero()[-1].item() for region in regions]
    assert left_edges == sorted(left_edges)
    assert all(right < left for right, left in zip(right_edges, left_edges[1:], strict=False))
    assert regions[0].any(dim=1).nonzero().flatten().tolist() == list(range(5, 95))


def test_box_is_x_then_y_as_its_names_say() -> None:
    (region,) = box_regions([[10, 20, 30, 60]], height=100, width=50)
    rows, columns = region.nonzero().unbind(1)
    assert (columns.min().item(), rows.min().item(), columns.max().item(), rows.max().item()) == (10, 20, 29, 59)


def test_box_order_yx_reads_it_as_the_published_code_does() -> None:
    """The published code slices rows with the values named x: here that has to be asked for."""
    assert torch.equal(box_regions([[20, 10, 60, 30]], 100, 50, order="yx"), box_regions([[10, 20, 30, 60]], 100, 50))


@pytest.mark.parametrize("box", [[60, 10, 80, 40], [10, 10, 10, 40], [30, 10, 10, 40], [-30, 10, -5, 40]])
def test_a_box_without_a_pixel_is_an_error_that_names_the_speaker(box: list[float]) -> None:
    with pytest.raises(RegionError, match="person2"):
        box_regions([[0, 0, 20, 20], box], height=50, width=50)


def test_background_is_where_no_speaker_is() -> None:
    regions = latent_regions(default_regions(2, 640, 448), 768, 512, 8)
    assert regions.shape == (3, 96, 64)
    assert torch.equal(regions[2], ~(regions[0] | regions[1]))


def test_a_region_lost_at_token_size_is_an_error() -> None:
    """The published code yields NaN in the whole video."""
    regions = torch.zeros(3, 12, 8, dtype=torch.bool)
    regions[0, :6], regions[2, 6:] = True, True
    regions[1, 1, 1] = True
    with pytest.raises(RegionError, match="person2"):
        token_regions(regions, 6, 4)


def attention_inputs(heads: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 120, heads, 16, generator=generator), torch.randn(1, 24, heads, 16, generator=generator)


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_reference_map_equals_the_softmax_taken_the_long_way(heads: int) -> None:
    """An odd number of heads included, of which the published code drops the last."""
    query, key = attention_inputs(heads)
    regions = token_regions(latent_regions(default_regions(2, 96, 64), 96, 64, 8), 6, 4)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 16**0.5
    probabilities = scores.softmax(dim=-1)[0]
    expected = torch.stack([probabilities[..., region].mean(dim=-1).mean(dim=0) for region in regions])
    torch.testing.assert_close(reference_attention_map(query, key, regions), expected, atol=1e-6, rtol=1e-5)


def test_reference_map_does_not_depend_on_how_the_queries_are_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = attention_inputs()
    regions = token_regions(latent_regions(default_regions(2, 96, 64), 96, 64, 8), 6, 4)
    whole = reference_attention_map(query, key, regions)
    monkeypatch.setattr("infinitetalk.network.regions.QUERY_SLICE", 7)
    torch.testing.assert_close(reference_attention_map(query, key, regions), whole)


def test_a_picture_without_background_is_served() -> None:
    """The published code puts every token on the background's position then."""
    query, key = attention_inputs()
    regions = torch.zeros(3, 24, dtype=torch.bool)
    regions[0, :12], regions[1, 12:] = True, True
    positions = token_positions(reference_attention_map(query, key, regions))
    assert positions.isfinite().all()
    assert (positions != BACKGROUND_POSITION).all()


def test_token_positions_lie_in_the_range_of_the_region_they_belong_to() -> None:
    attention_map = torch.tensor([[0.9, 0.1, 0.2, 0.5], [0.1, 0.8, 0.3, 0.0], [0.0, 0.1, 0.4, 0.1]])
    positions = token_positions(attention_map)
    assert positions[0].item() == pytest.approx(4.0, abs=1e-5)
    assert positions[1].item() == pytest.approx(24.0, abs=1e-5)
    assert positions[2].item() == BACKGROUND_POSITION
    assert positions[3].item() == pytest.approx(2.0, abs=1e-5)


def test_audio_tokens_sit_at_the_centre_of_their_speakers_range() -> None:
    assert audio_token_positions(2, 2).tolist() == [2.0, 2.0, 22.0, 22.0]
    assert audio_token_positions(3, 1).tolist() == [2.0, 12.0, 22.0]


@pytest.mark.parametrize(("box", "order"), [([0, 0, 50, 101], "xy"), ([-1, 0, 5, 5], "xy"), ([0, 0, 50, 100], "yx")])
def test_a_box_that_reaches_beyond_the_picture_can_be_refused(box: list[float], order: str) -> None:
    """The published code clips it without a word."""
    check_boxes([[0, 0, 50, 50]], height=100, width=50, order=order)
    with pytest.raises(RegionError, match="person2"):
        check_boxes([[0, 0, 50, 50], box], height=100, width=50, order=order)

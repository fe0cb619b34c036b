"""Two workers that hold one job hurt neither each other nor the result."""

from pathlib import Path

import pytest

from schemas import Stage
from tests.holders import Order, orders, pair
from tests.s3_server import S3Server

SHORT = [
    Order("volume", Stage.UPLOAD, 0.0, "sleep"),
    Order("s3", Stage.SAMPLING, 0.1, "race"),
    Order("s3", Stage.MUX, 0.1, "sleep"),
    Order("volume", Stage.DECODE, 0.0, "kill"),
]


@pytest.mark.parametrize(
    "planned", [pytest.param(SHORT, id="short"), pytest.param(orders(20, 2026), id="twenty", marks=pytest.mark.long)]
)
def test_what_is_told_as_a_success_is_there_whole_and_is_what_was_told(
    planned: list[Order], tmp_path: Path, s3_server: S3Server
) -> None:
    with pair(tmp_path, s3_server) as both:
        for order in planned:
            told = both.run(order)
            assert len({result.params["base_seed"] for result in told}) == 1, order

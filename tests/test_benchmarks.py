"""The benchmarks' own promises: what is counted, what a row says, and that every part of them runs at a small size."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from benchmarks.evaluation import EvaluationSize, Products, make_inputs, make_transformer
from benchmarks.gpu import SMALL, evaluation_operations, measure
from benchmarks.measure import Goal, Measurement, as_table, compare
from benchmarks.reference import UNSET, VARIABLE, import_reference, reference_folder
from infinitetalk.transformer import InfiniteTalkTransformer3DModel

SMALL_SIZE = EvaluationSize(dim=128, num_layers=2, latent_frames=2, height=4, width=6)


def test_a_row_passes_misses_or_is_unmeasured() -> None:
    at_most, at_least = Goal(1.15), Goal(2, at_least=True, unit="× faster")
    verdicts = [
        Measurement("a", "b", goal, value).verdict
        for goal, value in [(at_most, 1.15), (at_most, 1.16), (at_least, 2.0), (at_least, 1.9), (at_most, None)]
    ]
    assert verdicts == ["PASS", "NOT", "PASS", "NOT", "UNMEASURED"]


def test_the_table_has_a_line_for_each_row_and_says_not_once() -> None:
    rows = [Measurement("a", "b", Goal(1), value, "how").cells() for value in (0.5, 2.0, None)]
    table = as_table(rows)
    assert len(table.splitlines()) == 5
    assert table.count("NOT") == 1
    assert len({len(line) for line in table.splitlines()}) == 1


def test_a_comparison_is_the_median_of_ratios_taken_in_turn() -> None:
    order = []

    def work(name: str, amount: int) -> None:
        order.append(name)
        sum(range(amount))

    comparison = compare(lambda: work("first", 12_000_000), lambda: work("second", 4_000_000), repeats=3)
    assert order == ["first", "second"] * 4
    assert 1.5 < comparison.ratio < 6


def test_products_are_all_that_the_evaluation_multiplies() -> None:
    """The patch embedding, every linear layer once, and four attentions a block: self, text, picture, speech."""
    transformer = make_transformer(SMALL_SIZE)
    with Products() as products, torch.no_grad():
        transformer(**make_inputs(SMALL_SIZE))
    linear = sum(isinstance(module, torch.nn.Linear) for module in transformer.modules())
    assert len(products.calls) == 1 + linear + 4 * SMALL_SIZE.num_layers
    products.run()


def test_the_floor_is_that_of_the_published_shape() -> None:
    """640×640, 81 frames: 0.94 PFLOP in linear layers and 0.93 in self-attention."""
    with torch.device("meta"):
        transformer = InfiniteTalkTransformer3DModel()
    assert evaluation_operations(transformer, 33_600) == pytest.approx(1.87e15, rel=0.01)


def test_the_gpu_benchmark_runs_and_marks_what_the_machine_lacks() -> None:
    vae = AutoencoderKLWan(base_dim=4, num_res_blocks=1)
    rows = measure(SMALL, vae, torch.device("cpu"), with_compile=False)
    figures = {row.what.rpartition(", ")[2]: row.value for row in rows}
    assert figures["native"] > 0
    assert figures["fp8 products"] is None


def test_without_the_reference_nothing_is_compared_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert reference_folder() is None
    with pytest.raises(ValueError, match=UNSET):
        import_reference("wan.modules.multitalk_model")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="holds no"):
        reference_folder()

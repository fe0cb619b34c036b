"""The benchmarks' own promises: what is counted, what a row says, and that every part of them runs at a small size."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.evaluation import EvaluationSize, Products, make_inputs, make_transformer
from benchmarks.gpu import evaluations, several
from benchmarks.gpu.networks import evaluation_operations
from benchmarks.gpu.rows import Figure, Group, Row
from benchmarks.measure import Goal, Measurement, as_table, compare
from benchmarks.reference import UNSET, VARIABLE, import_reference, reference_folder
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel

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


def told(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """The figures that a group has printed."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return [line for line in lines if line["kind"] == "figure"]


def test_the_gpu_benchmark_measures_small_networks_and_says_what_the_machine_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluations.GROUP.run(small=True, wanted=["rates", "sizes", "two speakers", "LoRA"])
    figures = {figure["name"]: figure["value"] for figure in told(capsys)}
    assert figures["one evaluation, 640x640, 81 frames, 1 speaker"] > 0
    assert figures["one evaluation, 640x640, 81 frames, 2 speakers"] > 0
    assert figures["one evaluation, 640x640, 81 frames, 2 speakers: memory beside weights"] is None
    assert figures["a LoRA of rank 32 laid on every block"] > 0


@pytest.mark.slow
def test_the_gpu_benchmark_measures_several_processes_and_the_loss_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    several.GROUP.run(small=True, wanted=[])
    found = told(capsys)
    assert [figure for figure in found if figure["value"] is None] == []
    figures = {figure["name"]: figure["value"] for figure in found}
    assert len(figures) == 18
    assert max(value for name, value in figures.items() if "difference" in name) < 1e-5
    assert figures["a lost process is told of"] < 10


def test_a_row_that_fails_ends_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(state: None) -> Iterator[Figure]:
        yield Figure("before", 1.0)
        raise torch.OutOfMemoryError("no memory")

    def whole(state: None) -> Iterator[Figure]:
        yield Figure("after", 2.0)

    Group("some", lambda small: None, (Row("broken", broken), Row("whole", whole))).run(True, [])
    figures = told(capsys)
    assert [(figure["name"], figure["value"]) for figure in figures] == [
        ("before", 1.0),
        ("broken", None),
        ("after", 2.0),
    ]
    assert "OutOfMemoryError: no memory" in figures[1]["detail"]


def test_a_group_that_hangs_is_ended_and_what_was_found_is_in_the_file(tmp_path: Path) -> None:
    """A second is less than its imports take: whatever it is in then, the file tells."""
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--groups", "vae,talker", "--limit-s", "1"]
    subprocess.run([*command, "--output", file], check=True, capture_output=True)
    figures = json.loads(file.read_text())["figures"]
    assert [figure["group"] for figure in figures] == ["vae", "talker"]
    assert [figure["value"] for figure in figures] == [None, None]
    assert "ended after 1 s" in figures[0]["detail"]
    assert "no time was left" in figures[1]["detail"]


def test_without_the_reference_nothing_is_compared_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert reference_folder() is None
    with pytest.raises(ValueError, match=UNSET):
        import_reference("wan.modules.multitalk_model")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="holds no"):
        reference_folder()

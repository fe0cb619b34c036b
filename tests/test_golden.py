"""Every module against reference vectors, and the runner that compares them.

The full vectors lie beside the project, in `../shared/golden` and, for FlashTalk, `../shared/golden_flashtalk`, where
they were placed; a small copy is always here.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.golden.__main__ import main
from tests.golden.formulas import evaluate_sum, evaluate_wave, formula_image, formula_input, formula_weight
from tools.talker.breakages import dropped_motion_frames

SMALL = Path(__file__).parent / "data" / "golden"
FULL = Path(__file__).parents[2] / "shared" / "golden"
SMALL_FLASHTALK = SMALL.with_name("golden_flashtalk")
FULL_FLASHTALK = FULL.with_name("golden_flashtalk")


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit status and printed lines of the runner."""
    status = main([str(folder)])
    return status, capsys.readouterr().out.splitlines()


def one_case(folder: Path, name: str, **changes: object) -> Path:
    """A folder that holds one case of the small copy, with changes to its entry."""
    index = json.loads((SMALL / "index.json").read_text())
    entry = index["cases"][name] | changes
    shutil.copy(SMALL / entry["file"], folder)
    (folder / "index.json").write_text(json.dumps(index | {"cases": {name: entry}}))
    return folder


@pytest.mark.parametrize(("folder", "num_cases"), [(SMALL, 19), (SMALL_FLASHTALK, 3)])
def test_the_small_copy_of_the_figures_is_met(folder: Path, num_cases: int, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run(folder, capsys)
    assert (status, lines[-1]) == (0, f"{num_cases} passed, 0 failed, 0 skipped"), "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [FULL, FULL_FLASHTALK], ids=lambda folder: folder.name)
def test_all_figures_are_met(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not folder.is_dir():
        pytest.skip(f"../shared/{folder.name} is not there")
    status, lines = run(folder, capsys)
    num_cases = len(json.loads((folder / "index.json").read_text())["cases"])
    assert (status, lines[-1]) == (0, f"{num_cases} passed, 0 failed, 0 skipped"), "\n".join(lines)


def test_dropped_motion_frames_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = one_case(tmp_path, "case16_stream_video")
    for manifest in SMALL.glob("manifest_*.json"):
        shutil.copy(manifest, folder)
    assert run(folder, capsys)[0] == 0
    with dropped_motion_frames():
        assert run(folder, capsys)[0] == 1


@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_one_wrong_element_fails(wrong: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = one_case(tmp_path, "case13_color")
    file = folder / "case13_color.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["strength_0.5"].flat[5] += wrong
    safetensors.numpy.save_file(tensors, file)
    status, lines = run(folder, capsys)
    assert status == 1
    assert "NOT  strength_0.5: 1 elements off" in lines[0]
    assert lines[-1] == "0 passed, 1 failed, 0 skipped"


def test_a_wrong_fact_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = json.loads((SMALL / "index.json").read_text())["cases"]["case04_audio_windows"]["runs"]
    runs[0]["output_frames"] += 1
    status, lines = run(one_case(tmp_path, "case04_audio_windows", runs=runs), capsys)
    assert status == 1
    assert "len40 frames: 40 instead of 41" in lines[0]


def test_outliers_are_allowed_to_the_given_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tolerance = {"atol": 0.0, "rtol": 0.0, "tensors": {"strength_0.5": {"outlier_fraction": 1.0}}}
    assert run(one_case(tmp_path, "case13_color", tolerance=tolerance), capsys)[0] == 0
    tolerance["tensors"] = {}
    assert run(one_case(tmp_path, "case13_color", tolerance=tolerance), capsys)[0] == 1


def test_a_case_that_cannot_run_fails_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run(one_case(tmp_path, "case13_color", inputs={}), capsys)
    assert status == 1
    assert "NOT: KeyError" in lines[0]


def test_an_unknown_case_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = json.loads((SMALL / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"cases": {"case99_new": {}}}))
    status, lines = run(tmp_path, capsys)
    assert status == 0
    assert lines[-1] == "0 passed, 0 failed, 1 skipped"


def test_another_prefix_of_keys_gives_other_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = one_case(tmp_path, "case13_color")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"key_prefix": "other/"}))
    assert run(folder, capsys)[0] == 1


@pytest.mark.skipif(not FULL.is_dir(), reason="../shared/golden is not there")
def test_our_formulas_are_those_of_the_vectors() -> None:
    theirs: dict[str, object] = {"__file__": str(FULL / "golden.py")}
    exec((FULL / "golden.py").read_text(), theirs)
    for key, shape in [("a.bias", (3,)), ("b.weight", (4,)), ("c.weight", (4, 5)), ("d.gamma", (2, 1)), ("e", (2, 3))]:
        np.testing.assert_array_equal(formula_weight(key, shape), theirs["formula_weight"](key, shape))  # type: ignore[operator]
    np.testing.assert_array_equal(formula_image(7, 5, 3), theirs["formula_image"](7, 5, 3))  # type: ignore[operator]


def test_sums_in_notes_are_evaluated() -> None:
    known = {"cond": np.ones((2, 2), np.float32)}
    got = evaluate_sum('cond-formula_input(P+"x/i",s=0.5)', known, "p/", 2, (2, 2))
    np.testing.assert_allclose(got, 1 - formula_input("p/x/2", (2, 2), 0.5))


def test_waves_in_notes_are_evaluated() -> None:
    text = (
        "n=0..99; env=1 for n<20, 0.1 for n<50, 0.5 after; "
        'x=float32(0.3*sin(2*pi*220*n/16000)*env + 0.02*formula_input("k",[100])) evaluated in float64'
    )
    n = np.arange(100)
    envelope = np.where(n < 20, 1.0, np.where(n < 50, 0.1, 0.5))
    want = 0.3 * np.sin(2 * np.pi * 220 * n / 16000) * envelope + 0.02 * formula_input("k", (100,))
    np.testing.assert_allclose(evaluate_wave(text, ""), want, atol=1e-7)

"""README and the plan of the code stay true: tables are the models', the library example runs, modules are named."""

import re
from pathlib import Path

import pytest

from schemas import ErrorCode
from schemas.tables import README_TABLES, fill_tables

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_tables_are_in_step_with_the_models() -> None:
    """`make schemas` brings them there."""
    assert sorted(re.findall(r"<!-- fields: (\S+) -->", README)) == sorted(README_TABLES)
    assert fill_tables(README) == README


def test_the_plan_of_the_house_names_every_module() -> None:
    plan = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8").split("```")[1]
    package = CHECKOUT / "infinitetalk"
    # The wing of weights has a document of its own.
    modules = [path.name for path in package.rglob("[!_]*.py") if package / "weights" not in path.parents]
    assert len(modules) > 40
    assert sorted(re.findall(r"(?m)^  +(\w+\.py) ", plan)) == sorted(modules)


def test_every_error_code_is_explained() -> None:
    assert all(f"| `{code.value}` |" in README for code in ErrorCode)


def test_library_example_turns_a_picture_and_a_voice_into_frames(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shorter = example.replace("num_inference_steps=4", "num_inference_steps=1, frame_num=9, max_frame_num=9")
    assert shorter != example
    monkeypatch.chdir(CHECKOUT)
    exec(shorter, {})
    assert "(9, 64, 64, 3)" in capsys.readouterr().out

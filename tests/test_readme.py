"""README and the plan of the code stay true: tables are the models', the library example runs, modules are named."""

import re
from pathlib import Path

import pytest

from schemas import ErrorCode
from tools.generated import README_TABLES, generated_files

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", generated_files(), ids=lambda file: file.name)
def test_what_is_generated_is_in_step_with_the_models_and_the_settings(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == generated_files()[file], "run make schemas"


def test_readme_has_a_table_of_each_published_model() -> None:
    assert sorted(re.findall(r"<!-- fields: (\S+) -->", README)) == sorted(README_TABLES)


def test_the_plan_of_the_house_names_every_folder() -> None:
    plan = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
    assert len(plan.splitlines()) < 60, "it fits on a screen"
    package = CHECKOUT / "infinitetalk"
    folders = {path.parent.relative_to(CHECKOUT) for path in package.rglob("__init__.py")}
    assert len(folders) > 12
    for folder in folders:
        assert f"`{folder}/`" in plan or f"`…/worker/{folder.name}/`" in plan, folder
    named = re.findall(r"`(?:…/)?((?:infinitetalk|worker)/[\w/]+/)`", plan)
    for name in named:
        assert (package / name.removeprefix("infinitetalk/")).is_dir(), name


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
    assert "(9, 128, 128, 3)" in capsys.readouterr().out

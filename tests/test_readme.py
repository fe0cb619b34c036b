"""Documents stay true: tables are the models', the example runs, modules, links and tests that they name exist."""

import re
from pathlib import Path

import pytest

from infinitetalk.generation.sampling import make_sampler
from infinitetalk.recipes import RECIPES
from infinitetalk.worker.engine.scenes import Scene, chunk_grid, generation_settings
from schemas import ErrorCode, SingleJob
from tools.generated import README_TABLES, generated_files

CHECKOUT = Path(__file__).parents[1]
JOB = {"prompt": "A woman talks", "cond_video": "face.png", "cond_audio": {"person1": "voice.wav"}, "mode": "streaming"}
DOCUMENTS = [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md"), *(CHECKOUT / "examples").glob("**/*.md")]
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


def heading_anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_links_within_the_repository_lead_to_files_and_headings_that_are_there() -> None:
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r'(?:\]\(|src=")([^)\s"]+)', prose(document))
        if not link.startswith("http")
    ]
    assert len(links) > 100
    for document, link in links:
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in heading_anchors(target), f"{document.name}: {link}"


def test_the_tests_that_documents_name_are_there() -> None:
    tests = "".join(file.read_text(encoding="utf-8") for file in (CHECKOUT / "tests").glob("*.py"))
    named = {
        name for document in DOCUMENTS for name in re.findall(r"`(test_\w+)`", document.read_text(encoding="utf-8"))
    }
    assert len(named) > 100
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


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


def test_the_table_of_recipes_has_each_recipes_evaluations_and_chunks() -> None:
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("| `")]
    told = {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}
    for name, recipe in RECIPES.items():
        job = SingleJob.model_validate(JOB | {"recipe": name}).by_recipe(recipe)
        sampler = make_sampler(generation_settings(job, 0, Scene(0, 1500)), recipe.family)
        steps, branches = job.sample_steps, sampler.num_evaluations // job.sample_steps
        _, evaluations, chunks, _ = told[name]
        assert evaluations.replace(" steps", "") == f"{steps} × {branches}"
        assert chunks.split(",")[0] == str(chunk_grid(job).num_chunks(1500))

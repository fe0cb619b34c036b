"""What Runpod and CI read is valid, and the documentation's tables are in step with the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infinitetalk.recipes import RECIPES
from infinitetalk.worker.settings import Settings
from schemas import parse_input
from tools.generated import environment_variable

CHECKOUT = Path(__file__).parents[1]
HUB = json.loads((CHECKOUT / ".runpod/hub.json").read_text(encoding="utf-8"))
HUB_TESTS = json.loads((CHECKOUT / ".runpod/tests.json").read_text(encoding="utf-8"))
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
DEPLOY = (CHECKOUT / "docs/deploy.md").read_text(encoding="utf-8")

INPUT_TYPES = {"string": str, "number": (int, float), "boolean": bool, "huggingface": str}
PYTHON_OF_UBUNTU = {"24.04": "3.12", "22.04": "3.10"}
GPU_POOLS = {"AMPERE_16", "AMPERE_24", "ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO", "HOPPER_141"}


def variables() -> set[str]:
    """Environment variables that the worker reads."""
    return {environment_variable(name, field) for name, field in Settings.model_fields.items()}


def test_the_hub_file_has_the_documented_fields():
    assert set(HUB) == {"title", "description", "type", "category", "config"}
    assert HUB["type"] == "serverless"
    assert HUB["category"] in ("audio", "embedding", "language", "video", "image")
    config = HUB["config"]
    assert set(config) == {
        "runsOn",
        "containerDiskInGb",
        "gpuCount",
        "gpuIds",
        "allowedCudaVersions",
        "env",
        "presets",
    }
    assert (config["runsOn"], config["gpuCount"]) == ("GPU", 1)
    assert set(config["gpuIds"].split(",")) <= GPU_POOLS


@pytest.mark.parametrize("variable", HUB["config"]["env"], ids=lambda variable: variable["key"])
def test_a_variable_of_the_hub_is_a_setting_with_a_fit_default(variable: dict[str, Any]):
    field = variable["input"]
    assert variable["key"] in variables()
    assert set(field) <= {"name", "type", "description", "options", "default", "advanced", "required"}
    assert isinstance(field["default"], INPUT_TYPES[field["type"]])
    if "options" in field:
        assert field["default"] in [option["value"] for option in field["options"]]


def test_the_hub_offers_every_recipe():
    (field,) = [variable["input"] for variable in HUB["config"]["env"] if variable["key"] == "DEFAULT_RECIPE"]
    assert [option["value"] for option in field["options"]] == ["", *RECIPES]


def test_the_hub_has_presets_for_24_48_and_80_gb():
    presets = HUB["config"]["presets"]
    assert [re.match(r"(\d+) GB", preset["name"])[1] for preset in presets] == ["24", "48", "80"]
    keys = {variable["key"] for variable in HUB["config"]["env"]}
    for preset in presets:
        assert set(preset) == {"name", "defaults"}
        assert set(preset["defaults"]) <= keys


def test_the_hub_and_the_image_agree_on_the_cuda_version():
    (image,) = re.findall(r"^ARG BASE_IMAGE=nvidia/cuda:(\d+\.\d+)\.", DOCKERFILE, re.MULTILINE)
    assert HUB["config"]["allowedCudaVersions"] == [image] == HUB_TESTS["config"]["allowedCudaVersions"]


def test_the_hubs_tests_are_valid_jobs():
    assert set(HUB_TESTS) == {"tests", "config"}
    assert {variable["key"] for variable in HUB_TESTS["config"]["env"]} <= variables()
    for test in HUB_TESTS["tests"]:
        assert set(test) == {"name", "input", "timeout"}
        assert test["timeout"] >= 1000, "milliseconds"
        parse_input(test["input"])


def test_every_setting_in_the_image_is_one():
    environment = re.search(r"^ENV (INFINITETALK_MODEL=.*?)\n[A-Z#]", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert environment
    names = set(re.findall(r"([A-Z_]+)=", environment[1]))
    assert names - variables() == {
        "HF_HUB_OFFLINE",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
    }


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((CHECKOUT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))


def commands(job: dict[str, Any]) -> str:
    """All that a job's steps run."""
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_ci_tests_every_push_and_builds_the_image_on_release():
    test, image = workflow("test"), workflow("image")
    # YAML 1.1 reads the key "on" as true.
    assert "push" in test[True]
    assert ".ci/run" in [step.get("run") for step in test["jobs"]["test"]["steps"]]
    assert image[True] == {"release": {"types": ["published"]}}


def test_a_job_of_a_workflow_may_do_what_it_needs_and_no_more():
    may_write = []
    for file in CHECKOUT.glob(".github/workflows/*.yml"):
        described = workflow(file.stem)
        assert described["permissions"] == {}
        for name, job in described["jobs"].items():
            assert job["permissions"].pop("contents") == "read"
            may_write += [(file.stem, name, job["permissions"])] if job["permissions"] else []
            for step in job["steps"]:
                if "checkout" in step.get("uses", ""):
                    assert step["with"]["persist-credentials"] is False
                # What others name, a branch or a tag, must not become part of a command.
                assert "${{" not in step.get("run", "")
    assert may_write == [("image", "image", {"packages": "write"})]


def test_no_image_is_made_before_everything_is_pinned():
    jobs = workflow("image")["jobs"]
    assert jobs["image"]["needs"] == "pins"
    assert re.search(r"python3 -m tools\.pins\n(.*\n)*git diff --quiet$", commands(jobs["pins"]).strip())
    uses = {step["uses"].partition("@")[0] for step in jobs["image"]["steps"] if "uses" in step}
    assert uses == {"actions/checkout"}, "others' code beside the right to write packages"
    assert "docker push" in commands(jobs["image"])
    assert "latest" not in commands(jobs["image"])


def requirement_lines(name: str) -> list[str]:
    """A requirements file's entries, each with its options in one line."""
    text = (CHECKOUT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_the_lock_has_what_is_required_in_the_same_versions_and_hashes_of_it_all():
    """`make lock` brings it there."""
    required = {Requirement(line) for line in requirement_lines("requirements.txt")}
    locked = {}
    for line in requirement_lines("requirements.lock"):
        pin, *options = line.split()
        requirement = Requirement(pin)
        locked[canonicalize_name(requirement.name)] = requirement.specifier
        assert options, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option) for option in options), pin
    assert len(required) > 20
    for requirement in required:
        assert locked[canonicalize_name(requirement.name)] == requirement.specifier, requirement
    # What they need in turn is there too, one version of each.
    assert {"botocore", "urllib3", "misaki", "spacy", "nvidia-cudnn-cu13"} <= set(locked)
    assert all(re.fullmatch(r"==[^*]+", str(specifier)) for specifier in locked.values())


def test_the_lock_is_for_the_images_python():
    lock = (CHECKOUT / "requirements.lock").read_text(encoding="utf-8")
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8").replace("\\\n\t\t", "")
    header = lock.splitlines()[1].removeprefix("#").strip()
    assert header.replace("uv pip compile requirements.txt", "") in makefile.replace(" --quiet", "")
    (ubuntu,) = re.findall(r"^ARG BASE_IMAGE=\S+ubuntu([0-9.]+)", DOCKERFILE, re.MULTILINE)
    assert f"--python-version {PYTHON_OF_UBUNTU[ubuntu]} " in header
    assert "x86_64" in header and "--platform=linux/amd64" in DOCKERFILE


def test_the_image_installs_nothing_but_what_the_lock_has():
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    assert re.search(r"^ARG TORCH=cuda$", DOCKERFILE, re.MULTILINE)
    (install,) = re.findall(r"pip install .*", stages["requirements-cuda"])
    assert {"--require-hashes", "--only-binary"} <= set(install.split())
    assert install.endswith("/requirements.lock")
    (model,) = re.findall(r"pip install .*", stages["requirements"])
    assert {"--no-deps", "--only-binary", '"${SPACY_MODEL}"'} <= set(model.split())
    assert "pip" not in stages["worker"]


def test_the_image_has_a_user_for_decoders_who_owns_nothing():
    worker = DOCKERFILE.partition(" AS worker\n")[2]
    assert re.search(r"useradd --no-create-home --uid \d+ --shell /usr/sbin/nologin decoder$", worker, re.MULTILINE)
    assert "--chown" not in worker and "chown" not in worker


def test_the_image_can_compile_and_keeps_what_it_compiled_from_decoders():
    worker = DOCKERFILE.partition(" AS worker\n")[2]
    installed = re.findall(r"apt-get install --yes --no-install-recommends (.*?) \\$", worker, re.MULTILINE)
    assert installed == ["gcc libc6-dev python3-dev"]
    # Both users are there, and the home of one is closed to the other.
    assert "useradd --create-home --uid 1001 worker" in worker
    folders = re.findall(r"(?:TORCHINDUCTOR|TRITON)_CACHE_DIR=(\S+)", worker)
    assert len(folders) == 2
    assert all(folder.startswith("/home/worker/") for folder in folders)


def test_the_tests_in_the_image_find_all_that_they_read():
    """They read workflows, the Hub's files and the benchmarks."""
    ignored = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not {".github", ".runpod", ".ci", "benchmarks", "tools", "examples", "docs"} & set(ignored)


def test_files_that_the_documentation_links_to_are_there():
    for page in CHECKOUT.glob("docs/*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

"""What Runpod and CI read is valid, and the documentation's tables are in step with the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infinitetalk.worker.settings import Settings
from infinitetalk.worker.settings_table import environment_variable, fill_table
from schemas import parse_input

CHECKOUT = Path(__file__).parents[1]
HUB = json.loads((CHECKOUT / ".runpod/hub.json").read_text(encoding="utf-8"))
HUB_TESTS = json.loads((CHECKOUT / ".runpod/tests.json").read_text(encoding="utf-8"))
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
DEPLOY = (CHECKOUT / "docs/deploy.md").read_text(encoding="utf-8")

INPUT_TYPES = {"string": str, "number": (int, float), "boolean": bool, "huggingface": str}
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


def test_the_settings_table_is_in_step_with_the_settings():
    """`make schemas` brings it there."""
    assert "`S3_ENDPOINT`" in DEPLOY
    assert fill_table(DEPLOY) == DEPLOY


def test_every_setting_in_the_image_is_one():
    environment = re.search(r"^ENV (INFINITETALK_MODEL=.*?)\n[A-Z#]", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert environment
    names = set(re.findall(r"([A-Z_]+)=", environment[1]))
    assert names - variables() == {"HF_HUB_OFFLINE", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}


def test_ci_tests_every_push_and_builds_the_image_on_release():
    test, image = (
        yaml.safe_load((CHECKOUT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))
        for name in ("test", "image")
    )
    # YAML 1.1 reads the key "on" as true.
    assert "push" in test[True]
    assert ".ci/run" in [step.get("run") for step in test["jobs"]["test"]["steps"]]
    assert image[True] == {"release": {"types": ["published"]}}


def test_files_that_the_documentation_links_to_are_there():
    for page in CHECKOUT.glob("docs/*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

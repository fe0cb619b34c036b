"""What Runpod and CI read is valid, and the documentation's tables are in step with the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infinitetalk import __version__
from infinitetalk.recipes import RECIPES
from infinitetalk.worker.settings import Settings
from schemas import parse_input
from tests.local_jobs import LocalWorker
from tools import hub, release
from tools.generated import environment_variable

CHECKOUT = Path(__file__).parents[1]
HUB = json.loads((CHECKOUT / ".runpod/hub.json").read_text(encoding="utf-8"))
HUB_TESTS = json.loads((CHECKOUT / ".runpod/tests.json").read_text(encoding="utf-8"))
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
DEPLOY = (CHECKOUT / "docs/deploy.md").read_text(encoding="utf-8")

INPUT_TYPES = {"string": str, "number": (int, float), "boolean": bool, "huggingface": str}
PYTHON_OF_UBUNTU = {"24.04": "3.12", "22.04": "3.10"}
GPU_POOLS = {
    "AMPERE_16": 16,
    "AMPERE_24": 24,
    "ADA_24": 24,
    "ADA_32_PRO": 32,
    "AMPERE_48": 48,
    "ADA_48_PRO": 48,
    "AMPERE_80": 80,
    "ADA_80_PRO": 80,
    "BLACKWELL_96": 96,
    "HOPPER_141": 141,
    "BLACKWELL_180": 180,
}
"""Runpod's pools, and the memory of their GPUs in GB."""

CUDA_VERSIONS = ["12.8", "12.9", "13.0"]
"""The newest versions by which Runpod picks hosts, in order."""

OF_RUNPOD = {"RUNPOD_INIT_TIMEOUT"}
"""Variables that Runpod reads, not the worker."""


def variables() -> set[str]:
    """Environment variables that the worker reads."""
    return {environment_variable(name, field) for name, field in Settings.model_fields.items()}


def test_the_hub_file_has_the_documented_fields():
    assert set(HUB) - {"iconUrl"} == {"title", "description", "type", "category", "config"}
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
    assert set(config["gpuIds"].split(",")) <= GPU_POOLS.keys()
    # The worker needs 24 GB; the other pool of that size has no kernels for fp8.
    assert set(config["gpuIds"].split(",")) == GPU_POOLS.keys() - {"AMPERE_16", "AMPERE_24"}


@pytest.mark.parametrize("variable", HUB["config"]["env"], ids=lambda variable: variable["key"])
def test_a_variable_of_the_hub_is_a_setting_with_a_fit_default(variable: dict[str, Any]):
    if "value" in variable:
        assert variable["key"] in variables() | OF_RUNPOD
        assert isinstance(variable["value"], str)
        return
    field = variable["input"]
    assert variable["key"] in variables()
    known = {"name", "type", "description", "options", "default", "advanced", "required", "trueValue", "falseValue"}
    assert set(field) <= known
    assert isinstance(field["default"], INPUT_TYPES[field["type"]])
    if field["type"] == "boolean":
        name = variable["key"].lower()
        read = [getattr(Settings.model_validate({name: field[key]}), name) for key in ("trueValue", "falseValue")]
        assert read == [True, False]
        assert field["default"] is Settings.model_fields[name].default
    if "options" in field:
        assert field["default"] in [option["value"] for option in field["options"]]


def test_the_hub_offers_every_recipe():
    (field,) = [variable["input"] for variable in HUB["config"]["env"] if variable["key"] == "DEFAULT_RECIPE"]
    assert [option["value"] for option in field["options"]] == ["", *RECIPES]


def test_the_hub_has_a_preset_for_each_size_of_its_gpus_and_one_that_needs_nothing():
    without_weights, *presets = HUB["config"]["presets"]
    sizes = [int(re.match(r"(\d+) GB", preset["name"])[1]) for preset in presets]
    assert sizes == [24, 32, 48, 80, 96, 141]
    pools = {GPU_POOLS[pool] for pool in HUB["config"]["gpuIds"].split(",")}
    assert pools - {180} == set(sizes)
    fields = {variable["key"]: variable.get("input") for variable in HUB["config"]["env"]}
    for preset in HUB["config"]["presets"]:
        assert set(preset) == {"name", "defaults"}
        for key, value in preset["defaults"].items():
            options = [option["value"] for option in fields[key].get("options", [])]
            assert isinstance(value, INPUT_TYPES[fields[key]["type"]]) and (not options or value in options)
    # All that another preset sets is set back.
    assert without_weights["defaults"].keys() >= {key for preset in presets for key in preset["defaults"]}


def test_the_hubs_page_names_every_pool_and_preset():
    page = (CHECKOUT / ".runpod/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) GB \| (.+?) \|", page, re.MULTILINE)
    presets = [preset["name"].partition(":")[0] for preset in HUB["config"]["presets"]]
    assert [f"{size} GB" for size, _ in rows] == presets[1:]
    assert f"**{presets[0]}**" in page
    named = re.findall(r"`([A-Z0-9_]+)`", " ".join(pools for _, pools in rows))
    assert named == HUB["config"]["gpuIds"].split(",")


def test_the_preset_that_needs_nothing_makes_a_worker_that_serves(local_worker: LocalWorker, tmp_path: Path):
    """A worker with this preset, on a machine without a volume and a bucket, as the image sets it up."""
    defaults = HUB["config"]["presets"][0]["defaults"]
    with_preset = {name.lower(): value for name, value in defaults.items() if value}
    settings = Settings(output_dir=tmp_path / "runpod-volume", webhook_get_job="set", **with_preset)
    assert (settings.model, settings.recipe) == ("talker", None)
    local_worker.settings = settings
    result = local_worker.run({"id": "job-1", "input": HUB_TESTS["tests"][0]["input"]})
    assert result["status"] == "success" and result["video"]["data"]


def test_the_icon_and_the_badge_are_those_of_the_repository_that_publishes():
    icon = (CHECKOUT / ".runpod/icon.png").read_bytes()
    assert icon.startswith(b"\x89PNG") and len(icon) < 100_000
    text = json.dumps(HUB)
    published = json.loads(hub.with_icon(hub.with_icon(text, "a/b"), "an-owner/a.worker"))
    address = "https://raw.githubusercontent.com/an-owner/a.worker/HEAD/.runpod/icon.png"
    assert published == HUB | {"iconUrl": address}
    readme = "# Title\n\nText.\n\nMore.\n"
    badge = (
        "[![Runpod](https://api.runpod.io/badge/an-owner/a.worker)](https://console.runpod.io/hub/an-owner/a.worker)"
    )
    told = hub.with_badge(hub.with_badge(readme, "a/b"), "an-owner/a.worker")
    assert told == f"# Title\n\n{badge}\n\nText.\n\nMore.\n"


def test_the_hub_and_the_image_agree_on_the_cuda_version():
    (image,) = re.findall(r"^ARG BASE_IMAGE=nvidia/cuda:(\d+\.\d+)\.", DOCKERFILE, re.MULTILINE)
    # Runpod asks for the version that an image needs and all newer ones.
    newer = CUDA_VERSIONS[CUDA_VERSIONS.index(image) :]
    assert HUB["config"]["allowedCudaVersions"] == newer == HUB_TESTS["config"]["allowedCudaVersions"]


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
    foreign = {"HF_HUB_OFFLINE", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    of_compilers = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
    assert names - variables() == foreign | of_compilers | OF_RUNPOD


def test_image_hub_and_documents_agree_on_the_time_that_a_start_may_take():
    (image,) = re.findall(r"RUNPOD_INIT_TIMEOUT=(\d+)", DOCKERFILE)
    (hubs,) = [variable["value"] for variable in HUB["config"]["env"] if variable["key"] == "RUNPOD_INIT_TIMEOUT"]
    assert image == hubs
    assert f"`RUNPOD_INIT_TIMEOUT={image}`" in DEPLOY


def test_the_image_says_which_version_and_commit_it_is():
    label = re.search(r"^LABEL ([^\\\n]*(?:\\\n[^\\\n]*)*)", DOCKERFILE, re.MULTILINE)
    assert label
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', label[1]))
    assert labels["version"] == "${VERSION}" and labels["revision"] == "${GIT_COMMIT}"
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [__version__]
    assert "\nENV GIT_COMMIT=${GIT_COMMIT}\n" in DOCKERFILE and "GIT_COMMIT" in variables()
    assert '--build-arg GIT_COMMIT="$GITHUB_SHA"' in commands(workflow("image")["jobs"]["image"])


@pytest.mark.parametrize(
    ("tag", "heading", "label", "told"),
    [
        (f"v{__version__}", f"{__version__} — 2026-11-27", __version__, []),
        (__version__, f"{__version__} — 2026-11-27", __version__, ["the tag is"]),
        ("v9.9.9", f"{__version__} — 2026-11-27", __version__, ["the tag is"]),
        (f"v{__version__}", "0.0.9 — 2026-11-27", __version__, ["does not begin"]),
        (f"v{__version__}", f"{__version__} — not released yet", __version__, ["no date"]),
        (f"v{__version__}", f"{__version__} — 2026-11-27", "0.0.9", ["ARG VERSION"]),
    ],
)
def test_a_tag_is_released_only_where_code_label_and_changelog_say_its_version(tag, heading, label, told):
    changelog = f"# Changes\n\nText.\n\n## {heading}\n\n- new\n\n## 0.0.1 — 2020-01-01\n"
    found = release.problems(tag, changelog, f"FROM x\nARG VERSION={label}\n")
    assert len(found) == len(told)
    assert all(words in problem for words, problem in zip(told, found, strict=True))


def test_the_changelog_begins_with_the_version_of_the_code():
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = release.problems(f"v{__version__}", changelog, DOCKERFILE)
    assert all("no date" in problem for problem in found), found


def test_no_document_names_an_image_that_is_in_no_registry():
    """Until a release is published, an image's name is an example's, in capitals."""
    for page in [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob(".runpod/*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?:ghcr\.io|docker\.io|quay\.io)/(\S+?)[`\s)]", text):
            assert re.fullmatch(r"[A-Z]+/[A-Z]+(:[A-Z]+)?", name), f"{page.name} names {name}"


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
    assert re.search(r'^python3 -m tools\.release "\$GITHUB_REF_NAME"$', commands(jobs["pins"]), re.MULTILINE)


def test_actions_are_pinned_by_their_commit():
    for file in CHECKOUT.glob(".github/workflows/*.yml"):
        for used in re.findall(r"uses: (\S+.*)", file.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", used), used


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
    faces, model = re.findall(r"pip install .*", stages["requirements"])
    # What finds faces asks for TensorFlow, which the image does not need.
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(faces.split())
    assert faces.endswith("/requirements-faces.txt")
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

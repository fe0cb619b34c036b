"""Kernels from the Hub: fetched at a commit by the weights command, found and loaded by the worker from a folder."""

import pickle
import platform
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, dispatch_attention_fn
from huggingface_hub import HfApi

from infinitetalk.embedded.tiny import talker_paths
from infinitetalk.errors import CheckpointError
from infinitetalk.media.decode import MediaInfo
from infinitetalk.runtime.kernels.bench import BlockBench, Case
from infinitetalk.runtime.kernels.hub import CALLS, load
from infinitetalk.runtime.kernels.registry import PUBLISHED, candidate_named, candidates_at, kernels_named
from infinitetalk.runtime.kernels.trial import Outcome, remaining_of
from infinitetalk.weights import hub_kernels
from infinitetalk.weights.__main__ import main
from infinitetalk.weights.hub_kernels import HUB_KERNELS, Fetched, fetch_kernel, find_kernel, fitting_build
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from schemas import SingleJob
from tests.hub_server import COMMIT, fetching, serve_hub
from tests.job_inputs import small_job

CPU = torch.device("cpu")
CASE = Case(talker_paths(), CPU, torch.float32, quantisation=None, num_frames=13, height=64, width=64, vae_tiling=False)
OWN = f"torch{''.join(torch.__version__.split('.')[:2])}-cxx11-cpu-{platform.machine()}-linux"
SAGE = HUB_KERNELS["sage_hub"]
NAME = f"sage_hub@{COMMIT[:12]}"

#: A build as the Hub has them, with torch's attention and a known error.
PACKAGE = {
    "__init__.py": b"from .inner import sageattn\n",
    "inner.py": b"""
import torch.nn.functional as F

def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False):
    assert tensor_layout == "NHD"
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2) * 1.001
""",
}


def save(folder: Path, commit: str = COMMIT, build: str = OWN) -> Path:
    """A folder of kernels in which sage_hub is there at a commit."""
    place = folder / "sage_hub" / commit / "build" / build
    place.mkdir(parents=True)
    for name, content in PACKAGE.items():
        (place / name).write_bytes(content)
    return folder


def test_a_kernel_is_fetched_at_the_commit_that_is_named_and_in_the_build_for_this_torch(tmp_path: Path) -> None:
    files = {f"build/{build}/{name}": data for build in (OWN, "torch27-cxx98") for name, data in PACKAGE.items()}
    with serve_hub({"README.md": b"no", **files}) as (address, fetched):
        finished = fetching(address, tmp_path, f"sage_hub@{COMMIT}")
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout == f"KERNELS_DIR={tmp_path / 'kernels'}\n"
        assert sorted(fetched) == [f"build/{OWN}/__init__.py", f"build/{OWN}/inner.py"]
    assert find_kernel([tmp_path / "kernels"], SAGE) == Fetched(
        SAGE, COMMIT, tmp_path / "kernels" / "sage_hub" / COMMIT / "build" / OWN
    )


def test_a_kernel_without_a_build_for_this_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub({f"build/torch27-cxx98/{name}": data for name, data in PACKAGE.items()}) as (address, fetched):
        monkeypatch.setattr(hub_kernels, "HfApi", partial(HfApi, endpoint=address))
        with pytest.raises(CheckpointError, match=r"at this commit has no build for torch .* it has torch27-cxx98$"):
            fetch_kernel(f"sage_hub@{COMMIT}", tmp_path)
    assert fetched == []
    assert find_kernel([tmp_path / "kernels"], SAGE) == (
        "not fetched; `python -m infinitetalk.weights download sage_hub@COMMIT` fetches it"
    )


def test_a_hub_that_cannot_be_reached_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_kernels, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9"))
    # huggingface_hub tries five times.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(CheckpointError, match=r"could not be fetched .* run the command again"):
        fetch_kernel(f"sage_hub@{COMMIT}", tmp_path)


def test_a_commit_without_builds_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "sage_hub" / COMMIT).mkdir(parents=True)
    found = find_kernel([tmp_path], SAGE)
    assert isinstance(found, str) and found.endswith("; it has none")


def test_loading_a_kernel_leaves_no_bytecode_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    kernel = find_kernel([save(tmp_path, "d" * 40)], SAGE)
    assert isinstance(kernel, Fetched)
    assert callable(load(kernel).sageattn)
    assert sorted(file.name for file in kernel.folder.iterdir()) == sorted(PACKAGE)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("sage_hub", "name the commit to fetch, sage_hub@ and its 40 hexadecimal digits"),
        ("sage_hub@main", "from https://huggingface.co/kernels/SageAttention/sage-attention/commits/main"),
        (f"sage_hub@{'a' * 40}", f"holds sage_hub at the commit {COMMIT}; remove it first"),
    ],
)
def test_no_kernel_is_fetched_without_a_commit_or_beside_another_one(
    tmp_path: Path, wanted: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "kernels")
    assert main(["download", wanted, "--folder", str(tmp_path)]) == 1
    assert reason in capsys.readouterr().err


def test_the_build_for_this_torch_and_cuda_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = platform.machine()

    def of(*versions: str) -> list[str]:
        return [f"torch{each}-{machine}-linux" for each in versions]

    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert fitting_build(of("213-cxx11-cu130", "213-cxx11-cu128", "212-cxx11-cu130")) == of("213-cxx11-cu130")[0]
    assert fitting_build(of("-stable-abi29-cu130", "213-cu130", "-stable-abi214-cu130")) == of("-stable-abi29-cu130")[0]
    assert fitting_build(of("213-cu128", "213-cu131", "213-cxx11-cpu", "212-cu130")) is None
    assert fitting_build(["torch213-cxx11-cu130-riscv64-linux", "torch213-cxx98-cu130-x86_64-linux"]) is None
    assert fitting_build(["torch-cuda", "torch-xpu"]) == "torch-cuda"


def test_a_fetched_kernel_is_a_candidate_that_is_named_by_its_commit(tmp_path: Path) -> None:
    candidate = candidate_named("sage_hub", candidates_at([save(tmp_path)]))
    assert (candidate.name, candidate.part, candidate.lack) == (NAME, "attention", None)
    assert kernels_named(["sage_hub"], candidates_at([tmp_path])).attention == NAME
    assert candidate_named(NAME, [candidate]) is candidate_named("sage_hub", [candidate]) is candidate
    # A trial sends it to a child process.
    assert pickle.loads(pickle.dumps(candidate)).apply.args == candidate.apply.args
    with pytest.raises(CheckpointError, match="there is no kernel 'sage_hub@0000"):
        candidate_named("sage_hub@000000000000", candidates_at([tmp_path]))
    save(tmp_path, "c" * 40)
    with pytest.raises(CheckpointError, match=f"at the commits {COMMIT} and {'c' * 40}; remove all but one"):
        candidates_at([tmp_path])


def test_a_kernel_that_is_not_there_is_skipped_with_a_reason_and_refused_by_name(tmp_path: Path) -> None:
    lack = candidate_named("flash_3_hub", candidates_at([save(tmp_path)])).lack
    assert lack == "not fetched; `python -m infinitetalk.weights download flash_3_hub@COMMIT` fetches it"
    with pytest.raises(CheckpointError, match="the kernel 'flash_3_hub' is not there: not fetched"):
        kernels_named(["flash_3_hub"], candidates_at([tmp_path]))
    other = save(tmp_path / "other", build="torch27-cxx11-cpu-x86_64-linux")
    lack = candidate_named("sage_hub", candidates_at([other])).lack
    assert lack is not None and lack.startswith("what was fetched has no build for torch ")


@torch.no_grad()
def test_a_fetched_kernel_computes_the_blocks_attention(tmp_path: Path) -> None:
    bench = BlockBench(CASE)
    bench.use(candidate_named("native"))
    published = bench.compute()
    bench.use(candidate_named("sage_hub", candidates_at([save(tmp_path)])))
    assert 1e-5 < bench.difference(bench.compute(), published) < 2e-3
    bench.use(candidate_named("native"))
    assert torch.equal(bench.compute(), published)


@torch.no_grad()
def test_the_compiler_calls_a_fetched_kernel_without_looking_into_it(tmp_path: Path) -> None:
    bench = BlockBench(CASE)
    bench.use(candidate_named("sage_hub", candidates_at([save(tmp_path)])))
    inputs = [torch.randn(1, 6, 2, 8) for _ in range(3)]

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        return dispatch_attention_fn(*inputs, backend=CALLS["sage_hub"][0])

    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(*inputs), attend(*inputs))


def test_another_commit_is_tried_beside_what_is_known_of_the_first(tmp_path: Path) -> None:
    known = [
        Outcome(
            name=each.name, part=each.part, verdict="published" if each.is_published else "failed", bound=each.bound
        )
        for each in candidates_at([save(tmp_path / "old")])
    ]
    assert remaining_of(candidates_at([tmp_path / "old"]), known) == []
    newer = candidates_at([save(tmp_path / "new", "c" * 40)])
    assert [each.name for each in remaining_of(newer, known)] == [f"sage_hub@{'c' * 12}"]


def test_results_name_the_kernels_commit_where_it_ran(tmp_path: Path) -> None:
    settings = Settings(
        infinitetalk_model="tiny", output_dir=tmp_path, kernels="sage_hub", kernels_dir=save(tmp_path / "kernels")
    )
    engine = Engine(settings)
    engine.start()
    engine.finish_loading()
    picture = MediaInfo("image", height=640, width=640, duration_s=0.0, has_audio=False)
    choice = engine.prepare(SingleJob.model_validate(small_job()), picture).choice
    assert choice.kernels == replace(PUBLISHED, attention=NAME)
    assert engine.memory_mode(choice) == f"float32, kernels {NAME}"
    assert str(engine.arithmetic(choice)) == f"float32 on CPU (attention: {NAME})"


def test_kernels_come_from_the_repositories_that_diffusers_names() -> None:
    for name, (backend, _) in CALLS.items():
        assert _HUB_KERNELS_REGISTRY[backend].repo_id == HUB_KERNELS[name].repo_id

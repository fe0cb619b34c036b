"""Kernels that are on no package index: repositories of the Hugging Face Hub hold a build for each torch and CUDA.

They are code that the worker runs. So they are fetched beforehand, by the weights command, at a commit that its user
names; a worker looks for them in a folder and never fetches any.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from huggingface_hub import HfApi, snapshot_download

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.download import HUB_ERRORS

#: Folder of kernels among those of the weights.
KERNELS_FOLDER = "kernels"
#: Between a kernel's name and its commit.
AT = "@"
#: Characters of a commit in a kernel's name.
SHORT_COMMIT = 12

_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Names of builds: for a version of torch or from one on, for a CUDA or the CPU, for one kind of machine.
_BUILD = re.compile(
    r"torch(?:-stable-abi(?P<since>\d{2,})|(?P<torch>\d{2,})(?:-cxx11)?)-(?:cu(?P<cuda>\d{3,})|cpu)-(?P<machine>\w+)-linux"
)


@dataclass(frozen=True)
class HubKernel:
    """A kernel on the Hub.

    Attributes:
        name: its name here.
        repo_id: its repository.
    """

    name: str
    repo_id: str


#: Those that diffusers knows how to call, from the repositories that it names.
HUB_KERNELS = {
    kernel.name: kernel
    for kernel in (
        HubKernel("sage_hub", "SageAttention/sage-attention"),
        HubKernel("flash_3_hub", "kernels-community/flash-attn3"),
    )
}


@dataclass(frozen=True)
class Fetched:
    """A kernel that has been fetched.

    Attributes:
        kernel: the kernel.
        commit: of its repository, 40 hexadecimal digits.
        folder: its build for this torch.
    """

    kernel: HubKernel
    commit: str
    folder: Path

    @property
    def name(self) -> str:
        """Names these very numbers: "sage_hub@0123456789ab"."""
        return f"{self.kernel.name}{AT}{self.commit[:SHORT_COMMIT]}"


def fetch_kernel(wanted: str, root: Path) -> Path:
    """Fetches a kernel's build for this torch, unless it is there.

    Args:
        wanted: its name and the commit to fetch, "sage_hub@<40 hexadecimal digits>".
        root: the folder of the weights.

    Returns:
        The folder of kernels.

    Raises:
        CheckpointError: no commit is named; another one is there; the Hub cannot be reached; it has no build for this
            torch.
    """
    name, _, commit = wanted.partition(AT)
    kernel = HUB_KERNELS[name]
    if not _COMMIT.fullmatch(commit):
        raise CheckpointError(
            f"{name} is code that the worker will run: name the commit to fetch, {name}{AT} and its 40 hexadecimal "
            f"digits, from https://huggingface.co/kernels/{kernel.repo_id}/commits/main"
        )
    folder = root / KERNELS_FOLDER
    place = folder / name / commit
    if others := [each for each in _commits(folder, kernel) if each != commit]:
        raise CheckpointError(f"{place.parent} holds {name} at the commit {others[0]}; remove it first")
    if place.is_dir():
        return folder
    # A worker must not see half of it.
    unfinished = place.with_name(f".{commit}")
    try:
        files = HfApi().list_repo_files(kernel.repo_id, repo_type="kernel", revision=commit)
        builds = {PurePosixPath(file).parts[1] for file in files if file.startswith("build/")}
        build = fitting_build(builds)
        if build is None:
            raise CheckpointError(_no_build(f"{kernel.repo_id} at this commit", builds))
        snapshot_download(
            kernel.repo_id,
            repo_type="kernel",
            revision=commit,
            local_dir=unfinished,
            allow_patterns=[f"build/{build}/*"],
        )
    except HUB_ERRORS as error:
        raise CheckpointError(
            f"{kernel.repo_id} could not be fetched at the commit {commit}; received files are kept, run the command "
            "again"
        ) from error
    shutil.rmtree(unfinished / ".cache")
    unfinished.rename(place)
    return folder


def place_of(folders: Sequence[Path], kernel: HubKernel) -> Path | None:
    """The folder of a kernel's commits, in the first of the folders that has one; None if it was not fetched."""
    return next((folder / kernel.name for folder in folders if _commits(folder, kernel)), None)


def find_kernel(folders: Sequence[Path], kernel: HubKernel) -> Fetched | str:
    """A fetched kernel's build for this torch, or else why there is none.

    Args:
        folders: the folders of kernels; the first that has it counts.

    Raises:
        CheckpointError: it is there at several commits.
    """
    found = place_of(folders, kernel)
    if found is None:
        return f"not fetched; `python -m infinitetalk.weights download {kernel.name}{AT}COMMIT` fetches it"
    commits = _commits(found.parent, kernel)
    if len(commits) > 1:
        raise CheckpointError(f"{kernel.name} is there at the commits {' and '.join(commits)}; remove all but one")
    place = found / commits[0] / "build"
    builds = [entry.name for entry in place.iterdir()] if place.is_dir() else []
    build = fitting_build(builds)
    if build is None:
        return _no_build("what was fetched", builds)
    return Fetched(kernel, commits[0], place / build)


def _commits(folder: Path, kernel: HubKernel) -> list[str]:
    place = folder / kernel.name
    return sorted(entry.name for entry in place.iterdir() if _COMMIT.fullmatch(entry.name)) if place.is_dir() else []


def fitting_build(builds: Iterable[str]) -> str | None:
    """The build to use with this torch: one for all newer versions, or one for its own version, else one that consists
    of Python alone; of several, the one for the newest. None if none fits."""
    cuda = _digits(torch.version.cuda)
    version = _digits(torch.__version__)
    assert version is not None
    ranked: list[tuple[tuple[int, ...], str]] = []
    for build in builds:
        if build in ("torch-cuda" if cuda else "torch-cpu", "torch-universal"):
            ranked.append(((0,), build))
        found = _BUILD.fullmatch(build)
        if found is None or found["machine"] != platform.machine():
            continue
        if (found["cuda"] is None) != (cuda is None):
            continue
        its_cuda = (int(found["cuda"][:-1]), int(found["cuda"][-1])) if found["cuda"] else None
        # Libraries of CUDA serve what was built for an older one of the same major version.
        if cuda is not None and its_cuda is not None and (its_cuda[0] != cuda[0] or its_cuda > cuda):
            continue
        since = found["since"] or found["torch"]
        its_torch = (int(since[0]), int(since[1:]))
        if its_torch > version if found["since"] else its_torch != version:
            continue
        ranked.append(((2 if found["since"] else 1, *its_torch, *(its_cuda or ())), build))
    return max(ranked)[1] if ranked else None


def _digits(version: str | None) -> tuple[int, int] | None:
    """Major and minor: "2.13.0+cu130" → (2, 13)."""
    if version is None:
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _no_build(where: str, builds: Iterable[str]) -> str:
    has = ", ".join(sorted(builds)) or "none"
    wanted = "the CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
    return f"{where} has no build for torch {torch.__version__}, {wanted} and {platform.machine()}; it has {has}"

"""A pack's manifest: what one folder with all weights of chosen recipes holds, in the order of use.

A folder is a pack once its manifest is there, which is written last and uploaded last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.files import is_tensor_file

MANIFEST_FILE = "infinitetalk-pack.json"
#: Folder in a pack of what a setting names.
PACKED_FOLDERS = {
    "CKPT_DIR": "infinitetalk",
    "INFINITETALK_DIR": "infinitetalk/infinitetalk",
    "FLASHTALK_DIR": "flashtalk",
    "WAV2VEC_DIR": "wav2vec2",
    "KOKORO_DIR": "kokoro",
    "LORA_DIR": "loras",
    "KERNELS_DIR": "kernels",
}
#: Folder in a pack of kernel choices and compiled blocks.
PACKED_FINDINGS = "findings"
#: Folders in a pack of what a worker runs: nothing may be in them that the manifest does not list.
CODE_FOLDERS = (PACKED_FOLDERS["KERNELS_DIR"], PACKED_FINDINGS)
#: Files that are hashed at once.
READERS = 4


class DamagedPackError(CheckpointError):
    """A pack is not what its manifest says, or the manifest cannot be read."""


class PackedFile(BaseModel):
    """A file of a pack.

    Attributes:
        path: below the pack, with slashes.
        bytes: its size.
        sha256: of its content, in hex.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    bytes: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _stay_below_the_pack(cls, path: str) -> str:
        parsed = PurePosixPath(path)
        if parsed.is_absolute() or ".." in parsed.parts or "\\" in path or not parsed.parts or str(parsed) != path:
            raise ValueError(f"{path!r} is no path below a pack")
        return path


class Manifest(BaseModel):
    """The manifest.

    Attributes:
        format: version of a pack's layout.
        made_by: version of the software that made it.
        recipes: the recipes that it serves.
        quant: in what the transformers' weights are stored.
        licences: name of the licence of each model in it, as far as this project knows.
        files: its files in the order in which a worker uses them.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    made_by: str
    recipes: tuple[str, ...]
    quant: Literal["bf16", "fp8"]
    licences: dict[str, str]
    files: tuple[PackedFile, ...]


def is_pack(folder: Path) -> bool:
    """Whether a folder is a finished pack."""
    return (folder / MANIFEST_FILE).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a pack.

    Raises:
        CheckpointError: there is none.
        DamagedPackError: it is damaged, or of a format that this version does not know.
    """
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise CheckpointError(f"the folder {folder.name} is no pack: it has no {MANIFEST_FILE}")
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DamagedPackError(
            f"{MANIFEST_FILE} in {folder.name} is damaged, or of a newer format; fetch it again, or update the worker"
        ) from error


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Checks that a pack has every file, in its size. Reads no content.

    Raises:
        DamagedPackError: a file is missing, has another size or lies elsewhere; the message names it.
    """
    for file in manifest.files:
        if (problem := _size_problem(folder, file)) is not None:
            raise DamagedPackError(f"the pack {folder.name} is damaged: {problem}; fetch it again")


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """What differs between a pack and its manifest, each with the file's name: reads every byte."""
    listed = {file.path for file in manifest.files}
    strangers = {path for path in files_below(folder) if is_tensor_file(Path(path)) and path not in listed}
    strangers |= {path for name in CODE_FOLDERS for path in _entries_below(folder, name) if path not in listed}
    return _content_problems(folder, manifest.files) + [f"{path} is not in the manifest" for path in sorted(strangers)]


def code_damage(folder: Path, name: str) -> list[str]:
    """What differs between the manifest of a pack and one of its folders of code: reads every byte of that folder.

    Args:
        folder: the pack.
        name: of `CODE_FOLDERS`.

    Raises:
        DamagedPackError: the manifest cannot be read.
    """
    listed = {file.path: file for file in read_manifest(folder).files if file.path.startswith(f"{name}/")}
    strangers = [path for path in _entries_below(folder, name) if path not in listed]
    return _content_problems(folder, listed.values()) + [f"{path} is not in the manifest" for path in strangers]


def files_below(folder: Path) -> Iterable[str]:
    """The files below a folder, as a manifest names them; hidden ones are left out, as downloads leave them."""
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_file() and not any(name.startswith(".") for name in path.parts):
            yield path.as_posix()


def _entries_below(folder: Path, name: str) -> Iterator[str]:
    """As `files_below`, for one folder of a pack; with hidden files, and links to folders, which Python follows."""
    for entry in sorted((folder / name).rglob("*")):
        if entry.is_symlink() or not entry.is_dir():
            yield entry.relative_to(folder).as_posix()


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _size_problem(folder: Path, file: PackedFile) -> str | None:
    path = folder / file.path
    if not path.is_file():
        return f"{file.path} is missing"
    if not path.resolve().is_relative_to(_home(folder)):
        return f"{file.path} is a link out of the pack"
    size = path.stat().st_size
    return None if size == file.bytes else f"{file.path} has {size} bytes instead of {file.bytes}"


def _home(folder: Path) -> Path:
    """Where a pack's links may lead: below it, or to the files of its repository in a Hugging Face cache."""
    folder = folder.resolve()
    return folder.parents[1] if folder.parent.name == "snapshots" else folder


def _content_problems(folder: Path, files: Iterable[PackedFile]) -> list[str]:
    with ThreadPoolExecutor(READERS, thread_name_prefix="verify") as readers:
        problems = readers.map(lambda file: _content_problem(folder, file), files)
        return [problem for problem in problems if problem is not None]


def _content_problem(folder: Path, file: PackedFile) -> str | None:
    if (problem := _size_problem(folder, file)) is not None:
        return problem
    return None if sha256_of(folder / file.path) == file.sha256 else f"{file.path} differs from its SHA-256"

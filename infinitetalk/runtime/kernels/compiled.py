"""What the compiler has made of blocks, kept on the volume: another start on such a machine compiles nothing.

Torch packs and unpacks it, and finds each graph by a digest of all that it was made from. It is code: whoever can write
to the folder can make the worker run theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import structlog
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.compiler._cache import CacheArtifactManager

from infinitetalk.runtime.kernels.findings import Machine, write_whole

SUFFIX = ".compiled"
#: In place of what kernels were tried on: the machine and the code decide about what is compiled, sizes do not.
SUBJECT = "compiled blocks"


class Header(BaseModel):
    """The first line of a file, in JSON; what torch has packed follows.

    Attributes:
        machine: on which it was compiled.
        keys: names of what is in it.
        sha256: digest of what follows.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    machine: Machine
    keys: tuple[str, ...]
    sha256: str


class CompiledBlocks:
    """What has been compiled on one kind of machine: each file holds what one process has used.

    Args:
        folder: of the files.
        machine: the machine; what kernels were tried on does not count.
        packed: a folder of such files that came with the weights, to load from too.
    """

    def __init__(self, folder: Path, machine: Machine, packed: Path | None = None) -> None:
        self._folder = folder
        self._packed = packed
        self._machine = machine.model_copy(update={"subject": SUBJECT})
        self._known: set[str] = set()

    def load(self) -> int:
        """Hands all files to torch, before it compiles anything. A damaged file is ignored, with a line in the log.

        Returns:
            The number of things that were loaded.
        """
        packed = [] if self._packed is None else self._files(self._packed)
        for file in (*packed, *self._files(self._folder)):
            try:
                header, content = _read(file)
                if header.machine != self._machine:
                    raise ValueError("it is of another machine")
                if torch.compiler.load_cache_artifacts(content) is None:
                    raise ValueError("torch cannot read it")
            except (OSError, ValueError) as error:
                details = {"file": file.name, "reason": str(error)}
                structlog.get_logger().warning("kernels.file_damaged", details=details)
                continue
            self._known.update(header.keys)
        return len(self._known)

    def store(self) -> bool:
        """Stores what this process has compiled or loaded and used, if any of it is new, and removes files that hold
        less of it.

        Returns:
            Whether any was new.

        Raises:
            OSError: the folder cannot be written.
        """
        # Packing takes all that there is, however little is new.
        if not CacheArtifactManager.need_serialize():
            return False
        packed = torch.compiler.save_cache_artifacts()
        if packed is None:
            return False
        content, info = packed
        keys = tuple(sorted(f"{kind} {key}" for kind, found in info.artifacts.items() for key in found))
        if self._known.issuperset(keys):
            return False
        self._known.update(keys)
        header = Header(machine=self._machine, keys=keys, sha256=hashlib.sha256(content).hexdigest())
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]
        file = self._folder / f"{self._stem}-{name}{SUFFIX}"
        write_whole(file, header.model_dump_json().encode() + b"\n" + content)
        self._remove_parts_of(file, keys)
        return True

    @property
    def _stem(self) -> str:
        return Path(self._machine.file_name).stem

    def _files(self, folder: Path) -> Iterator[Path]:
        yield from sorted(folder.glob(f"{self._stem}-*{SUFFIX}"))

    def _remove_parts_of(self, whole: Path, keys: tuple[str, ...]) -> None:
        for file in self._files(self._folder):
            try:
                if file != whole and set(_read(file)[0].keys) <= set(keys):
                    file.unlink(missing_ok=True)
            except (OSError, ValueError):
                # The next start says what is wrong with it.
                continue


def _read(file: Path) -> tuple[Header, bytes]:
    """A file's header and content.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    line, _, content = file.read_bytes().partition(b"\n")
    try:
        header = Header.model_validate_json(line)
    except ValidationError as error:
        raise ValueError("its first line is damaged") from error
    if hashlib.sha256(content).hexdigest() != header.sha256:
        raise ValueError("its content is damaged")
    return header, content

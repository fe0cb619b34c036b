"""What trials have found, as one JSON file for each machine on the volume: the next start takes the kernels from it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Literal
from uuid import uuid4

import structlog
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from infinitetalk.runtime.kernels.registry import Candidate
from infinitetalk.runtime.kernels.trial import Outcome

LIBRARY = Path(__file__).parents[2]
DRIVER_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
QUERY_TIMEOUT_S = 20.0
#: Modules beside those of the candidates whose version affects how kernels are called.
CALLING_MODULES = ("diffusers", "torchao")


class Machine(BaseModel):
    """Everything that a finding depends on: if any of it changes, kernels are tried again.

    Attributes:
        gpu: name of the GPU, or "CPU".
        driver: version of its driver; "none" for a CPU.
        torch: version of torch with its build.
        code: digest of this library's code, without the worker's, and of the versions of packages with kernels.
        subject: what kernels were tried on: model, precision, size.
    """

    model_config = ConfigDict(frozen=True)

    gpu: str
    driver: str
    torch: str
    code: str
    subject: str

    @property
    def file_name(self) -> str:
        """Name of the file with this machine's findings."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
        return f"{re.sub('[^a-z0-9]+', '-', self.gpu.lower())}-{digest}.json"


class Findings(BaseModel):
    """The file's content."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    machine: Machine
    outcomes: tuple[Outcome, ...]


def machine_of(device: torch.device, subject: str, candidates: Iterable[Candidate]) -> Machine:
    """The machine with this device.

    Args:
        subject: see `Machine`.
        candidates: the kernels to try; the versions of their packages count as code.

    Raises:
        OSError, subprocess.SubprocessError: the GPU's driver does not tell its version.
    """
    is_cuda = device.type == "cuda"
    return Machine(
        gpu=torch.cuda.get_device_name(device) if is_cuda else device.type.upper(),
        driver=driver_version() if is_cuda else "none",
        torch=torch.__version__,
        code=code_digest(frozenset(each.package for each in candidates if each.package is not None)),
        subject=subject,
    )


def driver_version() -> str:
    """The version of the GPUs' driver, such as "580.159.03".

    Raises:
        OSError, subprocess.SubprocessError: nvidia-smi does not tell.
    """
    answer = subprocess.run(DRIVER_QUERY, check=True, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S)
    return answer.stdout.strip()


@cache
def code_digest(modules: frozenset[str]) -> str:
    """A digest of the library's code, without the worker's, and of the versions of installed packages: those of
    `modules`, and those that call them."""
    digest = hashlib.sha256()
    for file in sorted(LIBRARY.rglob("*.py")):
        if "worker" not in file.relative_to(LIBRARY).parts:
            digest.update(file.read_bytes())
    packages = packages_distributions()
    for module in sorted({*modules, *CALLING_MODULES}):
        for package in packages.get(module, []):
            digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()[:12]


def read_findings(folder: Path, machine: Machine) -> tuple[Outcome, ...]:
    """What is known of a machine; empty if nothing is. A damaged file is ignored, with a line in the log."""
    file = folder / machine.file_name
    try:
        found = Findings.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        details = {"file": file.name, "reason": type(error).__name__}
        structlog.get_logger().warning("kernels.file_damaged", details=details)
        return ()
    if found.machine != machine:
        details = {"file": file.name, "reason": "it is of another machine"}
        structlog.get_logger().warning("kernels.file_damaged", details=details)
        return ()
    return found.outcomes


def write_findings(folder: Path, findings: Findings) -> None:
    """Stores findings. Of two writers, the last one wins.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / findings.machine.file_name, findings.model_dump_json(indent=1).encode())


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file, and its folder if need be. Whoever reads meanwhile sees the old file or the new one.

    Raises:
        OSError: the folder cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        with unfinished.open("xb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)

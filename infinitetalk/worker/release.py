"""The worker's release: its version, and the git commit or the code from which it was built."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from infinitetalk import __version__
from infinitetalk.worker.settings import Settings

PACKAGES = tuple(Path(__file__).parents[2] / name for name in ("infinitetalk", "schemas"))
SOFTWARE = "InfiniteTalk worker"
"""The worker's name in the files that it makes."""

SHOWN_CHARACTERS = 12
"""Characters of a hash that are shown."""


def release_of(settings: Settings) -> str:
    """The release as results, logs and files name it: "0.1.0+3f2a9c417b08" with the git commit, or
    "0.1.0+code.8d2e01aa93c4" with the hash of the code where no commit is set."""
    commit = settings.git_commit
    return f"{__version__}+{f'code.{code_hash()}' if commit is None else commit[:SHOWN_CHARACTERS]}"


@cache
def code_hash() -> str:
    """The start of the SHA-256 of this worker's Python files."""
    code = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in package.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()[:SHOWN_CHARACTERS]

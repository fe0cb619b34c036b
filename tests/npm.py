"""Programs of the npm registry that tests use; npm fetches each once into .cache/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache"


def fetched(package: str, folder: str, file: str, lack: str, what: str) -> Path:
    """A file of a package; without npm, or where npm cannot fetch it, the test is skipped.

    Args:
        package: its name with its version.
        folder: where it is kept, below .cache/.
        file: below the folder's node_modules/.
        lack: says that there is no npm.
        what: the file, in words.
    """
    kept = CACHE / folder
    path = kept / "node_modules" / file
    if not path.exists():
        if (npm := shutil.which("npm")) is None:
            pytest.skip(lack)
        kept.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(kept), package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm cannot fetch {what}: {done.stderr.strip().splitlines()[-1]}")
    return path

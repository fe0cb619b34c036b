"""Writes what depends on the repository's address into the Hub's files: the icon's address and the badge.

    python3 -m tools.hub OWNER/REPOSITORY

Whoever publishes the worker on Runpod's Hub runs it once and commits the change. It imports nothing that must be
installed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
BADGE = re.compile(r"^\[!\[Runpod\].*\n\n?", re.MULTILINE)


def with_icon(hub: str, repository: str) -> str:
    """hub.json with the address of `.runpod/icon.png` on the repository's default branch."""
    described = json.loads(hub)
    described["iconUrl"] = f"https://raw.githubusercontent.com/{repository}/HEAD/.runpod/icon.png"
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def with_badge(readme: str, repository: str) -> str:
    """A README with Runpod's badge below its title; an older badge is replaced."""
    title, _, rest = BADGE.sub("", readme).partition("\n\n")
    page = f"https://console.runpod.io/hub/{repository}"
    return f"{title}\n\n[![Runpod](https://api.runpod.io/badge/{repository})]({page})\n\n{rest}"


def main(repository: str) -> None:
    """Changes `.runpod/hub.json`, `.runpod/README.md` and `README.md`."""
    for name, change in {
        ".runpod/hub.json": with_icon,
        ".runpod/README.md": with_badge,
        "README.md": with_badge,
    }.items():
        file = CHECKOUT / name
        file.write_text(change(file.read_text(encoding="utf-8"), repository), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not REPOSITORY.fullmatch(sys.argv[1]):
        sys.exit("the repository is needed as GitHub names it: python3 -m tools.hub OWNER/REPOSITORY")
    main(sys.argv[1])

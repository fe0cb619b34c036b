"""Checks that a tag may become a release: the code's version, the image's label and the changelog agree with it.

    python3 -m tools.release v0.1.0

The release workflow runs it before it builds an image. It imports nothing that must be installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from infinitetalk import __version__

CHECKOUT = Path(__file__).parents[1]


def problems(tag: str, changelog: str, dockerfile: str) -> list[str]:
    """What has to be changed before a tag may be released; empty if nothing has.

    Args:
        tag: name of the tag.
        changelog: text of CHANGELOG.md.
        dockerfile: text of the Dockerfile.
    """
    found = []
    if tag != f"v{__version__}":
        found.append(f"the tag is {tag!r}, but infinitetalk.__version__ is {__version__!r}: tag v{__version__}")
    label = re.findall(r"^ARG VERSION=(\S+)$", dockerfile, re.MULTILINE)
    if label != [__version__]:
        found.append(f"the Dockerfile has ARG VERSION={', '.join(label) or 'nothing'} instead of {__version__}")
    heading = re.findall(r"^## (\S+) — (.+)$", changelog, re.MULTILINE)
    if not heading or heading[0][0] != __version__:
        found.append(f"CHANGELOG.md does not begin with a section {__version__}")
    elif not re.fullmatch(r"\d{4}-\d{2}-\d{2}", heading[0][1]):
        found.append(f"CHANGELOG.md has no date of {__version__}: write ## {__version__} — YYYY-MM-DD")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("one tag is needed: python3 -m tools.release v0.1.0")
    changelog, dockerfile = ((CHECKOUT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "Dockerfile"))
    sys.exit("\n".join(problems(sys.argv[1], changelog, dockerfile)) or 0)

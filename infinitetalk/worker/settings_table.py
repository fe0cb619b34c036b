"""The settings as a Markdown table.

python -m infinitetalk.worker.settings_table docs/deploy.md      brings the one in a file up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from infinitetalk.worker.settings import Settings


def settings_table() -> str:
    """A line for each setting: environment variable, default, meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{environment_variable(name, field)}` | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def environment_variable(name: str, field: FieldInfo) -> str:
    """The variable that sets a field: its own name in capitals, unless it has another one alone."""
    alias = field.validation_alias
    return alias if isinstance(alias, str) else name.upper()


def fill_table(text: str) -> str:
    """`text` with what lies between `<!-- settings -->` and `<!-- end -->` replaced by the table."""
    return re.sub(
        r"(<!-- settings -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{settings_table()}\n{match[2]}",
        text,
        flags=re.DOTALL,
    )


def _default(field: FieldInfo) -> str:
    return "" if field.default in (None, "") else f"`{field.default}`"


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(fill_table(file.read_text(encoding="utf-8")), encoding="utf-8")

"""Markdown tables of the models' fields, as README shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.job import OutputConfig, S3Config, SingleJob, TtsAudio

README_TABLES: dict[str, type[BaseModel]] = {
    "input": SingleJob,
    "output_config": OutputConfig,
    "tts_audio": TtsAudio,
    "s3Config": S3Config,
}


def field_table(model: type[BaseModel]) -> str:
    """A Markdown table of a model's fields: name, default, range, meaning."""
    lines = ["| field | default | range | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {_default(field)} | {_range(field)} | {meaning} |")
    return "\n".join(lines)


def fill_tables(text: str) -> str:
    """`text` with the lines between `<!-- fields: NAME -->` and `<!-- end -->` replaced by that model's table.

    Raises:
        KeyError: a NAME that is none of `README_TABLES`.
    """
    pattern = re.compile(r"(<!-- fields: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{field_table(README_TABLES[match[2]])}\n{match[3]}", text)


def write_tables(path: Path) -> None:
    """Brings the tables in a Markdown file up to date."""
    path.write_text(fill_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return f"`{json.dumps(default)}`"


def _range(field: FieldInfo) -> str:
    signs = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    limits = [
        f"{sign} {getattr(constraint, kind.__name__.lower()):,}"
        for constraint in field.metadata
        for kind, sign in signs.items()
        if isinstance(constraint, kind)
    ]
    return ", ".join(limits)

"""Writes the files generated from the models of `schemas` and the worker's settings: `make schemas`.

These are `schemas/*.schema.json`, `schemas/openapi.json`, examples/typescript/infinitetalk.ts, the tables of fields in
README.md, the table of settings in docs/deploy.md, and the table of the line that ends a job in docs/metrics.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from infinitetalk.worker.job.bill import JobEnd
from infinitetalk.worker.settings import Settings
from schemas.dub import AudioMix, Dub, Output
from schemas.job import BatchJob, Nag, OutputConfig, S3Config, SingleJob, TtsAudio
from schemas.progress import Progress
from schemas.result import BatchResult, Failure, Plan, Success
from tools.openapi import Mode, PublishedSchema, openapi
from tools.typescript import typescript

CHECKOUT = Path(__file__).parents[1]

INPUTS: dict[str, type[BaseModel]] = {"single_job": SingleJob, "batch_job": BatchJob}
RESULTS: dict[str, type[BaseModel]] = {
    "progress": Progress,
    "success": Success,
    "plan": Plan,
    "failure": Failure,
    "batch_result": BatchResult,
}
MODELS_BY_MODE: dict[Mode, dict[str, type[BaseModel]]] = {"validation": INPUTS, "serialization": RESULTS}
README_TABLES: dict[str, type[BaseModel]] = {
    "input": SingleJob,
    "output_config": OutputConfig,
    "nag": Nag,
    "tts_audio": TtsAudio,
    "dub": Dub,
    "output": Output,
    "audio_mix": AudioMix,
    "s3Config": S3Config,
}


def json_schema(model: type[BaseModel], mode: Mode) -> dict[str, Any]:
    """A model's JSON Schema: of what the worker takes ("validation"), or of what it sends ("serialization")."""
    return model.model_json_schema(mode=mode, schema_generator=PublishedSchema)


def json_text(document: dict[str, Any]) -> str:
    """The content of a JSON file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def field_table(model: type[BaseModel]) -> str:
    """A Markdown table of a model's fields: name, default, range, meaning."""
    rows = [
        (f"`{field.alias or name}`", _default(field), _range(field), _meaning(field))
        for name, field in model.model_fields.items()
    ]
    return _table(("field", "default", "range", "meaning"), rows)


def log_table(model: type[BaseModel]) -> str:
    """A Markdown table of a log line's fields: name, meaning."""
    return _table(("field", "meaning"), [(f"`{name}`", _meaning(field)) for name, field in model.model_fields.items()])


def settings_table() -> str:
    """A Markdown table of the worker's settings: environment variable, default, meaning."""
    rows = [
        (f"`{environment_variable(name, field)}`", _default_setting(field), _meaning(field))
        for name, field in Settings.model_fields.items()
    ]
    return _table(("variable", "default", "meaning"), rows)


def environment_variable(name: str, field: FieldInfo) -> str:
    """The variable that sets a field: the field's only alias if it has one, else its name in capitals."""
    alias = field.validation_alias
    return alias if isinstance(alias, str) else name.upper()


def fill_tables(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Replaces the lines between `<!-- NAME -->` and `<!-- end -->` with the table of that name.

    Raises:
        ValueError: the text has no place for a table, or several.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        if (places := text.count(begin)) != 1:
            raise ValueError(f"there are {places} places for the table {name!r}; there must be one")
        before, rest = text.split(begin)
        text = f"{before}{begin}{table()}\n{end}{rest.partition(end)[2]}"
    return text


def documents() -> dict[Path, dict[str, Callable[[], str]]]:
    """The documents with generated tables, and these tables."""
    fields: dict[str, Callable[[], str]] = {
        f"fields: {name}": partial(field_table, model) for name, model in README_TABLES.items()
    }
    return {
        CHECKOUT / "README.md": fields,
        CHECKOUT / "docs/deploy.md": {"settings": settings_table},
        CHECKOUT / "docs/metrics.md": {"fields: job end": partial(log_table, JobEnd)},
    }


def generated_files() -> dict[Path, str]:
    """Every generated file and its content."""
    schemas: dict[str, dict[str, Any]] = {
        f"{name}.schema": json_schema(model, mode)
        for mode, models in MODELS_BY_MODE.items()
        for name, model in models.items()
    }
    files = {
        CHECKOUT / "schemas" / f"{name}.json": json_text(schema)
        for name, schema in (schemas | {"openapi": openapi()}).items()
    }
    files[CHECKOUT / "examples/typescript/infinitetalk.ts"] = typescript(openapi())
    for path, tables in documents().items():
        files[path] = fill_tables(path.read_text(encoding="utf-8"), tables)
    return files


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("|" + "|".join("---" if cell == "---" else f" {cell} " for cell in line) + "|" for line in lines)


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"`{json.dumps(field.get_default(call_default_factory=True))}`"


def _default_setting(field: FieldInfo) -> str:
    return "" if field.default in (None, "") else f"`{field.default}`"


def _range(field: FieldInfo) -> str:
    signs = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    limits = [
        f"{sign} {getattr(constraint, kind.__name__.lower()):,}"
        for constraint in field.metadata
        for kind, sign in signs.items()
        if isinstance(constraint, kind)
    ]
    return ", ".join(limits)


if __name__ == "__main__":
    for file, content in generated_files().items():
        file.write_text(content, encoding="utf-8")

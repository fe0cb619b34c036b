"""The OpenAPI document as validators of requests and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "schemas/openapi.json").read_text(encoding="utf-8"))


def schema_named(name: str) -> Draft202012Validator:
    """The validator of one of the document's schemas."""
    return Draft202012Validator(DOCUMENT | {"$ref": f"#/components/schemas/{name}"})


def request_schema(path: str) -> Draft202012Validator:
    """The validator of a request's body."""
    (operation,) = DOCUMENT["paths"][path].values()
    return _of(operation["requestBody"])


def answer_schema(path: str, status: int) -> Draft202012Validator:
    """The validator of an answer's body."""
    (operation,) = DOCUMENT["paths"][path].values()
    return _of(operation["responses"][str(status)])


def _of(place: dict[str, Any]) -> Draft202012Validator:
    return schema_named(place["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2])

"""TypeScript types of the schemas in the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

HEAD = """\
// Types of InfiniteTalk's requests and answers on Runpod Serverless, generated from schemas/openapi.json: make schemas.
// A type says less than the schema: ranges, 4n+1 frames and patterns are checked by the worker, or by the schema.
"""
PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}
NAME = re.compile(r"[A-Za-z_$][\w$]*")
INDENT = "  "


def typescript(document: dict[str, Any]) -> str:
    """The content of a TypeScript file with one exported type for each schema of an OpenAPI document.

    Raises:
        ValueError: a schema has a form that this generator does not know.
    """
    declared = [_declaration(name, schema) for name, schema in document["components"]["schemas"].items()]
    return "\n".join([HEAD, *declared])


def _declaration(name: str, schema: dict[str, Any]) -> str:
    comment = _comment(schema, "")
    if "properties" in schema:
        return f"{comment}export interface {name} {_object(schema, '')}\n"
    return f"{comment}export type {name} = {type_of(schema)};\n"


def type_of(schema: dict[str, Any], indent: str = "") -> str:
    """A schema as a TypeScript type.

    Raises:
        ValueError: the schema has a form that this generator does not know.
    """
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema and schema.get("type") == "string":
        return " | ".join(json.dumps(value) for value in schema["enum"])
    for kind in ("anyOf", "oneOf"):
        if kind in schema and "type" not in schema:
            return " | ".join(dict.fromkeys(type_of(choice, indent) for choice in schema[kind]))
    match schema.get("type"):
        case "array":
            return _array(schema, indent)
        case "object" if "properties" in schema:
            return _object(schema, indent)
        case "object":
            return f"Record<string, {_values(schema, indent)}>"
        case None if not set(schema) - {"title", "description", "default"}:
            return "unknown"
        case str(plain) if plain in PLAIN:
            return PLAIN[plain]
    raise ValueError(f"there is no TypeScript type for {schema}")


def _array(schema: dict[str, Any], indent: str) -> str:
    item = type_of(schema["items"], indent)
    length = schema.get("minItems")
    if length is not None and length == schema.get("maxItems"):
        return f"[{', '.join([item] * length)}]"
    return f"({item})[]" if " " in item else f"{item}[]"


def _object(schema: dict[str, Any], indent: str) -> str:
    inner = indent + INDENT
    required = schema.get("required", ())
    lines: list[str] = []
    for name, field in schema["properties"].items():
        key = name if NAME.fullmatch(name) else json.dumps(name)
        mark = "" if name in required else "?"
        lines.append(f"{_comment(field, inner)}{inner}{key}{mark}: {type_of(field, inner)};\n")
    return f"{{\n{''.join(lines)}{indent}}}"


def _values(schema: dict[str, Any], indent: str) -> str:
    values = schema.get("additionalProperties", True)
    return "unknown" if values is True else type_of(values, indent)


def _comment(schema: dict[str, Any], indent: str) -> str:
    told: Iterable[str] = [" ".join(str(schema.get("description", "")).split()).replace("*/", "* /"), *_limits(schema)]
    if "default" in schema and schema["default"] is not None:
        told = [*told, f"Default: {json.dumps(schema['default'], ensure_ascii=False)}."]
    text = " ".join(part for part in told if part)
    return f"{indent}/** {text} */\n" if text else ""


def _limits(schema: dict[str, Any]) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limited = [schema, *schema.get("anyOf", ())]
    limits = [f"{sign} {part[key]:,}" for part in limited for key, sign in signs.items() if key in part]
    return [f"{', '.join(limits)}."] if limits else []

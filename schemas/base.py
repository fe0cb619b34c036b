"""The base of all models of the interface: strict types, no unknown fields, messages that say what to change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, Tag, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from schemas.names import LONGEST_NAME, hint_for

SHOWN_VALUE_CHARACTERS = 40
MAX_MESSAGE_CHARACTERS = 1000
MAX_EXPLAINED = 20
MAX_VALUES = 40_000
"""Largest number of values in a job's input: a batch of 50 items that use every field has 35,000."""

FORM = re.compile(r"<\w+>")
"""A part of a field's path that says in which form the field was given; messages leave it out."""


@dataclass(frozen=True, eq=False)
class Published:
    """Adds to a type's JSON Schema what its validators check, so that any JSON Schema validator checks it too."""

    rules: dict[str, Any]

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(core_schema) | self.rules


def choice(name: str) -> Tag:
    """The tag "<name>" of one of the forms that a field may have; `explain` leaves it out of the field's path."""
    return Tag(f"<{name}>")


class StrictModel(BaseModel):
    """A model that does not convert JSON types (no "81" for 81) and refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def refuse_unknown_fields(cls, data: Any) -> Any:
        """Refuses unknown fields; the message names the first one and suggests the intended field.

        Raises:
            ValueError: a field is unknown, or there are more values than any valid job has.
        """
        _limit_values(data)
        if isinstance(data, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for name in data:
                if name not in known:
                    shown = sendable(str(name)[:LONGEST_NAME])
                    raise ValueError(f'has an unknown field "{shown}"; {hint_for(shown, known)}')
        return data


def explain(error: ValidationError, root: str = "", shows_values: bool = True) -> str:
    """A validation error as one line for the client: each field's path, its requirement, and the given value.

    `root` is the path of the model itself if it is not the job's input. Only short scalars are shown, so that no media
    and no long texts are echoed. With `shows_values` false, no value is shown, since any of them may be a credential.
    Lone surrogates are escaped, and long messages are cut.
    """
    details = error.errors(include_url=False)[:MAX_EXPLAINED]
    mistakes = [_explain_one(mistake, root, shows_values) for mistake in details]
    if error.error_count() > MAX_EXPLAINED:
        mistakes.append(f"and {error.error_count() - MAX_EXPLAINED} more")
    message = sendable("; ".join(mistakes))
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else f"{message[:MAX_MESSAGE_CHARACTERS]}…"


def sendable(text: str) -> str:
    """A text with its lone surrogates escaped, since no encoding can carry them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _limit_values(data: Any) -> None:
    """Refuses inputs with so many values that checking each of them would take gigabytes.

    Raises:
        ValueError: there are more than `MAX_VALUES`.
    """
    waiting, num_values = [data], 0
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        num_values += len(inner)
        if num_values > MAX_VALUES:
            raise ValueError(f"has more than {MAX_VALUES} values; leave out values that are not part of the interface")
        waiting.extend(inner)


def _explain_one(details: Any, root: str, shows_values: bool) -> str:
    inner = [part for part in details["loc"] if not FORM.fullmatch(str(part))]
    path = [root, *inner] if root else inner
    subject = ".".join(str(part)[:SHOWN_VALUE_CHARACTERS] for part in path) or "the input"
    if details["type"] == "missing":
        return f"{subject} is required"
    if details["type"] == "value_error":
        return f"{subject} {details['ctx']['error']}"
    given = _shown(details["input"]) if shows_values else ""
    if details["type"] == "model_type":
        return f"{subject} must be an object{given}"
    requirement = re.sub(r"^\w+ should ", "must ", details["msg"])
    return f"{subject} {requirement}{given}"


def _shown(value: Any) -> str:
    if isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= SHOWN_VALUE_CHARACTERS):
        return f", not {value!a}"
    return ""

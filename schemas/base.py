"""What every model of the interface shares: strict types, no unknown fields, messages that say what to change."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from schemas.names import LONGEST_NAME, hint_for

SHOWN_VALUE_CHARACTERS = 40
MAX_MESSAGE_CHARACTERS = 1000
MAX_EXPLAINED = 20
MAX_VALUES = 10_000
"""Of a job's input together: a batch of 50 items that use every field has 7,000."""


class StrictModel(BaseModel):
    """A model that takes JSON types as they are (no "81" for 81) and refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def refuse_unknown_fields(cls, data: Any) -> Any:
        """Names the first unknown field and what it was meant to be.

        Raises:
            ValueError: a field is not one of the model's, or there are more values than any job has.
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
    """A validation error as one line for the client: each field by its path, what it must be, what was given.

    `root` is the path of the model itself, where it is not the job's input. Values are shown only where they are short
    scalars, so that no media and no text of length is echoed, and none where `shows_values` is false: among credentials
    any may be one. What no text can hold is escaped, and a message of thousands of mistakes is cut.
    """
    details = error.errors(include_url=False)[:MAX_EXPLAINED]
    mistakes = [_explain_one(mistake, root, shows_values) for mistake in details]
    if error.error_count() > MAX_EXPLAINED:
        mistakes.append(f"and {error.error_count() - MAX_EXPLAINED} more")
    message = sendable("; ".join(mistakes))
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else f"{message[:MAX_MESSAGE_CHARACTERS]}…"


def sendable(text: str) -> str:
    """A text with lone surrogates, which no encoding carries, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _limit_values(data: Any) -> None:
    """Refuses what would cost gigabytes to refuse value by value.

    Raises:
        ValueError: there are more than `MAX_VALUES`.
    """
    waiting, num_values = [data], 0
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        num_values += len(inner)
        if num_values > MAX_VALUES:
            raise ValueError(f"has more than {MAX_VALUES} values; leave out what is no part of the interface")
        waiting.extend(inner)


def _explain_one(details: Any, root: str, shows_values: bool) -> str:
    path = [root, *details["loc"]] if root else details["loc"]
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

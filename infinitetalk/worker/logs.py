"""Logs: one JSON object a line on stderr: ts, level, event and, where they apply, job_id, item_id, lat_ms, details.

Whatever a line holds, credentials and base64 are taken out of it before it is written.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog

from infinitetalk.worker.settings import Settings
from schemas.addresses import MAX_ADDRESS_CHARACTERS

T = TypeVar("T")

SHOWN_CHARACTERS = 200
SHOWN_DEPTH = 10
SHOWN_ITEMS = 50
MAX_FIELD_CHARACTERS = 8_000
MAX_LINE_CHARACTERS = 20_000

# Each has one way to match, and so takes time that grows with the line and no faster.
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{200,}")
_QUERY = re.compile(r"(?<=[^\s\"'?])\?[^\s\"'\\]*")
_SECRETS = ("signature", "credential", "token", "key", "secret", "password", "?sig=", "&sig=")
_PASSWORD = re.compile(r"://[^\s\"'/@]+@")


def configure_logs(settings: Settings) -> None:
    """Makes structlog write JSON lines on stderr, which leaves stdout to results."""
    secrets = [] if settings.s3_secret_key is None else [settings.s3_secret_key.get_secret_value()]

    def redact(logger: Any, method: str, line: Any) -> str:
        return redacted(line, secrets)

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
            redact,
            shorten,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def redacted(line: str, secrets: list[str]) -> str:
    """A line without credentials and base64, whatever put them there: an exception's words, say."""
    for secret in secrets:
        line = line.replace(secret, "***")
    line = _QUERY.sub(lambda query: "?***" if _names_secret(query[0]) else query[0], line)
    line = _PASSWORD.sub("://***@", line)
    return _BASE64.sub(lambda found: f"<{len(found[0])} characters>", line)


def _names_secret(query: str) -> bool:
    lowered = query.lower()
    return any(name in lowered for name in _SECRETS)


def shorten(logger: Any, method: str, line: Any) -> str:
    """A line of limited length, still JSON: of one that is too long, the end of each long text, a traceback's say, and
    the fields that are short. It is redacted before, for half a secret is not known as one."""
    if len(line) <= MAX_LINE_CHARACTERS:
        return line
    kept: dict[str, Any] = {"cut_characters": len(line)}
    for name, value in json.loads(line).items():
        if isinstance(value, str):
            end = value[-MAX_FIELD_CHARACTERS:]
            # JSON writes some letters as six.
            kept[name] = end if len(json.dumps(end)) <= 2 * MAX_FIELD_CHARACTERS else end[-MAX_FIELD_CHARACTERS // 6 :]
        elif len(json.dumps(value)) <= MAX_FIELD_CHARACTERS:
            kept[name] = value
    return json.dumps(kept)


def job_logger(job_id: str) -> Any:
    """A logger whose lines carry the job's id."""
    return structlog.get_logger().bind(job_id=job_id)


def loggable(value: Any, depth: int = 0) -> Any:
    """A job's input as it may be logged: media and long text by their length, URLs without query or password, nothing
    that is nested deeper than any input."""
    match value:
        case dict() | list() if depth > SHOWN_DEPTH:
            return "<nested>"
        case dict():
            shown = {str(name)[:SHOWN_CHARACTERS]: loggable(item, depth + 1) for name, item in _first(value.items())}
            return shown | ({"…": f"<{len(value)} fields>"} if len(value) > SHOWN_ITEMS else {})
        case list():
            shown_items = [loggable(item, depth + 1) for item in _first(value)]
            return [*shown_items, *([f"<{len(value)} items>"] if len(value) > SHOWN_ITEMS else [])]
        case str() if value.startswith("data:") or (len(value) > SHOWN_CHARACTERS and "://" not in value[:16]):
            return f"<{len(value)} characters>"
        case str() if "://" in value[:16]:
            return _loggable_url(value)
        case _:
            return value


def _first(values: Iterable[T]) -> Iterator[T]:
    return islice(values, SHOWN_ITEMS)


def _loggable_url(url: str) -> str:
    try:
        if len(url) > MAX_ADDRESS_CHARACTERS or not url.isascii():
            # Parsing normalises other letters, which takes the square of their number.
            raise ValueError
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"[:SHOWN_CHARACTERS]
    except ValueError:
        return f"<URL of {len(url)} characters>"

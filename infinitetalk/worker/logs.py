"""Logs: one JSON object a line on stderr: ts, level, event and, where they apply, job_id, item_id, lat_ms, details.

Whatever a line holds, credentials and base64 are taken out of it before it is written.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any
from urllib.parse import urlsplit

import structlog

from infinitetalk.worker.settings import Settings

SHOWN_CHARACTERS = 200
SHOWN_DEPTH = 10

_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]{200,}")
_QUERY = re.compile(r"(?<=[^\s\"'?])\?[^\s\"'\\]*(?:signature|credential|token|key|secret|password)[^\s\"'\\]*", re.I)
_PASSWORD = re.compile(r"://[^\s\"'/@]+@")


def configure_logs(settings: Settings) -> None:
    """Makes structlog write JSON lines on stderr, which leaves stdout to results."""
    hidden = (settings.s3_secret_key, settings.resume_secret)
    secrets = [secret.get_secret_value() for secret in hidden if secret is not None]

    def redact(logger: Any, method: str, line: Any) -> str:
        return redacted(line, secrets)

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
            redact,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def redacted(line: str, secrets: list[str]) -> str:
    """A line without credentials and base64, whatever put them there: an exception's words, say."""
    for secret in secrets:
        line = line.replace(secret, "***")
    line = _PASSWORD.sub("://***@", _QUERY.sub("?***", line))
    return _BASE64.sub(lambda found: f"<{len(found[0])} characters>", line)


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
            return {str(name)[:SHOWN_CHARACTERS]: loggable(item, depth + 1) for name, item in value.items()}
        case list():
            return [loggable(item, depth + 1) for item in value]
        case str() if value.startswith("data:") or (len(value) > SHOWN_CHARACTERS and "://" not in value[:16]):
            return f"<{len(value)} characters>"
        case str() if "://" in value[:16]:
            return _loggable_url(value)
        case _:
            return value


def _loggable_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"[:SHOWN_CHARACTERS]
    except ValueError:
        return f"<URL of {len(url)} characters>"

"""Logs: one JSON object a line on stderr, with ts, level, event, job_id and details."""

from __future__ import annotations

import logging
import sys
from typing import Any
from urllib.parse import urlsplit

import structlog

SHOWN_CHARACTERS = 200


def configure_logs() -> None:
    """Makes structlog write JSON lines on stderr, which leaves stdout to results."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def job_logger(job_id: str) -> Any:
    """A logger whose lines carry the job's id."""
    return structlog.get_logger().bind(job_id=job_id)


def loggable(value: Any) -> Any:
    """A job's input as it may be logged: media and long text by their length, URLs without query or password."""
    match value:
        case dict():
            return {str(name)[:SHOWN_CHARACTERS]: loggable(item) for name, item in value.items()}
        case list():
            return [loggable(item) for item in value]
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

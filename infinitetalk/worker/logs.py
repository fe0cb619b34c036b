"""Logs: one JSON object per line on stderr with ts, level, event and, if they apply, job_id, item_id, lat_ms, details.

Only those parts of a job's input are logged that cannot hold a secret. `infinitetalk.worker.streams` writes the lines.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable
from typing import Any, TextIO, cast
from urllib.parse import quote, urlsplit

import structlog
from pydantic import BaseModel, SecretStr

from infinitetalk.worker.settings import Settings
from infinitetalk.worker.streams import LONGEST_HOST, LONGEST_LINE, keep_streams_writable, redacted
from schemas import BatchItem, FrameSize, Nag, OutputConfig, TtsAudio

SHOWN_ITEMS = 20
MAX_FIELD_CHARACTERS = 8_000
MAX_LINE_CHARACTERS = 20_000
ADDRESS_FIELDS = ("cond_video", "video_url", "thumbnail_url")
SPEAKER_FIELDS = ("cond_audio", "mask", "bbox")


def configure_logs(settings: Settings) -> None:
    """Makes structlog write JSON lines on stderr, since stdout is for results."""
    secrets = spellings_of([value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)])
    stderr = keep_streams_writable(secrets)
    # Its warnings, of headers that it cannot parse say, quote what a server sends, and a server may send a token back.
    logging.getLogger("urllib3").setLevel(logging.ERROR)

    def redact(logger: Any, method: str, line: Any) -> str:
        return redacted(line, secrets)

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
            # Here and not in the stream, since lines are shortened afterwards: half a secret is not known as one.
            redact,
            shorten,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, stderr)),
        cache_logger_on_first_use=True,
    )


def spellings_of(secrets: Iterable[str]) -> list[str]:
    """Secrets as a line may spell them: as they are, within JSON, within a Python literal, in an address."""
    spellings = {
        spelling
        for secret in secrets
        for plain in (secret, repr(secret)[1:-1], quote(secret, safe=""))
        for spelling in (plain, json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1])
    }
    # A longer spelling may contain a shorter one.
    return sorted(spellings - {""}, key=len, reverse=True)


def shorten(logger: Any, method: str, line: Any) -> str:
    """Shortens a line that is too long; it stays valid JSON. Of long texts, such as a traceback, only the end is kept,
    and other long fields are dropped. Lines are redacted before, since half a secret would not be recognised."""
    if len(line) <= MAX_LINE_CHARACTERS:
        return line
    kept: dict[str, Any] = {"cut_characters": len(line)}
    for name, value in json.loads(line).items():
        if isinstance(value, str):
            end = value[-MAX_FIELD_CHARACTERS:]
            # JSON writes some characters as six.
            kept[name] = end if len(json.dumps(end)) <= 2 * MAX_FIELD_CHARACTERS else end[-MAX_FIELD_CHARACTERS // 6 :]
        elif len(json.dumps(value)) <= MAX_FIELD_CHARACTERS:
            kept[name] = value
    return json.dumps(kept)


def job_logger(job_id: str) -> Any:
    """A logger whose lines carry the job's id."""
    return structlog.get_logger().bind(job_id=job_id)


def loggable(job_input: Any) -> Any:
    """The loggable form of any job input. Of known fields, numbers and choices are shown as they are, media by their
    kind or host, and texts by their length; unknown fields are only counted."""
    return _fields_of(job_input, {*_JOB_CHOICES, "batch"})


def _fields_of(value: Any, known: Collection[str]) -> Any:
    if not isinstance(value, dict):
        return f"<{type(value).__name__}>"
    shown = {name: _shown(name, field) for name, field in value.items() if name in known}
    num_unknown = len(value) - len(shown)
    return shown | ({"unknown_fields": num_unknown} if num_unknown else {})


def _shown(name: str, value: Any) -> Any:
    match value:
        case None | bool() | float():
            return value
        case int():
            return value if abs(value) < 2**63 else "<number>"
        case str() if value in (_JOB_CHOICES | _OUTPUT_CHOICES).get(name, ()):
            return value
        case str():
            return _medium(value) if name in ADDRESS_FIELDS else f"<{len(value)} characters>"
        case list() if name == "batch":
            return [_fields_of(item, _JOB_CHOICES) for item in value[:SHOWN_ITEMS]]
        case dict() if name in SPEAKER_FIELDS:
            return [_of_speaker(item) for item in list(value.values())[:SHOWN_ITEMS]]
        case dict() if name == "output_config":
            return _fields_of(value, _OUTPUT_CHOICES)
        case dict() if name == "size":
            return _fields_of(value, FrameSize.model_fields)
        case dict() if name == "nag":
            return _fields_of(value, Nag.model_fields)
        case dict() if name == "tts_audio":
            return _fields_of(value, TtsAudio.model_fields)
        case _:
            return f"<{type(value).__name__} of {len(value)}>"


def _of_speaker(value: Any) -> Any:
    """The loggable form of a speaker's speech, mask or box."""
    is_box = isinstance(value, list) and len(value) <= 4 and all(isinstance(side, int | float) for side in value)
    if value is None or is_box:
        return value
    return _medium(value) if isinstance(value, str) else f"<{type(value).__name__}>"


def _medium(source: str) -> str:
    if source.startswith("data:"):
        return f"<data URI of {len(source)} characters>"
    try:
        parts = urlsplit(source[:LONGEST_LINE])
        if parts.scheme in ("http", "https"):
            return f"{parts.scheme}://{(parts.hostname or '')[:LONGEST_HOST]}/…"
    except ValueError:
        return f"<address of {len(source)} characters>"
    return f"<{len(source)} characters>"


def _choices_of(model: type[BaseModel]) -> dict[str, set[str]]:
    """The fields of a model, each with the words that it may be chosen from, if any."""
    found = {}
    for name, schema in model.model_json_schema()["properties"].items():
        kinds = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
        found[name] = {word for kind in kinds for word in kind.get("enum", [])}
    return found


_JOB_CHOICES = _choices_of(BatchItem)
_OUTPUT_CHOICES = _choices_of(OutputConfig)

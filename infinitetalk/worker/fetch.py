"""What a job names as its media, as local files: URL, data URI, base64, or a path below an allowed folder."""

from __future__ import annotations

import base64
import binascii
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from runpod.serverless.utils.rp_ssrf import safe_get

from infinitetalk.errors import GenerationStopped
from infinitetalk.media import MediaError, MediaInfo, probe
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import MEGABYTE, Settings
from schemas import ErrorCode

BLOCK_BYTES = 1 << 16
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
SHORTEST_BASE64 = 64
"""Characters. No picture or sound is smaller; paths, which may look like base64 only without a dot, rarely longer."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Media:
    """A medium of a job as a local file.

    Attributes:
        path: the file; not to be shown to a client.
        info: what it holds, as decoded.
    """

    path: Path
    info: MediaInfo


def fetch_media(
    field: str,
    source: str,
    kinds: Collection[str],
    target: Path,
    settings: Settings,
    should_stop: Callable[[], bool] = lambda: False,
) -> Media:
    """Bring one medium here and look what it is.

    Args:
        field: the job's field, for messages.
        source: URL, data URI, base64 or path.
        kinds: what it may be, of "image", "video" and "audio"; a video counts as audio where it has sound.
        target: file to write to, unless the source is a file already.
        should_stop: looked at while data arrives.

    Raises:
        WorkerError: it cannot be fetched or decoded, is too large, or of another kind.
        GenerationStopped: `should_stop` said so.
    """
    limits = {"image": settings.max_image_bytes, "audio": settings.max_audio_bytes, "video": settings.max_video_bytes}
    may_be_video = {"video", "audio"} & set(kinds)
    limit = settings.max_video_bytes if may_be_video else settings.max_image_bytes
    path = _fetch(field, source, limit, target, settings, should_stop)
    with naming(field):
        info = probe(path)
    usable = info.kind in kinds or (info.kind == "video" and info.has_audio and "audio" in kinds)
    if not usable:
        raise _invalid(field, f"must be {_listed(kinds)}, but it is {_described(info)}")
    if path.stat().st_size > limits[info.kind]:
        raise _too_large(field, limits[info.kind])
    return Media(path, info)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Lets a `MediaError` from inside become a `WorkerError` that names the job's field."""
    try:
        yield
    except MediaError as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"{field}: {error}") from error


def _fetch(
    field: str, source: str, limit: int, target: Path, settings: Settings, should_stop: Callable[[], bool]
) -> Path:
    if source.lower().startswith(("http://", "https://")):
        _download(field, source, limit, target, settings, should_stop)
        return target
    if header := _DATA_URI.match(source):
        _decode_base64(field, source[header.end() :], limit, target)
        return target
    if len(source) >= SHORTEST_BASE64 and _BASE64.fullmatch(source):
        _decode_base64(field, source, limit, target)
        return target
    return _allowed_file(field, source, limit, settings)


def _download(
    field: str, url: str, limit: int, target: Path, settings: Settings, should_stop: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + settings.download_timeout_s
    timeouts = (settings.connect_timeout_s, settings.read_timeout_s)
    try:
        # The limit is kept here, for a message of its own: the SDK's would be one of a refused address.
        with safe_get(url, timeout=timeouts, max_bytes=sys.maxsize) as response, target.open("wb") as file:
            if response.status_code != requests.codes.ok:
                raise WorkerError(
                    ErrorCode.DOWNLOAD_FAILED,
                    f"{field}: the address answered with status {response.status_code}",
                    retryable=response.status_code in TRANSIENT_STATUSES,
                )
            if int(response.headers.get("Content-Length", 0)) > limit:
                raise _too_large(field, limit)
            received = 0
            for block in response.iter_content(BLOCK_BYTES):
                received += len(block)
                if received > limit:
                    raise _too_large(field, limit)
                if time.monotonic() > deadline:
                    raise WorkerError(
                        ErrorCode.DOWNLOAD_FAILED,
                        f"{field}: the download took longer than {settings.download_timeout_s:g} s",
                    )
                if should_stop():
                    raise GenerationStopped
                file.write(block)
    except ValueError as error:
        raise WorkerError(
            ErrorCode.DOWNLOAD_FAILED,
            f"{field}: the address was refused; it must be http or https, resolve to a public address and "
            "redirect at most 5 times",
            retryable=False,
        ) from error
    except requests.RequestException as error:
        raise WorkerError(
            ErrorCode.DOWNLOAD_FAILED, f"{field}: the address did not answer, or not to the end"
        ) from error


def _decode_base64(field: str, text: str, limit: int, target: Path) -> None:
    if len(text) * 3 // 4 > limit + 2:
        raise _too_large(field, limit)
    try:
        target.write_bytes(base64.b64decode("".join(text.split()), validate=True))
    except binascii.Error as error:
        raise _invalid(field, "is not valid base64") from error


def _allowed_file(field: str, source: str, limit: int, settings: Settings) -> Path:
    refusal = _invalid(
        field,
        "is none of these: an http(s) URL, a data URI with base64, base64, the path of a file below the worker's "
        "input folders",
    )
    if not source.isprintable() or _SCHEME.match(source) or len(source) > 1024:
        raise refusal
    for start, root in settings.input_roots:
        try:
            path = (start / source).resolve()
            # A path outside and a file that is not there get the same answer.
            if path.is_relative_to(root) and path.is_file():
                break
        except OSError as error:
            raise refusal from error
    else:
        raise refusal
    if path.stat().st_size > limit:
        raise _too_large(field, limit)
    return path


def _invalid(field: str, message: str) -> WorkerError:
    return WorkerError(ErrorCode.INPUT_VALIDATION, f"{field} {message}")


def _too_large(field: str, limit: int) -> WorkerError:
    return _invalid(field, f"is too large: at most {limit / MEGABYTE:g} MB")


def _listed(kinds: Collection[str]) -> str:
    return " or ".join({"image": "a picture", "video": "a video", "audio": "sound"}[kind] for kind in sorted(kinds))


def _described(info: MediaInfo) -> str:
    if info.kind == "video":
        return "a video with sound" if info.has_audio else "a video without sound"
    return _listed([info.kind])

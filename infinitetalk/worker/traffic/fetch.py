"""Fetches a job's media to local files from a URL, data URI, base64, or a path below an allowed folder."""

from __future__ import annotations

import base64
import binascii
import re
import socket
import string
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from runpod.serverless.utils.rp_ssrf import SSRFError
from urllib3 import BaseHTTPResponse, HTTPResponse
from urllib3.exceptions import HTTPError

from infinitetalk.errors import GenerationStopped, MediaError, SynthesisError
from infinitetalk.media.decode import MediaInfo, Picture, Sound, probe, probe_and_read, read_sound
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.traffic.retry import TRANSIENT_STATUSES, Transient, with_retries
from infinitetalk.worker.traffic.transport import MAX_REDIRECTS, OnBytes, TimeIsOver, Watch, get
from schemas import ErrorCode, check_address

BLOCK_BYTES = 1 << 16
MAX_SIDE_BY_SIDE = 8
MAX_READ_AT_ONCE = 2
"""Pictures and sounds in memory while they are read: each can take hundreds of megabytes more than it does then."""

MAX_ASPECT = 20
"""Largest ratio of an image's sides: a narrow strip scaled to the model's height would take all memory."""

SHORTEST_BASE64 = 64
"""Characters. No image or sound is smaller. A path can look like base64 only if it has no dot, and is rarely longer."""

MAX_PATH_CHARACTERS = 1024

_reading = threading.Semaphore(MAX_READ_AT_ONCE)
_BASE64_LETTERS = (string.ascii_letters + string.digits + "+/").encode()
_WHITE_SPACE = string.whitespace.encode()
_WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Wanted:
    """A medium that a job names.

    Attributes:
        source: URL, data URI, base64 or path.
        kinds: allowed kinds, of "image", "video" and "audio"; a video with sound counts as audio.
        is_read: whether an image is read at once.
        sound_s: seconds of its sound that are read at once; None: none.
    """

    source: str
    kinds: Collection[str]
    is_read: bool = False
    sound_s: float | None = None


@dataclass(frozen=True)
class Media:
    """A medium of a job as a local file.

    Attributes:
        path: the file; it must not be shown to a client.
        info: the file's properties, found by decoding it.
        picture: the image, if it was to be read.
        sound: its sound, if it was to be read.
    """

    path: Path
    info: MediaInfo
    picture: Picture | None = None
    sound: Sound | None = None


class ByteCount:
    """Counts and reports the bytes of several downloads together."""

    def __init__(self, on_bytes: OnBytes, num_downloads: int) -> None:
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._received = 0
        self._expected = 0
        self._num_silent = num_downloads

    def expect(self, num_bytes: int | None) -> None:
        """Takes the length of a download; None if the length is not known."""
        with self._lock:
            if num_bytes is not None:
                self._expected += num_bytes
                self._num_silent -= 1

    def forget(self, received: int, expected: int | None) -> None:
        """Takes back the bytes of a download that starts over."""
        with self._lock:
            self._received -= received
            if expected is not None:
                self._expected -= expected
                self._num_silent += 1

    def add(self, num_bytes: int) -> None:
        """Counts received bytes."""
        with self._lock:
            self._received += num_bytes
            self._on_bytes(self._received, None if self._num_silent else self._expected)


def fetch_all(
    wanted: Mapping[str, Wanted],
    folder: Path,
    settings: Settings,
    on_bytes: OnBytes = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Media]:
    """Fetches, inspects and reads the media of a job in parallel; a failed one stops the others.

    Args:
        wanted: the media by the job's fields.
        folder: folder to write to; files get their fields' names.
        on_bytes: takes the number of bytes received from all addresses together.
        should_stop: is asked while data arrives.

    Raises:
        WorkerError: as `fetch_media`, for the first field that failed by itself.
        GenerationStopped: `should_stop` returned true.
    """
    failed = threading.Event()
    count = ByteCount(on_bytes, sum(_is_url(medium.source) for medium in wanted.values()))

    def fetch_one(field: str, medium: Wanted) -> Media:
        try:
            return fetch_media(field, medium, folder / field, settings, count, lambda: failed.is_set() or should_stop())
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(MAX_SIDE_BY_SIDE, thread_name_prefix="fetch") as pool:
        futures = {field: pool.submit(fetch_one, field, medium) for field, medium in wanted.items()}
    errors = [error for future in futures.values() if (error := future.exception()) is not None]
    # The error that stopped the other downloads comes first.
    for error in sorted(errors, key=lambda error: isinstance(error, GenerationStopped)):
        raise error
    return {field: future.result() for field, future in futures.items()}


def fetch_media(
    field: str,
    wanted: Wanted,
    target: Path,
    settings: Settings,
    count: ByteCount,
    should_stop: Callable[[], bool] = lambda: False,
) -> Media:
    """Fetches one medium, checks its kind and reads what is wanted of it.

    Args:
        field: the job's field, for messages.
        target: file to write to, unless the source is a file already.
        count: counts the bytes received from an address.
        should_stop: is asked while data arrives.

    Raises:
        WorkerError: the medium cannot be fetched or decoded, is too large, or is of another kind.
        GenerationStopped: `should_stop` returned true.
    """
    limits = {"image": settings.max_image_bytes, "audio": settings.max_audio_bytes, "video": settings.max_video_bytes}
    may_be_video = {"video", "audio"} & set(wanted.kinds)
    limit = settings.max_video_bytes if may_be_video else settings.max_image_bytes
    if _is_url(wanted.source):
        Download(field, wanted.source.strip(), limit, target, settings, count, should_stop).run()
        path = target
    else:
        path = _read_local(field, wanted.source, limit, target, settings)
    if should_stop():
        raise GenerationStopped
    if _is_web_page(path):
        raise _invalid(
            field,
            "is a web page (HTML) in place of a file: give the address of the file itself, not of a page that shows or "
            "shares it",
        )
    with naming(field), _reading if wanted.is_read else nullcontext():
        info, picture = probe_and_read(path) if wanted.is_read else (probe(path), None)
    usable = info.kind in wanted.kinds or (info.kind == "video" and info.has_audio and "audio" in wanted.kinds)
    if not usable:
        raise _invalid(field, f"must be {_listed(wanted.kinds)}, but it is {_described(info)}")
    if min(info.height, info.width) * MAX_ASPECT < max(info.height, info.width):
        raise _invalid(
            field, f"is {info.width}x{info.height} pixels; no side may be more than {MAX_ASPECT} times the other"
        )
    if path.stat().st_size > limits[info.kind]:
        raise _too_large(field, limits[info.kind])
    with naming(field), _reading:
        sound = None if wanted.sound_s is None else read_sound(path, wanted.sound_s)
    return Media(path, info, picture, sound)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Turns a `MediaError` or `SynthesisError` from inside into a `WorkerError` that names the job's field."""
    try:
        yield
    except (MediaError, SynthesisError) as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"{field}: {error}") from error


class Download:
    """The download of one file from an address on the internet.

    Args:
        field: the job's field, for messages.
        limit: largest number of bytes.
        target: file to write to.
        count: counts the received bytes.
        should_stop: is asked while data arrives and between two attempts.
    """

    def __init__(
        self,
        field: str,
        url: str,
        limit: int,
        target: Path,
        settings: Settings,
        count: ByteCount,
        should_stop: Callable[[], bool],
    ) -> None:
        self.field = field
        self.url = url
        self.limit = limit
        self.target = target
        self.settings = settings
        self.count = count
        self.should_stop = should_stop

    def run(self) -> None:
        """Downloads the file, and tries again after transient errors.

        Raises:
            WorkerError: the address is refused, fails permanently, is too slow, or sends too much.
            GenerationStopped: `should_stop` returned true.
        """
        with Watch(self.settings.download_timeout_s, self.should_stop).within() as watch:
            try:
                with_retries(lambda: self._try(watch), self.settings.download_attempts, watch)
            except TimeIsOver as error:
                raise self._failed(f"the download took longer than {self.settings.download_timeout_s:g} s") from error

    def _try(self, watch: Watch) -> None:
        self._received = 0
        self._expected: int | None = None
        timeouts = (self.settings.connect_timeout_s, self.settings.read_timeout_s)
        try:
            check_address(self.url)
        except ValueError as error:
            raise self._failed(f"the address {error}", retryable=False) from error
        try:
            with get(self.url, watch, timeouts, {"Accept-Encoding": "identity"}) as response:
                self._check_status(response)
                self._receive(response, watch)
        except SSRFError as error:
            if _is_name_server_busy(error):
                raise Transient(self._failed("the address could not be looked up")) from error
            raise self._failed(
                "the address was refused; check its spelling: the name of its host must lead to a public address, and "
                f"each redirect, {MAX_REDIRECTS} at most, to another one",
                retryable=False,
            ) from error
        except HTTPError as error:
            watch.check()
            failure = self._failed("the address did not answer, or not completely")
            self.count.forget(self._received, self._expected)
            raise Transient(failure) from error

    def _check_status(self, response: BaseHTTPResponse) -> None:
        status = response.status
        if status == HTTPStatus.OK:
            return
        is_transient = status in TRANSIENT_STATUSES
        failure = self._failed(f"the address answered with status {status}", retryable=is_transient)
        if not is_transient:
            raise failure
        # A date is rare here and is ignored.
        retry_after = response.headers.get("Retry-After", "")
        raise Transient(failure, float(retry_after) if retry_after.isdecimal() else None)

    def _receive(self, body: BaseHTTPResponse, watch: Watch) -> None:
        assert isinstance(body, HTTPResponse)
        self._expected = body.length_remaining
        if self._expected is not None and self._expected > self.limit:
            raise _too_large(self.field, self.limit)
        self.count.expect(self._expected)
        with self.target.open("wb") as file:
            # `read1` returns after any received bytes; reading a whole block could exceed the deadline.
            while block := body.read1(BLOCK_BYTES, decode_content=True):
                self._received += len(block)
                if self._received > self.limit:
                    raise _too_large(self.field, self.limit)
                watch.check()
                file.write(block)
                self.count.add(len(block))
        # A body without a length ends in the same way if the watch has shut its socket.
        watch.check()

    def _failed(self, message: str, retryable: bool | None = None) -> WorkerError:
        return WorkerError(ErrorCode.DOWNLOAD_FAILED, f"{self.field}: {message}", retryable)


def _is_name_server_busy(error: SSRFError) -> bool:
    cause = error.__cause__
    return isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN


def _is_url(source: str) -> bool:
    return source.lstrip()[: len("https://")].lower().startswith(("http://", "https://"))


def _is_web_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1024).lstrip(b"\xef\xbb\xbf" + _WHITE_SPACE).lower().startswith(_WEB_PAGES)


def _read_local(field: str, source: str, limit: int, target: Path, settings: Settings) -> Path:
    """The file for a data URI, base64 or a path."""
    source = source.lstrip()
    if header := _DATA_URI.match(source):
        letters = _base64_letters(source[header.end() :])
        if letters is None:
            raise _invalid(field, "is not valid base64")
        _decode_base64(field, letters, limit, target)
        return target
    if len(source) >= SHORTEST_BASE64 and (letters := _base64_letters(source)):
        _decode_base64(field, letters, limit, target)
        return target
    return _allowed_file(field, source, limit, settings)


def _base64_letters(text: str) -> bytes | None:
    """A text without white space; None if it has characters that are not base64."""
    if not text.isascii():
        return None
    letters = text.encode().translate(None, _WHITE_SPACE)
    return letters if not letters.rstrip(b"=").translate(None, _BASE64_LETTERS) else None


def _decode_base64(field: str, letters: bytes, limit: int, target: Path) -> None:
    if len(letters) * 3 // 4 > limit + 2:
        raise _too_large(field, limit)
    try:
        target.write_bytes(base64.b64decode(letters, validate=True))
    except binascii.Error as error:
        raise _invalid(field, "is not valid base64") from error


def _allowed_file(field: str, source: str, limit: int, settings: Settings) -> Path:
    refusal = _invalid(
        field,
        "is none of these: an http(s) URL, a data URI with base64, base64, or the path of a file below the worker's "
        "input folders",
    )
    if len(source) > MAX_PATH_CHARACTERS or not source.isprintable() or _SCHEME.match(source):
        raise refusal
    for start, root in settings.input_roots:
        try:
            path = (start / source).resolve()
            # A path outside and a missing file get the same answer.
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
    return " or ".join({"image": "an image", "video": "a video", "audio": "sound"}[kind] for kind in sorted(kinds))


def _described(info: MediaInfo) -> str:
    if info.kind == "video":
        return "a video with sound" if info.has_audio else "a video without sound"
    return _listed([info.kind])

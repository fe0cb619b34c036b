"""What a job names as its media, as local files: URL, data URI, base64, or a path below an allowed folder."""

from __future__ import annotations

import base64
import binascii
import re
import socket
import string
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from runpod.serverless.utils.rp_ssrf import SSRFError
from urllib3 import BaseHTTPResponse, HTTPResponse
from urllib3.exceptions import HTTPError

from infinitetalk.errors import GenerationStopped, MediaError, SynthesisError
from infinitetalk.media.decode import MediaInfo, probe
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.traffic.retry import TRANSIENT_STATUSES, Transient, with_retries
from infinitetalk.worker.traffic.transport import OnBytes, TimeIsOver, Watch, get
from schemas import ErrorCode, check_address

BLOCK_BYTES = 1 << 16
MAX_SIDE_BY_SIDE = 8
MAX_ASPECT = 20
"""Of a picture's sides: scaled to the model's height, a strip of pixels would take all memory."""

SHORTEST_BASE64 = 64
"""Characters. No picture or sound is smaller; paths, which may look like base64 only without a dot, rarely longer."""

MAX_PATH_CHARACTERS = 1024

_BASE64_LETTERS = (string.ascii_letters + string.digits + "+/").encode()
_WHITE_SPACE = string.whitespace.encode()
_WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Wanted:
    """A medium as a job names it.

    Attributes:
        source: URL, data URI, base64 or path.
        kinds: what it may be, of "image", "video" and "audio"; a video counts as audio where it has sound.
    """

    source: str
    kinds: Collection[str]


@dataclass(frozen=True)
class Media:
    """A medium of a job as a local file.

    Attributes:
        path: the file; not to be shown to a client.
        info: what it holds, as decoded.
    """

    path: Path
    info: MediaInfo


class ByteCount:
    """Bytes of several downloads together, as they are reported."""

    def __init__(self, on_bytes: OnBytes, num_downloads: int) -> None:
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._received = 0
        self._expected = 0
        self._num_silent = num_downloads

    def expect(self, num_bytes: int | None) -> None:
        """One more download says how long it is, or that it does not know."""
        with self._lock:
            if num_bytes is not None:
                self._expected += num_bytes
                self._num_silent -= 1

    def forget(self, received: int, expected: int | None) -> None:
        """A download begins again."""
        with self._lock:
            self._received -= received
            if expected is not None:
                self._expected -= expected
                self._num_silent += 1

    def add(self, num_bytes: int) -> None:
        """Bytes have arrived."""
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
    """Bring the media of a job here, side by side; one that fails stops the others.

    Args:
        wanted: by the job's fields.
        folder: to write to; files get their fields' names.
        on_bytes: told what has arrived from all addresses together.
        should_stop: looked at while data arrives.

    Raises:
        WorkerError: as `fetch_media`, of the first field that failed by itself.
        GenerationStopped: `should_stop` said so.
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
    # Those that were only stopped follow the one that stopped them.
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
    """Bring one medium here and look what it is.

    Args:
        field: the job's field, for messages.
        target: file to write to, unless the source is a file already.
        count: told what arrives from an address.
        should_stop: looked at while data arrives.

    Raises:
        WorkerError: it cannot be fetched or decoded, is too large, or of another kind.
        GenerationStopped: `should_stop` said so.
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
    with naming(field):
        info = probe(path)
    usable = info.kind in wanted.kinds or (info.kind == "video" and info.has_audio and "audio" in wanted.kinds)
    if not usable:
        raise _invalid(field, f"must be {_listed(wanted.kinds)}, but it is {_described(info)}")
    if min(info.height, info.width) * MAX_ASPECT < max(info.height, info.width):
        raise _invalid(
            field, f"is {info.width}x{info.height} pixels; no side may be more than {MAX_ASPECT} times the other"
        )
    if path.stat().st_size > limits[info.kind]:
        raise _too_large(field, limits[info.kind])
    return Media(path, info)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Lets a `MediaError` or `SynthesisError` from inside become a `WorkerError` that names the job's field."""
    try:
        yield
    except (MediaError, SynthesisError) as error:
        raise WorkerError(ErrorCode.INPUT_VALIDATION, f"{field}: {error}") from error


class Download:
    """One file from an address on the internet.

    Args:
        field: the job's field, for messages.
        limit: bytes at most.
        target: file to write to.
        count: told what arrives.
        should_stop: looked at while data arrives and between two attempts.
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
        """Downloads, again where what stopped it may pass.

        Raises:
            WorkerError: the address is refused, fails for good, is too slow, or sends too much.
            GenerationStopped: `should_stop` said so.
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
                "the address was refused; it must be http or https, resolve to a public address and redirect at most "
                "5 times",
                retryable=False,
            ) from error
        except HTTPError as error:
            watch.check()
            failure = self._failed("the address did not answer, or not to the end")
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
        # A date in its place is rare, and as good as none.
        retry_after = response.headers.get("Retry-After", "")
        raise Transient(failure, float(retry_after) if retry_after.isdecimal() else None)

    def _receive(self, body: BaseHTTPResponse, watch: Watch) -> None:
        assert isinstance(body, HTTPResponse)
        self._expected = body.length_remaining
        if self._expected is not None and self._expected > self.limit:
            raise _too_large(self.field, self.limit)
        self.count.expect(self._expected)
        with self.target.open("wb") as file:
            # Whatever has come, however little: a read of a whole block would outlast the deadline.
            while block := body.read1(BLOCK_BYTES, decode_content=True):
                self._received += len(block)
                if self._received > self.limit:
                    raise _too_large(self.field, self.limit)
                watch.check()
                file.write(block)
                self.count.add(len(block))
        # A body without a length ends in the same way where it was shut.
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
    """The file that a data URI, base64 or a path stands for."""
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
    """A text's letters without white space, None where one of them is not of base64."""
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
        "is none of these: an http(s) URL, a data URI with base64, base64, the path of a file below the worker's "
        "input folders",
    )
    if len(source) > MAX_PATH_CHARACTERS or not source.isprintable() or _SCHEME.match(source):
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

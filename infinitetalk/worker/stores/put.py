"""Results sent by PUT to addresses that the job's sender has presigned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runpod.serverless.utils.rp_ssrf import SSRFError
from urllib3.exceptions import HTTPError

from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.base import (
    THUMBNAIL_TYPE,
    VIDEO_TYPE,
    Artifacts,
    SentBytes,
    Store,
    StoreRequest,
    Transfer,
    blocks_of,
    not_stored,
)
from infinitetalk.worker.stores.public import check_target, not_public
from infinitetalk.worker.traffic.retry import TRANSIENT_STATUSES, Transient, with_retries
from infinitetalk.worker.traffic.transport import TimeIsOver, Watch, send

ATTEMPTS = 4


class PutStore(Store):
    """Sends video and thumbnail to presigned addresses by PUT."""

    def __init__(self, video_url: str, thumbnail_url: str, settings: Settings) -> None:
        super().__init__()
        self.video_url = video_url
        self.thumbnail_url = thumbnail_url
        self.settings = settings

    def check(self) -> None:
        """Checks only that the addresses are public: a presigned PUT allows no other request."""
        check_target("output_config.video_url", self.video_url, self.settings)
        check_target("output_config.thumbnail_url", self.thumbnail_url, self.settings)

    def places(self, name: str, num_bytes: int) -> dict[str, Any]:
        return {"url": _without_query(self.video_url), "thumbnail_url": _without_query(self.thumbnail_url)}

    def _save(self, name: str, artifacts: Artifacts, transfer: Transfer) -> dict[str, Any]:
        sent = SentBytes(transfer.on_bytes, artifacts.video.stat().st_size + artifacts.thumbnail.stat().st_size)
        for put in (
            Put("output_config.video_url", self.video_url, VIDEO_TYPE, artifacts.video),
            Put("output_config.thumbnail_url", self.thumbnail_url, THUMBNAIL_TYPE, artifacts.thumbnail),
        ):
            self._send(put, sent, transfer.should_stop)
        return self.places(name, 0)

    def _send(self, put: Put, sent: SentBytes, should_stop: Callable[[], bool]) -> None:
        limit_s = self.settings.download_timeout_s
        with Watch(limit_s, should_stop).within() as watch:
            try:
                with_retries(lambda: self._try(put, FileBody(put.path, sent, should_stop), watch), ATTEMPTS, watch)
            except TimeIsOver as error:
                raise not_stored(f"the address of {put.field} took longer than {limit_s:g} s") from error

    def _try(self, put: Put, body: FileBody, watch: Watch) -> None:
        """Sends a file once; a redirect is not followed."""
        timeouts = (self.settings.connect_timeout_s, self.settings.read_timeout_s)
        headers = {"Content-Type": put.content_type, "Content-Length": str(len(body))}
        try:
            with send("PUT", put.url, watch, timeouts, headers, body) as answer:
                status = answer.status
        except SSRFError as error:
            raise not_public(put.field) from error
        except HTTPError as error:
            watch.check()
            body.forget()
            raise Transient(not_stored(f"the address of {put.field} did not answer")) from error
        if 200 <= status < 300:
            return
        is_transient = status in TRANSIENT_STATUSES
        failure = not_stored(
            f"the address of {put.field} answered with status {status}; it must be presigned for PUT with Content-Type "
            f"{put.content_type} and not have expired",
            retryable=is_transient,
        )
        if not is_transient:
            raise failure
        body.forget()
        raise Transient(failure)


@dataclass(frozen=True)
class Put:
    """A file and the address to which it is sent.

    Attributes:
        field: the job's field, for messages.
        url: the address.
        content_type: the media type that the address was presigned for.
        path: the file.
    """

    field: str
    url: str
    content_type: str
    path: Path


class FileBody:
    """A file as the body of a request. It counts its bytes and can be stopped."""

    def __init__(self, path: Path, sent: SentBytes, should_stop: Callable[[], bool]) -> None:
        self._path = path
        self._sent = sent
        self._should_stop = should_stop
        self._num_sent = 0

    def __len__(self) -> int:
        return self._path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        for block in blocks_of(self._path, self._should_stop):
            yield block
            self._num_sent += len(block)
            self._sent.add(len(block))

    def forget(self) -> None:
        """Takes back the counted bytes, since the attempt failed."""
        self._sent.add(-self._num_sent)
        self._num_sent = 0


def open_put(request: StoreRequest) -> Store:
    """The store of a job that names an address for each file."""
    config = request.output_config
    assert config.video_url is not None and config.thumbnail_url is not None
    return PutStore(config.video_url, config.thumbnail_url, request.settings)


def _without_query(url: str) -> str:
    return urlsplit(url)._replace(query="", fragment="").geturl()

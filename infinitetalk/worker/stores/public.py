"""What is sent to a store that a job names: to public addresses only, and with bounds, since its server may be slow,
endless or hostile."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session
from urllib3.exceptions import HTTPError

from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.base import not_stored
from infinitetalk.worker.traffic.transport import (
    PublicConnection,
    TimeIsOver,
    Watch,
    check_public,
    open_public,
    public_class,
)
from schemas import ErrorCode

MAX_ANSWER_BYTES = 2_000_000
"""Largest answer that is no object: errors and listings are smaller."""


class StoreTooSlow(BotoCoreError):
    """A store that a job names took longer than it may. botocore does not try again after this."""

    fmt = "The store took too long"


class AnswerTooLarge(BotoCoreError):
    """A store that a job names sent more than it may."""

    fmt = "The store's answer is too large"


class BoundedBody:
    """The body of an answer, as botocore reads it, of a limited length.

    Args:
        raw: urllib3's answer.
        max_bytes: that it may have.
    """

    def __init__(self, raw: Any, max_bytes: float) -> None:
        self._raw = raw
        self._left = max_bytes

    def read(self, amt: int | None = None) -> bytes:
        """The next bytes, all of them where `amt` is None.

        Raises:
            AnswerTooLarge: there are more than there may be.
        """
        if amt is None:
            return b"".join(self.stream())
        data: bytes = self._raw.read(amt)
        self._left -= len(data)
        if self._left < 0:
            self._raw.close()
            raise AnswerTooLarge
        return data

    def stream(self, amt: int = 1 << 16) -> Iterator[bytes]:
        """All that is left, in blocks.

        Raises:
            AnswerTooLarge: there are more bytes than there may be.
        """
        while data := self.read(amt):
            yield data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class StoreConnection(PublicConnection):
    """A connection that may be opened after a stop too, to remove things; only its time ends it."""

    timeout: float | None

    def _new_conn(self) -> socket.socket:
        check_watch(self.watch, removes=True)
        return open_public(self, Watch(self.timeout or math.inf), partial(self.watch.keep, self))


class PublicSession(URLLib3Session):
    """botocore's HTTP session, which connects to public addresses only, however often a name's address changes, and
    lets no answer be endless, in time or in bytes.

    Args:
        connect_timeout_s, read_timeout_s: seconds to connect, and seconds of silence.
        watch: of all requests.
    """

    def __init__(self, connect_timeout_s: float, read_timeout_s: float, watch: Watch) -> None:
        timeouts: Any = (connect_timeout_s, read_timeout_s)
        super().__init__(timeout=timeouts)
        self._watch = watch
        plain = public_class(AWSHTTPConnection, watch, StoreConnection)
        secure = public_class(AWSHTTPSConnection, watch, StoreConnection)
        pools: Any = self
        pools._manager.pool_classes_by_scheme = {
            "http": type("PublicPool", (AWSHTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("PublicSecurePool", (AWSHTTPSConnectionPool,), {"ConnectionCls": secure}),
        }

    def send(self, request: Any) -> Any:
        """The answer to a request. An answer that is no object has been read to its end.

        Raises:
            GenerationStopped: the job has to end.
            BotoCoreError: there was no answer in time, or one too large, or what the superclass raises.
        """
        removes = request.method == "DELETE"
        check_watch(self._watch, removes)
        is_object = request.stream_output
        # The superclass would read an answer that is no object to its end.
        request.stream_output = True
        try:
            response = super().send(request)
            limited = not is_object or response.status_code >= 300
            response.raw = BoundedBody(response.raw, MAX_ANSWER_BYTES if limited else math.inf)
            if not is_object:
                _ = response.content
            return response
        except (BotoCoreError, HTTPError, OSError):
            check_watch(self._watch, removes)
            raise
        finally:
            request.stream_output = is_object


def check_watch(watch: Watch, removes: bool = False) -> None:
    """As `Watch.check`, in a form that botocore passes on.

    Raises:
        GenerationStopped: the job has to end.
        StoreTooSlow: the time is over.
    """
    try:
        watch.check(removes)
    except TimeIsOver as error:
        raise StoreTooSlow from error


def check_target(field: str, url: str, settings: Settings) -> None:
    """An address that a job writes to must be as public as one that it reads from.

    Raises:
        WorkerError: it is not; the message names the field.
    """
    try:
        check_public(url, Watch(settings.connect_timeout_s))
    except TimeIsOver as error:
        raise not_stored(f"the host of {field} was not found in {settings.connect_timeout_s:g} s") from error
    except ValueError as error:
        raise not_public(field) from error


def not_public(field: str) -> WorkerError:
    """The error of an address that is not public."""
    return WorkerError(ErrorCode.INPUT_VALIDATION, f"{field} must resolve to a public address")

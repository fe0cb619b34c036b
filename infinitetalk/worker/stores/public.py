"""Requests to a store that a job names: to public addresses only, with limits on time and size, since its server may be
slow or hostile."""

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
"""Largest answer that is not an object: errors and listings are smaller."""


class StoreTooSlow(BotoCoreError):
    """A store that a job names exceeded its time limit. botocore does not retry after this error."""

    fmt = "The store took too long"


class AnswerTooLarge(BotoCoreError):
    """A store that a job names sent too many bytes."""

    fmt = "The store's answer is too large"


class BoundedBody:
    """The body of an answer as botocore reads it, with a length limit.

    Args:
        raw: urllib3's answer.
        max_bytes: largest allowed length.
    """

    def __init__(self, raw: Any, max_bytes: float) -> None:
        self._raw = raw
        self._left = max_bytes

    def read(self, amt: int | None = None) -> bytes:
        """The next bytes, or all of them if `amt` is None.

        Raises:
            AnswerTooLarge: the body is longer than allowed.
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
        """The remaining bytes, in blocks.

        Raises:
            AnswerTooLarge: the body is longer than allowed.
        """
        while data := self.read(amt):
            yield data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class StoreConnection(PublicConnection):
    """A connection that may also be opened after a stop, to remove objects; only its time limit ends it."""

    timeout: float | None

    def _new_conn(self) -> socket.socket:
        check_watch(self.watch, removes=True)
        return open_public(self, Watch(self.timeout or math.inf), partial(self.watch.keep, self))


class PublicSession(URLLib3Session):
    """botocore's HTTP session, restricted to public addresses, even if a name's address changes, and with limits on the
    time and size of answers.

    Args:
        connect_timeout_s, read_timeout_s: seconds to connect, and seconds of silence.
        watch: limits all requests.
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
        """The answer to a request. An answer that is not an object has been read to its end.

        Raises:
            GenerationStopped: the job has to end.
            BotoCoreError: the answer came too late or is too large, or the superclass raised an error.
        """
        removes = request.method == "DELETE"
        check_watch(self._watch, removes)
        is_object = request.stream_output
        # Otherwise the superclass would read an answer that is not an object to its end, without a limit.
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
    """Like `Watch.check`, but raises errors that botocore passes on.

    Raises:
        GenerationStopped: the job has to end.
        StoreTooSlow: the time limit is reached.
    """
    try:
        watch.check(removes)
    except TimeIsOver as error:
        raise StoreTooSlow from error


def check_target(field: str, url: str, settings: Settings) -> None:
    """Checks that an address that a job writes to is public, as for addresses that it reads from.

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

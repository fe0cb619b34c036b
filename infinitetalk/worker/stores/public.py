"""Bounds for traffic with a store that a job names: its server may be slow, endless or hostile.

Timeouts of a socket do not end what drips. So a watcher shuts the sockets down, whatever a request is doing: its
connection, its headers, its body, once the time is over or the job has to end.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from botocore.exceptions import BotoCoreError

from infinitetalk.errors import GenerationStopped

POLL_S = 0.1
CLEAN_S = 10.0
"""Seconds that removing things may take after a stop."""

MAX_ANSWER_BYTES = 2_000_000
"""Of an answer that is no object: errors and listings are smaller."""


class StoreTooSlow(BotoCoreError):
    """A store that a job names took longer than it may. botocore does not try again after this."""

    fmt = "The store took too long"


class AnswerTooLarge(BotoCoreError):
    """A store that a job names sent more than it may."""

    fmt = "The store's answer is too large"


class Guard:
    """Ends requests in time; one job's thread uses it, and threads that upload for it.

    Args:
        should_stop: asked while requests are under way.
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop
        self._deadline = math.inf
        self._sockets: WeakKeyDictionary[Any, socket.socket] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Lets all requests made inside take so many seconds together."""
        before = self._deadline
        self._deadline = min(before, time.monotonic() + seconds)
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), name="store-guard", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            self._deadline = before

    def forget_stop(self) -> None:
        """The job has ended: what follows is cleaning up."""
        self._should_stop = lambda: False

    def check(self, removes: bool = False) -> None:
        """Asked before each request and after each that broke off.

        Args:
            removes: whether the request removes something, as also a stopped job has to.

        Raises:
            GenerationStopped: the job has to end.
            StoreTooSlow: the time is over.
        """
        if not removes and self._should_stop():
            raise GenerationStopped
        if time.monotonic() > self._deadline:
            raise StoreTooSlow

    def keep(self, connection: Any, opened: socket.socket) -> None:
        """Takes note of a connection's socket: a second handle on it, since TLS takes the first one over."""
        handle = opened.dup()
        with self._lock:
            self._sockets[connection] = handle

    def forget(self, connection: Any) -> None:
        """The connection is closed."""
        with self._lock:
            handle = self._sockets.pop(connection, None)
        if handle is not None:
            handle.close()

    def _watch(self, ended: threading.Event) -> None:
        # What begins after a stop removes things.
        was_stopped = self._should_stop()
        while not ended.wait(POLL_S):
            if not was_stopped and self._should_stop():
                was_stopped = True
                self._deadline = min(self._deadline, time.monotonic() + CLEAN_S)
                self._shut_down()
            if time.monotonic() > self._deadline:
                self._shut_down()

    def _shut_down(self) -> None:
        with self._lock:
            handles = list(self._sockets.values())
        for handle in handles:
            # It may be closed already.
            with suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)


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

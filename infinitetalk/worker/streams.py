"""Standard streams that neither wait nor fail, and show no secret.

A pipe that nobody reads or a full disk costs lines, which are counted, and no job. Whoever writes a line, credentials,
addresses beyond their hosts and base64 are taken out of it.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Callable

LONGEST_HOST = 100
LONGEST_LINE = 50_000
"""Characters; what is more is cut before anything looks at it."""

MAX_WAITING_LINES = 2_000
FLUSH_S = 0.2
"""Seconds that a line is waited for until it is written; once a write takes longer, no line is until one is written."""

SHORTEST_BASE64 = 200

_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]+")
_QUERY = re.compile(r"(?<=[^\s\"'?])\?[^\s\"'\\]*")
_SECRET = re.compile("signature|sig=|credential|token|key|secret|password", re.I)
_ADDRESS = re.compile(r"(?<=://)[^\s\"'\\<>]+")
_PATH = re.compile(r"(?<=with url: )/[^\s\"'\\]*")
"""Of an address, in the words of urllib3."""


class LogWriter:
    """Writes lines to file descriptors in a thread of its own, as far as they take them."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[tuple[int, bytes] | threading.Event] = queue.SimpleQueue()
        self._lost = 0
        self._is_stalled = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, descriptor: int, text: str) -> None:
        """Hands a text over; may be called within a signal handler."""
        if self._lines.qsize() < MAX_WAITING_LINES:
            self._lines.put((descriptor, text.encode("utf-8", "backslashreplace")))
        else:
            self._lost += 1

    def flush(self, timeout_s: float = FLUSH_S) -> None:
        """Waits until what was handed over is written, unless the last wait was in vain."""
        if not self._is_stalled:
            written = threading.Event()
            self._lines.put(written)
            self._is_stalled = not written.wait(timeout_s)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            descriptor, data = line
            lost = self._lost
            if lost:
                note = {"level": "warning", "event": "log.lost", "details": {"lines": lost}}
                # What was written last may have been a part of a line.
                data = f"\n{json.dumps(note)}\n".encode() + data
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
            except OSError:
                self._lost += 1
            else:
                self._lost -= lost
            self._is_stalled = False


class LogStream(io.TextIOBase):
    """A text stream over a file descriptor, which takes every line and passes it on redacted by `redact`."""

    encoding = "utf-8"

    def __init__(self, descriptor: int, writer: LogWriter, redact: Callable[[str], str]) -> None:
        self._descriptor = descriptor
        self._writer = writer
        self._redact = redact
        self._begun = threading.local()

    def write(self, text: str) -> int:
        """Takes a text; lines go on as they end, whole, whatever other threads write."""
        begun = getattr(self._begun, "text", "") + text
        ended, newline, self._begun.text = begun.rpartition("\n")
        if newline:
            for line in ended.split("\n"):
                self._pass_on(line + newline)
        return len(text)

    def flush(self) -> None:
        """Waits a moment until all is written."""
        begun = getattr(self._begun, "text", "")
        if begun:
            self._begun.text = ""
            self._pass_on(begun)
        self._writer.flush()

    def fileno(self) -> int:
        """The file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """It is."""
        return True

    def _pass_on(self, line: str) -> None:
        if len(line) > LONGEST_LINE:
            line = f"{line[:LONGEST_LINE]}…\n"
        self._writer.put(self._descriptor, self._redact(line))


def keep_streams_writable(secrets: list[str]) -> LogStream:
    """Replaces `sys.stdout` and `sys.stderr` by streams that neither wait nor fail, and show no secret.

    Returns:
        Another stream to the standard error, for lines that were redacted before: it writes them as they are.
    """
    writer = LogWriter()

    def redact(line: str) -> str:
        return redacted(line, secrets)

    sys.stdout, sys.stderr = LogStream(1, writer, redact), LogStream(2, writer, redact)
    atexit.register(writer.flush)
    return LogStream(2, writer, lambda line: line)


def redacted(line: str, secrets: list[str]) -> str:
    """A line without credentials, addresses beyond their hosts and base64, whatever put them there: an exception's
    words, say."""
    for secret in secrets:
        line = line.replace(secret, "***")
    line = _ADDRESS.sub(lambda found: _host_of(found[0]), line)
    line = _QUERY.sub(lambda found: "?***" if _SECRET.search(found[0]) else found[0], line)
    line = _PATH.sub("/…", line)
    return _BASE64.sub(
        lambda found: f"<{len(found[0])} characters>" if len(found[0]) >= SHORTEST_BASE64 else found[0], line
    )


def _host_of(address: str) -> str:
    """Of an address without its scheme, what a log may show: a path may hold a token, a name before "@" a password."""
    authority, *more = re.split(r"[/?#]", address, maxsplit=1)
    host = authority.rpartition("@")[2][:LONGEST_HOST]
    return f"{host}/…" if more and more[0] else address.removeprefix(f"{authority.rpartition('@')[0]}@")

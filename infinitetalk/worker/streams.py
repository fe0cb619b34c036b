"""Standard streams that neither block nor fail, and show no secret.

If nobody reads the pipe or the disk is full, lines are lost and counted, but no job fails. Credentials, base64 and
everything after the host in an address are removed from every line.
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
"""Characters; longer lines are cut before they are processed."""

MAX_WAITING_LINES = 2_000
FLUSH_S = 0.2
"""Longest wait in seconds until a line is written. After one write takes longer, `flush` does not wait until the next
line has been written."""

SHORTEST_BASE64 = 200

_BASE64 = re.compile(rf"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{{{SHORTEST_BASE64},}}")
"""Begins where a run of letters begins: each run is looked at once."""
_QUERY = re.compile(r"(?<=[^\s\"'?])\?[^\s\"'\\]*")
_SECRET = re.compile("signature|sig=|credential|token|key|secret|password", re.I)
_ADDRESS = re.compile(r"(?<=://)[^\s\"'\\<>]+")
_PATH = re.compile(r"(?<=with url: )/[^\s\"'\\]*")
"""The path of an address in the messages of urllib3."""


class LogWriter:
    """Writes lines to file descriptors in a separate thread; counts the lines that it cannot write."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[tuple[int, bytes] | threading.Event] = queue.SimpleQueue()
        self._lost = 0
        self._is_stalled = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, descriptor: int, text: str) -> None:
        """Queues a text; may be called within a signal handler."""
        if self._lines.qsize() < MAX_WAITING_LINES:
            self._lines.put((descriptor, text.encode("utf-8", "backslashreplace")))
        else:
            self._lost += 1

    def flush(self, timeout_s: float = FLUSH_S) -> None:
        """Waits until the queued texts are written, unless the last wait timed out."""
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
                # The last write may have ended within a line.
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
    """A text stream over a file descriptor: redacts every line and writes it."""

    encoding = "utf-8"

    def __init__(self, descriptor: int, writer: LogWriter, redact: Callable[[str], str]) -> None:
        self._descriptor = descriptor
        self._writer = writer
        self._redact = redact
        self._begun = threading.local()

    def write(self, text: str) -> int:
        """Takes a text and passes on complete lines, so that the lines of different threads do not mix."""
        begun = getattr(self._begun, "text", "") + text
        ended, newline, self._begun.text = begun.rpartition("\n")
        if newline:
            for line in ended.split("\n"):
                self._pass_on(line + newline)
        return len(text)

    def flush(self) -> None:
        """Passes on an unfinished line and waits a moment until everything is written."""
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
        """Always true."""
        return True

    def _pass_on(self, line: str) -> None:
        if len(line) > LONGEST_LINE:
            line = f"{line[:LONGEST_LINE]}…\n"
        self._writer.put(self._descriptor, self._redact(line))


def keep_streams_writable(secrets: list[str]) -> LogStream:
    """Replaces `sys.stdout` and `sys.stderr` by streams that neither block nor fail, and show no secret.

    Returns:
        Another stream to the standard error, for lines that are redacted already: it writes them as they are.
    """
    writer = LogWriter()

    def redact(line: str) -> str:
        return redacted(line, secrets)

    sys.stdout, sys.stderr = LogStream(1, writer, redact), LogStream(2, writer, redact)
    atexit.register(writer.flush)
    return LogStream(2, writer, lambda line: line)


def redacted(line: str, secrets: list[str]) -> str:
    """A line without credentials, base64, and everything after the host in an address; they may come from an
    exception's message, for instance."""
    for secret in secrets:
        line = line.replace(secret, "***")
    line = _ADDRESS.sub(lambda found: _host_of(found[0]), line)
    line = _QUERY.sub(lambda found: "?***" if _SECRET.search(found[0]) else found[0], line)
    line = _PATH.sub("/…", line)
    return _BASE64.sub(lambda found: f"<{len(found[0])} characters>", line)


def _host_of(address: str) -> str:
    """The loggable part of an address without its scheme: a path may hold a token, a name before "@" a password."""
    authority, *more = re.split(r"[/?#]", address, maxsplit=1)
    host = authority.rpartition("@")[2][:LONGEST_HOST]
    return f"{host}/…" if more and more[0] else address.removeprefix(f"{authority.rpartition('@')[0]}@")

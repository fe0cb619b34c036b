"""A server that keeps those who ask waiting, each page in its own way, until they hang up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PAUSE_S = 0.05
GREETING = b"HTTP/1.1 200 OK\r\n"
CHUNK = b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"

STALLS: dict[str, tuple[bytes, bytes]] = {
    "/status": (b"HTTP/1.1 ", b"0"),
    "/continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "/header": (GREETING + b"X-Long: ", b"x"),
    "/headers": (GREETING, b"X: y\r\n"),
    "/body": (GREETING + b"Content-Length: 100000\r\n\r\n", b"x"),
    "/endless": (GREETING + b"\r\n", b"x"),
    "/chunks": (GREETING + CHUNK, b"1\r\nx\r\n"),
    "/chunk-size": (GREETING + CHUNK, b"0"),
    "/trailer": (GREETING + CHUNK + b"0\r\nX-Long: ", b"x"),
    "/trailers": (GREETING + CHUNK + b"0\r\n", b"X: y\r\n"),
    "/silent": (b"", b""),
    "/deflated": (GREETING + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x04" + bytes(6) + b"\xff\xff", b"x"),
}
"""What each page begins with, and what then drips."""


@contextmanager
def stalling_site() -> Iterator[int]:
    """The port of the server, at the loopback address."""
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_listen, args=(listening,), daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def _listen(listening: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_drip, args=(connection,), daemon=True).start()


def _drip(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        connection.settimeout(PAUSE_S)
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := connection.recv(1 << 16)):
                return
            request += data
        beginning, drop = STALLS[request.split()[1].decode()]
        connection.sendall(beginning)
        while True:
            connection.sendall(drop)
            # Until the other side has hung up; a body that is sent is not kept.
            with suppress(TimeoutError):
                while connection.recv(1 << 20):
                    pass
                return

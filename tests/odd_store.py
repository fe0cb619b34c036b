"""A small S3 store in memory that answers some requests as no store should."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATE = "Fri, 27 Nov 2026 08:00:00 GMT"
MARK = "x-amz-meta-infinitetalk-request"

Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""

Oddity = Callable[[str, str, Mapping[str, str]], Answer | None]
"""The odd answer to a request, by its method, the key and the headers; None: the right one."""


class OddStore(ThreadingHTTPServer):
    """Keeps objects in memory, and answers with `oddity` what it answers.

    Attributes:
        objects: each object's bytes and headers, by its key.
    """

    daemon_threads = True

    def __init__(self, oddity: Oddity) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.oddity = oddity
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}

    @property
    def s3_config(self) -> dict[str, str]:
        """The store as a job names it."""
        endpoint = f"http://127.0.0.1:{self.server_port}"
        return {"endpointUrl": endpoint, "accessId": "id", "accessSecret": "secret", "bucketName": "bucket"}

    def answer(self, method: str, key: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The answer to a request."""
        odd = self.oddity(method, key, headers)
        if odd is not None:
            return odd
        if method == "PUT":
            if headers.get("If-None-Match") == "*" and key in self.objects:
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
            self.objects[key] = body, {name: headers[name] for name in (MARK,) if name in headers}
            return 200, {"ETag": '"tag"'}, b""
        if method == "DELETE":
            self.objects.pop(key, None)
            return 204, {}, b""
        if key not in self.objects:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        data, marks = self.objects[key]
        facts = {"ETag": '"tag"', "Last-Modified": DATE} | marks
        if "Range" in headers:
            return 206, facts | {"Content-Range": f"bytes 0-0/{len(data)}"}, data[:1]
        return 200, facts, data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, OddStore)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, content = self.server.answer(self.command, self.path.partition("?")[0], self.headers, body)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_PUT = do_HEAD = do_DELETE = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def odd_store(oddity: Oddity) -> Iterator[OddStore]:
    """A store that runs while the context is open."""
    store = OddStore(oddity)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()

"""A network for hostile jobs inside this process: names, public addresses, servers that drip, lie and never end.

    with HostileNetwork() as network:
        …  # what this process connects to ends here
    assert not network.breaches

While it is entered, names are looked up in a table and every socket ends on the loopback address: one to `PUBLIC`
reaches its hostile servers, one to another public address finds no route, and one to an address that is not public is a
breach, which is noted and refused. So nothing leaves the machine, and what a worker may not reach is seen where its
sockets are opened, whatever parsed the address. Processes that it starts have no such bounds: for them there is
`HostileNetwork.trap`, a port on the loopback address; whoever connects to it is a breach too.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import ipaddress
import itertools
import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NoReturn, Self
from urllib.parse import parse_qs, unquote, urlsplit

from hypothesis import strategies as st

from tests.job_inputs import picture_bytes, speech_bytes

PUBLIC = "9.9.9.9"
UNREACHED = "9.9.9.10"
SITE = "site.test"

METADATA = {"192.0.0.192", "168.63.129.16"}
"""Of clouds, at addresses that are public by the registry."""

NAMES: dict[str, list[str]] = {
    SITE: [PUBLIC],
    "away.test": [UNREACHED],
    "localhost": ["127.0.0.1"],
    "loopback.test": ["127.0.0.1"],
    "private.test": ["10.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "v6.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "mixed.test": [PUBLIC, "127.0.0.1"],
}
REBINDING = "rebinding.test"
"""Public when it is first looked up, then not, in turn."""

BUSY = "busy.test"
SLOW = "slow.test"
LONGEST_S = 12.0
"""Seconds after which whatever drips or hangs here ends by itself."""

DRIP_S = 0.05
LARGEST_BYTES = 64_000_000
BLOCK = bytes(1 << 16)

REDIRECTS = (
    "/",
    "/again",
    f"http://{SITE}/",
    "http://127.0.0.1/",
    "//127.0.0.1/",
    "\\\\127.0.0.1\\",
    f"http://127.0.0.1\\@{SITE}/",
    f"http://{SITE}@127.0.0.1/",
    f"http://{REBINDING}/",
    f"http://{REBINDING}?x",
    "http://loopback.test/",
    "http://metadata.test/latest/",
    "http://2130706433/",
    "http://[::ffff:127.0.0.1]/",
    "file:///etc/passwd",
    "ftp://127.0.0.1/",
    "data:image/png;base64,AAAA",
    "http://",
    "http://[",
    "\x00",
    "\xff\xfe",
    "",
    "x" * 70_000,
)


@dataclass(frozen=True)
class Behaviour:
    """How a server answers, by the first word of each line of `CHOICES`; the defaults make a good one.

    It is told to the server by the name that it is asked under, `label`, so that an address says all.
    """

    method: str = "all"
    status: str = "200 OK"
    head: str = "plain"
    length: str = "true"
    body: str = "picture"
    pace: str = "at once"
    trailer: str = "none"
    encoding: str = "identity"
    redirect: str = REDIRECTS[0]

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "method": ("all", "PUT", "GET", "LIST", "DELETE", "HEAD", "POST"),
        "status": (
            *("200 OK", "200", "204 None", "206 Part", "301 Moved", "302 Found", "303 See", "304 Same", "307 There"),
            *("308 There", "401 Who", "403 No", "404 Not", "408 Late", "429 Slowly", "500 Oh", "503 Busy", "999 What"),
            *("-1 x", "\xff", "HTTP"),
        ),
        "head": ("plain", "drip", "endless", "silent", "long line", "many lines", "folded", "cut", "binary", "again"),
        "length": ("true", "short", "long", "none", "text", "negative", "huge", "two", "chunked", "chunked text"),
        "body": ("picture", "sound", "page", "nothing", "noise", "playlist", "list"),
        "pace": ("at once", "drip", "endless", "half", "silent"),
        "trailer": ("none", "drip", "endless"),
        "encoding": ("identity", "gzip", "bomb", "unknown", "chunked twice"),
        "redirect": REDIRECTS,
    }

    @property
    def label(self) -> str:
        """A part of a host's name that says all of it."""
        return "b" + "-".join(
            str(self.CHOICES[choice.name].index(getattr(self, choice.name))) for choice in fields(self)
        )

    @classmethod
    def from_host(cls, host: str) -> Behaviour:
        """What a host's name asks for; a good one where it asks for nothing."""
        found = re.search(rf"b(\d+(?:-\d+){{{len(cls.CHOICES) - 1}}})(?:\.|$)", host.partition(":")[0])
        if found is None:
            return cls()
        numbers = map(int, found[1].split("-"))
        return cls(
            **{name: choices[number] for (name, choices), number in zip(cls.CHOICES.items(), numbers, strict=True)}
        )


def behaviours(num_changes: int = 3) -> st.SearchStrategy[Behaviour]:
    """Servers that are bad in one way or a few."""
    changes = st.lists(
        st.sampled_from([(name, choice) for name, choices in Behaviour.CHOICES.items() for choice in choices[1:]]),
        min_size=1,
        max_size=num_changes,
    )
    return changes.map(lambda chosen: replace(Behaviour(), **dict(chosen)))


@dataclass
class Site:
    """What the hostile servers hold and have done.

    Attributes:
        objects: of stores, by host and path.
        most_sent: bytes to one client at most.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    most_sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class HostileServer(socketserver.BaseRequestHandler):
    """One connection, which answers one request."""

    site: ClassVar[Site]
    bodies: ClassVar[dict[str, bytes]] = {
        "picture": picture_bytes(),
        "sound": speech_bytes(0.3),
        "page": b"<!doctype html><html><body>Sign in</body></html>",
        "nothing": b"",
        "noise": hashlib.shake_128(b"noise").digest(5000),
        "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n",
        "list": b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        b"<Contents><Key>x</Key><LastModified>2020-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>",
    }

    def handle(self) -> None:
        self.sent = 0
        self.end = time.monotonic() + LONGEST_S
        self.request.settimeout(LONGEST_S)
        # A client that has had enough hangs up.
        with suppress(OSError):
            self.answer()
        with self.site.lock:
            self.site.most_sent = max(self.site.most_sent, self.sent)

    def answer(self) -> None:
        """Reads a request's head and answers as the host that it names."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 1_000_000:
            if not (block := self.request.recv(1 << 16)):
                return None
            head += block
        head, _, rest = head.partition(b"\r\n\r\n")
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, _, target = request.partition(" ")
        behaviour = Behaviour.from_host(headers.get("host", ""))
        place = headers.get("host", "") + unquote(urlsplit(target.rpartition(" ")[0]).path)
        query = parse_qs(urlsplit(target.rpartition(" ")[0]).query)
        if method == "GET" and "list-type" in query:
            method = "LIST"
        if behaviour.method == "all" and (behaviour != Behaviour() or "store" not in place):
            return self.misbehave(behaviour)
        if behaviour.method == method:
            return self.misbehave(behaviour)
        if headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(rest) < int(headers.get("content-length", 0)):
            if not (block := self.request.recv(1 << 16)):
                return None
            rest += block
        return self.store(method, place, rest, headers)

    def store(self, method: str, place: str, data: bytes, headers: dict[str, str]) -> None:
        """A small store as S3 is, for the requests in which it is good."""
        objects = self.site.objects
        there = objects.get(place)
        status, body = "200 OK", b""
        match method:
            case "PUT" if headers.get("if-none-match") == "*" and there is not None:
                status = "412 Precondition Failed"
            case "PUT":
                objects[place] = data
            case "DELETE":
                objects.pop(place, None)
                status = "204 No Content"
            case "LIST":
                body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            case _ if there is None:
                status, body = "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"
            case _:
                body = there
        lines = [
            f"HTTP/1.1 {status}",
            f'ETag: "{hashlib.md5(objects.get(place, b"")).hexdigest()}"',
            "Connection: close",
        ]
        lines += [f"Content-Length: {len(body)}"] if status[:3] != "204" else []
        self.send("\r\n".join([*lines, "", ""]).encode() + (body if method != "HEAD" else b""))

    def misbehave(self, behaviour: Behaviour) -> None:
        """The answer of a bad server, in order: head, body, trailers."""
        body = self.bodies[behaviour.body]
        match behaviour.encoding:
            case "gzip":
                body = gzip.compress(body)
            case "bomb":
                body = gzip.compress(bytes(20_000_000))
        lines = self.head_lines(behaviour, body)
        match behaviour.head:
            case "drip":
                for letter in lines:
                    self.pause()
                    self.send(letter.encode("latin-1"))
            case "endless":
                self.send(f"{lines}X: ".encode("latin-1"))
                self.flood()
            case "silent":
                self.hang()
            case "cut":
                self.send(lines.encode("latin-1")[: len(lines) // 2])
                return
        self.send(f"{lines}\r\n".encode("latin-1"))
        is_chunked = behaviour.length.startswith("chunked")
        match behaviour.pace:
            case "at once":
                self.send(b"%x\r\n%s\r\n" % (len(body), body) if is_chunked and body else body)
            case "drip":
                for byte in itertools.islice(itertools.cycle(body or b"x"), 10_000):
                    self.pause()
                    self.send(b"1\r\n%c\r\n" % byte if is_chunked else b"%c" % byte)
            case "endless":
                self.flood(b"10000\r\n%s\r\n" % BLOCK if is_chunked else BLOCK)
            case "half":
                self.send(body[: len(body) // 2])
                return
            case "silent":
                self.send(body[: len(body) // 2])
                self.hang()
        if is_chunked:
            self.send(b"zz\r\n" if behaviour.length == "chunked text" else b"0\r\n")
            match behaviour.trailer:
                case "drip":
                    for number in range(10_000):
                        self.pause()
                        self.send(b"X-%d: x\r\n" % number)
                case "endless":
                    self.flood(b"X: x\r\n" * 1000)
            self.send(b"\r\n")

    def head_lines(self, behaviour: Behaviour, body: bytes) -> str:
        """Status and headers, without the empty line."""
        lengths = {
            "true": [f"Content-Length: {len(body)}"],
            "short": [f"Content-Length: {len(body) // 2}"],
            "long": [f"Content-Length: {len(body) + 1000}"],
            "none": [],
            "text": ["Content-Length: many"],
            "negative": ["Content-Length: -1"],
            "huge": [f"Content-Length: {10**30}"],
            "two": [f"Content-Length: {len(body)}", "Content-Length: 5"],
        }
        heads = {
            "long line": ["X: " + "x" * 100_000],
            "many lines": [f"X-{number}: x" for number in range(1000)],
            "folded": ["X: x", "  y", " z"],
            "binary": ["\x00\xff: \x01", ": ", "no colon"],
            "again": ["", f"HTTP/1.1 {behaviour.status}"],
        }
        encodings = {
            "gzip": ["Content-Encoding: gzip"],
            "bomb": ["Content-Encoding: gzip"],
            "unknown": ["Content-Encoding: zork"],
            "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        }
        lines = [f"HTTP/1.1 {behaviour.status}", "Connection: close"]
        if behaviour.status.startswith("30"):
            lines.append(f"Location: {behaviour.redirect}")
        lines += heads.get(behaviour.head, [])
        lines += encodings.get(behaviour.encoding, [])
        lines += lengths.get(behaviour.length, ["Transfer-Encoding: chunked"])
        return "\r\n".join([*lines, ""])

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self.request.sendall(data)
        self.sent += len(data)

    def flood(self, block: bytes = BLOCK) -> None:
        """Sends without end, until the client hangs up or it is too much."""
        while self.sent < LARGEST_BYTES and time.monotonic() < self.end:
            self.send(block)

    def pause(self) -> None:
        """Waits before the next drip.

        Raises:
            TimeoutError: it has gone on for long enough.
        """
        if time.monotonic() > self.end:
            raise TimeoutError
        time.sleep(DRIP_S)

    def hang(self) -> None:
        """Waits until the client hangs up."""
        self.request.settimeout(max(self.end - time.monotonic(), 0.01))
        while self.request.recv(1 << 16):
            pass


class Trap(socketserver.BaseRequestHandler):
    """A port that nobody may connect to."""

    breaches: ClassVar[list[str]]

    def handle(self) -> None:
        Trap.breaches.append("the trap, from another process")


class LoopbackServer(socketserver.ThreadingTCPServer):
    """A server on a free port, whose threads end with the process."""

    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a client that hung up."""


class HostileNetwork:
    """See the module.

    Attributes:
        breaches: what was connected to and must not be.
        site: what its servers hold and have done.
    """

    def __init__(self) -> None:
        self.breaches: list[str] = []
        self.site = Site()
        self._num_lookups = itertools.count()

    @property
    def trap(self) -> str:
        """Host and port that nobody may connect to."""
        return f"127.0.0.1:{self._trap.server_address[1]}"

    def __enter__(self) -> Self:
        HostileServer.site, Trap.breaches = self.site, self.breaches
        self._server = LoopbackServer(("127.0.0.1", 0), HostileServer)
        self._trap = LoopbackServer(("127.0.0.1", 0), Trap)
        for server in (self._server, self._trap):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._originals = (socket.socket.connect, socket.getaddrinfo)
        network, (connect, getaddrinfo) = self, self._originals

        def connect_here(opened: socket.socket, address: Any) -> None:
            if opened.family not in (socket.AF_INET, socket.AF_INET6):
                return connect(opened, address)
            if network.is_site(str(address[0])):
                return connect(opened, network._server.server_address)
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

        def look_up(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> list[Any]:
            name = host.decode() if isinstance(host, bytes) else host
            addresses = network.addresses_of(name) or [name]
            found: list[Any] = []
            for address in addresses:
                found += getaddrinfo(address, port, family, type, proto, flags | socket.AI_NUMERICHOST)
            return found

        socket.socket.connect = connect_here
        socket.getaddrinfo = look_up
        return self

    def __exit__(self, *_: object) -> None:
        socket.socket.connect, socket.getaddrinfo = self._originals
        for server in (self._server, self._trap):
            server.shutdown()
            server.server_close()

    def is_site(self, address: str) -> bool:
        """Whether what is connected to is the site; a breach, if it is no public address, is noted.

        Raises:
            OSError: it is a breach.
        """
        try:
            place = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            self._breach(f"a name that was not looked up: {address!r}")
        if isinstance(place, ipaddress.IPv6Address) and place.ipv4_mapped:
            place = place.ipv4_mapped
        if not place.is_global or str(place) in METADATA:
            self._breach(f"{address}, which is not public")
        return str(place) == PUBLIC

    def addresses_of(self, name: str | None) -> list[str]:
        """What a name stands for; nothing where it may be a number.

        Raises:
            socket.gaierror: the name server does not answer.
        """
        name = (name or "").lower().removesuffix(".")
        if name == BUSY:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if name == SLOW:
            time.sleep(LONGEST_S)
            return [PUBLIC]
        if name == REBINDING:
            return [PUBLIC if next(self._num_lookups) % 2 == 0 else "127.0.0.1"]
        return [PUBLIC] if name.endswith(f".{SITE}") else NAMES.get(name, [])

    def _breach(self, what: str) -> NoReturn:
        self.breaches.append(what)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    def take_breaches(self) -> Iterator[str]:
        """Those that have been noted since they were taken last."""
        while self.breaches:
            yield self.breaches.pop()

"""Requests to addresses that a job names: to public ones only, straight to what was checked, and only for so long.

There is one parser of addresses, urllib3's, and one place where a socket is opened, `open_public`. What a name stands
for is looked up there, checked, and connected to; no proxy, cache or adapter comes between.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any, Self, TypeVar
from urllib.parse import quote, urljoin
from weakref import WeakKeyDictionary

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from runpod.serverless.utils.rp_ssrf import SSRFError, _ssrf_protection_enabled, is_safe_address
from runpod.user_agent import USER_AGENT
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NewConnectionError
from urllib3.util import Url, parse_url

from infinitetalk.errors import GenerationStopped
from schemas import check_address

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
STOP_POLL_S = 0.1

NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            # Metadata of Oracle's cloud, and the host of Azure's.
            "192.0.0.0/24",
            "168.63.129.16/32",
            # 6to4, which holds an IPv4 address; networks of a site; documentation.
            "2002::/16",
            "fec0::/10",
            "3fff::/20",
        ),
    )
)
"""Networks that the SDK's check takes for public."""

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

T = TypeVar("T")

OnBytes = Callable[[int, int | None], None]
"""Told how many bytes have been moved, and of how many where that is known."""


class TimeIsOver(Exception):
    """A transfer took longer than it may."""


class Watch:
    """How long transfers may take, and who may stop them before.

    Inside `within` a thread looks ten times a second, and shuts the sockets given to it once a transfer has to end.
    Whatever the transfer waits for then ends at once: a connection, headers, trailers, a body that drips. The timeout
    of a socket does not end what drips.

    Args:
        time_limit_s: seconds from now on.
        should_stop: asked by a thread of its own.
        clean_s: seconds after a stop for requests that remove things.
    """

    def __init__(
        self,
        time_limit_s: float = math.inf,
        should_stop: Callable[[], bool] = lambda: False,
        clean_s: float = 0.0,
    ) -> None:
        self._end = time.monotonic() + time_limit_s
        self._end_of_cleaning = math.inf
        self._should_stop = should_stop
        self._clean_s = clean_s
        self._is_watching = False
        self._lock = threading.Lock()
        self._open: WeakKeyDictionary[Any, socket.socket] = WeakKeyDictionary()
        self._closed: list[socket.socket] = []

    @contextmanager
    def within(self, seconds: float = math.inf) -> Iterator[Self]:
        """Lets all transfers inside take so many seconds together, or fewer where the watch has fewer left."""
        before = self._end
        self._end = min(before, time.monotonic() + seconds)
        try:
            with nullcontext() if self._is_watching else self._watching():
                yield self
        finally:
            self._end = before

    def forget_stop(self) -> None:
        """From now on nobody stops a transfer."""
        self._should_stop = lambda: False

    def check(self, removes: bool = False) -> None:
        """Ends a transfer that has to end.

        Args:
            removes: whether the transfer removes something, as it may also after a stop.

        Raises:
            GenerationStopped: `should_stop` said so.
            TimeIsOver: it did not end in time.
        """
        if not removes and self._should_stop():
            raise GenerationStopped
        if self._is_over():
            raise TimeIsOver

    def sleep(self, seconds: float) -> None:
        """Waits.

        Raises:
            GenerationStopped, TimeIsOver: as `check`.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, STOP_POLL_S))

    def keep(self, connection: Any, opened: socket.socket) -> None:
        """Takes the socket of a connection to be shut: by a duplicate, since TLS takes the socket itself away."""
        with self._lock:
            before = self._open.pop(connection, None)
            self._open[connection] = opened.dup()
        if before is not None:
            before.close()

    def forget(self, connection: Any) -> None:
        """The connection is closed; the body of its last answer may still be read."""
        with self._lock:
            handle = self._open.pop(connection, None)
            if handle is not None and self._is_watching:
                self._closed.append(handle)
                return
        if handle is not None:
            handle.close()

    def wait_for(self, work: Callable[[], T]) -> T:
        """What `work` returns. It has a thread of its own, which is left behind where it does not end: nothing can
        interrupt a question to a name server, but the system gives up asking after some seconds.

        Raises:
            GenerationStopped, TimeIsOver: as `check`.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="lookup", daemon=True).start()
        while not wait([future], timeout=STOP_POLL_S).done:
            self.check()
        return future.result()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        ended = threading.Event()
        # What begins after a stop removes things.
        was_stopped = self._should_stop()
        thread = threading.Thread(target=self._look, args=(ended, was_stopped), name="watch", daemon=True)
        self._is_watching = True
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._end_of_cleaning = math.inf
            with self._lock:
                self._is_watching = False
                handles, self._closed = self._closed, []
            for handle in handles:
                handle.close()

    def _look(self, ended: threading.Event, was_stopped: bool) -> None:
        while not ended.wait(STOP_POLL_S):
            if not was_stopped and self._should_stop():
                was_stopped = True
                self._end_of_cleaning = time.monotonic() + self._clean_s
                self._shut_down()
            if self._is_over():
                self._shut_down()

    def _is_over(self) -> bool:
        return time.monotonic() > min(self._end, self._end_of_cleaning)

    def _shut_down(self) -> None:
        with self._lock:
            for handle in (*self._open.values(), *self._closed):
                # The other side may have closed it.
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, and to no service of the machine's own surroundings."""
    return is_safe_address(address) and not any(ip_address(address) in network for network in NOT_PUBLIC)


def look_up(host: str, port: int, watch: Watch) -> list[tuple[Any, ...]]:
    """Where a host's sockets are, as `socket.getaddrinfo` says; each is public.

    Raises:
        SSRFError: one is not, or there is none.
        GenerationStopped, TimeIsOver: as `Watch.check`.
    """
    try:
        places = watch.wait_for(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (socket.gaierror, UnicodeError) as error:
        raise SSRFError("the host has no address") from error
    if _ssrf_protection_enabled() and not all(is_public(str(place[4][0])) for place in places):
        raise SSRFError("the host has an address that is not public")
    return places


def check_public(address: str, watch: Watch) -> None:
    """Looks whether an address is well formed, and its host public.

    Raises:
        ValueError: it is not, by `check_address`, whose words a client may read.
        SSRFError: its host has no address, or one that is not public.
        GenerationStopped, TimeIsOver: as `Watch.check`.
    """
    url = parse_url(check_address(address))
    look_up((url.host or "").strip("[]"), _port_of(url), watch)


def _port_of(url: Url) -> int:
    """Never left open: http.client would look for it in the host, an IPv6 address perhaps."""
    return url.port or (443 if url.scheme == "https" else 80)


def open_public(connection: Any, watch: Watch, on_socket: Callable[[socket.socket], None]) -> socket.socket:
    """A socket to a connection's host, at an address that is public: what was checked is what is connected to.

    Args:
        connection: one of urllib3's.
        watch: ends the look-up of the host.
        on_socket: told of each socket before it is connected.

    Raises:
        SSRFError: the host has no address, or one that is not public.
        NewConnectionError, ConnectTimeoutError: none of its addresses can be reached.
        GenerationStopped, TimeIsOver: as `Watch.check`.
    """
    failure: OSError | None = None
    for family, kind, protocol, _, place in look_up(connection._dns_host, connection.port, watch):
        watch.check()
        try:
            opened = socket.socket(family, kind, protocol)
        except OSError as error:
            # A family that this machine does not have.
            failure = error
            continue
        try:
            for option in connection.socket_options or ():
                opened.setsockopt(*option)
            opened.settimeout(connection.timeout)
            on_socket(opened)
            opened.connect(place)
        except OSError as error:
            opened.close()
            failure = error
        else:
            return opened
    watch.check()
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, "the host did not take the connection in time") from failure
    raise NewConnectionError(connection, "the host did not take the connection") from failure


class PublicConnection:
    """What makes one of urllib3's connections lead to public addresses only, and lets a watch shut its socket.

    Attributes:
        watch: of the connection, set by `public_class`.
    """

    watch: Watch

    def _new_conn(self) -> socket.socket:
        return open_public(self, self.watch, partial(self.watch.keep, self))

    def close(self) -> None:
        """Closes the connection."""
        super().close()  # type: ignore[misc]
        self.watch.forget(self)


def public_class(kind: type[Any], watch: Watch, mixin: type[PublicConnection] = PublicConnection) -> type[Any]:
    """A class of connections like `kind`, to public addresses only.

    Args:
        watch: may shut their sockets.
    """
    return type(f"Public{kind.__name__}", (mixin, kind), {"watch": watch})


@contextmanager
def send(
    method: str,
    address: str,
    watch: Watch,
    timeouts: tuple[float, float],
    headers: Mapping[str, str],
    body: Any = None,
) -> Iterator[BaseHTTPResponse]:
    """The answer to one request, whose body is not read yet; a redirect is not followed.

    Args:
        watch: inside its `within`.
        timeouts: seconds to connect, and seconds of silence.
        body: bytes, or what yields them.

    Raises:
        ValueError: `check_address` does not take the address; a client may read why.
        SSRFError: its host has no address, or one that is not public.
        urllib3.exceptions.HTTPError: the address did not answer, or the watch has shut it: `Watch.check` tells which.
        GenerationStopped, TimeIsOver: as `Watch.check`.
    """
    url = parse_url(check_address(address))
    assert url.host is not None
    pool: HTTPConnectionPool
    if url.scheme == "https":
        certificates = os.environ.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
        pool = HTTPSConnectionPool(url.host, _port_of(url), ca_certs=certificates)
    else:
        pool = HTTPConnectionPool(url.host, _port_of(url))
    pool.ConnectionCls = public_class(pool.ConnectionCls, watch)
    with pool:
        answer = pool.urlopen(
            method,
            url.request_uri,
            body=body,
            headers={"User-Agent": USER_AGENT, **headers},
            timeout=Timeout(connect=timeouts[0], read=timeouts[1]),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            # Headers end in the same way where they were shut.
            watch.check()
            yield answer
        finally:
            answer.close()


@contextmanager
def get(
    address: str, watch: Watch, timeouts: tuple[float, float], headers: Mapping[str, str]
) -> Iterator[BaseHTTPResponse]:
    """The answer to a GET, through redirects, each of which must lead to a public address as well.

    Raises:
        As `send`; SSRFError also where redirects do not end, or lead to no address.
    """
    for _ in range(MAX_REDIRECTS + 1):
        with send("GET", address, watch, timeouts, headers) as answer:
            if answer.status not in REDIRECTS:
                yield answer
                return
            location = answer.headers.get("Location", "")
        address = redirected(address, location)
    raise SSRFError("the address redirects too often")


def redirected(address: str, location: str) -> str:
    """The address that a redirect leads to.

    Servers write it less well than jobs do: what is no plain ASCII is percent-encoded first.

    Raises:
        SSRFError: it is no address that `check_address` takes.
    """
    if any(letter < " " or letter in "\\\x7f" for letter in location):
        raise SSRFError("the address redirects to what is no address")
    plain = quote(location.encode("latin-1", "replace"), safe=_PRINTABLE)
    try:
        return check_address(parse_url(urljoin(address, plain)).url)
    except (LocationParseError, ValueError) as error:
        raise SSRFError("the address redirects to what is no address") from error

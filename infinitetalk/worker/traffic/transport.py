"""Requests to addresses that a job names: to public addresses only, directly to the checked one, with a time limit.

There is one parser of addresses, urllib3's, and one place where a socket is opened, `open_public`. It looks up a name's
addresses, checks them, and connects to one of them; no proxy, cache or adapter comes between.
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
            # Metadata service of Oracle's cloud, and host of Azure's.
            "192.0.0.0/24",
            "168.63.129.16/32",
            # 6to4, which contains an IPv4 address; site-local networks; documentation.
            "2002::/16",
            "fec0::/10",
            "3fff::/20",
        ),
    )
)
"""Networks that are not public although the SDK's check accepts them."""

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

T = TypeVar("T")

OnBytes = Callable[[int, int | None], None]
"""Takes the number of bytes transferred so far, and the total if it is known."""


class TimeIsOver(Exception):
    """A transfer exceeded its time limit."""


class Watch:
    """The time limit of transfers, and a way to stop them.

    Inside `within`, a thread checks ten times a second and shuts the registered sockets once a transfer has to end.
    This ends any wait at once: for a connection, headers, trailers, or a body that arrives byte by byte, which a
    socket's timeout would not end.

    Args:
        time_limit_s: time limit in seconds from now on.
        should_stop: is asked by that thread and by `check`.
        clean_s: time limit in seconds, after a stop, of requests that remove objects.
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
        """Limits the total time of all transfers inside to `seconds`, or to the watch's remaining time if less."""
        before = self._end
        self._end = min(before, time.monotonic() + seconds)
        try:
            with nullcontext() if self._is_watching else self._watching():
                yield self
        finally:
            self._end = before

    def forget_stop(self) -> None:
        """Ignores stops from now on."""
        self._should_stop = lambda: False

    def check(self, removes: bool = False) -> None:
        """Raises if a transfer has to end.

        Args:
            removes: whether the transfer removes an object, which is also allowed after a stop.

        Raises:
            GenerationStopped: `should_stop` returned true.
            TimeIsOver: the time limit is reached.
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
        """Registers a connection's socket by a duplicate, since TLS detaches the socket itself."""
        with self._lock:
            before = self._open.pop(connection, None)
            self._open[connection] = opened.dup()
        if before is not None:
            before.close()

    def forget(self, connection: Any) -> None:
        """Takes note that the connection is closed; the body of its last answer may still be read."""
        with self._lock:
            handle = self._open.pop(connection, None)
            if handle is not None and self._is_watching:
                self._closed.append(handle)
                return
        if handle is not None:
            handle.close()

    def wait_for(self, work: Callable[[], T]) -> T:
        """Runs `work` in a separate thread and returns its result. After a stop the thread is left behind: a name
        server's look-up cannot be interrupted, but the system gives it up after some seconds.

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
        # Transfers that begin after a stop only remove objects.
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
                # The other side may have closed it already.
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet and not to a service of the machine's own cloud."""
    if not is_safe_address(address):
        return False
    parsed = ip_address(address)
    # A connection to an IPv4-mapped address goes to the IPv4 address.
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return not any(parsed in network for network in NOT_PUBLIC)


def look_up(host: str, port: int, watch: Watch) -> list[tuple[Any, ...]]:
    """A host's addresses as returned by `socket.getaddrinfo`; all of them are public.

    Raises:
        SSRFError: an address is not public, or there is none.
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
    """Checks that an address is well formed and its host is public.

    Raises:
        ValueError: `check_address` refuses the address; the message may be shown to a client.
        SSRFError: its host has no address, or one that is not public.
        GenerationStopped, TimeIsOver: as `Watch.check`.
    """
    url = parse_url(check_address(address))
    look_up((url.host or "").strip("[]"), _port_of(url), watch)


def _port_of(url: Url) -> int:
    """The port of a URL, always explicit: http.client would look for it in the host, which may be an IPv6 address."""
    return url.port or (443 if url.scheme == "https" else 80)


def open_public(connection: Any, watch: Watch, on_socket: Callable[[socket.socket], None]) -> socket.socket:
    """A socket that is connected to a public address of a connection's host, the same one that was checked.

    Args:
        connection: a connection of urllib3.
        watch: ends the look-up of the host.
        on_socket: takes each socket before it is connected.

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
            # This machine does not support the address family.
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
    """A mixin that restricts a connection of urllib3 to public addresses and lets a watch shut its socket.

    Attributes:
        watch: the connection's watch, set by `public_class`.
    """

    watch: Watch

    def _new_conn(self) -> socket.socket:
        return open_public(self, self.watch, partial(self.watch.keep, self))

    def close(self) -> None:
        """Closes the connection."""
        super().close()  # type: ignore[misc]
        self.watch.forget(self)


def public_class(kind: type[Any], watch: Watch, mixin: type[PublicConnection] = PublicConnection) -> type[Any]:
    """A subclass of the connection class `kind` that is restricted to public addresses.

    Args:
        watch: may shut the connections' sockets.
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
    """The answer to one request, with its body not yet read; a redirect is not followed.

    Args:
        watch: a watch that is inside its `within`.
        timeouts: seconds to connect, and seconds of silence.
        body: bytes, or an iterable of bytes.

    Raises:
        ValueError: `check_address` refuses the address; the message may be shown to a client.
        SSRFError: its host has no address, or one that is not public.
        urllib3.exceptions.HTTPError: the address did not answer, or the watch has shut the socket; `Watch.check` raises
            in the second case.
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
            # Headers end in the same way if the watch has shut the socket.
            watch.check()
            yield answer
        finally:
            answer.close()


@contextmanager
def get(
    address: str, watch: Watch, timeouts: tuple[float, float], headers: Mapping[str, str]
) -> Iterator[BaseHTTPResponse]:
    """The answer to a GET, with redirects followed; each of them must also lead to a public address.

    Raises:
        As `send`; also SSRFError if there are too many redirects, or one does not lead to a valid address.
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

    Servers are less strict than jobs: all characters but plain ASCII are percent-encoded first.

    Raises:
        SSRFError: `check_address` refuses the address.
    """
    if any(letter < " " or letter in "\\\x7f" for letter in location):
        raise SSRFError("the address redirects to an invalid address")
    plain = quote(location.encode("latin-1", "replace"), safe=_PRINTABLE)
    try:
        return check_address(parse_url(urljoin(address, plain)).url)
    except (LocationParseError, ValueError) as error:
        raise SSRFError("the address redirects to an invalid address") from error

"""No spelling of an internal address reaches it, wherever a job names one; and what is right arrives unchanged."""

import http.server
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.traffic import transport
from infinitetalk.worker.traffic.fetch import Wanted, fetch_all
from infinitetalk.worker.traffic.transport import is_public
from schemas import ErrorCode, OutputConfig
from tests.job_inputs import data_uri, picture_bytes, small_job
from tests.local_jobs import LocalWorker
from tests.serving import serving

PICTURE = picture_bytes()

INTERNAL_NAMES = {
    "internal.test": ["127.0.0.1"],
    "six.test": ["::1"],
    "both.test": ["1.1.1.1", "127.0.0.1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "6to4.test": ["2002:7f00:1::1"],
    "site-local.test": ["fec0::1"],
    "unspecified.test": ["0.0.0.0"],
    "metadata.test": ["169.254.169.254"],
}
"""Names and what the name server of these tests says of them."""

SPELLINGS = (
    # Two parsers, two hosts.
    "http://127.0.0.1:{port}\\@8.8.8.8/latest/api/token",
    "http://127.0.0.1:{port}\\@8.8.8.8:80/",
    "http://8.8.8.8\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@8.8.8.8/",
    "http://127.0.0.1:{port}?@8.8.8.8/",
    "http://8.8.8.8@127.0.0.1:{port}/",
    "http://8.8.8.8:80@127.0.0.1:{port}/",
    "http://user:password@127.0.0.1:{port}/",
    "http://8.8.8.8#@127.0.0.1:{port}/\\",
    "http://127.0.0.1:{port}/\\../8.8.8.8",
    "http://127.0.0.1:{port};@8.8.8.8/",
    "http://127.0.0.1:{port}&@8.8.8.8/",
    "http://8.8.8.8 @127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "http:/\\127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    # No path, a query or a fragment right after the host.
    "http://127.0.0.1:{port}",
    "http://127.0.0.1:{port}?x",
    "http://127.0.0.1:{port}#x",
    "http://127.0.0.1:{port}?x=[1]",
    "http://127.0.0.1:{port}/%7e",
    "http://127.0.0.1:{port}/é",
    "http://127.0.0.1:{port}/a/../b",
    # White space and control characters.
    "http://127.0.0.1:{port}/ x",
    "http://127.0.0.1 :{port}/",
    "http://\t127.0.0.1:{port}/",
    "http://127.0.\n0.1:{port}/",
    "ht\ntp://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: 8.8.8.8",
    "http://127.0.0.1\0.8.8.8.8:{port}/",
    "http://127.0.0.1:{port}\u00a0@8.8.8.8/",
    "\x1fhttp://127.0.0.1:{port}/",
    # Schemes.
    "HTTP://127.0.0.1:{port}/",
    "hTTp://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "HtTpS://127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    # IPv4 in other forms.
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0X7F.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0x7f.0x0.0x0.0x1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.255.255.254:{port}/",
    "http://10.0.0.1:{port}/",
    "http://172.31.255.255:{port}/",
    "http://192.168.0.1:{port}/",
    "http://100.100.100.200:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/latest/meta-data/",
    "http://0251.0376.0251.0376/",
    "http://192.0.0.192/opc/v2/instance/",
    "http://168.63.129.16/machine",
    # IPv6.
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[0000::0001]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::FFFF:7f00:1]:{port}/",
    "http://[::ffff:168.63.129.16]/machine",
    "http://[::ffff:c000:c0]/opc/v2/instance/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[fe80::1%lo]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fec0::1]:{port}/",
    "http://[fd00:ec2::254]/",
    # Letters that become others.
    "http://１２７.０.０.１:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "http://ｌｏｃａｌｈｏｓｔ:{port}/",
    "http://loc\u00adalhost:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    "http://localhos%74:{port}/",
    "http://127.0.0.1%2f@8.8.8.8:{port}/",
    # Names.
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    *(f"http://{name}:{{port}}/" for name in INTERNAL_NAMES),
    "http://INTERNAL.test:{port}/",
    # Ports that are read in two ways.
    "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1:0{port}/",
    "http://127.0.0.1:{port}abc/",
)
"""Of internal addresses, and of what might be taken for one; `port` is that of a server at the loopback addresses."""

RELATIVE = ("http:///", "http:/1", "http:1")
"""Beginnings that, in a redirect, mean the redirecting host itself."""

PUT_FIELDS = [name for name in OutputConfig.model_fields if name.endswith("_url")]
PLACES = ("media", "redirect", "s3Config.endpointUrl", *PUT_FIELDS)
"""Wherever a job names an address: "media" are all of them at once, and a redirect is one that somebody else names."""


class Canary:
    """Listens where nothing may call, at both loopback addresses; counts those that do."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        # Not every machine has the other one.
        with suppress(OSError):
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listening in self._sockets:
            threading.Thread(target=self._listen, args=(listening,), daemon=True).start()

    def _listen(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                self.num_calls += 1
                connection.close()

    def close(self) -> None:
        for listening in self._sockets:
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()


class Site(http.server.BaseHTTPRequestHandler):
    """A public site: a picture, a page, and redirects to wherever `target` says."""

    target = ""

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/redirect" else 200)
        if self.path == "/redirect":
            # Raw, as servers may write it.
            self._headers_buffer.append(b"Location: " + Site.target.encode("utf-8", "surrogateescape") + b"\r\n")
            self.end_headers()
            return
        page = b"\xef\xbb\xbf \n<!DOCTYPE HTML><title>Shared file</title>"
        body = page if self.path == "/page" else PICTURE
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Seen", f"{self.headers['Host']} {self.path}")
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            super().handle()

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[http.server.ThreadingHTTPServer]:
    with serving(Site) as server:
        yield server


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that knows `INTERNAL_NAMES`; "public.test" is this machine, and counts as public."""
    ask, look_up = socket.getaddrinfo, transport.look_up

    def answer(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        name = (host or "").lower().rstrip(".")
        if name in INTERNAL_NAMES:
            families = {4: socket.AF_INET, 6: socket.AF_INET6}
            return [
                (families[ip_address(number).version], socket.SOCK_STREAM, 6, "", (number, port))
                for number in INTERNAL_NAMES[name]
            ]
        if name == "localhost":
            return ask(host, port, *arguments, **options)
        return ask(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    def look_up_public(host: str, port: int, watch: transport.Watch) -> list[tuple[Any, ...]]:
        if host != "public.test":
            return look_up(host, port, watch)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(transport, "look_up", look_up_public)


def job_that_names(address: str, place: str, site: str) -> dict[str, Any]:
    """A job with the address in that place, and another address that is right where it needs one more."""
    job: dict[str, Any] = {"id": "job-1", "input": small_job()}
    match place:
        case "media" | "redirect":
            Site.target = address
            medium = f"{site}/redirect" if place == "redirect" else address
            job["input"] |= {"cond_video": medium, "cond_audio": {"person1": medium}, "mask": {"person1": medium}}
        case "s3Config.endpointUrl":
            job["input"]["output_config"] = {"store": "s3"}
            job["s3Config"] = {"endpointUrl": address, "accessId": "i", "accessSecret": "s", "bucketName": "bucket"}
        case _:
            addresses = dict.fromkeys(PUT_FIELDS, f"{site}/put") | {place: address}
            job["input"]["output_config"] = {"store": "put", **addresses}
    return job


@pytest.mark.parametrize("spelling", SPELLINGS, ids=ascii)
def test_no_spelling_of_an_internal_address_reaches_it(
    spelling: str, local_worker: LocalWorker, canary: Canary, site: Any, names: None
):
    public = f"http://public.test:{site.server_port}"
    address = spelling.format(port=canary.port)
    for place in PLACES:
        if place == "redirect" and "\n" in address:
            continue
        result = local_worker.run(job_that_names(address, place, public))
        error = result["error"]
        if place == "redirect" and address.startswith(RELATIVE):
            # A picture, which is no sound.
            assert (error["message"][:20], canary.num_calls) == ("cond_audio.person1 m", 0)
            continue
        assert error["code"] in (ErrorCode.INPUT_VALIDATION, ErrorCode.DOWNLOAD_FAILED), place
        assert (error["retryable"], canary.num_calls) == (False, 0), place
        assert any(name in error["message"] for name in (place, "cond_video", "cond_audio.person1", "mask.person1"))
        assert "127.0.0.1" not in error["message"]


def test_there_are_enough_spellings():
    assert len(set(SPELLINGS)) == len(SPELLINGS) >= 60


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1\\@8.8.8.8/", r"must not hold '\\\\'"),
        ("http://8.8.8.8/a b", "must not hold ' '"),
        ("http://8.8.8.8/\x7f", "must not hold"),
        ("http://bücher.example/", r"must not hold '\\xfc'.*xn--"),
        ("http://u:p@8.8.8.8/", "must not hold a user name or password"),
        ("http://8.8.8.8/[1]", "must be written as it is sent"),
        ("http://8.8.8.8/" + "x" * 8192, "must have at most 8192 characters"),
    ],
)
def test_a_refusal_says_what_is_wrong_with_the_spelling(address: str, words: str, local_worker: LocalWorker):
    for place in ("media", "s3Config.endpointUrl", *PUT_FIELDS):
        error = local_worker.run(job_that_names(address, place, "http://8.8.8.8"))["error"]
        name = {"media": "cond_video: the address"}.get(place, place)
        assert re.search(f"{re.escape(name)}.* {words}", error["message"])


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
        ("2002:808:808::", False),
        ("fec0::1", False),
        ("3fff::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:168.63.129.16", False),
        ("::ffff:192.0.0.192", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_services_of_clouds_and_networks_within_networks_are_not_public(address: str, is_one: bool):
    assert is_public(address) is is_one


def fetched(source: str, tmp_path: Path) -> bytes:
    media = fetch_all({"cond_video": Wanted(source, ("image",))}, tmp_path, Settings(download_attempts=1))
    return media["cond_video"].path.read_bytes()


@pytest.mark.parametrize(
    "spelling",
    [
        "http://public.test:{port}/picture",
        "HTTP://Public.TEST:{port}/picture",
        "http://public.test:{port}",
        "http://public.test:{port}?key=%3d%3D#t=10",
        "  http://public.test:{port}/picture\r\n\t",
    ],
)
def test_what_means_the_same_to_everyone_is_fetched(spelling: str, site: Any, names: None, tmp_path: Path, monkeypatch):
    # Names are the same in every case.
    look_up = transport.look_up
    monkeypatch.setattr(transport, "look_up", lambda host, port, watch: look_up(host.lower(), port, watch))
    assert fetched(spelling.format(port=site.server_port), tmp_path) == PICTURE


def test_white_space_around_a_data_uri_and_an_address_to_write_to_does_not_count(local_worker: LocalWorker, tmp_path):
    assert fetched(f" \n{data_uri(PICTURE, 'image/png')}\n ", tmp_path) == PICTURE
    config = OutputConfig.model_validate({"store": "put"} | dict.fromkeys(PUT_FIELDS, " https://example.com/x \n"))
    assert {getattr(config, name) for name in PUT_FIELDS} == {"https://example.com/x"}


@pytest.mark.parametrize("location", ["/bücher/a b.png", "picture", "//public.test:{port}/x", "?x=[1]", "/a/../b"])
def test_a_redirect_may_be_written_as_servers_do(location: str, site: Any, names: None, tmp_path: Path):
    Site.target = location.format(port=site.server_port)
    assert fetched(f"http://public.test:{site.server_port}/redirect", tmp_path) == PICTURE


def test_a_web_page_in_place_of_a_file_is_called_one(local_worker: LocalWorker, site: Any, names: None):
    job = {"id": "job-1", "input": small_job(cond_video=f"http://public.test:{site.server_port}/page")}
    error = local_worker.run(job)["error"]
    assert (error["code"], error["retryable"]) == (ErrorCode.INPUT_VALIDATION, False)
    assert error["message"].startswith("cond_video is a web page (HTML) in place of a file")


def certificate_of(name: str, folder: Path) -> Path:
    """A file with a certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.parametrize("name", ["public.test", "other.test"])
def test_a_certificate_is_held_against_the_name_and_not_the_number(
    name: str, names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = certificate_of(name, tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    with serving(Site, context) as server:
        address = f"https://public.test:{server.server_port}/picture"
        if name == "public.test":
            assert fetched(address, tmp_path) == PICTURE
        else:
            with pytest.raises(WorkerError, match="did not answer"):
                fetched(address, tmp_path)

"""Media as jobs name them: what is fetched, what is refused, and what a refusal says."""

import base64
import gzip
import http.server
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.traffic import retry, transport
from infinitetalk.worker.traffic.fetch import Wanted, fetch_all
from schemas import ErrorCode
from tests.hostile import REDIRECT_TARGETS
from tests.job_inputs import data_uri, picture_bytes, speech_bytes
from tests.serving import serving

PICTURE = picture_bytes()


class Site(http.server.BaseHTTPRequestHandler):
    """Serves a picture, truths and lies about it, and refusals; the pages of `FAILS_ONCE` do better the second time."""

    visits: ClassVar[Counter[str]] = Counter()
    together = threading.Barrier(2)

    def do_GET(self) -> None:
        Site.visits[self.path] += 1
        is_first = Site.visits[self.path] == 1
        base = f"http://127.0.0.1:{self.server.server_port}"
        match self.path:
            case "/picture" | "/picture?key=secret":
                self.answer(200, {"Content-Length": str(len(PICTURE))}, PICTURE)
            case "/redirect":
                self.answer(302, {"Location": f"{base}/picture"}, b"")
            case "/circle":
                self.answer(302, {"Location": f"{base}/circle"}, b"")
            case "/to-file":
                self.answer(302, {"Location": "file:///etc/passwd"}, b"")
            case "/short":
                self.answer(200, {"Content-Length": str(len(PICTURE) + 10)}, PICTURE)
            case "/endless":
                self.answer(200, {}, PICTURE * 50)
            case path if path in FAILS_ONCE and not is_first:
                self.answer(200, {"Content-Length": str(len(PICTURE))}, PICTURE)
            case "/once/dropped":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            case "/once/short":
                self.answer(200, {"Content-Length": str(len(PICTURE))}, PICTURE[:50])
            case "/once/busy":
                self.answer(503, {"Content-Length": "0"}, b"")
            case "/once/wait":
                self.answer(429, {"Retry-After": "1", "Content-Length": "0"}, b"")
            case "/wait-an-hour":
                self.answer(429, {"Retry-After": "3600", "Content-Length": "0"}, b"")
            case "/says-less":
                self.answer(200, {"Content-Length": "60"}, PICTURE)
            case "/says-nonsense":
                self.answer(200, {"Content-Length": "many"}, PICTURE * 50)
            case "/chunked":
                self.answer(200, {"Transfer-Encoding": "chunked"}, b"%x\r\n%s\r\n" % (len(PICTURE), PICTURE) * 50)
            case "/chunked-short":
                self.answer(200, {"Transfer-Encoding": "chunked"}, b"%x\r\n%s" % (len(PICTURE), PICTURE[:50]))
            case "/bomb":
                self.answer(200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(10_000_000)))
            case "/trickle":
                self.answer(200, {}, b"")
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            case "/silent":
                time.sleep(2)
            case "/together/1" | "/together/2":
                Site.together.wait(5)
                self.answer(200, {"Content-Length": str(len(PICTURE))}, PICTURE)
            case path if path.startswith("/to/"):
                self.answer(302, {"Location": REDIRECT_TARGETS[int(path.removeprefix("/to/"))]}, b"")
            case path:
                self.answer(int(path.removeprefix("/status/")), {"Content-Length": "0"}, b"")

    def handle(self) -> None:
        # A client that has had enough hangs up.
        with suppress(ConnectionError):
            super().handle()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


FAILS_ONCE = ("/once/dropped", "/once/short", "/once/busy", "/once/wait")


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving(Site) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets downloads be tried again at once."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    Site.visits.clear()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "volume").mkdir()
    return Settings(output_dir=tmp_path / "volume", volume_dir=tmp_path / "volume", webhook_get_job="set")


def fetch(source: str, settings: Settings, tmp_path: Path, kinds: tuple[str, ...] = ("image", "video")):
    return fetch_all({"cond_video": Wanted(source, kinds)}, tmp_path, settings)["cond_video"]


def refusal(source: str, settings: Settings, tmp_path: Path, kinds: tuple[str, ...] = ("image", "video")):
    with pytest.raises(WorkerError) as caught:
        fetch(source, settings, tmp_path, kinds)
    assert str(tmp_path) not in caught.value.message
    assert "cond_video" in caught.value.message
    return caught.value


@pytest.mark.parametrize("page", ["/picture", "/redirect"])
def test_a_url_is_fetched_through_redirects(page, site, open_network, settings, tmp_path):
    media = fetch(site + page, settings, tmp_path)
    assert media.path.read_bytes() == PICTURE
    assert (media.info.kind, media.info.height, media.info.width) == ("image", 64, 64)


@pytest.mark.parametrize(
    "source",
    [
        data_uri(PICTURE, "image/png"),
        data_uri(PICTURE, "application/octet-stream"),
        base64.b64encode(PICTURE).decode(),
        base64.encodebytes(PICTURE).decode(),
    ],
    ids=["data URI", "data URI of another type", "base64", "base64 in lines"],
)
def test_base64_is_decoded_with_and_without_a_header(source, settings, tmp_path):
    assert fetch(source, settings, tmp_path).path.read_bytes() == PICTURE


def test_a_path_below_the_volume_is_read_in_place(settings, tmp_path):
    file = settings.volume_dir / "folder" / "face.png"
    file.parent.mkdir()
    file.write_bytes(PICTURE)
    for source in ("folder/face.png", str(file), "folder/../folder/face.png"):
        assert fetch(source, settings, tmp_path).path == file


def test_a_path_outside_is_refused_in_the_same_words_whether_it_exists_or_not(settings, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(PICTURE)
    (settings.volume_dir / "link.png").symlink_to(outside)
    absent = [str(tmp_path / "absent.png"), "absent.png", "x" * 5000 + "."]
    present = [str(outside), "../outside.png", "link.png", "/etc/passwd", "file:///etc/passwd"]
    malformed = ["ftp://example.com/a.png", "concat:a|b", "a\x00b", "aGVsbG8="]
    sources = absent + present + malformed
    refusals = [refusal(source, settings, tmp_path) for source in sources]
    assert {error.code for error in refusals} == {ErrorCode.INPUT_VALIDATION}
    assert len({error.message for error in refusals}) == 1


def test_the_examples_are_served_only_where_there_is_no_queue(settings, tmp_path):
    source = "examples/media/speech.wav"
    assert refusal(source, settings, tmp_path, ("audio",)).code == ErrorCode.INPUT_VALIDATION
    local = settings.model_copy(update={"webhook_get_job": None})
    assert fetch(source, local, tmp_path, ("audio",)).info.kind == "audio"


@pytest.mark.parametrize(
    ("status", "retryable"), [(404, False), (403, False), (429, True), (500, True), (503, True), (204, False)]
)
def test_a_status_other_than_ok_is_a_failed_download(status, retryable, site, open_network, settings, tmp_path):
    error = refusal(f"{site}/status/{status}", settings, tmp_path)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, retryable)
    assert str(status) in error.message
    assert Site.visits[f"/status/{status}"] == (settings.download_attempts if retryable else 1)


@pytest.mark.parametrize("page", FAILS_ONCE)
def test_what_may_pass_is_tried_again(page, site, open_network, settings, tmp_path):
    begin = time.monotonic()
    assert fetch(site + page, settings, tmp_path).path.read_bytes() == PICTURE
    assert Site.visits[page] == 2
    # Retry-After is waited for, and nothing else.
    assert (time.monotonic() - begin >= 1) or page != "/once/wait"


def test_an_address_that_asks_for_an_hour_is_not_waited_for(site, open_network, settings, tmp_path):
    error = refusal(f"{site}/wait-an-hour", settings, tmp_path)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)
    assert Site.visits["/wait-an-hour"] == 1


@pytest.mark.parametrize(
    ("page", "limits"),
    [("/trickle", {"download_timeout_s": 0.3}), ("/silent", {"read_timeout_s": 0.2, "download_attempts": 2})],
)
def test_an_address_that_is_too_slow_is_given_up(page, limits, site, open_network, settings, tmp_path):
    begin = time.monotonic()
    error = refusal(site + page, settings.model_copy(update=limits), tmp_path)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)
    assert time.monotonic() - begin < 2


def test_downloads_go_on_side_by_side_and_report_their_bytes(site, open_network, settings, tmp_path):
    wanted = {f"mask.person{number}": Wanted(f"{site}/together/{number}", ("image",)) for number in (1, 2)}
    reports: list[tuple[int, int | None]] = []
    media = fetch_all(wanted, tmp_path, settings, lambda done, total: reports.append((done, total)))
    assert {field: medium.path.read_bytes() for field, medium in media.items()} == dict.fromkeys(wanted, PICTURE)
    assert reports[-1] == (2 * len(PICTURE), 2 * len(PICTURE))


def test_bytes_of_an_attempt_that_failed_are_taken_back(site, open_network, settings, tmp_path):
    reports: list[tuple[int, int | None]] = []
    wanted = {"cond_video": Wanted(f"{site}/once/short", ("image",))}
    fetch_all(wanted, tmp_path, settings, lambda done, total: reports.append((done, total)))
    assert reports[0] == (50, len(PICTURE))
    assert reports[-1] == (len(PICTURE), len(PICTURE))


def test_one_failed_download_stops_the_others_and_is_the_one_told(site, open_network, settings, tmp_path):
    wanted = {
        "cond_video": Wanted(f"{site}/trickle", ("image",)),
        "cond_audio.person1": Wanted(f"{site}/status/404", ("audio",)),
    }
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"cond_audio\.person1: the address answered with status 404"):
        fetch_all(wanted, tmp_path, settings)
    assert time.monotonic() - begin < 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


@pytest.mark.parametrize(
    ("page", "retryable"), [("/short", True), ("/chunked-short", True), ("/circle", False), ("/to-file", False)]
)  # fmt: skip
def test_a_body_cut_short_and_bad_redirects_are_failed_downloads(
    page, retryable, site, open_network, settings, tmp_path
):
    error = refusal(site + page, settings, tmp_path)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, retryable)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a", "http://localhost/a", "http://169.254.169.254/latest", "http://[::1]/a",
            "http://10.0.0.1/a", "http://[bad/a", "http://example.com:99999/a", "http:///a"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(url, settings, tmp_path):
    error = refusal(url, settings, tmp_path)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, False)
    assert "127.0.0.1" not in error.message


@pytest.mark.parametrize("page", ["/picture", "/endless", "/says-nonsense", "/chunked", "/bomb"])
def test_the_limit_holds_whatever_the_content_length_says(page, site, open_network, settings, tmp_path):
    small = settings.model_copy(update={"max_video_bytes": 1000, "max_image_bytes": 50})
    error = refusal(site + page, small, tmp_path)
    assert error.code == ErrorCode.INPUT_VALIDATION
    assert "too large" in error.message


def test_no_more_is_read_than_an_address_said(site, open_network, settings, tmp_path):
    error = refusal(f"{site}/says-less", settings, tmp_path)
    assert error.code == ErrorCode.INPUT_VALIDATION
    assert (tmp_path / "cond_video").read_bytes() == PICTURE[:60]


@pytest.fixture
def public_site(site: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The site under a name that counts as a public one; every other address is checked as ever."""
    look_up = transport.look_up
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(site.rpartition(":")[2])))
    monkeypatch.setattr(
        transport,
        "look_up",
        lambda host, port, watch: [place] if host == "site.test" else look_up(host, port, watch),
    )
    return site.replace("127.0.0.1", "site.test")


@pytest.mark.parametrize("number", range(len(REDIRECT_TARGETS)), ids=map(ascii, REDIRECT_TARGETS))
def test_a_public_address_cannot_redirect_to_anything_else(number, public_site, settings, tmp_path):
    assert fetch(f"{public_site}/picture", settings, tmp_path).path.read_bytes() == PICTURE
    error = refusal(f"{public_site}/to/{number}", settings, tmp_path)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, False)
    assert set(Site.visits) == {"/picture", f"/to/{number}"}


def test_a_name_that_changes_its_mind_leads_to_the_address_that_was_checked(site, settings, tmp_path, monkeypatch):
    look_up = socket.getaddrinfo
    # Public, and nobody answers there: the relays of RFC 3068 are gone.
    answers = iter(["192.88.99.1"])

    def change_mind(host, *arguments, **options):
        return look_up(next(answers, "127.0.0.1") if host == "site.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", change_mind)
    hasty = settings.model_copy(update={"connect_timeout_s": 0.1, "download_attempts": 1})
    url = site.replace("127.0.0.1", "site.test") + "/picture"
    assert refusal(url, hasty, tmp_path).code == ErrorCode.DOWNLOAD_FAILED
    # Asked again, the name now stands for this machine, and is refused for it.
    assert "public address" in refusal(url, hasty, tmp_path).message
    assert not Site.visits


def test_each_kind_has_its_own_limit(settings, tmp_path):
    small = settings.model_copy(update={"max_image_bytes": 50})
    assert "too large" in refusal(data_uri(PICTURE, "image/png"), small, tmp_path).message


@pytest.mark.parametrize(
    ("data", "kinds", "message"),
    [
        (speech_bytes(0.3), ("image", "video"), "cond_video must be an image or a video, but it is sound"),
        (PICTURE, ("audio",), "cond_video must be sound, but it is an image"),
        (b"no media at all, only words, however many of them there may be", ("image",), "cond_video: "),
        (PICTURE[:60], ("image",), "cond_video: "),
    ],
)
def test_content_decides_what_a_file_is(data, kinds, message, settings, tmp_path):
    error = refusal(data_uri(data, "image/png"), settings, tmp_path, kinds)
    assert error.code == ErrorCode.INPUT_VALIDATION
    assert message in error.message


def test_base64_that_is_broken_is_refused(settings, tmp_path):
    error = refusal("data:image/png;base64,@@@@", settings, tmp_path)
    assert (error.code, error.message) == (ErrorCode.INPUT_VALIDATION, "cond_video is not valid base64")


def test_a_stop_ends_a_download(site, open_network, settings, tmp_path):
    with pytest.raises(GenerationStopped):
        fetch_all({"cond_video": Wanted(f"{site}/endless", ("image",))}, tmp_path, settings, should_stop=lambda: True)

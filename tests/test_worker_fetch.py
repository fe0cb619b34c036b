"""Media as jobs name them: what is fetched, what is refused, and what a refusal says."""

import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.fetch import Wanted, fetch_all
from infinitetalk.worker.settings import Settings
from schemas import ErrorCode
from tests.job_inputs import data_uri, picture_bytes, speech_bytes

PICTURE = picture_bytes()


class Site(http.server.BaseHTTPRequestHandler):
    """Serves a picture, truths and lies about it, and refusals."""

    def do_GET(self) -> None:
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
            case path:
                self.answer(int(path.removeprefix("/status/")), {"Content-Length": "0"}, b"")

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the worker fetch from the loopback address."""
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


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


@pytest.mark.parametrize(("page", "retryable"), [("/short", True), ("/circle", False), ("/to-file", False)])
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


@pytest.mark.parametrize("page", ["/picture", "/endless"])
def test_the_limit_holds_with_and_without_a_content_length(page, site, open_network, settings, tmp_path):
    small = settings.model_copy(update={"max_video_bytes": 1000, "max_image_bytes": 50})
    error = refusal(site + page, small, tmp_path)
    assert error.code == ErrorCode.INPUT_VALIDATION
    assert "too large" in error.message


def test_each_kind_has_its_own_limit(settings, tmp_path):
    small = settings.model_copy(update={"max_image_bytes": 50})
    assert "too large" in refusal(data_uri(PICTURE, "image/png"), small, tmp_path).message


@pytest.mark.parametrize(
    ("data", "kinds", "message"),
    [
        (speech_bytes(0.3), ("image", "video"), "cond_video must be a picture or a video, but it is sound"),
        (PICTURE, ("audio",), "cond_video must be sound, but it is a picture"),
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
        fetch_all(
            {"cond_video": Wanted(f"{site}/endless", ("image",))}, tmp_path, settings, should_stop=lambda: True
        )

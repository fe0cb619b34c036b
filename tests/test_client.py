"""The client, as a library and as a command, against the local endpoint: no fault costs a job or a video.

The worker's part is played by the test, which takes jobs from the queue and reports; `test_examples.py` has a worker.
"""

import base64
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import infinitetalk_client as client_module
import pytest
import requests
from botocore.httpsession import URLLib3Session
from infinitetalk_client import (
    EndpointError,
    FetchError,
    InfiniteTalkClient,
    InfiniteTalkError,
    JobError,
    MediaError,
    main,
    uploads,
)

from tests.local_queue import DONE, queue_with_video, work
from tools.queue_server import API_KEY, LocalQueue

CHECKOUT = Path(__file__).parents[1]
SAMPLING = {"status": "IN_PROGRESS", "output": {"stage": "sampling", "pct": 40, "eta_s": 2.0}}
ADDRESSES = ["https://a/b.png", "https://a/b.wav"]
WAIT_S = 30.0


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[LocalQueue]:
    with queue_with_video(tmp_path) as queue:
        yield queue


@pytest.fixture
def client(queue: LocalQueue) -> InfiniteTalkClient:
    return InfiniteTalkClient(queue.endpoint.url, API_KEY)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The command's --output."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here/talk.mp4"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        yield listener


@pytest.fixture
def silent(listener: socket.socket) -> str:
    """Address of an endpoint that never answers."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v2/local"


@pytest.fixture
def absent() -> str:
    """Address of an endpoint that is not there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v2/local"


@pytest.fixture
def site() -> Iterator[Callable[[int, bytes], str]]:
    """Makes an endpoint that always gives one answer; returns its address."""
    servers: list[HTTPServer] = []

    def serve(status: int, body: bytes) -> str:
        class Site(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Site)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v2/local"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class Command:
    """The command in a process of its own.

    Args:
        arguments: the command line's.
        has_terminal: whether somebody can answer its questions.
    """

    def __init__(self, *arguments: object, has_terminal: bool = False) -> None:
        self.terminal, stdin = pty.openpty() if has_terminal else (None, subprocess.DEVNULL)
        self.said = ""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
        # Tests that run in the background of a shell inherit a Ctrl-C that is ignored; a handler is not inherited.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "examples/client.py", *map(str, arguments), "--key", API_KEY],
                cwd=CHECKOUT,
                env=environment,
                stdin=stdin,
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        finally:
            signal.signal(signal.SIGINT, before)
        if self.terminal is not None:
            os.close(stdin)

    def until(self, words: str) -> None:
        """Reads what it says until these words."""
        assert self.process.stderr is not None
        while words not in self.said:
            block = self.process.stderr.read1()
            assert block, self.said
            self.said += block.decode()

    def answer(self, words: str) -> None:
        """Types an answer."""
        assert self.terminal is not None
        os.write(self.terminal, words.encode())

    def end(self) -> tuple[int, str, str]:
        """Waits for its end; returns its exit status, what it said, and what it put out."""
        put_out, said = self.process.communicate(timeout=WAIT_S)
        if self.terminal is not None:
            os.close(self.terminal)
        return self.process.returncode, self.said + said.decode(), put_out.decode()


def way_back(said: str) -> list[str]:
    """The arguments of the command that comes back to the job, out of what the command said."""
    (command,) = set(re.findall(r"[Cc]ome back with: (.*)", said))
    return shlex.split(command)[2:]


def test_progress_is_told_and_the_video_is_downloaded(queue, client, tmp_path):
    told: list[str] = []
    ids: list[str] = []
    work(queue, SAMPLING)

    def on_progress(progress: dict) -> None:
        told.append(progress["stage"])
        if progress["stage"] == "sampling":
            queue.report(ids[0], DONE)

    result = client.run({"prompt": "x"}, on_progress, poll_s=0.05, on_queued=ids.append)
    assert told[-1] == "sampling"
    assert ids == list(queue.jobs)
    assert client.download(result, tmp_path / "out.mp4").read_bytes() == b"video"


def test_a_failed_job_raises_its_code(queue, client):
    work(queue, {"error": {"code": "E_OOM", "message": "too large", "retryable": False}, "output": {"job_id": "x"}})
    with pytest.raises(JobError, match="E_OOM: too large") as caught:
        client.run({}, poll_s=0.05)
    assert (caught.value.code, caught.value.retryable) == ("E_OOM", False)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (json.dumps({"code": "E_UPLOAD", "message": "no bucket", "retryable": True}), "E_UPLOAD: no bucket"),
        ("worker exited with code 1", "FAILED: worker exited with code 1"),
        ("[1]", "FAILED: [1]"),
    ],
)
def test_an_error_is_read_in_each_form_that_runpod_gives_it(queue, client, error, told):
    work(queue, {"error": error})
    with pytest.raises(JobError) as caught:
        client.run({}, poll_s=0.05)
    assert str(caught.value) == told


def test_a_wait_that_is_interrupted_in_the_library_cancels_the_job(queue, client):
    work(queue, SAMPLING)

    def interrupt(progress: dict) -> None:
        if progress["stage"] == "sampling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.run({}, interrupt, poll_s=0.05)
    assert [job.status for job in queue.jobs.values()] == ["CANCELLED"]


def test_a_job_goes_on_when_the_endpoint_stops_answering(queue, client):
    ids: list[str] = []
    work(queue, SAMPLING)

    def close(progress: dict) -> None:
        if progress["stage"] == "sampling":
            queue.__exit__()

    with pytest.raises(EndpointError) as caught:
        client.run({}, close, poll_s=0.05, on_queued=ids.append)
    assert str(caught.value) == f"{client.url} does not answer; job {ids[0]} may go on"
    assert queue.jobs[ids[0]].status == "IN_PROGRESS"


def test_small_files_travel_in_the_request_and_large_ones_are_uploaded(queue, client, tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.wav"
    small.write_bytes(b"small")
    assert client.media(small, "https://example.com/a.wav") == [
        "data:image/png;base64,c21hbGw=",
        "https://example.com/a.wav",
    ]
    large.write_bytes(b"x" * 7_000_001)
    path, other = client.media(large, small)
    assert (queue.endpoint.files / path).read_bytes() == large.read_bytes()
    assert (queue.endpoint.files / other).read_bytes() == b"small"


def test_uploads_are_signed_as_every_store_knows_and_served(s3_server, tmp_path, monkeypatch):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"a picture")
    name_store(monkeypatch, s3_server)
    sent: list[str] = []
    send = URLLib3Session.send

    def send_and_note(session, request):
        sent.append(str(request.headers))
        return send(session, request)

    monkeypatch.setattr(URLLib3Session, "send", send_and_note)
    (address,) = InfiniteTalkClient("https://api.example.com/v2/endpoint", "key", inline_bytes=1).media(picture)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in address
    assert requests.get(address, timeout=10).content == b"a picture"
    assert sent and not any("checksum" in headers.lower() for headers in sent)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("S3_BUCKET", "absent", "does not take picture.png into the bucket absent"),
        ("S3_SECRET_KEY", "wrong", "does not take picture.png into the bucket results"),
        ("S3_ENDPOINT", "127.0.0.1:9", "the store 127.0.0.1:9 does not take picture.png"),
    ],
)
def test_a_store_that_takes_no_file_is_told_in_words(s3_server, tmp_path, monkeypatch, variable, value, told):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"a picture")
    name_store(monkeypatch, s3_server)
    monkeypatch.setenv(variable, value)
    with pytest.raises(MediaError, match=told):
        InfiniteTalkClient("https://api.example.com/v2/endpoint", "key", inline_bytes=1).media(picture)


def name_store(monkeypatch: pytest.MonkeyPatch, s3_server) -> None:
    for name in ("endpoint", "bucket", "access_key", "secret_key"):
        monkeypatch.setenv(f"S3_{name.upper()}", getattr(s3_server, name))
    monkeypatch.delenv("S3_REGION", raising=False)


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://videos.s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://nyc3.digitaloceanspaces.com", "nyc3"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
    ],
)
def test_uploads_are_signed_for_the_region_that_the_stores_host_tells(endpoint, region):
    assert uploads.region_of(endpoint) == region


def test_a_request_that_is_too_large_is_refused_before_it_is_sent(queue, client):
    with pytest.raises(MediaError, match=r"the request has 10\.0 MB, and at most 10 MB are taken"):
        client.submit({"cond_video": "x" * 10_000_000})
    assert not queue.jobs


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is neither a file on this machine nor an address"),
        (b"", "is empty"),
        ("folder", "is a folder: name a file"),
    ],
)
def test_media_that_cannot_be_read_are_named(client, tmp_path, content, told):
    source = tmp_path / "portrait.png"
    if content == "folder":
        source.mkdir()
    elif content is not None:
        source.write_bytes(content)
    with pytest.raises(MediaError, match=f"{source} {told}"):
        client.media(source)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b"<html>Who are you?</html>", "answers with something else than JSON: is it an endpoint?"),
        (
            401,
            b'{"error": "no"}',
            "the endpoint answers 401 Unauthorized: no; is the key right (RUNPOD_API_KEY, --key)?",
        ),
        (404, b"<html>", "the endpoint answers 404 Not Found; is the endpoint's address right"),
        (429, b"", "the endpoint answers 429 Too Many Requests; it has too many requests: wait a little"),
        (400, b'{"message": "no input"}', "the endpoint answers 400 Bad Request: no input"),
    ],
)
def test_an_endpoints_refusal_is_a_sentence(site, status, body, told):
    with pytest.raises(EndpointError) as caught:
        InfiniteTalkClient(site(status, body)).submit({})
    assert told in str(caught.value)
    assert "<html>" not in str(caught.value)
    assert caught.value.status == status


def test_a_job_that_may_have_been_queued_says_so_and_one_that_was_not_does_not(silent, absent):
    with pytest.raises(EndpointError, match=r"has not answered for 0\.3 s; the job may have been queued all the same"):
        InfiniteTalkClient(silent, timeout_s=0.3).submit({})
    with pytest.raises(EndpointError, match=r"does not answer$"):
        InfiniteTalkClient(absent).submit({})


def test_a_signed_address_is_not_in_an_errors_text(site, client, tmp_path):
    plain = site(200, b"video").removeprefix("http://").removesuffix("/v2/local")
    for address in (f"https://{plain}/talk.mp4?signature=secret", "none://store/talk.mp4?signature=secret"):
        with pytest.raises(FetchError) as caught:
            client.download({"video": {"url": address}}, tmp_path / "talk.mp4")
        assert "secret" not in str(caught.value)
        assert "talk.mp4" not in str(caught.value)


def test_a_key_with_a_letter_that_no_key_has_is_refused():
    with pytest.raises(EndpointError, match="the key has a character that no key has, '…': copy it again"):
        InfiniteTalkClient(key="rpa_A…")


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"status": "planned"}, "the result has no video: its status is planned"),
        (
            {"video": {"path": "a.mp4"}},
            "the endpoint's volume has the video, at a.mp4: read it there, or use the store",
        ),
    ],
)
def test_a_result_without_a_video_to_fetch_says_why(tmp_path, result, told):
    with pytest.raises(FetchError, match=told):
        InfiniteTalkClient("https://api.example.com/v2/endpoint").download(result, tmp_path / "talk.mp4")
    assert not list(tmp_path.iterdir())


def test_a_video_in_the_result_is_written(client, tmp_path):
    result = {"video": {"data": base64.b64encode(b"video").decode()}}
    assert client.download(result, tmp_path / "talk.mp4").read_bytes() == b"video"


def test_all_errors_have_one_base():
    assert all(issubclass(kind, InfiniteTalkError) for kind in (EndpointError, FetchError, JobError, MediaError))


def test_the_command_prints_the_jobs_id_at_once_and_then_the_videos_path(queue, output):
    command = Command(*ADDRESSES, "--url", queue.endpoint.url, "-o", output)
    command.until("come back with: ")
    (job_id,) = queue.jobs
    assert command.said.startswith(f"job {job_id}: ")
    assert queue.jobs[job_id].status == "IN_QUEUE"
    work(queue, DONE)
    status, _, put_out = command.end()
    assert (status, put_out) == (0, f"{output}\n")
    assert output.read_bytes() == b"video"


@pytest.mark.parametrize("state", ["running", "finished"])
def test_the_command_attaches_to_a_job(state, queue, output, capsys):
    job_id = queue.post({})
    queue.take()
    queue.report(job_id, SAMPLING)
    finish = threading.Timer(1.5 if state == "running" else 0, queue.report, (job_id, DONE))
    finish.start()
    if state == "finished":
        finish.join()
    assert main(["--job", job_id, "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]) == 0
    assert output.read_bytes() == b"video"
    assert ("sampling" in capsys.readouterr().err) == (state == "running")
    assert len(queue.jobs) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--strength", "nan"],
        ["--mix", "-inf"],
        ["--begins", "person1", "nan"],
        ["--prompt-at", "inf", "A man"],
        ["--picture-at", "soon", "https://a/c.png"],
    ],
)
def test_a_number_that_json_does_not_have_is_refused_before_a_job_is_sent(options, queue, output, capsys):
    with pytest.raises(SystemExit):
        main([*ADDRESSES, *options, "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)])
    assert options[0] in capsys.readouterr().err.splitlines()[-1]
    assert not queue.jobs


@pytest.mark.parametrize("option", ["seed=NaN", "seed=1e400", 'dub={"strength": -Infinity}'])
def test_a_field_that_json_does_not_have_is_refused_before_a_job_is_sent(option, queue, output, capsys):
    assert main([*ADDRESSES, "--set", option, "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]) == 1
    assert "infinite or not a number" in capsys.readouterr().err
    assert not queue.jobs


def test_the_command_says_that_there_is_no_such_job(queue, output, capsys):
    assert main(["--job", "absent", "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]) == 1
    assert "has no job absent: its id is wrong, or its result is no longer kept" in capsys.readouterr().err


def test_the_command_tells_why_the_job_that_it_attaches_to_has_failed(queue, output, capsys):
    job_id = queue.post({})
    queue.take()
    queue.report(job_id, {"error": {"code": "E_UPLOAD", "message": "no bucket", "retryable": True}})
    assert main(["--job", job_id, "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]) == 1
    told = "error: E_UPLOAD: no bucket; the same job may succeed if it is sent again\n"
    assert capsys.readouterr().err.endswith(told)


def test_the_command_gives_a_videos_address_if_it_cannot_be_fetched(queue, output, capsys, absent):
    gone = absent.replace("/v2/local", "/video.mp4?signature=x")
    output.write_bytes(b"an older video")
    work(queue, {"output": {"status": "success", "video": {"url": gone}}})
    assert main([*ADDRESSES, "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]) == 1
    told = capsys.readouterr().err
    assert f"the video is made, but not here: {gone.partition('/video')[0]} does not answer\nIt is at {gone}\n" in told
    assert f"Fetch it again with: {shlex.join(client_module.command.program())} --job {next(iter(queue.jobs))} " in told
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert output.read_bytes() == b"an older video"


def test_a_full_disk_costs_no_video(queue, output, capsys):
    # What is written under this name meets a full disk.
    Path(f"{output}.part").symlink_to("/dev/full")
    job_id = queue.post({})
    queue.take()
    queue.report(job_id, DONE)
    attach = ["--job", job_id, "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]
    assert main(attach) == 1
    assert f"{output} cannot be written: No space left on device\nIt is at http://127.0.0.1" in capsys.readouterr().err
    assert not list(output.parent.iterdir())
    assert main(attach) == 0
    assert output.read_bytes() == b"video"


def test_an_expired_address_is_told(site, client, tmp_path):
    expired = site(403, b"<Error>").replace("/v2/local", "/video.mp4")
    with pytest.raises(FetchError, match="the store answers 403 Forbidden; its address may have expired") as caught:
        client.download({"video": {"url": expired}}, tmp_path / "talk.mp4")
    assert caught.value.place == expired


@pytest.mark.parametrize("answer", ["c", "l", "", "\x04", "second"])
def test_ctrl_c_asks_what_becomes_of_the_job(answer, queue, output):
    command = Command(*ADDRESSES, "--url", queue.endpoint.url, "-o", output, has_terminal=True)
    work(queue, SAMPLING)
    command.until("sampling")
    (job_id,) = queue.jobs
    command.process.send_signal(signal.SIGINT)
    command.until("(c)ancel the job, (l)eave it running")
    if answer == "second":
        command.process.send_signal(signal.SIGINT)
    else:
        command.answer(answer if answer == "\x04" else f"{answer}\n")
    if answer == "":
        queue.report(job_id, DONE)
        assert command.end()[0] == 0
        assert output.read_bytes() == b"video"
        return
    status, said, _ = command.end()
    assert status == 130
    if answer == "c":
        assert queue.jobs[job_id].status == "CANCELLED"
        assert f"job {job_id} is cancelled" in said
        return
    assert queue.jobs[job_id].status == "IN_PROGRESS"
    assert f"job {job_id} is left to the endpoint" in said
    queue.report(job_id, DONE)
    assert Command(*way_back(said)).end()[0] == 0
    assert output.read_bytes() == b"video"


def test_sigterm_leaves_the_job_and_says_how_to_come_back(queue, output):
    command = Command(*ADDRESSES, "--url", queue.endpoint.url, "-o", output, has_terminal=True)
    work(queue, SAMPLING)
    command.until("sampling")
    (job_id,) = queue.jobs
    command.process.send_signal(signal.SIGTERM)
    status, said, _ = command.end()
    assert status == 143
    assert queue.jobs[job_id].status == "IN_PROGRESS"
    assert API_KEY not in said
    queue.report(job_id, DONE)
    assert Command(*way_back(said)).end()[0] == 0
    assert output.read_bytes() == b"video"


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        ("large.png", "\nnothing was sent\n"),
        ("https://a/b.png", "interrupted while the job was being sent: the endpoint may have queued it"),
    ],
)
def test_a_signal_before_there_is_a_job_says_whether_one_was_sent(picture, told, listener, silent, output, tmp_path):
    if picture == "large.png":
        picture = tmp_path / picture
        picture.write_bytes(bytes(7_000_001))
    command = Command(picture, ADDRESSES[1], "--url", silent, "-o", output)
    connection, _ = listener.accept()
    with connection:
        assert connection.recv(1)
        command.process.send_signal(signal.SIGTERM)
        status, said, _ = command.end()
    assert status == 143
    assert told in said


def test_the_command_cancels_a_job_that_was_left(queue, capsys):
    job_id = queue.post({})
    command = ["--job", job_id, "--cancel", "--url", queue.endpoint.url, "--key", API_KEY]
    assert main(command) == 0
    assert queue.jobs[job_id].status == "CANCELLED"
    done = queue.post({})
    queue.take()
    queue.report(done, DONE)
    command[1] = done
    assert main(command) == 1
    assert f"job {done} had ended before: it is COMPLETED" in capsys.readouterr().err


def test_one_failed_item_of_a_batch_costs_no_other(queue, tmp_path, output, capsys):
    payload = tmp_path / "batch.json"
    payload.write_text(json.dumps({"input": {"batch": [{"id": "bad"}, {"id": "good"}]}}))
    items = [
        {"item_id": "bad", "status": "error", "error": {"message": "no face"}},
        DONE["output"] | {"item_id": "good", "warnings": ["it is short"]},
    ]
    work(queue, {"output": {"status": "partial", "items": items}})
    command = ["--payload", str(payload), "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "bad: no face\ngood: warning: it is short\n" in captured.err
    assert captured.out == f"{output.with_name('talk-good.mp4')}\n"
    assert output.with_name("talk-good.mp4").read_bytes() == b"video"


def test_the_paths_of_a_batch_are_tried_before_it_is_sent(queue, tmp_path, output, capsys):
    payload = tmp_path / "batch.json"
    command = ["--payload", str(payload), "--url", queue.endpoint.url, "--key", API_KEY, "-o", str(output)]
    output.with_name("talk-first.mp4").mkdir()
    for item_id, told in (("first", "talk-first.mp4 is no file that can be replaced"), ("a/b", "the item's id 'a/b'")):
        payload.write_text(json.dumps({"input": {"batch": [{"id": item_id}]}}))
        assert main(command) == 1
        assert told in capsys.readouterr().err
    assert not queue.jobs


def test_the_command_says_which_variables_an_upload_lacks(capsys, monkeypatch, tmp_path, output):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(client_module.INLINE_BYTES + 1))
    for name in uploads.S3_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("S3_BUCKET", "videos")
    assert main([str(large), ADDRESSES[1], "--endpoint", "x", "--key", "y", "-o", str(output)]) == 1
    assert "set S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY for their upload" in capsys.readouterr().err

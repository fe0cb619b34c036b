"""Servers that answer and do not end: a download or a PUT ends in its time, and at a stop, whatever it waits for."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.base import Artifacts
from infinitetalk.worker.stores.registry import make_store
from infinitetalk.worker.traffic import retry
from infinitetalk.worker.traffic.fetch import Wanted, fetch_all
from schemas import ErrorCode, OutputConfig
from tests.job_inputs import small_job
from tests.stalling_site import STALLS, stalling_site
from tools.worker_process import HANDLER, Worker, running_worker

TIME_LIMIT_S = 0.6
SLACK_S = 1.5
"""For a machine with other work."""

BEFORE_THE_BODY = ("/status", "/continue", "/header", "/headers", "/silent")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with stalling_site() as port:
        yield port


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    return Settings(download_timeout_s=TIME_LIMIT_S, read_timeout_s=30, connect_timeout_s=30)


def stop_soon() -> Any:
    """Says, a while from now, that a job has to end."""
    end = time.monotonic() + TIME_LIMIT_S
    return lambda: time.monotonic() > end


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that thinks for long about "slow.test"."""
    ask = socket.getaddrinfo

    def answer(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host == "slow.test":
            time.sleep(5)
        return ask("127.0.0.1" if host == "slow.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.fixture
def full_host() -> Iterator[int]:
    """The port of a server that takes no more connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        place = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(place)
        time.sleep(0.05)
        yield place[1]
        for connection in waiting:
            connection.close()


def assert_download_ends(address: str, settings: Settings, folder: Path) -> None:
    """A download ends with an error that may pass once its time is over, and at once when it is stopped."""
    wanted = {"cond_video": Wanted(address, ("image",))}
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"cond_video: the download took longer than 0\.6 s") as caught:
        fetch_all(wanted, folder, settings)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)
    assert time.monotonic() - begin < TIME_LIMIT_S + SLACK_S
    begin = time.monotonic()
    with pytest.raises(GenerationStopped):
        fetch_all(wanted, folder, settings.model_copy(update={"download_timeout_s": 30}), should_stop=stop_soon())
    assert time.monotonic() - begin < TIME_LIMIT_S + SLACK_S
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]


@pytest.mark.parametrize("page", STALLS)
def test_a_download_ends_whatever_drips(page: str, port: int, settings: Settings, tmp_path: Path):
    assert_download_ends(f"http://127.0.0.1:{port}{page}", settings, tmp_path)


def test_a_download_ends_although_the_name_server_does_not_answer(slow_names, settings: Settings, tmp_path: Path):
    assert_download_ends("http://slow.test/x", settings, tmp_path)


def test_a_download_ends_although_the_host_takes_no_connection(full_host: int, settings: Settings, tmp_path: Path):
    assert_download_ends(f"http://127.0.0.1:{full_host}/x", settings, tmp_path)


def test_a_download_ends_although_the_handshake_of_tls_does_not(port: int, settings: Settings, tmp_path: Path):
    assert_download_ends(f"https://127.0.0.1:{port}/x", settings, tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> Artifacts:
    artifacts = Artifacts(tmp_path / "video.mp4", tmp_path / "thumbnail.jpg", tmp_path / "metadata.json", "request")
    for file in (artifacts.video, artifacts.thumbnail, artifacts.metadata):
        file.write_bytes(bytes(1000))
    return artifacts


def assert_put_ends(address: str, settings: Settings, files: Artifacts) -> None:
    """A PUT does so as well."""
    names = [name for name in OutputConfig.model_fields if name.endswith("_url")]
    config = OutputConfig.model_validate({"store": "put"} | dict.fromkeys(names, address))
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"output_config\.\w+_url took longer than 0\.6 s") as caught:
        make_store(config, None, settings).save("job-1", files)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, True)
    assert time.monotonic() - begin < TIME_LIMIT_S + SLACK_S
    begin = time.monotonic()
    patient = settings.model_copy(update={"download_timeout_s": 30})
    with pytest.raises(GenerationStopped):
        make_store(config, None, patient).save("job-1", files, should_stop=stop_soon())
    assert time.monotonic() - begin < TIME_LIMIT_S + SLACK_S


@pytest.mark.parametrize("page", BEFORE_THE_BODY)
def test_a_put_ends_whatever_drips(page: str, port: int, settings: Settings, files: Artifacts):
    assert_put_ends(f"http://127.0.0.1:{port}{page}", settings, files)


def test_a_put_ends_although_the_name_server_does_not_answer(slow_names, settings: Settings, files: Artifacts):
    assert_put_ends("http://slow.test/x", settings, files)


def test_a_stop_ends_the_wait_between_two_puts(settings: Settings, files: Artifacts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 20.0)
    # Nobody listens there.
    assert_put_ends("http://127.0.0.1:9/x", settings, files)


@pytest.mark.parametrize("target", ["video_url", "endpointUrl"])
def test_a_store_whose_name_server_does_not_answer_fails_its_job_in_time(
    target: str, slow_names, settings: Settings, local_worker
):
    local_worker.settings = local_worker.settings.model_copy(update={"connect_timeout_s": TIME_LIMIT_S})
    address = "http://slow.test/x"
    job: dict[str, Any] = {"id": "job-1", "input": small_job(output_config={"store": "s3"})}
    if target == "endpointUrl":
        job["s3Config"] = {"endpointUrl": address, "accessId": "i", "accessSecret": "s", "bucketName": "bucket"}
    else:
        names = [name for name in OutputConfig.model_fields if name.endswith("_url")]
        job["input"]["output_config"] = {"store": "put"} | dict.fromkeys(names, address)
    begin = time.monotonic()
    error = local_worker.run(job)["error"]
    assert (error["code"], error["retryable"]) == (ErrorCode.UPLOAD, True)
    assert f"{target} was not found in 0.6 s" in error["message"]
    assert time.monotonic() - begin < TIME_LIMIT_S + SLACK_S


SLOW_NAMES = f"""
import runpy, socket, sys, time
ask = socket.getaddrinfo
def answer(host, *arguments, **options):
    if host == "slow.test":
        time.sleep(60)
    return ask(host, *arguments, **options)
if __name__ == "__main__":
    socket.getaddrinfo = answer
    sys.path.insert(0, {str(HANDLER.parent)!r})
    import handler
    handler.main()
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    script = folder / "slow_names.py"
    script.write_text(SLOW_NAMES)
    settings = {
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
        "DOWNLOAD_TIMEOUT_S": "1.5",
        "STOP_TIMEOUT_S": "2",
        "PYTHONPATH": ":".join(sys.path),
    }
    with running_worker(folder, script, **settings) as worker:
        yield worker


ADDRESSES = ("http://127.0.0.1:{port}/header", "http://127.0.0.1:{port}/trailers", "http://slow.test/x")


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_worker_outlives_what_drips(address: str, port: int, worker: Worker):
    stalling = small_job(cond_video=address.format(port=port))
    _, failure = worker.refusal(stalling)
    assert (failure.error.code, failure.error.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)
    assert "longer than 1.5 s" in failure.error.message
    job_id = worker.queue.post(stalling)
    worker.wait_for_event("job.taken", job_id=job_id)
    time.sleep(0.3)
    worker.queue.cancel(job_id)
    worker.wait_for_event("job.stopped", job_id=job_id)
    worker.success(small_job())
    assert (worker.events("job.stuck"), worker.process.poll()) == ([], None)

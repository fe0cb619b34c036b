"""Who is to blame: the table of causes, each run through the worker's handler, with what becomes of job and worker.

docs/reliability.md has the same table in words.
"""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from infinitetalk.media.decode import ENDED_FROM_OUTSIDE, UNREADABLE
from infinitetalk.media.sandbox import ffmpeg_path
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.engine.loading import Health
from infinitetalk.worker.logs import configure_logs
from infinitetalk.worker.queue.runner import Runner
from infinitetalk.worker.settings import Settings
from schemas import Failure
from tests.job_inputs import data_uri, scenes_bytes, small_job
from tests.local_jobs import ready
from tools.worker_process import START_TIMEOUT_S, running_worker

VIDEO = data_uri(scenes_bytes([8]), "video/mp4")
DAMAGED = data_uri(b"only words, which are neither a picture nor a video", "image/png")


@dataclass(frozen=True)
class Cause:
    """What fails, and what then becomes of job and worker.

    Attributes:
        name: of the cause.
        bring_about: makes it so, given pytest's monkeypatch and a folder.
        code, retryable: of the job's error.
        is_replaced: whether the worker has itself replaced.
        words: in the error's message.
        changes: to the job.
    """

    name: str
    bring_about: Callable[[pytest.MonkeyPatch, Path], None]
    code: str
    retryable: bool
    is_replaced: bool
    words: str
    changes: dict[str, Any] = field(default_factory=dict)


def nothing(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The machine is as it should be."""


def lose_temporary_folder(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """As where another program has cleaned up."""
    patch.setattr("tempfile.tempdir", str(folder / "gone"))


def take_no_files(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """As a file system that is read-only: not even root makes a folder there."""
    patch.setattr("tempfile.tempdir", "/proc")


def run_out_of_descriptors(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """None is left."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The process gets the lowest number that is free, which must be below the limit.
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))


def with_decoder(script: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    """A shell script in the place of ffmpeg; {ffmpeg} is the real one, {folder} one of the test's."""

    def put_in_place(patch: pytest.MonkeyPatch, folder: Path) -> None:
        decoder = folder / "ffmpeg"
        decoder.write_text(f"#!/bin/sh\n{script.format(ffmpeg=ffmpeg_path(), folder=folder)}\n")
        decoder.chmod(0o755)
        patch.setenv("FFMPEG_BINARY", str(decoder))

    return put_in_place


def lose_decoder(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """No ffmpeg is where it should be."""
    patch.setenv("FFMPEG_BINARY", str(folder / "no-ffmpeg"))


def lose_library(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """One of Python's, which is imported when a job needs it."""
    patch.setitem(sys.modules, "scenedetect", None)


def start_no_thread(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """As beyond a container's limit of processes, which holds for no user of this machine who may set it."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    patch.setattr("infinitetalk.worker.traffic.fetch.ThreadPoolExecutor.submit", fail)


def fail_unexpectedly(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A mistake in the worker's code, where inputs are fetched."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("/weights/secret")

    patch.setattr("infinitetalk.worker.job.inputs.fetch_all", fail)


MISSING_LIBRARY = 'echo "ffmpeg: error while loading shared libraries: libavdevice.so.60" >&2; exit 127'
ONCE = 'if mkdir {folder}/once 2> /dev/null; then {what}; fi; exec {ffmpeg} "$@"'
CRASHES_ON_VIDEOS = 'if [ $(stat -L -c %s /dev/stdin) -gt 1000 ]; then kill -SEGV $$; fi; exec {ffmpeg} "$@"'
FAILED = "this worker's machine has failed, and it is being replaced; send the job again"
ENDED = "ended before it was done: send the job again"


def once(what: str) -> str:
    """A decoder that does something the first time, and is ffmpeg from then on."""
    return ONCE.replace("{what}", what)


CAUSES = [
    Cause("temporary folder gone", lose_temporary_folder, "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause("temporary folder takes no files", take_no_files, "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause("no descriptors, base64", run_out_of_descriptors, "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause(
        "no descriptors, address",
        run_out_of_descriptors,
        "E_GENERATION_RUNTIME",
        True,
        True,
        FAILED,
        {"cond_video": "http://8.8.8.8/face.png"},
    ),
    Cause("no thread can be started", start_no_thread, "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause("no ffmpeg", lose_decoder, "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause("ffmpeg lacks a library", with_decoder(MISSING_LIBRARY), "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause("ffmpeg crashes always", with_decoder("kill -SEGV $$"), "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause("ffmpeg refuses everything", with_decoder("exit 1"), "E_GENERATION_RUNTIME", True, True, FAILED),
    Cause("ffmpeg is killed each time", with_decoder("kill -KILL $$"), "E_FFMPEG", True, True, ENDED),
    Cause("ffmpeg is killed once", with_decoder(once("kill -KILL $$")), "E_FFMPEG", True, False, ENDED),
    Cause("ffmpeg is told to end once", with_decoder(once("kill -TERM $$")), "E_FFMPEG", True, False, ENDED),
    Cause("ffmpeg heeds a signal once", with_decoder(once("exit 255")), "E_FFMPEG", True, False, ENDED),
    Cause(
        "a Python library missing",
        lose_library,
        "E_GENERATION_RUNTIME",
        True,
        True,
        FAILED,
        {"scene_seg": True, "mode": "streaming", "cond_video": VIDEO},
    ),
    Cause("a mistake of the worker's", fail_unexpectedly, "E_GENERATION_RUNTIME", True, False, "send the job again"),
    Cause("a damaged file", nothing, "E_INPUT_VALIDATION", False, False, UNREADABLE, {"cond_video": DAMAGED}),
    Cause(
        "a file that crashes the decoder",
        with_decoder(CRASHES_ON_VIDEOS),
        "E_INPUT_VALIDATION",
        False,
        False,
        UNREADABLE,
        {"cond_video": VIDEO},
    ),
    Cause(
        "an address that is refused",
        nothing,
        "E_DOWNLOAD_FAILED",
        False,
        False,
        "the address was refused",
        {"cond_video": "http://127.0.0.1:9/face.png"},
    ),
]


@contextmanager
def limits_kept() -> Iterator[None]:
    """The process's own limit of descriptors stands again afterwards."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def worker_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The worker's own logs; those of structlog for a terminal import modules when the first error is logged."""
    for name in ("stdout", "stderr"):
        # The worker puts its own in their place, over the same file descriptors.
        monkeypatch.setattr(sys, name, getattr(sys, name))
    configure_logs(Settings())
    try:
        yield
    finally:
        structlog.reset_defaults()


@pytest.mark.usefixtures("worker_logs")
@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_the_cause_decides_who_is_to_blame(
    cause: Cause, tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    volume = tmp_path / "volume"
    volume.mkdir()
    settings = Settings(
        output_dir=volume, volume_dir=volume, webhook_get_job="set", infinitetalk_model="tiny", download_attempts=1
    )
    # Loaded by then: what is imported at first use is not of the cause.
    tiny_engine.finish_loading()
    monkeypatch.setattr(tiny_engine, "health", Health())
    runner = Runner(settings, ready(settings, tiny_engine))
    job = {"id": "job-1", "input": small_job(**cause.changes)}

    async def run(patch: pytest.MonkeyPatch) -> dict[str, Any]:
        # The loop runs by then, as a worker's does when a job comes.
        cause.bring_about(patch, tmp_path)
        return await runner(job)

    with limits_kept(), monkeypatch.context() as patch:
        result = asyncio.run(run(patch))
    assert result.pop("refresh_worker", False) is runner.is_unfit() is cause.is_replaced
    error = Failure.model_validate(result, strict=False).error
    assert (error.code, error.retryable) == (cause.code, cause.retryable)
    assert cause.words in error.message
    assert "/weights" not in error.message and str(tmp_path) not in error.message
    monkeypatch.setattr(tiny_engine, "health", Health())
    assert asyncio.run(runner({"id": "job-2", "input": small_job()}))["status"] == "success"


def test_a_decoder_that_is_told_to_end_says_so():
    """The real one says so by its status alone: what `ENDED_FROM_OUTSIDE` holds."""
    endless = [ffmpeg_path(), "-nostdin", "-re", "-f", "lavfi", "-i", "testsrc", "-f", "null", "-"]
    with subprocess.Popen(endless, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        # By its first report it has begun to heed signals.
        while b"frame=" not in process.stderr.read1():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in ENDED_FROM_OUTSIDE
        assert process.returncode == 255


def test_a_worker_whose_temporary_folder_is_gone_fails_one_job_and_goes(tmp_path: Path):
    with running_worker(tmp_path) as worker:
        worker.success(small_job())
        for entry in worker.temporary.rglob("*"):
            if entry.is_file():
                entry.unlink()
        worker.temporary.rename(tmp_path / "elsewhere")
        _, failure = worker.refusal(small_job())
        assert (failure.error.code, failure.error.retryable) == ("E_GENERATION_RUNTIME", True)
        next_id = worker.queue.post(small_job())
        assert worker.process.wait(START_TIMEOUT_S) == 0
        assert worker.queue.jobs[next_id].status == "IN_QUEUE"

"""Jobs through the worker's `Runner` in this process, each held to what is true of every job, whatever it is.

A `Campaign` notes what is wrong and goes on, so that one run tells all; `Campaign.check` fails at its end, with how
often each check failed and its smallest job. The jobs meet a `HostileNetwork`, and the log is read as it was written.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import structlog

from infinitetalk.worker.engine import Engine
from infinitetalk.worker.logs import configure_logs
from infinitetalk.worker.queue.runner import Runner
from infinitetalk.worker.settings import MEGABYTE, Settings
from schemas import BatchResult, Failure, Plan, Success
from tests.hostile_network import SITE, HostileNetwork
from tests.local_jobs import LocalWorker, ready

SECRET = "zq7canary4kd"
"""Where a job, or the worker's settings, hold a secret: in no log line and no answer."""

LOG_SECRET = "wx3canary9fm"
"""What a client may read of its own job, but the log must not show: a token in an address's path, a prompt."""

ACCEPTED = "accepted"
LIMIT_S = 10.0
"""Seconds that a job may take that is not made to its end: more than any of its limits, on a machine that is busy."""

WHOLE_LIMIT_S = 60.0
LONGEST_LINE = 100_000
MAX_DOWNLOAD_BYTES = 2 * MEGABYTE
MAX_SENT_BYTES = 16 * MEGABYTE
"""What a server may have sent when a download has ended that was too large: the limit, and what sockets hold."""

SHOWN_JOB_CHARACTERS = 1500
SHOWN_DEPTH = 10


def campaign_settings(folder: Path, **changes: Any) -> Settings:
    """A worker with a volume and a bucket, whose limits are short."""
    volume = folder / "volume"
    volume.mkdir(exist_ok=True)
    return Settings(
        **{
            "output_dir": volume,
            "volume_dir": volume,
            "webhook_get_job": "set",
            "infinitetalk_model": "tiny",
            "download_attempts": 1,
            "connect_timeout_s": 0.5,
            "read_timeout_s": 0.5,
            "download_timeout_s": 0.7,
            "store_timeout_s": 3.0,
            "stop_timeout_s": 20.0,
            "max_image_bytes": MAX_DOWNLOAD_BYTES,
            "max_audio_bytes": MAX_DOWNLOAD_BYTES,
            "max_video_bytes": MAX_DOWNLOAD_BYTES,
            "s3_endpoint": f"http://store.{SITE}",
            "s3_access_key": "id",
            "s3_secret_key": SECRET,
            "s3_bucket": "bucket",
            "resume_secret": SECRET,
        }
        | changes
    )


class LogFile:
    """What is written to file descriptor 2 while this is entered, by whichever way, with the worker's logs set up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        self._kept = (sys.stdout, sys.stderr, structlog.get_config(), os.dup(2))
        self._file = tempfile.TemporaryFile()
        sys.stderr.flush()
        os.dup2(self._file.fileno(), 2)
        sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(2), "wb", buffering=0), write_through=True)
        configure_logs(self._settings)
        # A logger that is kept would write here when this is closed.
        structlog.configure(cache_logger_on_first_use=False)
        self._stream = sys.stderr
        return self

    def attach(self) -> None:
        """Has what is written come here again: between the phases of a test, pytest puts its own file there."""
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        self._stream.flush()
        sys.stdout, sys.stderr, config, descriptor = self._kept
        os.dup2(descriptor, 2)
        os.close(descriptor)
        structlog.configure(**config)
        self._file.close()

    def take(self) -> str:
        """What has been written since this was called last."""
        self._stream.flush()
        length = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), length, 0).decode("utf-8", "replace")
        # It is written at the end, wherever that is.
        self._file.truncate(0)
        os.lseek(2, 0, os.SEEK_SET)
        return text


@dataclass
class Findings:
    """What was wrong, by the check that failed: how often, and the smallest job."""

    counts: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, tuple[str, str]] = field(default_factory=dict)

    def note(self, check: str, what: str, job: Any) -> None:
        """One more."""
        shown = shortened(job)
        self.counts[check] += 1
        if check not in self.smallest or len(shown) < len(self.smallest[check][1]):
            self.smallest[check] = (what[:500], shown)

    def __str__(self) -> str:
        lines = []
        for check, count in self.counts.most_common():
            what, job = self.smallest[check]
            lines.append(f"{check}: {count} times; {what}\n    the smallest job: {job[:SHOWN_JOB_CHARACTERS]}")
        return "\n".join(lines)


def shortened(value: Any, depth: int = 0) -> str:
    """A job as a message shows it, its media by their lengths."""
    match value:
        case dict() | list() if depth > SHOWN_DEPTH:
            return "<nested>"
        case dict():
            fields = [f"{shortened(name)}: {shortened(item, depth + 1)}" for name, item in value.items()]
            return "{" + ", ".join(fields) + "}"
        case list():
            return "[" + ", ".join(shortened(item, depth + 1) for item in value[:20]) + "]"
        case str() if len(value) > 200:
            return f"<{value[:60]!a}… {len(value)} characters>"
        case int() if abs(value) > 2**64:
            return "<a long number>"
        case _:
            return ascii(value)


class Campaign:
    """Runs jobs one by one.

    Attributes:
        worker: for what runs beside the `Runner`, on the same volume.
        outcomes: of all, by status or code.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.settings = campaign_settings(folder)
        self.worker = LocalWorker(self.settings, engine, self.settings.output_dir)
        self.outcomes: Counter[str] = Counter()
        self.findings = Findings()

    def __enter__(self) -> Self:
        self.engine.finish_loading()
        self._signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with ExitStack() as stack:
            self._temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="campaign-")))
            stack.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
            self.network = stack.enter_context(HostileNetwork())
            self._log = stack.enter_context(LogFile(self.settings))
            self._loop = stack.enter_context(asyncio.Runner())
            tempfile.tempdir = str(self._temporary)
            self._runner = Runner(self.settings, ready(self.settings, self.engine))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._signals.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Asserts that nothing was wrong."""
        assert not self.findings.counts, f"of {self.outcomes.total()} jobs\n{self.findings}"

    def run(self, job: dict[str, Any], limit_s: float = LIMIT_S) -> dict[str, Any] | None:
        """One job's result; None where it was accepted, and stopped before the model."""
        with self.watching(job, limit_s):
            try:
                result = self._loop.run(self._runner(job))
            except asyncio.CancelledError:
                self.outcomes[ACCEPTED] += 1
                return None
            except Exception as error:
                self.findings.note("an exception in the place of a result", repr(error), job)
                self.outcomes["exception"] += 1
                return None
            self.check_result(result, job)
        return result

    @contextmanager
    def watching(self, job: Any, limit_s: float) -> Iterator[None]:
        """Looks at what must be true of all that is done inside, for the sake of `job`."""
        self._log.attach()
        self._log.take()
        begin = time.monotonic()
        self.network.site.most_sent = 0
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            if seconds > limit_s:
                self.findings.note("outlasts its limits", f"{seconds:.1f} s, not {limit_s:g}", job)
            if self.network.site.most_sent > MAX_SENT_BYTES:
                self.findings.note("takes more than its limits", f"{self.network.site.most_sent} bytes", job)
            for breach in self.network.take_breaches():
                self.findings.note("connects to what is not public", breach, job)
            left = sorted(path.name for path in self._temporary.iterdir())
            if any(name.startswith("infinitetalk-") for name in left):
                self.findings.note("leaves temporary files", str(left), job)
            self._check_log(self._log.take(), job)

    def check_result(self, result: dict[str, Any], job: Any) -> None:
        """Notes what is wrong with a result, and counts it."""
        try:
            text = json.dumps(result, allow_nan=False, ensure_ascii=False)
            text.encode()
            self.outcomes[outcome_of(result)] += 1
        except Exception as error:
            self.findings.note("is no result of the interface", repr(error), job)
            return
        if SECRET in text:
            self.findings.note("a secret is in the answer", around(SECRET, text), job)
        for shown in (str(self.folder), str(self._temporary), "Traceback", "site-packages"):
            if shown in text:
                self.findings.note("the answer shows the worker", around(shown, text), job)

    def _check_log(self, log: str, job: Any) -> None:
        for secret in (SECRET, LOG_SECRET):
            if secret in log:
                self.findings.note("a secret is in the log", around(secret, log), job)
        for line in log.splitlines():
            if len(line) > LONGEST_LINE:
                self.findings.note("a line of the log is as long as its job", f"{len(line)} characters", job)
            elif line.startswith("{"):
                try:
                    entry = json.loads(line)
                except ValueError:
                    self.findings.note("a line of the log is no JSON", line, job)
                    continue
                if "exception" in entry:
                    kinds = re.findall(r"^([A-Za-z_][\w.]*)(?::|$)", entry["exception"], re.MULTILINE)
                    kind = kinds[-1] if kinds else "of no kind"
                    self.findings.note(f"an error that nobody expects: {kind}", entry["exception"][-400:], job)


def around(what: str, text: str) -> str:
    """A text where it holds that."""
    place = text.index(what)
    return text[max(place - 80, 0) : place + 80]


def outcome_of(result: dict[str, Any]) -> str:
    """A result's status or code.

    Raises:
        ValidationError: it is no result of the interface.
    """
    result = {name: value for name, value in result.items() if name != "refresh_worker"}
    if "items" in result:
        return f"batch: {BatchResult.model_validate(result, strict=False).status}"
    match result["status"]:
        case "success":
            return Success.model_validate(result, strict=False).status
        case "planned":
            return Plan.model_validate(result, strict=False).status
        case _:
            return Failure.model_validate(result, strict=False).error.code

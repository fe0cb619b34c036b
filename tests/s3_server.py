"""A real S3 server that verifies signatures, on the loopback address: OpenStack Swift with its S3 interface.

    def test_upload(s3_server: S3Server) -> None:
        s3_server.client().put_object(Bucket=s3_server.bucket, Key="key", Body=b"…")

Swift lives in a virtual environment of its own, made from `swift-requirements.txt` on first use (15 s); where that
cannot be made, tests that ask for the server are skipped. It needs no root, and ends with this process, however that
ends. conftest.py makes the fixtures known.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import boto3
import pytest
from botocore.config import Config

from infinitetalk.worker.settings import Settings

TESTS = Path(__file__).parent
CACHE = TESTS.parent / ".cache"
ENVIRONMENT = CACHE / "swift"
REQUIREMENTS = TESTS / "swift-requirements.txt"
LAUNCHER = TESTS / "swift_launcher.py"

REGION = "us-east-1"
ACCESS_KEY = "test:tester"
SECRET_KEY = "a-secret-for-tests-only"
BUCKET = "results"


class SwiftUnavailable(Exception):
    """Swift's virtual environment cannot be made on this machine; the message says why."""


def swift_python() -> Path:
    """The Python of Swift's virtual environment, which is made on first use and again when the requirements change.

    Raises:
        SwiftUnavailable: the environment cannot be made, for want of the package index, say.
    """
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / REQUIREMENTS.name
    CACHE.mkdir(exist_ok=True)
    # Two test runs at once make it once.
    with (CACHE / "swift.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
            return python
        try:
            venv.create(ENVIRONMENT, clear=True, with_pip=True)
            command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            last_line = (error.stderr or error.stdout or "").strip().rpartition("\n")[2]
            raise SwiftUnavailable(f"Swift's virtual environment cannot be made: {last_line}") from error
        shutil.copyfile(REQUIREMENTS, stamp)
    return python


class S3Server:
    """A store with one empty bucket.

    Attributes:
        access_key, secret_key, bucket, region: what a client needs beside `endpoint`.
    """

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY
    bucket = BUCKET

    def __init__(self, region: str = REGION) -> None:
        self.region = region
        self._python = swift_python()
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        # Swift needs extended attributes, which a temporary folder in memory may lack.
        self._folder = tempfile.TemporaryDirectory(prefix="s3-", dir=CACHE)
        self.start()
        self.client().create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    @property
    def endpoint(self) -> str:
        """The store's address, which a restart keeps."""
        return f"http://127.0.0.1:{self._port}"

    def client(self, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
        """A boto3 client that does not retry."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}),
        )

    def keys(self) -> list[str]:
        """Keys of all objects in the bucket."""
        return [entry["Key"] for entry in self.client().list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    def start(self) -> None:
        """Starts the server where it stopped, with all that it had stored, at the same address.

        Raises:
            RuntimeError: it did not start; its output is in the message.
        """
        log_path = Path(self._folder.name) / "log.txt"
        arguments = [self._folder.name, str(self._port), ACCESS_KEY, SECRET_KEY, self.region]
        with log_path.open("a") as log:
            self._process = subprocess.Popen(
                [self._python, "-W", "ignore", LAUNCHER, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        first_line = self._process.stdout.readline()
        if not first_line:
            raise RuntimeError(f"Swift did not start: {log_path.read_text()[-2000:]}")
        self._port = int(first_line)

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and not ended since."""
        return self._process is not None

    def kill(self) -> None:
        """Ends the server at once, in mid-upload too; what it has stored stays. Nothing answers until `start`."""
        if self._process is not None:
            with self._process as process:
                process.kill()
            self._process = None

    def clear(self) -> None:
        """Removes all objects and unfinished uploads."""
        client = self.client()
        for upload in client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []):
            client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        for key in self.keys():
            client.delete_object(Bucket=self.bucket, Key=key)


def with_bucket(settings: Settings, server: S3Server, **changes: Any) -> Settings:
    """A worker's settings with those of the server's bucket."""
    store = {f"s3_{name}": getattr(server, name) for name in ("endpoint", "access_key", "secret_key", "bucket")}
    return Settings.model_validate(settings.model_dump(exclude_unset=True) | store | changes)


@pytest.fixture(scope="session")
def s3_server_process() -> Iterator[S3Server]:
    """The session's store, whatever state a test left it in; ask for `s3_server` instead."""
    try:
        server = S3Server()
    except SwiftUnavailable as reason:
        pytest.skip(str(reason))
    with server:
        yield server


@pytest.fixture
def s3_server(s3_server_process: S3Server) -> S3Server:
    """The session's store, running, its bucket empty."""
    if not s3_server_process.is_running:
        s3_server_process.start()
    s3_server_process.clear()
    return s3_server_process

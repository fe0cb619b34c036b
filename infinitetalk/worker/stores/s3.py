"""Where results go: a folder, the result itself, or an S3-compatible store."""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import re
import socket
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSRequest,
)
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import URLLib3Session
from requests.utils import get_environ_proxies
from runpod.serverless.utils.rp_ssrf import SSRFError
from urllib3.exceptions import HTTPError

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import FULL_DISK, WorkerError
from infinitetalk.worker.fetch import TRANSIENT_STATUSES, OnBytes
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.stores.public import CLEAN_S, MAX_ANSWER_BYTES, BoundedBody, Guard, StoreTooSlow
from infinitetalk.worker.transport import TimeIsOver, Watch, check_public, open_public, send
from schemas import DEFAULT_PREFIX, ErrorCode, OutputConfig, S3Config

VIDEO_TYPE = "video/mp4"
THUMBNAIL_TYPE = "image/jpeg"
METADATA_TYPE = "application/json"
PROBE = ".check"
"""Begins the name of the object that shows that a bucket can be written to and read from."""

WORK_FOLDER = ".unfinished"
"""Name of the folder on a volume for files that are still written."""

REQUEST_MARK = "infinitetalk-request"
"""Of a video in a bucket, its metadata that says which request it answers."""

RESULT_OVERHEAD_BYTES = 100_000
"""Room that the rest of a result gets beside inline media."""

S3_ATTEMPTS = 5
PUT_ATTEMPTS = 4
FIRST_WAIT_S = 0.5
"""Seconds before a PUT is tried again, doubled each time."""

BLOCK_BYTES = 1 << 18
STOP_POLL_S = 0.05
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
TRIES = 4
"""Of what another worker may have come before with, or what may pass."""

CHECK_S = 60.0
"""Seconds that a store which a job names may take for small requests together."""

MAX_METADATA_BYTES = 1_000_000
SHOWN_ANSWER_BYTES = 4096
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")


@dataclass(frozen=True)
class Artifacts:
    """The files that a task leaves: the MP4, its JPEG, and a JSON file that says how they were made.

    `request` is the fingerprint of what was asked for, by which a video of the same job by another worker is known.
    """

    video: Path
    thumbnail: Path
    metadata: Path
    request: str


@dataclass(frozen=True)
class Found:
    """A video that is in the store already.

    Attributes:
        identity: differs where it has been replaced.
        num_bytes: its size.
        request: that it answers; None where that is not known, as while its account of itself is still to come.
    """

    identity: str
    num_bytes: int
    request: str | None


class Step(Enum):
    """What becomes of a video that has been made, by what is in its place."""

    CREATE = "create"
    REPLACE = "replace"
    ADOPT = "adopt"


def next_step(found: Found | None, before: Found | None, request: str) -> Step:
    """Two workers may hold one job: whose video is there first stays, since its address may have been told.

    Args:
        found: is in the video's place now.
        before: was there when the job began.
        request: that has been answered.

    Raises:
        WorkerError: another job's video has come there meanwhile.
    """
    if found is None:
        return Step.CREATE
    if found.request == request:
        return Step.ADOPT
    if before is not None and before.identity == found.identity:
        # Of an earlier job of the same id, as they are on the command line, or of a worker that was lost.
        return Step.REPLACE
    if found.request is None:
        return Step.ADOPT
    raise _not_stored("another worker has stored a video of another request under the job's id meanwhile")


class Store(ABC):
    """Keeps a video and what belongs to it.

    Attributes:
        warnings: what may disappoint in where the result is.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    @abstractmethod
    def check(self) -> None:
        """Looks, before the work begins, whether the store would take the result.

        Raises:
            WorkerError: it would not.
        """

    def check_size(self, count_bytes: Callable[[], int]) -> None:
        """Looks whether the store would take a video of at least `count_bytes()`; only a limited one needs to know.

        Raises:
            WorkerError: it would not.
        """
        return

    def remember(self, name: str) -> None:
        """Looks what is there under the job's name before it begins.

        Raises:
            WorkerError: the store does not answer.
        """
        return

    def places(self, name: str, num_bytes: int) -> dict[str, Any] | None:
        """Where the files are that were stored under `name`, with addresses signed anew; None where one is missing or
        the video has another size. Of what cannot be looked at, nothing.

        Raises:
            WorkerError: the store does not answer.
        """
        return {}

    @abstractmethod
    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Stores the artifacts under `name`; returns the fields of `schemas.Video` that say where, and `bytes` where
        the video there is one of another worker that held the same job.

        Args:
            on_bytes: told what has been sent over the network.
            should_stop: asked while it is sent; nothing half done stays behind.

        Raises:
            WorkerError: they could not be stored.
            GenerationStopped: `should_stop` said so.
        """


def make_store(
    output_config: OutputConfig,
    s3_config: S3Config | None,
    settings: Settings,
    num_inline: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Store:
    """The store that a job asks for.

    Args:
        num_inline: how many videos share the room of the job's result.
        should_stop: asked while a store that the job names is spoken to.

    Raises:
        WorkerError: the worker has no settings for it, or no network volume.
    """
    match output_config.store:
        case "volume":
            if settings.output_dir.is_relative_to(settings.volume_dir) and not settings.volume_dir.is_dir():
                # A folder made there would vanish with the container, and the video with it.
                raise WorkerError(
                    ErrorCode.INPUT_VALIDATION,
                    'output_config.store "volume" needs a network volume, which this endpoint does not have; use "s3" '
                    'or, for a short video, "inline"',
                )
            return VolumeStore(settings.output_dir, output_config.prefix)
        case "inline":
            return InlineStore(settings.max_result_bytes // num_inline - RESULT_OVERHEAD_BYTES)
        case "put":
            assert output_config.video_url is not None and output_config.thumbnail_url is not None
            return PutStore(output_config.video_url, output_config.thumbnail_url, settings)
        case "s3":
            return S3Store.from_settings(output_config.prefix, s3_config, settings, should_stop)


class VolumeStore(Store):
    """A folder below `root`, the network volume on Runpod.

    What is not finished lies in a folder of the worker's own on the same volume, under a name that nobody else has.
    """

    def __init__(self, root: Path, prefix: str) -> None:
        super().__init__()
        self.root = root.resolve()
        self.folder = self.root / prefix
        self.work_folder = self.root / DEFAULT_PREFIX / WORK_FOLDER
        self._before: Found | None = None

    def check(self) -> None:
        self._check_place()
        with _volume_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):
                pass

    def remember(self, name: str) -> None:
        self._before = self._look(name)

    def places(self, name: str, num_bytes: int) -> dict[str, Any] | None:
        found = self._look(name)
        if found is None or found.num_bytes != num_bytes:
            return None
        others = (self.folder / f"{name}.{extension}" for extension in ("jpg", "json"))
        return self._places(name) if all(file.is_file() for file in others) else None

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        video = self.folder / f"{name}.mp4"
        with _volume_errors(), self._copied(name, artifacts.video, should_stop) as copy:
            num_bytes = copy.stat().st_size
            step = next_step(self._look(name), self._before, artifacts.request)
            if step is Step.REPLACE:
                # It speaks of the video that goes.
                (self.folder / f"{name}.json").unlink(missing_ok=True)
                copy.replace(video)
            elif step is Step.ADOPT or not _create(copy, video):
                step = Step.ADOPT
            # From here on the job has its video, and is not stopped any more.
            there = video.stat().st_size
            if step is not Step.ADOPT and there != num_bytes:
                raise OSError(errno.EIO, "the volume holds another size than was written")
            metadata = _with_size(artifacts.metadata, there, num_bytes)
            for extension, data in (("jpg", artifacts.thumbnail.read_bytes()), ("json", metadata)):
                self._put_beside(name, extension, data, replaces=step is not Step.ADOPT)
        return self._places(name) | ({} if there == num_bytes else {"bytes": there})

    def put(self, name: str, data: bytes, content_type: str) -> str:
        """Stores a small file below the prefix, at once or not at all; returns its path below the volume's root.

        Raises:
            WorkerError: it could not be stored.
        """
        target = self.folder / name
        with _volume_errors(), new_file(self.work_folder / target.parent.name, [data]) as unfinished:
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(target)
        return target.relative_to(self.root).as_posix()

    def remove(self, names: Iterable[str]) -> None:
        """Removes files below the prefix, and their folder where it is empty then.

        Raises:
            WorkerError: one could not be removed.
        """
        self._check_place()
        with _volume_errors():
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    (self.folder / name).parent.rmdir()

    def remove_unfinished_preview(self, name: str) -> None:
        """Removes what was published of a video that is not there, by whichever worker.

        Raises:
            WorkerError: it could not be removed.
        """
        self._check_place()
        if self._look(name) is None:
            folder = self.folder / f"{name}.preview"
            self.remove(file.relative_to(self.folder).as_posix() for file in folder.glob("*"))

    def _look(self, name: str) -> Found | None:
        with _volume_errors():
            try:
                status = (self.folder / f"{name}.mp4").stat()
            except FileNotFoundError:
                return None
            identity = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
            return Found(identity, status.st_size, _request_in(self.folder / f"{name}.json"))

    def _places(self, name: str) -> dict[str, Any]:
        place = self.folder.relative_to(self.root).as_posix()
        fields = {"metadata_path": "json", "thumbnail_path": "jpg", "path": "mp4"}
        return {field: f"{place}/{name}.{extension}" for field, extension in fields.items()}

    def _put_beside(self, name: str, extension: str, data: bytes, replaces: bool) -> None:
        target = self.folder / f"{name}.{extension}"
        with new_file(self.work_folder / name, [data]) as unfinished:
            if replaces:
                unfinished.replace(target)
            else:
                _create(unfinished, target)

    @contextmanager
    def _copied(self, name: str, source: Path, should_stop: Callable[[], bool]) -> Iterator[Path]:
        def blocks() -> Iterator[bytes]:
            with source.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    if should_stop():
                        raise GenerationStopped
                    yield block

        with new_file(self.work_folder / name, blocks()) as copy:
            yield copy

    def _check_place(self) -> None:
        if not self.folder.resolve().is_relative_to(self.root):
            raise WorkerError(ErrorCode.INPUT_VALIDATION, "output_config.prefix leads out of the volume")


@contextmanager
def new_file(folder: Path, blocks: Iterable[bytes]) -> Iterator[Path]:
    """A file of a name that nobody else has, all of it on the disk; where it is not renamed inside, it goes at the end.

    Args:
        folder: of the file; made, and removed where it is empty at the end, with its parent.

    Raises:
        OSError: it could not be written.
    """
    path = folder / f".{uuid4().hex}.part"
    try:
        with os.fdopen(_open_new(path), "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.tell()
        if path.stat().st_size != num_bytes:
            raise OSError(errno.EIO, "the volume holds another size than was written")
        yield path
    finally:
        path.unlink(missing_ok=True)
        remove_empty(folder)


def _open_new(path: Path) -> int:
    for attempt in range(TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileNotFoundError:
            # Another worker has found the folder empty, and removed it.
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def remove_empty(folder: Path) -> None:
    """Removes a folder and its parent where they are empty; else they stay as they are."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _create(source: Path, target: Path) -> bool:
    """Gives a file its name unless that is taken; returns whether it did."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # A file system without links: look, then write.
        if target.exists():
            return False
        source.replace(target)
    return True


def _request_in(metadata: Path) -> str | None:
    """The request that a video's account of itself names."""
    try:
        data = read_regular(metadata, MAX_METADATA_BYTES)
        account = None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None
    request = account.get("request") if isinstance(account, dict) else None
    return request if isinstance(request, str) else None


def read_regular(path: Path, max_bytes: int) -> bytes | None:
    """A file's bytes; None where there is none, or no plain one, or it is larger than that."""
    try:
        # Neither a link elsewhere nor a pipe, which would never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = file.read(max_bytes + 1)
    return data if len(data) <= max_bytes else None


def _with_size(metadata: Path, there: int, made: int) -> bytes:
    """A video's account of itself, for the video that is there."""
    data = metadata.read_bytes()
    if there == made:
        return data
    account = json.loads(data)
    account["video"]["bytes"] = there
    return json.dumps(account, indent=2, ensure_ascii=False).encode()


@contextmanager
def _volume_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            message = "output_config.prefix and the job's id make a name that is too long for the volume"
            raise WorkerError(ErrorCode.INPUT_VALIDATION, message) from error
        reason = "is full" if error.errno in FULL_DISK else "cannot be written to"
        raise _not_stored(f"the volume {reason}") from error


class InlineStore(Store):
    """Base64 in the result itself, for small videos.

    Args:
        max_characters: that video and thumbnail may have together, in base64.
    """

    def __init__(self, max_characters: int) -> None:
        super().__init__()
        self.max_characters = max_characters

    def check(self) -> None:
        """Nothing to look at: how large the video gets is not known yet."""

    def check_size(self, count_bytes: Callable[[], int]) -> None:
        self._check_characters(count_bytes() * 4 // 3)

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        encoded = {
            "data": base64.b64encode(artifacts.video.read_bytes()).decode("ascii"),
            "thumbnail_data": base64.b64encode(artifacts.thumbnail.read_bytes()).decode("ascii"),
        }
        self._check_characters(sum(len(text) for text in encoded.values()))
        return encoded

    def _check_characters(self, characters: int) -> None:
        if characters > self.max_characters:
            raise WorkerError(
                ErrorCode.UPLOAD,
                f"the video is too large for an inline result ({characters / MEGABYTE:.1f} MB in base64, at most "
                f'{self.max_characters / MEGABYTE:g} MB); use output_config.store "s3" or "volume", or fewer frames',
                retryable=False,
            )


class S3Store(Store):
    """A bucket of an S3-compatible store.

    Args:
        place: of the bucket.
        prefix: of the keys.
        settings: of the worker.
        public_base: address of the bucket's root for everyone; None: presigned addresses.
        should_stop: asked while a store that the job names is spoken to; None: the store is the worker's own.
    """

    def __init__(
        self,
        place: BucketPlace,
        prefix: str,
        settings: Settings,
        public_base: str | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        super().__init__()
        self.bucket = place.bucket
        self.prefix = prefix
        self.public_base = public_base
        self.is_own = should_stop is None
        self.guard = Guard(should_stop or (lambda: False))
        self.timeout_s = settings.store_timeout_s
        self._check_s = min(CHECK_S, settings.store_timeout_s)
        self._place = place
        self._settings = settings
        self._before: Found | None = None
        self._connect(place.region)

    @classmethod
    def from_settings(
        cls,
        prefix: str,
        s3_config: S3Config | None,
        settings: Settings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> S3Store:
        """The job's own store with the job's own credentials, else the worker's.

        Raises:
            WorkerError: neither is complete, or the job's store is not at a public address.
        """
        if s3_config is not None:
            check_target("s3Config.endpointUrl", s3_config.endpoint_url, settings)
            place = bucket_place(
                s3_config.endpoint_url,
                s3_config.bucket_name,
                s3_config.region,
                s3_config.access_id,
                s3_config.access_secret,
            )
            return cls(place, prefix, settings, None, should_stop)
        endpoint, bucket, secret_key = settings.s3_endpoint, settings.s3_bucket, settings.s3_secret_key
        if endpoint is not None and bucket is None:
            bucket = bucket_in_host(endpoint)
        required = {
            "S3_ENDPOINT": endpoint,
            "S3_ACCESS_KEY": settings.s3_access_key,
            "S3_SECRET_KEY": secret_key,
            "S3_BUCKET": bucket,
        }
        missing = [name for name, value in required.items() if value is None]
        if missing:
            raise WorkerError(
                ErrorCode.INPUT_VALIDATION,
                f'output_config.store "s3" needs the worker\'s settings {", ".join(missing)}, or an s3Config with the '
                'job; "volume" and "inline" work without',
            )
        assert endpoint is not None and settings.s3_access_key is not None
        assert secret_key is not None and bucket is not None
        place = bucket_place(
            endpoint, bucket, settings.s3_region, settings.s3_access_key, secret_key.get_secret_value()
        )
        return cls(place, prefix, settings, settings.s3_public_base, None)

    def check(self) -> None:
        """Puts a small object, gets it by such an address as will be handed out, and removes it: what may not be
        written or cannot be read costs a second, not a video. A store that names its region is asked again in that."""
        with self.guard.within(self._check_s):
            answer = self._try_probe()
            if answer is not None and answer.region not in (None, self._place.region):
                self._connect(answer.region)
                answer = self._try_probe()
            if answer is not None and not answer.is_served:
                raise self._not_served(answer)

    def remember(self, name: str) -> None:
        with self.guard.within(self._check_s):
            self._before = self._look(name)

    def places(self, name: str, num_bytes: int) -> dict[str, Any] | None:
        with self.guard.within(self._check_s):
            found = self._look(name)
            if found is None or found.num_bytes != num_bytes:
                return None
            if any(self._head(f"{name}.{extension}") is None for extension in ("jpg", "json")):
                return None
            return self._tried_addresses(name)[0]

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        beside = {"jpg": (artifacts.thumbnail, THUMBNAIL_TYPE), "json": (artifacts.metadata, METADATA_TYPE)}
        made = artifacts.video.stat().st_size
        sent = SentBytes(on_bytes, made + sum(path.stat().st_size for path, _ in beside.values()))
        with self.guard.within(self.timeout_s):
            there, is_mine = self._save_video(name, artifacts, made, sent, should_stop)
            # From here on the job has its video, and is not stopped any more.
            self.guard.forget_stop()
            for extension, (path, content_type) in beside.items():
                data = _with_size(path, there, made) if extension == "json" else path.read_bytes()
                self._put(f"{name}.{extension}", data, content_type, is_new=not is_mine)
                sent.add(len(data))
            places, served = self._tried_addresses(name)
        there = there if served is None else served
        return places | ({} if there == made else {"bytes": there})

    def put(self, name: str, data: bytes, content_type: str) -> str:
        """Stores a small file below the prefix; returns its address, which has been tried.

        Raises:
            WorkerError: it could not be stored, or the address does not serve it.
        """
        with self.guard.within(self._check_s):
            self._put(name, data, content_type)
            return self._tried_address(name)[0]

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects below the prefix.

        Raises:
            WorkerError: one could not be removed.
        """
        with self.guard.within(CLEAN_S), _s3_errors():
            for name in names:
                self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def remove_unfinished_preview(self, name: str) -> None:
        """Removes what was published of a video that is not there, by whichever worker; in the worker's own bucket
        only, since a listing of a job's own store may be endless.

        Raises:
            WorkerError: it could not be removed.
        """
        if not self.is_own or self._look(name) is not None:
            return
        pages = self.client.get_paginator("list_objects_v2")
        with _s3_errors():
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._key(f"{name}.preview/")):
                for entry in page.get("Contents", []):
                    self.client.delete_object(Bucket=self.bucket, Key=entry["Key"])

    def _connect(self, region: str) -> None:
        """Speaks to the store as one of a region."""
        self._place = replace(self._place, region=region)
        self.client = _s3_client(self._place, self._settings)
        if self.is_own:
            timeouts: Any = (self._settings.connect_timeout_s, self._settings.read_timeout_s)
            self._session = URLLib3Session(timeout=timeouts, proxies=get_environ_proxies(self._place.endpoint))
        else:
            self._session = session = PublicSession(self._settings, self.guard)
            # What this returns is taken for the answer, and nothing else is sent.
            self.client.meta.events.register("before-send.s3", lambda request, **_: session.send(request))

    def _try_probe(self) -> Served | None:
        """What a presigned address of an object just put answers; None where addresses are not presigned."""
        name = f"{PROBE}-{uuid4().hex}"
        self._put(name, b"a trial", "text/plain")
        try:
            return None if self.public_base is not None else self._get(self._address(name))
        finally:
            # Who may write need not be allowed to remove.
            with suppress(BotoCoreError, ClientError):
                self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _save_video(
        self, name: str, artifacts: Artifacts, made: int, sent: SentBytes, should_stop: Callable[[], bool]
    ) -> tuple[int, bool]:
        """Size of the video that is there then, and whether it is this worker's."""
        for attempt in range(TRIES):
            found = self._look(name)
            step = next_step(found, self._before, artifacts.request)
            if step is Step.ADOPT:
                assert found is not None
                return found.num_bytes, False
            if self._upload(artifacts, f"{name}.mp4", step is Step.CREATE, sent, should_stop):
                return made, True
            # Another worker has come before, or is about to.
            time.sleep(FIRST_WAIT_S * attempt)
        raise _not_stored("the store says that the video is there already, and does not show it")

    def _upload(
        self, artifacts: Artifacts, name: str, is_new: bool, sent: SentBytes, should_stop: Callable[[], bool]
    ) -> bool:
        """Uploads the video; returns False where one is there already and there must be none."""
        subscriber = ProgressCallbackInvoker(sent.add)
        arguments = {"ContentType": VIDEO_TYPE, "Metadata": {REQUEST_MARK: artifacts.request}}
        before = sent.done
        try:
            with self._unless_there(is_new), create_transfer_manager(self.client, TransferConfig()) as manager:
                # Left by an exception, the manager stops what is under way and aborts a multipart upload.
                upload = manager.upload(
                    str(artifacts.video), self.bucket, self._key(name), extra_args=arguments, subscribers=[subscriber]
                )
                while not upload.done():
                    if should_stop():
                        raise GenerationStopped
                    time.sleep(STOP_POLL_S)
                upload.result()
        except (BotoCoreError, ClientError, S3UploadFailedError) as error:
            sent.add(before - sent.done)
            if is_new and _status(error) in (409, 412):
                return False
            if is_new and _status(error) == 501:
                # A store without conditions: it was looked at before.
                return self._upload(artifacts, name, False, sent, should_stop)
            raise _s3_error(error) from error
        return True

    @contextmanager
    def _unless_there(self, is_new: bool) -> Iterator[None]:
        """Where `is_new`, lets what is uploaded inside be stored only where nothing has its name; the transfer manager
        has no argument for it."""

        def add(params: dict[str, Any], **_: Any) -> None:
            params["IfNoneMatch"] = "*"

        names = [f"before-parameter-build.s3.{name}" for name in ("PutObject", "CompleteMultipartUpload")]
        for event in names if is_new else []:
            self.client.meta.events.register(event, add, unique_id=f"new-{event}")
        try:
            yield
        finally:
            for event in names if is_new else []:
                self.client.meta.events.unregister(event, unique_id=f"new-{event}")

    def _put(self, name: str, data: bytes, content_type: str, is_new: bool = False) -> None:
        """Puts an object; where `is_new`, one that is there already stays."""
        try:
            with self._unless_there(is_new):
                self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data, ContentType=content_type)
        except (BotoCoreError, ClientError) as error:
            if is_new and _status(error) in (409, 412):
                return
            if is_new and _status(error) == 501:
                if self._head(name) is None:
                    self._put(name, data, content_type)
                return
            raise _s3_error(error) from error

    def _look(self, name: str) -> Found | None:
        head = self._head(f"{name}.mp4")
        if head is None:
            return None
        identity = f"{head['ETag']}-{head['LastModified'].timestamp()}"
        return Found(identity, head["ContentLength"], head["Metadata"].get(REQUEST_MARK))

    def _head(self, name: str) -> dict[str, Any] | None:
        """What the store says of an object; None where it is not there."""
        try:
            head: dict[str, Any] = self.client.head_object(Bucket=self.bucket, Key=self._key(name))
            return head
        except (BotoCoreError, ClientError) as error:
            # S3 says 403 of what is not there to those who may not list the bucket.
            if _status(error) in (403, 404):
                return None
            raise _s3_error(error) from error

    def _tried_addresses(self, name: str) -> tuple[dict[str, Any], int | None]:
        """The addresses of a video's files, each tried, and the size that the video's own one serves, if it says."""
        fields = {"metadata_url": "json", "thumbnail_url": "jpg", "url": "mp4"}
        tried = {field: self._tried_address(f"{name}.{extension}") for field, extension in fields.items()}
        return {field: address for field, (address, _) in tried.items()}, tried["url"][1]

    def _tried_address(self, name: str) -> tuple[str, int | None]:
        """An object's address for everyone, and the size that it serves, if it says.

        Raises:
            WorkerError: a presigned one does not serve it. One below the public base, which the worker itself may not
                reach, costs a warning.
        """
        address = self._address(name)
        answer = self._get(address)
        if self.public_base is None and not answer.is_served:
            raise self._not_served(answer)
        if not answer.is_served:
            said = "did not answer" if answer.status is None else f"answered with status {answer.status}"
            warning = f"the address was tried by this worker, and {said}: it may not serve the video"
            if warning not in self.warnings:
                self.warnings.append(warning)
        return address, answer.num_bytes

    def _get(self, address: str) -> Served:
        """What an address answers to a request for one byte."""
        status, num_bytes, region = None, None, None
        for attempt in range(TRIES):
            status = None
            request = AWSRequest("GET", address, headers={"Range": "bytes=0-0"}, stream_output=True).prepare()
            try:
                response = self._session.send(request)
                status = response.status_code
                # All of an answer to a request for one byte that was heard, else the beginning.
                body = response.raw.read(SHOWN_ANSWER_BYTES)
                response.raw.close()
            except StoreTooSlow as error:
                raise _s3_error(error) from error
            except (BotoCoreError, HTTPError, OSError):
                status = None
            else:
                num_bytes = _whole_size(response.headers)
                named = _REGION.search(body)
                region = None if named is None or status < 400 else named[1].decode()
            if status is not None and status < 500 and status not in TRANSIENT_STATUSES:
                break
            time.sleep(FIRST_WAIT_S * attempt)
        return Served(status, num_bytes, region)

    def _not_served(self, answer: Served) -> WorkerError:
        if answer.status is None:
            return _not_stored("the store did not answer")
        setting = "S3_REGION" if self.is_own else "s3Config.region"
        return _not_stored(
            f"the store takes what is put there, and answers the address to get it by with status {answer.status}: "
            f"name the store's region ({setting}), and let the credentials read objects",
            retryable=answer.status in TRANSIENT_STATUSES or answer.status >= 500,
        )

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def _address(self, name: str) -> str:
        if self.public_base is not None:
            return f"{self.public_base.rstrip('/')}/{quote(self._key(name))}"
        address: str = self.client.generate_presigned_url(
            "get_object",
            Params={"Bucket": self.bucket, "Key": self._key(name)},
            ExpiresIn=self._settings.s3_url_expiry_s,
        )
        return address


@dataclass(frozen=True)
class Served:
    """What an address answers.

    Attributes:
        status: None where it does not.
        num_bytes: of the whole object, where it is said.
        region: that the store names in a refusal.
    """

    status: int | None
    num_bytes: int | None
    region: str | None

    @property
    def is_served(self) -> bool:
        """Whether the address serves its object."""
        return self.status is not None and self.status < 400


def _whole_size(headers: Any) -> int | None:
    """The size of an object of which a part was asked for."""
    said = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", headers.get("Content-Range", ""))
    return None if said is None else int(said[1])


@dataclass(frozen=True)
class BucketPlace:
    """A bucket and what opens it."""

    endpoint: str
    bucket: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)


DEFAULT_REGION = "us-east-1"

_S3_HOST = re.compile(
    r"(?:(?P<bucket>.+)\.)?s3(?:[.-]dualstack)?(?:[.-](?P<region>[a-z0-9-]+))?\.(?P<domain>[^.]+\..+)"
)
_SPACES_HOST = re.compile(r"(?:(?P<bucket>[^.]+)\.)?(?P<region>[a-z0-9-]+)\.(?P<domain>digitaloceanspaces\.com)")
"""Names of stores' hosts that tell the region, as Runpod's SDK reads them; the bucket may stand before."""


def bucket_place(endpoint: str, bucket: str, region: str | None, access_key: str, secret_key: str) -> BucketPlace:
    """A bucket by what a job or the settings say of it.

    Args:
        endpoint: may have the bucket before the host's name, as Runpod documents it.
        region: None: the one that the host's name tells, else us-east-1.
    """
    if bucket_in_host(endpoint) == bucket:
        endpoint = endpoint.replace(f"//{bucket}.", "//", 1)
    return BucketPlace(endpoint, bucket, region or region_in_host(endpoint) or DEFAULT_REGION, access_key, secret_key)


def bucket_in_host(endpoint: str) -> str | None:
    """The bucket that stands before the name of a store's host."""
    found = _host_parts(endpoint)
    return None if found is None else found["bucket"]


def region_in_host(endpoint: str) -> str | None:
    """The region that the name of a store's host tells."""
    found = _host_parts(endpoint)
    return None if found is None else found["region"]


def _host_parts(endpoint: str) -> re.Match[str] | None:
    host = urlsplit(endpoint).hostname or ""
    return _SPACES_HOST.fullmatch(host) or _S3_HOST.fullmatch(host)


class PutStore(Store):
    """Addresses, presigned by the job's sender, that take the files by PUT."""

    def __init__(self, video_url: str, thumbnail_url: str, settings: Settings) -> None:
        super().__init__()
        self.video_url = video_url
        self.thumbnail_url = thumbnail_url
        self.settings = settings

    def check(self) -> None:
        """Nothing but whether the addresses are public: a presigned PUT allows no other request."""
        check_target("output_config.video_url", self.video_url, self.settings)
        check_target("output_config.thumbnail_url", self.thumbnail_url, self.settings)

    def places(self, name: str, num_bytes: int) -> dict[str, Any]:
        return {"url": _without_query(self.video_url), "thumbnail_url": _without_query(self.thumbnail_url)}

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        sent = SentBytes(on_bytes, artifacts.video.stat().st_size + artifacts.thumbnail.stat().st_size)
        self._put(artifacts.video, "video_url", self.video_url, VIDEO_TYPE, sent, should_stop)
        self._put(artifacts.thumbnail, "thumbnail_url", self.thumbnail_url, THUMBNAIL_TYPE, sent, should_stop)
        return self.places(name, 0)

    def _put(
        self, path: Path, field: str, url: str, content_type: str, sent: SentBytes, should_stop: Callable[[], bool]
    ) -> None:
        with Watch(self.settings.download_timeout_s, should_stop) as watch:
            try:
                self._put_watched(watch, path, field, url, content_type, sent, should_stop)
            except TimeIsOver as error:
                raise _not_stored(
                    f"the address of output_config.{field} took longer than {self.settings.download_timeout_s:g} s"
                ) from error

    def _put_watched(
        self,
        watch: Watch,
        path: Path,
        field: str,
        url: str,
        content_type: str,
        sent: SentBytes,
        should_stop: Callable[[], bool],
    ) -> None:
        for attempt in range(1, PUT_ATTEMPTS + 1):
            body = FileBody(path, sent, should_stop)
            try:
                status = self._send(watch, url, body, content_type)
            except SSRFError as error:
                raise _not_public(f"output_config.{field}") from error
            except HTTPError as error:
                watch.check()
                failure = _not_stored(f"the address of output_config.{field} did not answer")
                failure.__cause__ = error
            else:
                if 200 <= status < 300:
                    return
                failure = _not_stored(
                    f"the address of output_config.{field} answered with status {status}; it must be presigned for "
                    f"PUT with Content-Type {content_type} and not have expired",
                    retryable=status in TRANSIENT_STATUSES,
                )
            if attempt == PUT_ATTEMPTS or not failure.retryable:
                raise failure
            body.forget()
            watch.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))

    def _send(self, watch: Watch, url: str, body: FileBody, content_type: str) -> int:
        """The status that the address answers with; a redirect is not followed."""
        timeouts = (self.settings.connect_timeout_s, self.settings.read_timeout_s)
        headers = {"Content-Type": content_type, "Content-Length": str(len(body))}
        with send("PUT", url, watch, timeouts, headers, body) as answer:
            return answer.status


class SentBytes:
    """Bytes of a task's files that have been sent, as they are reported; threads may add at once."""

    def __init__(self, on_bytes: OnBytes, total: int) -> None:
        self._on_bytes = on_bytes
        self._total = total
        self._lock = threading.Lock()
        self._done = 0

    @property
    def done(self) -> int:
        """Bytes so far."""
        return self._done

    def add(self, num_bytes: int) -> None:
        """More bytes, or fewer where a part is sent again."""
        with self._lock:
            self._done += num_bytes
            self._on_bytes(self._done, self._total)


class FileBody:
    """A file as the body of a request, which counts and may be stopped."""

    def __init__(self, path: Path, sent: SentBytes, should_stop: Callable[[], bool]) -> None:
        self._path = path
        self._sent = sent
        self._should_stop = should_stop
        self._num_sent = 0

    def __len__(self) -> int:
        return self._path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                if self._should_stop():
                    raise GenerationStopped
                yield block
                self._num_sent += len(block)
                self._sent.add(len(block))

    def forget(self) -> None:
        """Takes back what has been counted, since it will be sent again."""
        self._sent.add(-self._num_sent)
        self._num_sent = 0


class PublicConnection(AWSHTTPConnection):
    """A connection to a public address, which its guard may end."""

    guard: Guard

    def _new_conn(self) -> socket.socket:
        return _guarded(self)

    def close(self) -> None:
        super().close()
        self.guard.forget(self)


class PublicSecureConnection(AWSHTTPSConnection):
    """A connection over TLS to a public address, which its guard may end."""

    guard: Guard

    def _new_conn(self) -> socket.socket:
        return _guarded(self)

    def close(self) -> None:
        super().close()
        self.guard.forget(self)


def _guarded(connection: Any) -> socket.socket:
    connection.guard.check(removes=True)
    opened = open_public(connection, Watch(connection.timeout or math.inf))
    connection.guard.keep(connection, opened)
    return opened


class PublicSession(URLLib3Session):
    """botocore's HTTP session, which connects to public addresses only, however often a name's address changes, and
    lets no answer be endless, in time or in bytes."""

    def __init__(self, settings: Settings, guard: Guard) -> None:
        timeouts: Any = (settings.connect_timeout_s, settings.read_timeout_s)
        super().__init__(timeout=timeouts)
        self._guard = guard
        connections = (PublicConnection, PublicSecureConnection)
        guarded = [type(kind.__name__, (kind,), {"guard": guard}) for kind in connections]
        pools: Any = self
        pools._manager.pool_classes_by_scheme = {
            "http": type("PublicPool", (AWSHTTPConnectionPool,), {"ConnectionCls": guarded[0]}),
            "https": type("PublicSecurePool", (AWSHTTPSConnectionPool,), {"ConnectionCls": guarded[1]}),
        }

    def send(self, request: Any) -> Any:
        """The answer to a request; of one that is no object, all of it has been read.

        Raises:
            GenerationStopped: the job has to end.
            BotoCoreError: there was no answer in time, or one too large, or what the superclass raises.
        """
        removes = request.method == "DELETE"
        self._guard.check(removes)
        is_object = request.stream_output
        # The superclass would read an answer that is no object to its end.
        request.stream_output = True
        try:
            response = super().send(request)
            limited = not is_object or response.status_code >= 300
            response.raw = BoundedBody(response.raw, MAX_ANSWER_BYTES if limited else math.inf)
            if not is_object:
                _ = response.content
            return response
        except (BotoCoreError, HTTPError, OSError):
            self._guard.check(removes)
            raise
        finally:
            request.stream_output = is_object


def _s3_client(place: BucketPlace, settings: Settings) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region,
        aws_access_key_id=place.access_key,
        aws_secret_access_key=place.secret_key,
        config=Config(
            signature_version="s3v4",
            # The checksum that every store knows: the SHA-256 of each part, signed, over TLS too.
            s3={"payload_signing_enabled": True},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
            # Not every compatible store knows the newer checksum headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def check_target(field: str, url: str, settings: Settings) -> None:
    """An address that a job writes to must be as public as one that it reads from.

    Raises:
        WorkerError: it is not; the message names the field.
    """
    try:
        check_public(url, Watch(settings.connect_timeout_s))
    except TimeIsOver as error:
        raise _not_stored(f"the host of {field} was not found in {settings.connect_timeout_s:g} s") from error
    except ValueError as error:
        raise _not_public(field) from error


def _not_public(field: str) -> WorkerError:
    return WorkerError(ErrorCode.INPUT_VALIDATION, f"{field} must resolve to a public address")


def _without_query(url: str) -> str:
    return urlsplit(url)._replace(query="", fragment="").geturl()


@contextmanager
def _s3_errors() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _s3_error(error) from error


def _cause(error: BaseException) -> BaseException | None:
    return error.__context__ if isinstance(error, S3UploadFailedError) else error


def _status(error: BaseException) -> int | None:
    """The status of an answer that is an error; None where there was no answer."""
    cause = _cause(error)
    if not isinstance(cause, ClientError):
        return None
    status: int = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _code(error: BaseException) -> str | None:
    """The name that an answer gives its error."""
    cause = _cause(error)
    return cause.response.get("Error", {}).get("Code") if isinstance(cause, ClientError) else None


def _s3_error(error: Exception) -> WorkerError:
    status = _status(error)
    if isinstance(_cause(error), StoreTooSlow):
        return _not_stored("the store took too long")
    if status is None:
        return _not_stored("the store did not answer")
    if status in (401, 403) or _code(error) == "AuthorizationHeaderMalformed":
        return _not_stored("the store refused the credentials, or is of another region than it is named", False)
    if status == 404:
        return _not_stored("the store has no such bucket", retryable=False)
    return _not_stored(f"the store answered with status {status}")


def _not_stored(message: str, retryable: bool = True) -> WorkerError:
    return WorkerError(ErrorCode.UPLOAD, f"the result could not be stored: {message}", retryable)

"""Where results go: a folder, the result itself, or an S3-compatible store."""

from __future__ import annotations

import base64
import math
import os
import shutil
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import URLLib3Session
from runpod.serverless.utils.rp_ssrf import SSRFError
from urllib3.exceptions import HTTPError

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.fetch import TRANSIENT_STATUSES, OnBytes
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.transport import TimeIsOver, Watch, check_public, open_public, send
from schemas import ErrorCode, OutputConfig, S3Config

VIDEO_TYPE = "video/mp4"
THUMBNAIL_TYPE = "image/jpeg"
METADATA_TYPE = "application/json"
PROBE = ".check"
"""Name of the empty object that shows that a bucket can be written to."""

RESULT_OVERHEAD_BYTES = 100_000
"""Room that the rest of a result gets beside inline media."""

S3_ATTEMPTS = 5
PUT_ATTEMPTS = 4
FIRST_WAIT_S = 0.5
"""Seconds before a PUT is tried again, doubled each time."""

BLOCK_BYTES = 1 << 18
STOP_POLL_S = 0.05


@dataclass(frozen=True)
class Artifacts:
    """The files that a task leaves: the MP4, its JPEG, and a JSON file that says how they were made."""

    video: Path
    thumbnail: Path
    metadata: Path


class Store(ABC):
    """Keeps a video and what belongs to it."""

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

    def has(self, name: str) -> bool:
        """Whether a video that was stored under `name` is still there, as far as the store can tell.

        Raises:
            WorkerError: the store does not answer.
        """
        return True

    @abstractmethod
    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, str]:
        """Stores the artifacts under `name`; returns the fields of `schemas.Video` that say where.

        Args:
            on_bytes: told what has been sent over the network.
            should_stop: asked while it is sent; nothing half done stays behind.

        Raises:
            WorkerError: they could not be stored.
            GenerationStopped: `should_stop` said so.
        """


def make_store(
    output_config: OutputConfig, s3_config: S3Config | None, settings: Settings, num_inline: int = 1
) -> Store:
    """The store that a job asks for.

    Args:
        num_inline: how many videos share the room of the job's result.

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
            return S3Store.from_settings(output_config.prefix, s3_config, settings)


class VolumeStore(Store):
    """A folder below `root`, the network volume on Runpod."""

    def __init__(self, root: Path, prefix: str) -> None:
        self.root = root.resolve()
        self.folder = self.root / prefix

    def check(self) -> None:
        self._check_place()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise _not_stored("the volume cannot be written to") from error

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.mp4").is_file()

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, str]:
        # The video last: where it is, all is.
        return {
            "metadata_path": self._copy(artifacts.metadata, f"{name}.json"),
            "thumbnail_path": self._copy(artifacts.thumbnail, f"{name}.jpg"),
            "path": self._copy(artifacts.video, f"{name}.mp4"),
        }

    def put(self, name: str, data: bytes, content_type: str) -> str:
        """Stores a small file below the prefix, at once or not at all; returns its path below the volume's root.

        Raises:
            WorkerError: it could not be stored.
        """
        target = self.folder / name
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(data)
            unfinished.replace(target)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise _not_stored("the volume cannot be written to") from error
        return target.relative_to(self.root).as_posix()

    def remove_folder(self, name: str) -> None:
        """Removes a folder below the prefix, where there is one.

        Raises:
            WorkerError: it could not be removed.
        """
        self._check_place()
        try:
            shutil.rmtree(self.folder / name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _not_stored("the volume cannot be written to") from error

    def _check_place(self) -> None:
        if not self.folder.resolve().is_relative_to(self.root):
            raise WorkerError(ErrorCode.INPUT_VALIDATION, "output_config.prefix leads out of the volume")

    def _copy(self, source: Path, name: str) -> str:
        """Copies under a name of its own and renames, so that no reader ever sees half a file."""
        target = self.folder / name
        unfinished = self.folder / f".{name}.{os.getpid()}.part"
        try:
            shutil.copyfile(source, unfinished)
            unfinished.replace(target)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise _not_stored("the volume cannot be written to") from error
        return target.relative_to(self.root).as_posix()


class InlineStore(Store):
    """Base64 in the result itself, for small videos.

    Args:
        max_characters: that video and thumbnail may have together, in base64.
    """

    def __init__(self, max_characters: int) -> None:
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
    ) -> dict[str, str]:
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
        client: boto3's S3 client.
        public_base: address of the bucket's root for everyone; None: presigned addresses.
        url_expiry_s: seconds that presigned addresses live.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, public_base: str | None, url_expiry_s: int) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = prefix
        self.public_base = public_base
        self.url_expiry_s = url_expiry_s

    @classmethod
    def from_settings(cls, prefix: str, s3_config: S3Config | None, settings: Settings) -> S3Store:
        """The job's own store with the job's own credentials, else the worker's.

        Raises:
            WorkerError: neither is complete, or the job's store is not at a public address.
        """
        if s3_config is not None:
            check_target("s3Config.endpointUrl", s3_config.endpoint_url, settings)
            client = _s3_client(s3_config.endpoint_url, None, s3_config.access_id, s3_config.access_secret, settings)
            session = PublicSession(settings)
            # What this returns is taken for the answer, and nothing else is sent.
            client.meta.events.register("before-send.s3", lambda request, **_: session.send(request))
            return cls(client, s3_config.bucket_name, prefix, None, settings.s3_url_expiry_s)
        required = {
            "S3_ENDPOINT": settings.s3_endpoint,
            "S3_ACCESS_KEY": settings.s3_access_key,
            "S3_SECRET_KEY": settings.s3_secret_key,
            "S3_BUCKET": settings.s3_bucket,
        }
        missing = [name for name, value in required.items() if value is None]
        if missing:
            raise WorkerError(
                ErrorCode.INPUT_VALIDATION,
                f'output_config.store "s3" needs the worker\'s settings {", ".join(missing)}, or an s3Config with the '
                'job; "volume" and "inline" work without',
            )
        assert settings.s3_secret_key is not None and settings.s3_bucket is not None
        client = _s3_client(
            settings.s3_endpoint,
            settings.s3_region,
            settings.s3_access_key,
            settings.s3_secret_key.get_secret_value(),
            settings,
        )
        return cls(client, settings.s3_bucket, prefix, settings.s3_public_base, settings.s3_url_expiry_s)

    def check(self) -> None:
        """Puts an empty object and removes it: credentials that may not write cost a second, not a video."""
        key = f"{self.prefix}/{PROBE}"
        try:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=b"")
        except (BotoCoreError, ClientError) as error:
            raise _s3_error(error) from error
        self._remove(key)

    def has(self, name: str) -> bool:
        try:
            self.client.head_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}.mp4")
        except (BotoCoreError, ClientError) as error:
            # S3 says 403 of what is not there to those who may not list the bucket.
            if isinstance(error, ClientError) and error.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404):
                return False
            raise _s3_error(error) from error
        return True

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, str]:
        # The video last: where it is, all is.
        uploads = {
            "metadata_url": (artifacts.metadata, "json", METADATA_TYPE),
            "thumbnail_url": (artifacts.thumbnail, "jpg", THUMBNAIL_TYPE),
            "url": (artifacts.video, "mp4", VIDEO_TYPE),
        }
        sent = SentBytes(on_bytes, sum(path.stat().st_size for path, _, _ in uploads.values()))
        places = {}
        stored = []
        try:
            for field, (path, extension, content_type) in uploads.items():
                key = f"{self.prefix}/{name}.{extension}"
                self._upload(path, key, content_type, sent, should_stop)
                stored.append(key)
                places[field] = self._address(key)
        except GenerationStopped:
            for key in stored:
                self._remove(key)
            raise
        return places

    def put(self, name: str, data: bytes, content_type: str) -> str:
        """Stores a small file below the prefix; returns its address.

        Raises:
            WorkerError: it could not be stored.
        """
        key = f"{self.prefix}/{name}"
        try:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)
        except (BotoCoreError, ClientError) as error:
            raise _s3_error(error) from error
        return self._address(key)

    def remove_folder(self, name: str) -> None:
        """Removes what is in a folder below the prefix.

        Raises:
            WorkerError: it could not be removed.
        """
        pages = self.client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/{name}/"):
                for entry in page.get("Contents", []):
                    self.client.delete_object(Bucket=self.bucket, Key=entry["Key"])
        except (BotoCoreError, ClientError) as error:
            raise _s3_error(error) from error

    def _remove(self, key: str) -> None:
        """Removes an object where that is possible: who may write need not be allowed to remove."""
        with suppress(BotoCoreError, ClientError):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def _upload(
        self, path: Path, key: str, content_type: str, sent: SentBytes, should_stop: Callable[[], bool]
    ) -> None:
        subscriber = ProgressCallbackInvoker(sent.add)
        try:
            # Left by an exception, the manager stops what is under way and aborts a multipart upload.
            with create_transfer_manager(self.client, TransferConfig()) as manager:
                upload = manager.upload(
                    str(path), self.bucket, key, extra_args={"ContentType": content_type}, subscribers=[subscriber]
                )
                while not upload.done():
                    if should_stop():
                        raise GenerationStopped
                    time.sleep(STOP_POLL_S)
                upload.result()
        except (BotoCoreError, ClientError, S3UploadFailedError) as error:
            raise _s3_error(error) from error

    def _address(self, key: str) -> str:
        if self.public_base is not None:
            return f"{self.public_base.rstrip('/')}/{quote(key)}"
        return self.client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=self.url_expiry_s
        )


class PutStore(Store):
    """Addresses, presigned by the job's sender, that take the files by PUT."""

    def __init__(self, video_url: str, thumbnail_url: str, settings: Settings) -> None:
        self.video_url = video_url
        self.thumbnail_url = thumbnail_url
        self.settings = settings

    def check(self) -> None:
        """Nothing but whether the addresses are public: a presigned PUT allows no other request."""
        check_target("output_config.video_url", self.video_url, self.settings)
        check_target("output_config.thumbnail_url", self.thumbnail_url, self.settings)

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, str]:
        sent = SentBytes(on_bytes, artifacts.video.stat().st_size + artifacts.thumbnail.stat().st_size)
        self._put(artifacts.video, "video_url", self.video_url, VIDEO_TYPE, sent, should_stop)
        self._put(artifacts.thumbnail, "thumbnail_url", self.thumbnail_url, THUMBNAIL_TYPE, sent, should_stop)
        return {"url": _without_query(self.video_url), "thumbnail_url": _without_query(self.thumbnail_url)}

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
    """A connection to a public address."""

    def _new_conn(self) -> socket.socket:
        return open_public(self, Watch(self.timeout or math.inf))


class PublicSecureConnection(AWSHTTPSConnection):
    """A connection over TLS to a public address."""

    def _new_conn(self) -> socket.socket:
        return open_public(self, Watch(self.timeout or math.inf))


class PublicPool(AWSHTTPConnectionPool):
    """Connections to public addresses."""

    ConnectionCls = PublicConnection


class PublicSecurePool(AWSHTTPSConnectionPool):
    """Connections over TLS to public addresses."""

    ConnectionCls = PublicSecureConnection


class PublicSession(URLLib3Session):
    """botocore's HTTP session, which connects to public addresses only, however often a name's address changes."""

    def __init__(self, settings: Settings) -> None:
        timeouts: Any = (settings.connect_timeout_s, settings.read_timeout_s)
        super().__init__(timeout=timeouts)
        pools: Any = self
        pools._manager.pool_classes_by_scheme = {"http": PublicPool, "https": PublicSecurePool}


def _s3_client(
    endpoint: str | None, region: str | None, access_key: str | None, secret_key: str, settings: Settings
) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region or "us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
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


def _s3_error(error: Exception) -> WorkerError:
    cause: BaseException | None = error.__context__ if isinstance(error, S3UploadFailedError) else error
    if isinstance(cause, ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (401, 403):
            return _not_stored("the store refused the credentials", retryable=False)
        if status == 404:
            return _not_stored("the store has no such bucket", retryable=False)
        return _not_stored(f"the store answered with status {status}")
    return _not_stored("the store did not answer")


def _not_stored(message: str, retryable: bool = True) -> WorkerError:
    return WorkerError(ErrorCode.UPLOAD, f"the result could not be stored: {message}", retryable)

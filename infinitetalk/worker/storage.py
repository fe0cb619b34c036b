"""Where results go: a folder, the result itself, or an S3-compatible store."""

from __future__ import annotations

import base64
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from runpod.serverless.utils.rp_ssrf import SSRFError, resolve_and_validate

from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import MEGABYTE, Settings
from schemas import ErrorCode, OutputConfig, S3Config

VIDEO_TYPE = "video/mp4"
THUMBNAIL_TYPE = "image/jpeg"
RESULT_OVERHEAD_BYTES = 100_000
"""Room that the rest of a result gets beside inline media."""


class Store(ABC):
    """Keeps a video and its thumbnail."""

    @abstractmethod
    def check(self) -> None:
        """Looks, before the work begins, whether the store would take the result.

        Raises:
            WorkerError: it would not.
        """

    @abstractmethod
    def save(self, name: str, video: Path, thumbnail: Path) -> dict[str, str]:
        """Stores both under `name`; returns the fields of `schemas.Video` that say where.

        Raises:
            WorkerError: they could not be stored.
        """


def make_store(output_config: OutputConfig, s3_config: S3Config | None, settings: Settings) -> Store:
    """The store that a job asks for.

    Raises:
        WorkerError: the worker has no settings for it.
    """
    match output_config.store:
        case "volume":
            return VolumeStore(settings.output_dir, output_config.prefix)
        case "inline":
            return InlineStore(settings.max_result_bytes - RESULT_OVERHEAD_BYTES)
        case "s3":
            return S3Store.from_settings(output_config.prefix, s3_config, settings)


class VolumeStore(Store):
    """A folder below `root`, the network volume on Runpod."""

    def __init__(self, root: Path, prefix: str) -> None:
        self.root = root.resolve()
        self.folder = self.root / prefix

    def check(self) -> None:
        if not self.folder.resolve().is_relative_to(self.root):
            raise WorkerError(ErrorCode.INPUT_VALIDATION, "output_config.prefix leads out of the volume")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_stored("the volume cannot be written to") from error

    def save(self, name: str, video: Path, thumbnail: Path) -> dict[str, str]:
        return {
            "path": self._copy(video, f"{name}.mp4"),
            "thumbnail_path": self._copy(thumbnail, f"{name}.jpg"),
        }

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
        """Nothing to look at: how large the video gets is known at the end."""

    def save(self, name: str, video: Path, thumbnail: Path) -> dict[str, str]:
        encoded = {
            "data": base64.b64encode(video.read_bytes()).decode("ascii"),
            "thumbnail_data": base64.b64encode(thumbnail.read_bytes()).decode("ascii"),
        }
        characters = sum(len(text) for text in encoded.values())
        if characters > self.max_characters:
            raise WorkerError(
                ErrorCode.UPLOAD,
                f"the video is too large for an inline result ({characters / MEGABYTE:.1f} MB in base64, at most "
                f'{self.max_characters / MEGABYTE:g} MB); use output_config.store "s3" or "volume", or fewer frames',
                retryable=False,
            )
        return encoded


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
            _check_public(s3_config.endpoint_url)
            client = _s3_client(s3_config.endpoint_url, None, s3_config.access_id, s3_config.access_secret, settings)
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
        """A HEAD of the bucket: wrong credentials cost a second, not a video."""
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError) as error:
            raise _s3_error(error) from error

    def save(self, name: str, video: Path, thumbnail: Path) -> dict[str, str]:
        return {
            "url": self._upload(video, f"{self.prefix}/{name}.mp4", VIDEO_TYPE),
            "thumbnail_url": self._upload(thumbnail, f"{self.prefix}/{name}.jpg", THUMBNAIL_TYPE),
        }

    def _upload(self, source: Path, key: str, content_type: str) -> str:
        try:
            self.client.upload_file(str(source), self.bucket, key, ExtraArgs={"ContentType": content_type})
            if self.public_base is not None:
                return f"{self.public_base.rstrip('/')}/{quote(key)}"
            return self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=self.url_expiry_s
            )
        except (BotoCoreError, ClientError, S3UploadFailedError) as error:
            raise _s3_error(error) from error


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
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": 3},
            # Not every compatible store knows the newer checksum headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _check_public(endpoint: str) -> None:
    """A store that a job names must be as public as an input that it names.

    Raises:
        WorkerError: it is not.
    """
    try:
        parts = urlsplit(endpoint)
        resolve_and_validate(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except (SSRFError, ValueError) as error:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION, "s3Config.endpointUrl must resolve to a public address"
        ) from error


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

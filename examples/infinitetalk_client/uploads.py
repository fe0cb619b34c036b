"""Brings files to where an endpoint can read them: into the request, or into an S3 store."""

from __future__ import annotations

import base64
import mimetypes
import os
import re
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from infinitetalk_client.errors import MediaError

S3_VARIABLES = ("S3_ENDPOINT", "S3_BUCKET", "S3_ACCESS_KEY", "S3_SECRET_KEY")
PRESIGNED_S = 24 * 3600
"""Lifetime in seconds of the addresses of uploaded files: a job may wait for a day."""


def is_address(source: str | Path) -> bool:
    """Whether media is named by an address or is a data URI, and not a file."""
    return str(source).startswith(("http://", "https://", "data:"))


def file_of(source: str | Path) -> Path:
    """The file that a source names.

    Raises:
        MediaError: there is none, it is empty, or it may not be read.
    """
    file = Path(source)
    if not file.exists():
        raise MediaError(f"{source} is neither a file on this machine nor an address (https://…)")
    if not file.is_file():
        raise MediaError(f"{source} is a folder: name a file")
    if not os.access(file, os.R_OK):
        raise MediaError(f"{source} may not be read by this user")
    if file.stat().st_size == 0:
        raise MediaError(f"{source} is empty")
    return file


def data_uri(file: Path) -> str:
    """A file as a data URI."""
    mime = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"


def upload_to_s3(file: Path) -> str:
    """Uploads a file to the store that `S3_VARIABLES` name; returns a presigned address for a day.

    Raises:
        MediaError: a variable is not set, boto3 is not installed, or the store does not take the file.
    """
    unset = [name for name in S3_VARIABLES if not os.environ.get(name)]
    if unset:
        raise MediaError(
            f"the files are too large for a request: set {', '.join(unset)} for their upload, or give addresses"
        )
    try:
        import boto3
        from boto3.exceptions import Boto3Error
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise MediaError(
            "the files are too large for a request, and their upload needs boto3: install it "
            "(pip install 'infinitetalk-client[s3]'), or give addresses"
        ) from None

    endpoint, bucket = os.environ["S3_ENDPOINT"], os.environ["S3_BUCKET"]
    place = {"Bucket": bucket, "Key": f"infinitetalk/inputs/{uuid.uuid4().hex}{file.suffix}"}
    try:
        store = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=os.environ["S3_ACCESS_KEY"],
            aws_secret_access_key=os.environ["S3_SECRET_KEY"],
            region_name=os.environ.get("S3_REGION") or region_of(endpoint),
            # Not every store supports the older signature or the newer checksums.
            config=Config(
                signature_version="s3v4",
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        store.upload_file(str(file), bucket, place["Key"])
        return str(store.generate_presigned_url("get_object", Params=place, ExpiresIn=PRESIGNED_S))
    except (Boto3Error, BotoCoreError, ClientError, ValueError) as error:
        # ValueError: the address of the store is none.
        raise MediaError(f"the store {endpoint} does not take {file.name} into the bucket {bucket}: {error}") from None


def region_of(endpoint: str) -> str:
    """The region in the host name of a store; an address signed for another region is refused."""
    host = urlsplit(endpoint).hostname or ""
    found = re.search(r"(?:^|\.)s3[.-]([a-z0-9-]+)\.[^.]+\.", host) or re.search(
        r"([^.]+)\.digitaloceanspaces\.com$", host
    )
    return found[1] if found else "us-east-1"

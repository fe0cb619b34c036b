"""A bucket's address, name and region; the host of the store's address may contain the name and the region."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class BucketPlace:
    """A bucket and its credentials."""

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
"""Host names that contain the region, as Runpod's SDK reads them; the bucket may come first."""


def bucket_place(endpoint: str, bucket: str, region: str | None, access_key: str, secret_key: str) -> BucketPlace:
    """The place of a bucket that a job or the settings name.

    Args:
        endpoint: address of the store; the bucket may come first in the host's name, as Runpod documents it.
        region: region of the store; None: the region in the host's name, else us-east-1.
    """
    if bucket_in_host(endpoint) == bucket:
        endpoint = endpoint.replace(f"//{bucket}.", "//", 1)
    return BucketPlace(endpoint, bucket, region or region_in_host(endpoint) or DEFAULT_REGION, access_key, secret_key)


def bucket_in_host(endpoint: str) -> str | None:
    """The bucket in the name of a store's host."""
    found = _host_parts(endpoint)
    return None if found is None else found["bucket"]


def region_in_host(endpoint: str) -> str | None:
    """The region in the name of a store's host."""
    found = _host_parts(endpoint)
    return None if found is None else found["region"]


def _host_parts(endpoint: str) -> re.Match[str] | None:
    host = urlsplit(endpoint).hostname or ""
    return _SPACES_HOST.fullmatch(host) or _S3_HOST.fullmatch(host)

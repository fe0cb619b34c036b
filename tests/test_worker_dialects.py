"""Stores that speak S3 their own way: no request of the worker has what Cloudflare R2, Google Cloud Storage, Backblaze
B2 or MinIO refuses. The stores' refusals are those that they document or that users report; none of the stores was
reached."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ClientError

from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.base import SentBytes, Upload
from infinitetalk.worker.stores.s3 import S3Objects, own_bucket

LARGE_BYTES = 20_000_000
"""Enough for several parts."""

INITIATED = b"<InitiateMultipartUploadResult><UploadId>upload</UploadId></InitiateMultipartUploadResult>"
COMPLETED = b"<CompleteMultipartUploadResult><ETag>&quot;tag&quot;</ETag></CompleteMultipartUploadResult>"
LISTED = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
FACTS = {
    "ETag": '"tag"',
    "Content-Length": "4",
    "Last-Modified": "Fri, 27 Nov 2026 08:00:00 GMT",
    "Date": "Fri, 27 Nov 2026 08:00:00 GMT",
}


@dataclass(frozen=True)
class Request:
    """A request as a store sees it.

    Attributes:
        method, host, path, query: of its first line and its host.
        headers: by their names in lower case.
        region: in whose name it is signed.
        signed: names of the signed headers.
    """

    method: str
    host: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    region: str
    signed: list[str]

    @property
    def is_whole_object(self) -> bool:
        """Whether it stores an object in one request."""
        return self.method == "PUT" and "partNumber" not in self.query


def read(method: str, url: str, headers: Any) -> Request:
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    plain = {
        name.lower(): value.decode() if isinstance(value, bytes) else str(value) for name, value in headers.items()
    }
    credential = plain.get("authorization") or f"Credential={query['X-Amz-Credential'][0]}, SignedHeaders=host,"
    found = re.search(r"Credential=[^/]+/\d+/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+),", credential)
    assert found, credential
    return Request(method, parts.hostname or "", parts.path, query, plain, found[1], found[2].split(";"))


def newer_checksums(request: Request) -> str | None:
    """Why a store refuses a request that carries a checksum as boto3 sends it by default since 1.36."""
    for name, value in request.headers.items():
        if name.startswith("x-amz-checksum-") or name in ("x-amz-sdk-checksum-algorithm", "x-amz-trailer"):
            return f"header {name}"
        if value.startswith("STREAMING-") or "aws-chunked" in value:
            return f"{name}: {value}"
    return None


def of_r2(request: Request) -> str | None:
    if request.region not in ("auto", "us-east-1", "weur", "wnam"):
        return f"region {request.region}"
    return newer_checksums(request)


def of_gcs(request: Request) -> str | None:
    if "accept-encoding" in request.signed:
        return "accept-encoding is signed, and changed on its way"
    if request.is_whole_object and "content-type" not in request.headers:
        return "no content type: the signature does not match"
    return newer_checksums(request)


def of_b2(request: Request) -> str | None:
    host = re.fullmatch(r"s3\.(.+)\.backblazeb2\.com", request.host)
    if host is None or request.region != host[1]:
        return f"region {request.region} at {request.host}"
    return newer_checksums(request)


def of_minio(request: Request) -> str | None:
    if not request.path.startswith("/results/") and request.path != "/results":
        return f"the bucket is not in the path {request.path}"
    return None if request.region == "us-east-1" else f"region {request.region}"


@dataclass(frozen=True)
class Dialect:
    """A store.

    Attributes:
        endpoint: its address, as an operator sets it.
        region: S3_REGION, as an operator sets it.
        refusal: why it refuses a request; None if it takes it.
    """

    endpoint: str
    region: str | None
    refusal: Callable[[Request], str | None]

    def settings(self) -> Settings:
        """A worker's settings for the store."""
        return Settings(
            s3_endpoint=self.endpoint,
            s3_region=self.region,
            s3_access_key="id",
            s3_secret_key="secret",
            s3_bucket="results",
        )


R2 = "https://0123456789abcdef.r2.cloudflarestorage.com"
GCS = "https://storage.googleapis.com"
B2 = "https://s3.us-west-004.backblazeb2.com"
MINIO = "https://minio.example.com:9000"
DIALECTS = {
    "R2": Dialect(R2, "auto", of_r2),
    "R2 without a region": Dialect(R2, None, of_r2),
    "GCS": Dialect(GCS, "auto", of_gcs),
    "GCS without a region": Dialect(GCS, None, of_gcs),
    "B2": Dialect(B2, None, of_b2),
    "MinIO": Dialect(MINIO, None, of_minio),
}


class Body(io.BytesIO):
    """The body of an answer, as botocore reads it."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


class Listener:
    """Answers a client's requests in place of its store, by the store's rules.

    Attributes:
        requests: all requests so far.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.requests: list[Request] = []

    def __call__(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        seen = read(request.method or "", request.url or "", request.headers)
        self.requests.append(seen)
        if (reason := self.dialect.refusal(seen)) is not None:
            refused = f"<Error><Code>InvalidArgument</Code><Message>{reason}</Message></Error>"
            return AWSResponse(request.url, 400, {}, Body(refused.encode()))
        body = b"data"
        if seen.method == "POST":
            body = INITIATED if "uploads" in seen.query else COMPLETED
        elif "list-type" in seen.query:
            body = LISTED
        elif seen.method in ("PUT", "HEAD", "DELETE"):
            body = b""
        status = 204 if seen.method == "DELETE" else 200
        return AWSResponse(request.url, status, FACTS | {"Content-Length": str(len(body))}, Body(body))


@pytest.mark.parametrize("name", DIALECTS)
def test_no_request_has_what_a_store_refuses(name: str, tmp_path: Path) -> None:
    dialect = DIALECTS[name]
    objects = own_bucket(dialect.settings())
    assert isinstance(objects, S3Objects)
    listener = Listener(dialect)
    objects.bucket.client.meta.events.register("before-send.s3", listener)
    video = tmp_path / "video.mp4"
    video.write_bytes(bytes(LARGE_BYTES))

    objects.put("state.json", b"{}")
    objects.put("job-1.json", b"{}", "application/json", is_new=True)
    assert objects.get("state.json", 100) == b"data"
    head = objects.head("state.json")
    assert head is not None
    assert list(objects.list()) == []
    upload = Upload(video, "video/mp4", "a mark", SentBytes(lambda done, total: None, LARGE_BYTES), lambda: False)
    with objects.uploading("job-1.mp4", upload) as commit:
        assert commit(True)
    objects.delete(["state.json"])

    asked = [(request.method, sorted(request.query)) for request in listener.requests]
    assert {method for method, _ in asked} == {"PUT", "GET", "HEAD", "POST", "DELETE"}
    assert sum("partNumber" in query for _, query in asked) >= 2
    assert all(request.headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD" for request in listener.requests)
    presigned = read("GET", objects.bucket.address("infinitetalk/jobs/job-1.mp4"), {})
    assert presigned.signed == ["host"]
    assert dialect.refusal(presigned) is None


@pytest.mark.parametrize("name", ["R2", "GCS", "B2"])
def test_a_client_with_boto3s_own_settings_is_refused(name: str) -> None:
    """The rules above find what they are made to find."""
    dialect = DIALECTS[name]
    settings = dialect.settings()
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name="us-west-004" if name == "B2" else "auto",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    )
    client.meta.events.register("before-send.s3", Listener(dialect))
    with pytest.raises(ClientError, match=r"checksum|trailer|aws-chunked|STREAMING"):
        client.put_object(Bucket="results", Key="key", Body=b"data", ContentType="text/plain")


def test_a_bucket_in_the_host_is_refused_by_minio() -> None:
    request = read("GET", "https://results.minio.example.com:9000/key", SIGNED)
    assert of_minio(request) == "the bucket is not in the path /key"


def test_a_region_that_is_not_the_hosts_is_refused_by_b2() -> None:
    assert of_b2(read("GET", f"{B2}/results/key", SIGNED)) == "region us-east-1 at s3.us-west-004.backblazeb2.com"


SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=id/20261127/us-east-1/s3/aws4_request, SignedHeaders=host, Sig=0"
}

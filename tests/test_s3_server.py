"""The tests' own S3 server behaves as a store on the internet does: above all, it refuses what is not signed right."""

import io
import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from tests.s3_server import S3Server

PART_BYTES = 5 * 2**20
"""The least that S3 takes as a part of a multipart upload that is not the last."""


def presigned(server: S3Server, key: str, expires_in_s: int = 60) -> str:
    """A presigned GET."""
    parameters = {"Bucket": server.bucket, "Key": key}
    return server.client().generate_presigned_url("get_object", Params=parameters, ExpiresIn=expires_in_s)


def test_an_upload_keeps_its_bytes_and_content_type(s3_server: S3Server) -> None:
    s3_server.client().put_object(Bucket=s3_server.bucket, Key="a/b.mp4", Body=b"frames", ContentType="video/mp4")
    stored = s3_server.client().get_object(Bucket=s3_server.bucket, Key="a/b.mp4")
    assert (stored["Body"].read(), stored["ContentType"]) == (b"frames", "video/mp4")
    assert s3_server.keys() == ["a/b.mp4"]


@pytest.mark.parametrize("credentials", [{"secret_key": "wrong"}, {"access_key": "nobody:here"}])
def test_wrong_credentials_are_refused(s3_server: S3Server, credentials: dict[str, str]) -> None:
    with pytest.raises(ClientError) as refusal:
        s3_server.client(**credentials).head_bucket(Bucket=s3_server.bucket)
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_missing_bucket_is_told_apart(s3_server: S3Server) -> None:
    with pytest.raises(ClientError) as refusal:
        s3_server.client().head_bucket(Bucket="elsewhere")
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


def test_a_presigned_address_serves_a_plain_client_until_it_expires(s3_server: S3Server) -> None:
    s3_server.client().put_object(Bucket=s3_server.bucket, Key="key", Body=b"frames")
    url = presigned(s3_server, "key", expires_in_s=2)
    assert requests.get(url, timeout=10).content == b"frames"
    time.sleep(3)
    assert requests.get(url, timeout=10).status_code == 403


@pytest.mark.parametrize("tamper", ["signature", "key", "expiry"])
def test_a_tampered_presigned_address_is_refused(s3_server: S3Server, tamper: str) -> None:
    for key in ("key", "other"):
        s3_server.client().put_object(Bucket=s3_server.bucket, Key=key, Body=b"frames")
    url = presigned(s3_server, "key")
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    tampered = {
        "signature": url.replace(signature, signature[::-1]),
        "key": url.replace("/key?", "/other?"),
        "expiry": url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
    }[tamper]
    assert tampered != url
    assert requests.get(tampered, timeout=10).status_code == 403


def test_a_multipart_upload_is_joined(s3_server: S3Server) -> None:
    content = b"".join(bytes([number]) * PART_BYTES for number in range(2)) + b"the rest"
    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    s3_server.client().upload_fileobj(io.BytesIO(content), s3_server.bucket, "large", Config=config)
    stored = s3_server.client().get_object(Bucket=s3_server.bucket, Key="large")
    assert stored["Body"].read() == content
    assert stored["ETag"].endswith('-3"')


def test_a_store_killed_in_mid_upload_fails_it_and_comes_back_with_what_it_had(s3_server: S3Server) -> None:
    s3_server.client().put_object(Bucket=s3_server.bucket, Key="before", Body=b"frames")
    endpoint = s3_server.endpoint

    def die(_num_bytes: int) -> None:
        s3_server.kill()

    with pytest.raises(BotoCoreError):
        s3_server.client().upload_fileobj(
            io.BytesIO(bytes(4 * PART_BYTES)),
            s3_server.bucket,
            "large",
            Callback=die,
            Config=TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False),
        )
    s3_server.start()
    assert s3_server.endpoint == endpoint
    assert s3_server.keys() == ["before"]

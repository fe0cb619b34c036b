"""Stores: where the files end up, what the result says of them, and refusals before the work begins."""

import base64
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.storage import InlineStore, VolumeStore, make_store
from schemas import ErrorCode, OutputConfig, S3Config

VIDEO, THUMBNAIL = b"a video" * 1000, b"a picture"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    video, thumbnail = tmp_path / "video.mp4", tmp_path / "thumbnail.jpg"
    video.write_bytes(VIDEO)
    thumbnail.write_bytes(THUMBNAIL)
    return video, thumbnail


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_settings(s3_endpoint: str) -> Settings:
    client = boto3.client(
        "s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket="videos")
    return Settings(s3_endpoint=s3_endpoint, s3_access_key="k", s3_secret_key="s", s3_bucket="videos")


def test_a_volume_gets_both_files_below_its_prefix(files, tmp_path):
    store = make_store(OutputConfig(store="volume", prefix="a/b"), None, Settings(output_dir=tmp_path / "root"))
    store.check()
    assert store.save("job-1", *files) == {"path": "a/b/job-1.mp4", "thumbnail_path": "a/b/job-1.jpg"}
    assert (tmp_path / "root/a/b/job-1.mp4").read_bytes() == VIDEO
    assert sorted(path.name for path in (tmp_path / "root/a/b").iterdir()) == ["job-1.jpg", "job-1.mp4"]


def test_a_prefix_cannot_leave_the_volume_through_a_link(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    with pytest.raises(WorkerError, match="leads out of the volume"):
        VolumeStore(tmp_path / "root", "link/folder").check()
    assert not (tmp_path / "folder").exists()


def test_a_volume_that_cannot_be_written_to_is_seen_before_the_work(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WorkerError) as caught:
        VolumeStore(tmp_path / "file", "prefix").check()
    assert caught.value.code == ErrorCode.UPLOAD
    assert str(tmp_path) not in caught.value.message


def test_an_inline_result_holds_both_files(files):
    places = InlineStore(max_characters=100_000).save("job-1", *files)
    assert base64.b64decode(places["data"]) == VIDEO
    assert base64.b64decode(places["thumbnail_data"]) == THUMBNAIL


def test_an_inline_result_that_is_too_large_names_the_way_out(files):
    with pytest.raises(WorkerError, match='store "s3" or "volume"') as caught:
        InlineStore(max_characters=5000).save("job-1", *files)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)


def test_a_bucket_gets_both_files_and_presigned_addresses_serve_them(files, s3_settings):
    store = make_store(OutputConfig(), None, s3_settings)
    store.check()
    places = store.save("job-1", *files)
    video, thumbnail = requests.get(places["url"], timeout=10), requests.get(places["thumbnail_url"], timeout=10)
    assert (video.content, video.headers["Content-Type"]) == (VIDEO, "video/mp4")
    assert (thumbnail.content, thumbnail.headers["Content-Type"]) == (THUMBNAIL, "image/jpeg")
    assert "/videos/infinitetalk/jobs/job-1.mp4?" in places["url"]
    assert "X-Amz-Expires=604800" in places["url"]


def test_a_public_base_is_used_instead_of_presigning(files, s3_settings):
    settings = s3_settings.model_copy(update={"s3_public_base": "https://cdn.example.com/"})
    places = make_store(OutputConfig(prefix="my videos"), None, settings).save("job-1", *files)
    assert places["url"] == "https://cdn.example.com/my%20videos/job-1.mp4"


def test_a_jobs_own_store_wins(files, s3_settings, s3_endpoint, monkeypatch):
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    own = S3Config(endpointUrl=s3_endpoint, accessId="k", accessSecret="s", bucketName="own")
    with pytest.raises(WorkerError, match="no such bucket") as caught:
        make_store(OutputConfig(), own, s3_settings).check()
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)


def test_a_jobs_own_store_must_be_public(s3_endpoint):
    own = S3Config(endpointUrl=s3_endpoint, accessId="k", accessSecret="s", bucketName="own")
    with pytest.raises(WorkerError, match="public address") as caught:
        make_store(OutputConfig(), own, Settings())
    assert caught.value.code == ErrorCode.INPUT_VALIDATION


def test_missing_settings_are_named():
    with pytest.raises(WorkerError, match="S3_ACCESS_KEY, S3_BUCKET") as caught:
        make_store(OutputConfig(), None, Settings(s3_endpoint="https://s3.example.com", s3_secret_key="s"))
    assert caught.value.code == ErrorCode.INPUT_VALIDATION


def test_a_store_that_does_not_answer_is_seen_before_the_work():
    settings = Settings(
        s3_endpoint="http://127.0.0.1:9", s3_access_key="k", s3_secret_key="s", s3_bucket="b", connect_timeout_s=1
    )
    with pytest.raises(WorkerError, match="did not answer") as caught:
        make_store(OutputConfig(), None, settings).check()
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, True)


def test_the_sdks_names_of_the_store_are_read(monkeypatch):
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "https://s3.example.com")
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "hush-hush")
    settings = Settings()
    assert (settings.s3_endpoint, settings.s3_access_key) == ("https://s3.example.com", "id")
    assert settings.s3_secret_key is not None and settings.s3_secret_key.get_secret_value() == "hush-hush"
    assert "hush-hush" not in repr(settings)


def test_the_projects_names_of_the_store_come_first(monkeypatch):
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "https://one.example.com")
    monkeypatch.setenv("S3_ENDPOINT", "https://two.example.com")
    assert Settings().s3_endpoint == "https://two.example.com"

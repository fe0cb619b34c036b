"""Stores: where the files end up, what the result says of them, and refusals before the work begins."""

import base64
import errno
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError
from pydantic import SecretStr
from structlog.testing import capture_logs

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.job.resume import TaskState
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores import s3
from infinitetalk.worker.stores.base import Artifacts, Store
from infinitetalk.worker.stores.bucket_place import bucket_in_host, region_in_host
from infinitetalk.worker.stores.inline import RESULT_OVERHEAD_BYTES, InlineStore
from infinitetalk.worker.stores.registry import make_store
from infinitetalk.worker.stores.results import ObjectResults
from infinitetalk.worker.stores.s3 import Bucket, S3Objects
from infinitetalk.worker.stores.volume import VolumeObjects, new_file
from infinitetalk.worker.traffic import retry
from schemas import ErrorCode, OutputConfig, S3Config, Stage, Success
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker
from tests.s3_server import S3Server, SwiftUnavailable

VIDEO, THUMBNAIL, METADATA = b"a video" * 1000, b"a picture", b'{"seed": 42}'
LARGE_BYTES = 20_000_000
"""Enough for three parts."""


@pytest.fixture
def files(tmp_path: Path) -> Artifacts:
    artifacts = Artifacts(tmp_path / "video.mp4", tmp_path / "thumbnail.jpg", tmp_path / "metadata.json", "a request")
    artifacts.video.write_bytes(VIDEO)
    artifacts.thumbnail.write_bytes(THUMBNAIL)
    artifacts.metadata.write_bytes(METADATA)
    return artifacts


@pytest.fixture
def large_files(files: Artifacts) -> Artifacts:
    """A video that is uploaded in parts."""
    files.video.write_bytes(bytes(LARGE_BYTES))
    return files


@pytest.fixture
def s3_settings(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    return Settings(
        s3_endpoint=s3_server.endpoint,
        s3_region=s3_server.region,
        s3_access_key=s3_server.access_key,
        s3_secret_key=s3_server.secret_key,
        s3_bucket=s3_server.bucket,
    )


def own_store(server: S3Server, **changes: str) -> S3Config:
    """The server as a job names it."""
    fields = {
        "endpointUrl": server.endpoint,
        "accessId": server.access_key,
        "accessSecret": server.secret_key,
        "bucketName": server.bucket,
    }
    return S3Config.model_validate(fields | changes)


def bucket_of(store: Store) -> Bucket:
    """The bucket that a store puts results into."""
    assert isinstance(store.objects, S3Objects)
    return store.objects.bucket


def client_of(store: Store) -> Any:
    """The client by which a store speaks to its bucket."""
    return bucket_of(store).client


def with_store(worker: LocalWorker, store: Settings, **changes: str) -> Settings:
    """A worker's settings with those of a store."""
    fields = {name: getattr(store, name) for name in ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")}
    return Settings.model_validate(worker.settings.model_dump(exclude_unset=True) | fields | changes)


def unfinished_uploads(server: S3Server) -> list[str]:
    """Keys of multipart uploads that were begun and neither ended nor aborted."""
    uploads = server.client().list_multipart_uploads(Bucket=server.bucket).get("Uploads", [])
    return [upload["Key"] for upload in uploads]


def test_a_volume_gets_the_files_below_its_prefix(files, tmp_path):
    store = make_store(OutputConfig(store="volume", prefix="a/b"), None, Settings(output_dir=tmp_path / "root"))
    store.check()
    assert store.save("job-1", files) == {
        "path": "a/b/job-1.mp4",
        "thumbnail_path": "a/b/job-1.jpg",
        "metadata_path": "a/b/job-1.json",
    }
    assert (tmp_path / "root/a/b/job-1.mp4").read_bytes() == VIDEO
    assert sorted(path.name for path in (tmp_path / "root/a/b").iterdir()) == ["job-1.jpg", "job-1.json", "job-1.mp4"]


def test_a_prefix_cannot_leave_the_volume_through_a_link(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    with pytest.raises(WorkerError, match="leads out of the volume"):
        VolumeObjects(tmp_path / "root", "link/folder").check()
    assert not (tmp_path / "folder").exists()


def test_a_volume_that_is_not_mounted_is_not_made_up(tmp_path):
    settings = Settings(output_dir=tmp_path / "runpod-volume/outputs", volume_dir=tmp_path / "runpod-volume")
    with pytest.raises(WorkerError, match="needs a network volume") as caught:
        make_store(OutputConfig(store="volume"), None, settings)
    assert caught.value.code is ErrorCode.INPUT_VALIDATION
    assert not settings.volume_dir.exists()


def test_a_volume_that_cannot_be_written_to_is_seen_before_the_work(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WorkerError) as caught:
        VolumeObjects(tmp_path / "file", "prefix").check()
    assert caught.value.code == ErrorCode.UPLOAD
    assert str(tmp_path) not in caught.value.message


def test_a_volume_that_may_only_be_read_is_seen_before_the_work():
    # Where root cannot write either.
    with pytest.raises(WorkerError, match="cannot be written to"):
        VolumeObjects(Path("/proc"), "fs").check()


def test_an_inline_result_holds_video_and_thumbnail(files):
    places = InlineStore(max_characters=100_000).save("job-1", files)
    assert base64.b64decode(places["data"]) == VIDEO
    assert base64.b64decode(places["thumbnail_data"]) == THUMBNAIL


def test_an_inline_result_that_is_too_large_names_the_way_out(files):
    with pytest.raises(WorkerError, match='store "s3" or "volume"') as caught:
        InlineStore(max_characters=5000).save("job-1", files)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)


def test_an_inline_video_that_will_be_too_large_costs_no_evaluation(local_worker):
    local_worker.settings = local_worker.settings.model_copy(
        update={"max_result_bytes": RESULT_OVERHEAD_BYTES + 10_000}
    )
    job = small_job(mode="streaming", cond_audio={"person1": speech_uri(2.0)}, output_config={"store": "inline"})
    for changes in ({"dry_run": True}, {}):
        error = local_worker.run({"id": "job-1", "input": job | changes})["error"]
        assert (error["code"], error["retryable"]) == ("E_UPLOAD", False)
        assert "too large for an inline result" in error["message"]
        assert Stage.LOAD not in local_worker.stages


def test_an_inline_video_that_becomes_too_large_ends_with_the_chunk_that_is_too_much(local_worker):
    local_worker.settings = local_worker.settings.model_copy(
        update={"max_result_bytes": RESULT_OVERHEAD_BYTES + 20_000}
    )
    job = small_job(mode="streaming", cond_audio={"person1": speech_uri(1.2)}, output_config={"store": "inline"})
    error = local_worker.run({"id": "job-1", "input": job})["error"]
    assert "too large for an inline result" in error["message"]
    assert Stage.SAMPLING in local_worker.stages
    assert Stage.MUX not in local_worker.stages


def test_an_inline_video_that_just_fits_is_made_and_one_byte_more_is_not(local_worker):
    speech = speech_uri(0.5, pause=1.0)
    job = small_job(mode="streaming", cond_audio={"person1": speech}, output_config={"store": "inline"})
    job["max_frame_num"] = 25
    video = local_worker.run({"id": "job-1", "input": job})["video"]
    characters = len(video["data"]) + len(video["thumbnail_data"])
    statuses = []
    for room in (characters, characters - 1):
        limit = {"max_result_bytes": RESULT_OVERHEAD_BYTES + room}
        local_worker.settings = local_worker.settings.model_copy(update=limit)
        statuses.append(local_worker.run({"id": "job-1", "input": job})["status"])
    assert statuses == ["success", "error"]


def test_an_inline_item_has_the_room_that_those_which_go_elsewhere_do_not_take(local_worker):
    job = small_job()
    items = [job | {"id": f"video-{number}"} for number in range(3)]
    items[0]["output_config"] = {"store": "inline"}
    alone = local_worker.run({"id": "job-1", "input": job | {"output_config": {"store": "inline"}}})["video"]
    room = RESULT_OVERHEAD_BYTES + len(alone["data"]) + len(alone["thumbnail_data"])
    local_worker.settings = local_worker.settings.model_copy(update={"max_result_bytes": room})
    result = local_worker.run({"id": "job-2", "input": {"batch": items}})
    assert [item["status"] for item in result["items"]] == ["success"] * 3


def test_the_items_of_a_batch_share_the_room_of_an_inline_result(files):
    files.video.write_bytes(bytes(200_000))
    settings = Settings(max_result_bytes=1_000_000)
    make_store(OutputConfig(store="inline"), None, settings, num_inline=1).save("job-1", files)
    with pytest.raises(WorkerError, match="too large for an inline result"):
        make_store(OutputConfig(store="inline"), None, settings, num_inline=4).save("job-1", files)


def test_a_bucket_gets_the_files_and_presigned_addresses_serve_them_to_anyone(files, s3_settings, s3_server):
    store = make_store(OutputConfig(), None, s3_settings)
    store.check()
    places = store.save("job-1", files)
    assert sorted(s3_server.keys()) == [f"infinitetalk/jobs/job-1.{kind}" for kind in ("jpg", "json", "mp4")]
    for field, content, content_type in (
        ("url", VIDEO, "video/mp4"),
        ("thumbnail_url", THUMBNAIL, "image/jpeg"),
        ("metadata_url", METADATA, "application/json"),
    ):
        answer = requests.get(places[field], timeout=10)
        assert (answer.content, answer.headers["Content-Type"]) == (content, content_type)
        assert "X-Amz-Expires=604800" in places[field]
        assert s3_server.secret_key not in places[field]


def test_a_presigned_address_is_refused_when_it_has_expired_or_been_changed(files, s3_settings):
    store = make_store(OutputConfig(), None, s3_settings.model_copy(update={"s3_url_expiry_s": 1}))
    url = store.save("job-1", files)["url"]
    changed = [url.replace("job-1.mp4", "job-1.jpg"), url.replace("Expires=1&", "Expires=9&"), url[:-1] + "!"]
    assert [requests.get(address, timeout=10).status_code for address in changed] == [403] * 3
    time.sleep(2.1)
    assert requests.get(url, timeout=10).status_code == 403


def test_a_large_video_goes_up_in_parts_and_reports_its_bytes(large_files, s3_settings, s3_server):
    reports: list[tuple[int, int | None]] = []
    store = make_store(OutputConfig(), None, s3_settings)
    store.save("job-1", large_files, lambda done, total: reports.append((done, total)))
    stored = s3_server.client().head_object(Bucket=s3_server.bucket, Key="infinitetalk/jobs/job-1.mp4")
    assert stored["ETag"].endswith('-3"')
    assert (stored["ContentLength"], stored["ContentType"]) == (LARGE_BYTES, "video/mp4")
    total = LARGE_BYTES + len(THUMBNAIL) + len(METADATA)
    assert reports[-1] == (total, total)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert len(reports) > 10


@pytest.mark.parametrize("stop_after", [1, 9_000_000])
def test_a_stopped_upload_leaves_nothing_in_the_store(stop_after, large_files, s3_settings, s3_server):
    sent = [0]
    with pytest.raises(GenerationStopped):
        make_store(OutputConfig(), None, s3_settings).save(
            "job-1", large_files, lambda done, total: sent.append(done), lambda: sent[-1] >= stop_after
        )
    assert s3_server.keys() == []
    assert unfinished_uploads(s3_server) == []


def test_a_file_that_is_damaged_on_its_way_is_refused_by_its_checksum(files, s3_settings, s3_server):
    store = make_store(OutputConfig(), None, s3_settings)

    def damage(request, **_):
        request.body = b"noise"
        request.headers["Content-Length"] = "5"

    client_of(store).meta.events.register("before-send.s3.PutObject", damage)
    with pytest.raises(WorkerError, match="could not be stored") as caught:
        store.save("job-1", files)
    assert caught.value.code == ErrorCode.UPLOAD
    assert s3_server.keys() == []


def test_a_request_that_fails_for_a_moment_is_sent_again(files, s3_settings, s3_server):
    store = make_store(OutputConfig(), None, s3_settings)
    attempts = []

    def fail_twice(request, **_):
        attempts.append(request.url)
        if len(attempts) <= 2:
            raise ConnectionClosedError(endpoint_url=request.url)

    client_of(store).meta.events.register("before-send.s3.PutObject", fail_twice)
    store.save("job-1", files)
    assert len(attempts) == 5
    assert len(s3_server.keys()) == 3


def test_a_store_that_dies_in_mid_upload_is_a_coded_failure_that_may_pass(large_files, s3_settings, s3_server):
    store = make_store(OutputConfig(), None, s3_settings)

    def die(done: int, total: int | None) -> None:
        if done > 1_000_000 and s3_server.is_running:
            s3_server.kill()

    with pytest.raises(WorkerError) as caught:
        store.save("job-1", large_files, die)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, True)
    assert "127.0.0.1" not in caught.value.message
    s3_server.start()
    assert store.save("job-1", large_files)["url"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"s3_secret_key": "wrong"}, "refused the credentials"),
        ({"s3_access_key": "nobody:here"}, "refused the credentials"),
        ({"s3_bucket": "elsewhere"}, "no such bucket"),
    ],
)
def test_wrong_credentials_and_a_missing_bucket_cost_a_second(changes, words, s3_settings):
    settings = Settings.model_validate(s3_settings.model_dump(exclude_unset=True) | changes)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=words) as caught:
        make_store(OutputConfig(), None, settings).check()
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)
    assert time.monotonic() - begin < 5


class Refusal(io.BytesIO):
    """The body of an answer, as botocore reads it."""

    def stream(self):
        yield self.read()


def refuse(request, **_):
    """S3's answer to credentials that may not do this, to be registered with a client's events."""
    return AWSResponse(request.url, 403, {}, Refusal(b"<Error><Code>AccessDenied</Code></Error>"))


def test_credentials_that_may_only_read_cost_a_second(s3_settings):
    store = make_store(OutputConfig(), None, s3_settings)
    client_of(store).meta.events.register("before-send.s3.PutObject", refuse)
    with pytest.raises(WorkerError, match="refused the credentials") as caught:
        store.check()
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)


def test_a_worker_that_may_not_remove_objects_hands_its_jobs_on(local_worker, s3_settings, monkeypatch):
    local_worker.settings = Settings.model_validate(
        local_worker.settings.model_dump(exclude_unset=True) | s3_settings.model_dump(exclude_unset=True)
    )
    make_client = s3._s3_client

    def make_without_right(*arguments):
        client = make_client(*arguments)
        client.meta.events.register("before-send.s3.DeleteObject", refuse)
        return client

    monkeypatch.setattr(s3, "_s3_client", make_without_right)
    kept = []
    save = TaskState.save_rendering
    monkeypatch.setattr(TaskState, "save_rendering", lambda *arguments: kept.append(save(*arguments)) or kept[-1])
    job = small_job(mode="streaming", cond_audio={"person1": speech_uri(0.36)}, output_config={"store": "s3"})
    assert local_worker.run({"id": "job-1", "input": job})["status"] == "success"
    assert kept == [True, True]


def test_a_connection_that_drops_when_the_probe_is_removed_costs_no_job(s3_settings):
    store = make_store(OutputConfig(), None, s3_settings)

    def drop(request, **_):
        raise ConnectionClosedError(endpoint_url=request.url)

    client_of(store).meta.events.register("before-send.s3.DeleteObject", drop)
    store.check()


def test_a_video_that_those_who_may_not_list_the_bucket_ask_for_is_not_there(s3_settings):
    store = make_store(OutputConfig(), None, s3_settings)
    client_of(store).meta.events.register("before-send.s3.HeadObject", refuse)
    assert store.places("job-1", 1) is None


def test_the_check_of_a_bucket_leaves_nothing_in_it(s3_settings, s3_server):
    make_store(OutputConfig(), None, s3_settings).check()
    assert s3_server.keys() == []


def test_a_public_base_is_used_instead_of_presigning(files, s3_settings):
    settings = s3_settings.model_copy(update={"s3_public_base": "https://cdn.example.com/"})
    places = make_store(OutputConfig(prefix="my videos"), None, settings).save("job-1", files)
    assert places["url"] == "https://cdn.example.com/my%20videos/job-1.mp4"


def test_a_jobs_own_store_wins(files, s3_server, open_network):
    settings = Settings(s3_endpoint="http://127.0.0.1:9", s3_access_key="k", s3_secret_key="s", s3_bucket="b")
    store = make_store(OutputConfig(), own_store(s3_server), settings)
    store.check()
    assert requests.get(store.save("job-1", files)["url"], timeout=10).content == VIDEO
    with pytest.raises(WorkerError, match="no such bucket") as caught:
        make_store(OutputConfig(), own_store(s3_server, bucketName="own"), settings).check()
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)


@pytest.mark.parametrize("missing", ["ETag", "Last-Modified", "Content-Length"])
def test_a_store_whose_answers_lack_what_s3_says_is_named_as_the_fault(missing, open_network):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            headers = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT", "Content-Length": "3"}
            for name, value in headers.items():
                if name != missing:
                    self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"endpointUrl": f"http://127.0.0.1:{server.server_port}", "bucketName": "bucket"}
        config = S3Config.model_validate(place | {"accessId": "k", "accessSecret": "s"})
        store = make_store(OutputConfig(), config, Settings())
        assert store.objects is not None
        with pytest.raises(WorkerError, match=f"answer lacks {missing.replace('-', '')}") as caught:
            store.objects.head("job-1.mp4")
        server.shutdown()
    assert caught.value.code == ErrorCode.UPLOAD


def test_the_workers_credentials_never_go_to_a_store_that_a_job_named(
    s3_settings, s3_server, open_network, monkeypatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "worker-secret")
    store = make_store(OutputConfig(), own_store(s3_server, accessId="job:key"), s3_settings)
    sent = []
    events = client_of(store).meta.events
    events.register_first("before-send.s3", lambda request, **_: sent.append(str(request.headers)))
    with pytest.raises(WorkerError, match="refused the credentials"):
        store.check()
    assert sent and all("job:key" in headers for headers in sent)
    assert not any(s3_server.access_key in headers or "worker-secret" in headers for headers in sent)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "http://169.254.169.254", "http://localhost", "http://[::1]"]
)
def test_what_a_job_names_to_write_to_must_be_public(address, s3_server):
    with pytest.raises(WorkerError, match=r"s3Config\.endpointUrl must resolve to a public address") as caught:
        make_store(OutputConfig(), own_store(s3_server, endpointUrl=address), Settings())
    assert caught.value.code == ErrorCode.INPUT_VALIDATION
    public = "http://1.1.1.1/x"
    for urls, field in (({"video_url": address, "thumbnail_url": public}, "video_url"),
                        ({"video_url": public, "thumbnail_url": address}, "thumbnail_url")):  # fmt: skip
        with pytest.raises(WorkerError, match=f"{field} must resolve to a public address") as caught:
            make_store(OutputConfig(store="put", **urls), None, Settings()).check()
        assert caught.value.code == ErrorCode.INPUT_VALIDATION


def test_a_store_whose_name_changes_its_mind_gets_nothing(files, s3_server, monkeypatch):
    look_up = socket.getaddrinfo
    minds = {"put.test": iter(["1.1.1.1"] * 2), "s3.test": iter(["1.1.1.1"])}

    def change_mind(host, *arguments, **options):
        return look_up(next(minds[host], "127.0.0.1") if host in minds else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", change_mind)
    port = s3_server.endpoint.rpartition(":")[2]
    own = own_store(s3_server, endpointUrl=f"http://s3.test:{port}")
    with pytest.raises(WorkerError, match="could not be stored"):
        make_store(OutputConfig(), own, Settings()).check()
    urls = {name: f"http://put.test:{port}/{s3_server.bucket}/{name}" for name in ("video_url", "thumbnail_url")}
    store = make_store(OutputConfig(store="put", **urls), None, Settings())
    store.check()
    with pytest.raises(WorkerError, match="must resolve to a public address"):
        store.save("job-1", files)


def presigned_put(server: S3Server, key: str, content_type: str, expires_in_s: int = 60) -> str:
    """An address that takes an object by PUT."""
    parameters = {"Bucket": server.bucket, "Key": key, "ContentType": content_type}
    return server.client().generate_presigned_url("put_object", Params=parameters, ExpiresIn=expires_in_s)


def put_config(server: S3Server, **changes: str) -> OutputConfig:
    """Presigned addresses of the server."""
    urls = {
        "video_url": presigned_put(server, "theirs/video.mp4", "video/mp4"),
        "thumbnail_url": presigned_put(server, "theirs/thumbnail.jpg", "image/jpeg"),
    }
    return OutputConfig(store="put", **(urls | changes))


def test_presigned_addresses_get_video_and_thumbnail(large_files, s3_server, s3_settings, open_network):
    reports: list[tuple[int, int | None]] = []
    store = make_store(put_config(s3_server), None, s3_settings)
    store.check()
    places = store.save("job-1", large_files, lambda done, total: reports.append((done, total)))
    assert places == {
        "url": f"{s3_server.endpoint}/results/theirs/video.mp4",
        "thumbnail_url": f"{s3_server.endpoint}/results/theirs/thumbnail.jpg",
    }
    stored = s3_server.client().head_object(Bucket=s3_server.bucket, Key="theirs/video.mp4")
    assert (stored["ContentLength"], stored["ContentType"]) == (LARGE_BYTES, "video/mp4")
    assert reports[-1] == (LARGE_BYTES + len(THUMBNAIL), LARGE_BYTES + len(THUMBNAIL))


@pytest.mark.parametrize("fault", ["expired", "changed", "signed for GET"])
def test_a_presigned_address_that_does_not_take_the_video_is_a_coded_failure(
    fault, files, s3_server, s3_settings, open_network
):
    url = presigned_put(s3_server, "video.mp4", "video/mp4", expires_in_s=1)
    match fault:
        case "expired":
            time.sleep(2.1)
        case "changed":
            url = url.replace("video.mp4", "other.mp4")
        case "signed for GET":
            url = s3_server.client().generate_presigned_url(
                "get_object", Params={"Bucket": s3_server.bucket, "Key": "video.mp4"}
            )
    with pytest.raises(WorkerError, match="video_url answered with status 403") as caught:
        make_store(put_config(s3_server, video_url=url), None, s3_settings).save("job-1", files)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)
    assert "Signature" not in caught.value.message


def test_a_presigned_address_that_does_not_answer_is_tried_again(
    files, s3_server, s3_settings, open_network, monkeypatch
):
    config = put_config(s3_server)
    s3_server.kill()
    threading.Timer(0.2, s3_server.start).start()
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 1.0)
    assert make_store(config, None, s3_settings).save("job-1", files)
    assert len(s3_server.keys()) == 2


def test_a_stopped_put_ends_at_once(large_files, s3_server, s3_settings, open_network):
    sent = [0]
    with pytest.raises(GenerationStopped):
        make_store(put_config(s3_server), None, s3_settings).save(
            "job-1", large_files, lambda done, total: sent.append(done), lambda: sent[-1] > 0
        )
    assert s3_server.keys() == []


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


def test_a_job_leaves_video_thumbnail_and_an_account_of_itself_in_the_bucket(local_worker, s3_settings, s3_server):
    local_worker.settings = with_store(local_worker, s3_settings)
    result = local_worker.run({"id": "job-1", "input": small_job(output_config={"store": "s3", "prefix": "a b/c"})})
    video = Success.model_validate(result, strict=False).video
    assert sorted(s3_server.keys()) == [f"a b/c/job-1.{kind}" for kind in ("jpg", "json", "mp4")]
    assert len(requests.get(video.url, timeout=10).content) == video.bytes
    account = requests.get(video.metadata_url, timeout=10).json()
    assert (account["job_id"], account["seed"], account["model"]) == ("job-1", 42, "tiny-random")
    assert account["params"] == result["params"]
    assert account["timings"]["sampling_ms"] == result["timings"]["sampling_ms"]
    assert {"python", "torch", "diffusers"} <= set(account["versions"])


def test_a_job_with_wrong_credentials_fails_before_anything_is_fetched(local_worker, s3_settings):
    local_worker.settings = with_store(local_worker, s3_settings, s3_secret_key="wrong")
    result = local_worker.run({"id": "job-1", "input": small_job(output_config=None)})
    assert (result["error"]["code"], result["error"]["at_stage"]) == ("E_UPLOAD", "validation")
    assert local_worker.stages == [Stage.VALIDATION]


def test_a_job_that_names_addresses_to_put_to_does_not_repeat_their_signatures(
    local_worker, s3_settings, s3_server, open_network
):
    config = put_config(s3_server).model_dump(exclude_defaults=True)
    with capture_logs() as logs:
        result = local_worker.run({"id": "job-1", "input": small_job(output_config=config)})
    assert result["video"]["url"].endswith("/results/theirs/video.mp4")
    assert "Signature" not in str(result) + str(logs) + str(local_worker.events)
    assert len(s3_server.keys()) == 2


def as_found(artifacts: Artifacts, video: bytes, request: str = "a request") -> Artifacts:
    """The artifacts of another worker that holds the same job."""
    folder = artifacts.video.parent / f"other-{len(video)}"
    folder.mkdir()
    other = Artifacts(folder / "video.mp4", folder / "thumbnail.jpg", folder / "metadata.json", request)
    other.video.write_bytes(video)
    other.thumbnail.write_bytes(b"another picture")
    other.metadata.write_text(json.dumps({"request": request, "video": {"bytes": len(video)}}))
    return other


@pytest.fixture(params=["volume", "s3"])
def make_holder(request, tmp_path, s3_settings) -> Callable[[], Store]:
    """Makes the store of another worker that holds the same job."""

    def make() -> Store:
        settings = s3_settings.model_copy(update={"output_dir": tmp_path / "root", "volume_dir": tmp_path / "mount"})
        store = make_store(OutputConfig(store=request.param), None, settings)
        store.check()
        store.remember("job-1")
        return store

    return make


def content(store: Store, places: dict[str, Any], kind: str = "") -> bytes:
    """What is served from a place that was told."""
    if isinstance(store.objects, VolumeObjects):
        return (store.objects.root / places[f"{kind}path"]).read_bytes()
    return requests.get(places[f"{kind}url"], timeout=10).content


def test_of_two_holders_the_first_ones_video_stays_and_is_what_both_tell(files, make_holder):
    first, second = make_holder(), make_holder()
    files.metadata.write_text(json.dumps({"request": "a request", "video": {"bytes": len(VIDEO)}}))
    told = first.save("job-1", files)
    told_again = second.save("job-1", as_found(files, b"another video"))
    assert "bytes" not in told
    assert told_again["bytes"] == len(VIDEO)
    for places in (told, told_again):
        assert content(first, places) == VIDEO
        assert content(first, places, "thumbnail_") == THUMBNAIL
        assert json.loads(content(first, places, "metadata_"))["video"]["bytes"] == len(VIDEO)


def test_a_holder_that_is_lost_between_video_and_account_is_finished_by_the_other(files, make_holder, monkeypatch):
    first, second = make_holder(), make_holder()

    def lose(*_arguments: object, **_options: object) -> None:
        raise SystemExit

    monkeypatch.setattr(first, "_put_beside", lose)
    with pytest.raises(SystemExit):
        first.save("job-1", files)
    other = as_found(files, b"another video")
    told = second.save("job-1", other)
    assert (content(second, told), told["bytes"]) == (VIDEO, len(VIDEO))
    assert content(second, told, "thumbnail_") == b"another picture"
    assert json.loads(content(second, told, "metadata_"))["video"]["bytes"] == len(VIDEO)


def test_a_video_that_replaces_another_after_its_commit_is_the_one_that_both_tell(files, make_holder, monkeypatch):
    """As in a store that looks for a name and then writes, where two new videos can both be taken."""
    first, second = make_holder(), make_holder()
    files.metadata.write_text(json.dumps({"request": "a request", "video": {"bytes": len(VIDEO)}}))
    other = as_found(files, b"another video")
    put_beside = first._put_beside

    def put_after_the_other(name: str, *arguments: object, **options: object) -> None:
        if name == "job-1.json":
            save_as_if_free(second, other, monkeypatch)
        put_beside(name, *arguments, **options)

    monkeypatch.setattr(first, "_put_beside", put_after_the_other)
    told = first.save("job-1", files)
    assert (content(second, told), told["bytes"]) == (b"another video", len(b"another video"))
    assert json.loads(content(second, told, "metadata_"))["video"]["bytes"] == len(b"another video")


def test_an_account_of_another_requests_video_is_left_as_it_is(files, make_holder, monkeypatch):
    first, second = make_holder(), make_holder()
    other = as_found(files, b"another video", "another request")
    addresses = first._addresses

    def addresses_after_the_other(name: str) -> object:
        save_as_if_free(second, other, monkeypatch)
        # What the other has stored, whole.
        second.objects.put("job-1.json", other.metadata.read_bytes())
        return addresses(name)

    monkeypatch.setattr(first, "_addresses", addresses_after_the_other)
    with pytest.raises(WorkerError, match="another worker has stored a video of another request"):
        first.save("job-1", files)
    monkeypatch.undo()
    places, _ = second._addresses("job-1")
    assert json.loads(content(second, places, "metadata_"))["request"] == "another request"


def test_an_address_that_lags_behind_its_store_changes_no_account(files, make_holder, monkeypatch):
    store = make_holder()
    files.metadata.write_text(json.dumps({"request": "a request", "video": {"bytes": len(VIDEO)}}))
    addresses = store._addresses
    monkeypatch.setattr(store, "_addresses", lambda name: (addresses(name)[0], 100))
    told = store.save("job-1", files)
    assert told["bytes"] == 100
    assert json.loads(content(store, told, "metadata_"))["video"]["bytes"] == len(VIDEO)


def save_as_if_free(store: Store, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves in a store that has found the name free, and takes it whether or not it still is."""
    uploading = store.objects.uploading

    @contextmanager
    def as_if_free(*upload: Any) -> Iterator[Callable[[bool], bool]]:
        with uploading(*upload) as commit:
            yield lambda is_new: commit(False)

    monkeypatch.setattr(store, "_look", lambda name: None)
    monkeypatch.setattr(store.objects, "uploading", as_if_free)
    store.save("job-1", artifacts)


def test_a_holder_that_is_stopped_in_its_upload_takes_nothing_of_the_others(files, make_holder):
    first, second = make_holder(), make_holder()
    files.metadata.write_text(json.dumps({"request": "a request"}))
    told = first.save("job-1", files)
    second.remember("job-2")
    with pytest.raises(GenerationStopped):
        # Its own look has found nothing: it is in its upload while the other one ends.
        second._look = lambda name: None
        second.save("job-1", as_found(files, bytes(LARGE_BYTES)), should_stop=lambda: True)
    assert content(first, told) == VIDEO
    assert content(first, told, "thumbnail_") == THUMBNAIL


def test_an_earlier_video_of_the_same_id_and_another_request_is_replaced(files, make_holder):
    make_holder().save("job-1", as_found(files, b"an old video", "another request"))
    store = make_holder()
    told = store.save("job-1", files)
    assert content(store, told) == VIDEO
    assert "bytes" not in told


def test_a_video_of_another_request_that_comes_meanwhile_is_no_success(files, make_holder):
    store = make_holder()
    make_holder().save("job-1", as_found(files, b"an old video", "another request"))
    with pytest.raises(WorkerError, match="another worker has stored a video of another request") as caught:
        store.save("job-1", files)
    assert caught.value.retryable


def test_holders_that_save_at_once_leave_one_whole_video_and_tell_it(files, make_holder):
    holders = [make_holder() for _ in range(4)]
    videos = [as_found(files, bytes([number]) * (300_000 + number)) for number in range(4)]
    for _ in range(3):
        with ThreadPoolExecutor(4) as threads:
            told = list(threads.map(lambda holder, video: holder.save("job-1", video), holders, videos))
        data = content(holders[0], told[0])
        assert len(set(data)) == 1
        sizes = [places.get("bytes", 300_000 + number) for number, places in enumerate(told)]
        assert sizes == [len(data)] * 4
        account = json.loads(content(holders[0], told[0], "metadata_"))
        assert account["video"]["bytes"] == len(data)


def test_two_containers_of_one_process_id_do_not_write_into_one_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    written: list[Path] = []
    copies = [new_file(tmp_path / "work", [bytes([number]) * 1000]) for number in range(2)]
    with copies[0] as first, copies[1] as second:
        written += [first, second]
        assert (first.read_bytes(), second.read_bytes()) == (bytes(1000), b"\x01" * 1000)
    assert len(set(written)) == 2
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("is_new", [False, True])
def test_a_file_that_is_short_once_it_has_its_name_is_not_told_as_stored(is_new: bool, tmp_path, monkeypatch):
    """As on a volume that loses what it has said is written: another machine, say, cuts the file."""
    objects = VolumeObjects(tmp_path, "a")
    objects.put("whole.bin", bytes(1000), is_new=is_new)
    assert objects.get("whole.bin", 1000) == bytes(1000)
    give_name = {False: Path.replace, True: os.link}[is_new]

    def give_name_and_cut(path: Path, target: Path, **options: Any) -> None:
        give_name(path, target, **options)
        os.truncate(target, 400)

    monkeypatch.setattr(Path if not is_new else os, "replace" if not is_new else "link", give_name_and_cut)
    with pytest.raises(WorkerError) as caught:
        objects.put("short.bin", bytes(1000), is_new=is_new)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, True)


def test_a_volume_without_links_is_looked_at_before_it_is_written_to(files, tmp_path, monkeypatch):
    def refuse_link(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr("os.link", refuse_link)
    first, second = (ObjectResults(VolumeObjects(tmp_path / "root", "a")) for _ in range(2))
    first.check()
    files.metadata.write_text(json.dumps({"request": "a request", "video": {"bytes": len(VIDEO)}}))
    told = first.save("job-1", files)
    assert second.save("job-1", as_found(files, b"another video"))["bytes"] == len(VIDEO)
    assert content(first, told) == VIDEO


def test_a_store_without_conditions_is_looked_at_before_it_is_written_to(files, s3_settings):
    stores = [make_store(OutputConfig(), None, s3_settings) for _ in range(2)]

    def refuse_condition(request, **_):
        if "If-None-Match" in request.headers:
            return AWSResponse(request.url, 501, {}, Refusal(b"<Error><Code>NotImplemented</Code></Error>"))
        return None

    for store in stores:
        client_of(store).meta.events.register("before-send.s3.PutObject", refuse_condition)
    files.metadata.write_text(json.dumps({"request": "a request", "video": {"bytes": len(VIDEO)}}))
    told = stores[0].save("job-1", files)
    assert stores[1].save("job-1", as_found(files, b"another video"))["bytes"] == len(VIDEO)
    assert content(stores[0], told) == VIDEO


def test_a_name_that_is_too_long_for_the_volume_is_the_jobs_own_fault(local_worker):
    config = {"store": "volume", "prefix": "x" * 300}
    error = local_worker.run({"id": "job-1", "input": small_job(output_config=config)})["error"]
    assert (error["code"], error["retryable"]) == ("E_INPUT_VALIDATION", False)
    assert "too long for the volume" in error["message"]


@pytest.mark.parametrize("prefix", ["infinitetalk/jobs/victim.mp4", "a/.resume/b", "a.preview/b", "x.JSON", ".x"])
def test_a_prefix_that_reaches_into_others_names_is_refused(prefix, local_worker):
    config = {"store": "volume", "prefix": prefix}
    error = local_worker.run({"id": "job-1", "input": small_job(output_config=config)})["error"]
    assert error["code"] == "E_INPUT_VALIDATION"
    assert "output_config.prefix must not have names that begin with" in error["message"]


@pytest.mark.parametrize(
    ("endpoint", "region", "bucket"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1", None),
        ("https://s3.amazonaws.com", None, None),
        ("https://videos.s3.amazonaws.com", None, "videos"),
        ("https://videos.s3.us-west-2.amazonaws.com/", "us-west-2", "videos"),
        ("https://s3-eu-west-1.amazonaws.com", "eu-west-1", None),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1", None),
        ("https://my.videos.s3.us-west-004.backblazeb2.com", "us-west-004", "my.videos"),
        ("https://videos.nyc3.digitaloceanspaces.com", "nyc3", "videos"),
        ("https://ams3.digitaloceanspaces.com", "ams3", None),
        ("https://s3.fr-par.scw.cloud", "fr-par", None),
        ("https://account.r2.cloudflarestorage.com", None, None),
        ("https://minio.example.com:9000", None, None),
        ("https://s3.example.com", None, None),
    ],
)
def test_a_stores_host_tells_its_region_and_bucket(endpoint, region, bucket):
    assert (region_in_host(endpoint), bucket_in_host(endpoint)) == (region, bucket)


def test_a_bucket_in_the_workers_endpoint_is_not_named_twice(monkeypatch):
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "https://videos.s3.eu-west-1.amazonaws.com")
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "hush-hush")
    for settings in (Settings(), Settings(s3_bucket="videos")):
        store = make_store(OutputConfig(), None, settings)
        address = bucket_of(store).address("infinitetalk/jobs/job-1.mp4")
        assert address.startswith("https://s3.eu-west-1.amazonaws.com/videos/infinitetalk/jobs/job-1.mp4?")
        assert "%2Feu-west-1%2Fs3%2F" in address


@pytest.fixture(scope="module")
def european_server() -> Iterator[S3Server]:
    """A store of another region, which refuses what is signed for us-east-1."""
    try:
        server = S3Server("eu-central-1")
    except SwiftUnavailable as reason:
        pytest.skip(str(reason))
    with server:
        yield server


@pytest.mark.parametrize("changes", [{}, {"region": "eu-central-1"}, {"region": "ap-south-1"}])
def test_the_addresses_of_a_jobs_own_store_in_another_region_serve_its_files(
    changes, local_worker, european_server, open_network
):
    european_server.clear()
    config = own_store(european_server, **changes).model_dump(by_alias=True, exclude_none=True)
    job = small_job(
        output_config={"store": "s3", "preview": True}, mode="streaming", cond_audio={"person1": speech_uri(0.36)}
    )
    result = local_worker.run({"id": "job-1", "input": job, "s3Config": config})
    video = Success.model_validate(result, strict=False).video
    assert len(requests.get(video.url, timeout=10).content) == video.bytes
    assert requests.get(video.thumbnail_url, timeout=10).content[:2] == b"\xff\xd8"
    assert requests.get(video.metadata_url, timeout=10).json()["job_id"] == "job-1"
    previews = [event.preview for event in local_worker.events]
    playlist = requests.get(previews[-1]["preview_url"], timeout=10).text
    segments = [line for line in playlist.splitlines() if line.startswith("http")]
    assert len(segments) == 2
    assert all(requests.get(segment, timeout=10).status_code == 200 for segment in segments)


def test_an_address_that_is_refused_fails_the_job_before_its_work(local_worker, s3_settings, monkeypatch):
    def sign_for_nobody(client, operation, Params, ExpiresIn):
        return f"{s3_settings.s3_endpoint}/{Params['Bucket']}/{Params['Key']}?X-Amz-Signature=wrong"

    monkeypatch.setattr("botocore.signers.generate_presigned_url", sign_for_nobody)
    connect = s3._s3_client

    def connect_badly(*arguments):
        client = connect(*arguments)
        client.generate_presigned_url = lambda *args, **options: sign_for_nobody(client, *args, **options)
        return client

    monkeypatch.setattr(s3, "_s3_client", connect_badly)
    local_worker.settings = with_store(local_worker, s3_settings)
    error = local_worker.run({"id": "job-1", "input": small_job(output_config=None)})["error"]
    assert (error["code"], error["at_stage"]) == ("E_UPLOAD", "validation")
    assert "name the store's region (S3_REGION)" in error["message"]
    assert local_worker.stages == [Stage.VALIDATION]


def test_a_public_address_that_does_not_serve_the_video_is_a_warning(local_worker, s3_settings, s3_server):
    local_worker.settings = with_store(local_worker, s3_settings, s3_public_base=f"{s3_server.endpoint}/private")
    result = local_worker.run({"id": "job-1", "input": small_job(output_config=None)})
    (warning,) = result["warnings"]
    assert "this worker tested the address, which answered with status" in warning


class HostileStore:
    """A store that a job names, whose every answer is bad in one way.

    Args:
        fault: "drip": a byte of a header now and then; "body": an answer without an end; "slow body": a byte
            of an answer now and then.
    """

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.requests: list[str] = []
        self.sent = 0
        self._ended = threading.Event()
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                store.requests.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with suppress(OSError):
                    store.answer(self.wfile)
                self.close_connection = True

            do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.access_key, self.secret_key, self.bucket = "key", "secret", "bucket"

    def answer(self, out: Any) -> None:
        """Sends what is never all."""
        begin = b"X-Slow: " if self.fault == "drip" else b"Content-Type: text/xml\r\n\r\n"
        out.write(b"HTTP/1.1 200 OK\r\n" + begin)
        while not self._ended.wait(0 if self.fault == "body" else 0.05):
            block = bytes(1 << 20) if self.fault == "body" else b"x"
            out.write(block)
            out.flush()
            self.sent += len(block)

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize("fault", ["drip", "body", "slow body"])
def test_a_hostile_store_of_a_jobs_own_ends_with_a_coded_failure_in_time(fault, local_worker, open_network):
    store = HostileStore(fault)
    local_worker.settings = local_worker.settings.model_copy(update={"store_timeout_s": 1.5})
    begin = time.monotonic()
    try:
        config = own_store(store).model_dump(by_alias=True, exclude_none=True)
        result = local_worker.run({"id": "job-1", "input": small_job(output_config=None), "s3Config": config})
    finally:
        store.close()
    assert (result["error"]["code"], result["error"]["at_stage"]) == ("E_UPLOAD", "validation")
    assert time.monotonic() - begin < 15
    # What the sockets hold beside what has been read.
    assert store.sent < 60_000_000


def test_a_cancelled_job_leaves_its_hostile_store_at_once(local_worker, open_network):
    store = HostileStore("drip")
    try:
        config = own_store(store).model_dump(by_alias=True, exclude_none=True)
        job = {"id": "job-1", "input": small_job(output_config=None), "s3Config": config}
        begin = time.monotonic()
        with pytest.raises(GenerationStopped):
            local_worker.run(job, should_stop=lambda: time.monotonic() > begin + 0.5)
    finally:
        store.close()
    assert time.monotonic() - begin < 8


def test_a_store_that_a_job_names_is_never_listed(local_worker, s3_server, open_network):
    local_worker.settings = local_worker.settings.model_copy(
        update={"resume_secret": SecretStr("shared"), "volume_dir": local_worker.volume / "none"}
    )
    asked: list[str] = []
    make_client = s3._s3_client

    def make_and_listen(*arguments):
        client = make_client(*arguments)
        client.meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))
        return client

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3, "_s3_client", make_and_listen)
        config = own_store(s3_server).model_dump(by_alias=True, exclude_none=True)
        job = {"id": "job-1", "input": small_job(output_config={"store": "s3", "preview": True}), "s3Config": config}
        assert local_worker.run(job)["status"] == "success"
        # Its failure has a preview to remove.
        job["input"]["cond_video"] = "gone.png"
        assert "error" in local_worker.run(job | {"id": "job-2"})
    assert "PutObject" in asked
    assert not [name for name in asked if name.startswith("List")]

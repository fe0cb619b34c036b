"""Stores: where the files end up, what the result says of them, and refusals before the work begins."""

import base64
import io
import socket
import threading
import time
from pathlib import Path

import pytest
import requests
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError
from structlog.testing import capture_logs

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker import storage
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.resume import TaskState
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.storage import RESULT_OVERHEAD_BYTES, Artifacts, InlineStore, S3Store, VolumeStore, make_store
from schemas import ErrorCode, OutputConfig, S3Config, Stage, Success
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker
from tests.s3_server import S3Server

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
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.01)
    return Settings(
        s3_endpoint=s3_server.endpoint,
        s3_region=s3_server.region,
        s3_access_key=s3_server.access_key,
        s3_secret_key=s3_server.secret_key,
        s3_bucket=s3_server.bucket,
    )


@pytest.fixture
def open_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a job name a store at the loopback address."""
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")


def own_store(server: S3Server, **changes: str) -> S3Config:
    """The server as a job names it."""
    fields = {
        "endpointUrl": server.endpoint,
        "accessId": server.access_key,
        "accessSecret": server.secret_key,
        "bucketName": server.bucket,
    }
    return S3Config.model_validate(fields | changes)


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
        VolumeStore(tmp_path / "root", "link/folder").check()
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
        VolumeStore(tmp_path / "file", "prefix").check()
    assert caught.value.code == ErrorCode.UPLOAD
    assert str(tmp_path) not in caught.value.message


def test_a_volume_that_may_only_be_read_is_seen_before_the_work():
    # Where root cannot write either.
    with pytest.raises(WorkerError, match="cannot be written to"):
        VolumeStore(Path("/proc"), "fs").check()


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
    assert isinstance(store, S3Store)

    def damage(request, **_):
        request.body = b"noise"
        request.headers["Content-Length"] = "5"

    store.client.meta.events.register("before-send.s3.PutObject", damage)
    with pytest.raises(WorkerError, match="could not be stored") as caught:
        store.save("job-1", files)
    assert caught.value.code == ErrorCode.UPLOAD
    assert s3_server.keys() == []


def test_a_request_that_fails_for_a_moment_is_sent_again(files, s3_settings, s3_server):
    store = make_store(OutputConfig(), None, s3_settings)
    assert isinstance(store, S3Store)
    attempts = []

    def fail_twice(request, **_):
        attempts.append(request.url)
        if len(attempts) <= 2:
            raise ConnectionClosedError(endpoint_url=request.url)

    store.client.meta.events.register("before-send.s3.PutObject", fail_twice)
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
    assert isinstance(store, S3Store)

    store.client.meta.events.register("before-send.s3.PutObject", refuse)
    with pytest.raises(WorkerError, match="refused the credentials") as caught:
        store.check()
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UPLOAD, False)


def test_a_worker_that_may_not_remove_objects_hands_its_jobs_on(local_worker, s3_settings, monkeypatch):
    local_worker.settings = Settings.model_validate(
        local_worker.settings.model_dump(exclude_unset=True) | s3_settings.model_dump(exclude_unset=True)
    )
    make_client = storage.S3Store.from_settings.__func__

    def make_without_right(cls, *arguments):
        store = make_client(cls, *arguments)
        store.client.meta.events.register("before-send.s3.DeleteObject", refuse)
        return store

    monkeypatch.setattr(storage.S3Store, "from_settings", classmethod(make_without_right))
    kept = []
    save = TaskState.save_rendering
    monkeypatch.setattr(TaskState, "save_rendering", lambda *arguments: kept.append(save(*arguments)) or kept[-1])
    job = small_job(mode="streaming", cond_audio={"person1": speech_uri(0.36)}, output_config={"store": "s3"})
    assert local_worker.run({"id": "job-1", "input": job})["status"] == "success"
    assert kept == [True, True]


def test_a_connection_that_drops_when_the_probe_is_removed_costs_no_job(s3_settings):
    store = make_store(OutputConfig(), None, s3_settings)
    assert isinstance(store, S3Store)

    def drop(request, **_):
        raise ConnectionClosedError(endpoint_url=request.url)

    store.client.meta.events.register("before-send.s3.DeleteObject", drop)
    store.check()


def test_a_video_that_those_who_may_not_list_the_bucket_ask_for_is_not_there(s3_settings):
    store = make_store(OutputConfig(), None, s3_settings)
    assert isinstance(store, S3Store)

    store.client.meta.events.register("before-send.s3.HeadObject", refuse)
    assert store.has("job-1") is False


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


def test_the_workers_credentials_never_go_to_a_store_that_a_job_named(
    s3_settings, s3_server, open_network, monkeypatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "worker-secret")
    store = make_store(OutputConfig(), own_store(s3_server, accessId="job:key"), s3_settings)
    assert isinstance(store, S3Store)
    sent = []
    store.client.meta.events.register_first("before-send.s3", lambda request, **_: sent.append(str(request.headers)))
    with pytest.raises(WorkerError, match="refused the credentials"):
        store.check()
    assert sent and all("job:key" in headers for headers in sent)
    assert not any(s3_server.access_key in headers or "worker-secret" in headers for headers in sent)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://169.254.169.254", "http://localhost", "http://["])
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
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 1.0)
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
    assert "Signature" not in str(result) + str(logs) + str(local_worker.messages)
    assert len(s3_server.keys()) == 2

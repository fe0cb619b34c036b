"""A video that plays while it is made: HLS beside the outputs, from the first chunk on."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import requests

from infinitetalk.errors import GenerationStopped
from schemas import Stage, Success
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker
from tests.s3_server import S3Server, with_bucket
from tools.queue_server import API_KEY, LocalQueue
from tools.worker_process import JOB_TIMEOUT_S, worker_of

NUM_FRAMES = 17
# Each chunk but the last holds a frame back, which fades into the next.
SEGMENT_FRAMES = [4, 4, 4, 5]


def job(store: str = "volume", **changes: Any) -> dict[str, Any]:
    """A streaming job of four chunks with a preview."""
    output_config = {"store": store, "preview": True}
    speech = {"person1": speech_uri(0.68)}
    return {
        "id": "job-1",
        "input": small_job(mode="streaming", cond_audio=speech, output_config=output_config, **changes),
    }


def in_chunk(worker: LocalWorker, number: int) -> Callable[[], bool]:
    """Whether the worker's job has begun a chunk, counted from 1."""

    def has_begun() -> bool:
        steps = [event.details for event in worker.events]
        return any(step and step.get("chunk") == number for step in steps)

    return has_begun


def decoded(address: str, **options: str) -> tuple[np.ndarray, float]:
    """Frames, uint8 (T, H, W, 3), of a video, and the seconds of its sound."""
    with av.open(address, options=options) as container:
        frames = list(container.decode())
    pictures = [frame.to_ndarray(format="rgb24") for frame in frames if isinstance(frame, av.VideoFrame)]
    sound = [frame.samples / frame.rate for frame in frames if isinstance(frame, av.AudioFrame)]
    return np.stack(pictures), sum(sound)


def test_a_player_shows_the_beginning_while_the_job_is_in_progress(tmp_path: Path):
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with LocalQueue(tmp_path / "volume") as queue, worker_of(queue, tmp_path) as worker:
        worker.wait_until_ready()
        job_id = queue.post(job(sample_steps=40)["input"])
        shown = queue.wait_until(job_id, lambda job: any(said["preview_path"] for said in job.progress), JOB_TIMEOUT_S)
        path = shown.progress[-1]["preview_path"]
        address = queue.endpoint.url.removesuffix("/v2/local") + f"/files/{path}"
        text = requests.get(address, headers=headers, timeout=10).text
        # A player that followed the playlist would wait for its end.
        so_far = tmp_path / "so_far.ts"
        segments = [line for line in text.splitlines() if line.endswith(".ts")]
        so_far.write_bytes(
            b"".join(
                requests.get(f"{address.rpartition('/')[0]}/{name}", headers=headers, timeout=10).content
                for name in segments
            )
        )
        beginning, _ = decoded(str(so_far))
        assert queue.jobs[job_id].status == "IN_PROGRESS"
        assert "#EXT-X-ENDLIST" not in text
        assert len(beginning) == sum(SEGMENT_FRAMES[: len(segments)])

        result = Success.model_validate(queue.wait(job_id, JOB_TIMEOUT_S).output, strict=False)
        whole, seconds = decoded(address, headers=f"Authorization: {headers['Authorization']}\r\n")
        assert np.array_equal(whole, worker.frames(result))
        assert np.array_equal(whole[: len(beginning)], beginning)
        assert abs(seconds - NUM_FRAMES / 25) < 0.06


def test_a_bucket_serves_it_to_anyone_who_has_the_address(local_worker: LocalWorker, s3_server: S3Server):
    local_worker.settings = with_bucket(local_worker.settings, s3_server)
    local_worker.run(job("s3"))
    addresses = [event.preview for event in local_worker.events]
    assert addresses[0] == {}
    address = addresses[-1]["preview_url"]
    whole, _ = decoded(address, protocol_whitelist="http,tcp,crypto", allowed_segment_extensions="ALL")
    assert len(whole) == NUM_FRAMES
    key = urlsplit(address).path.removeprefix(f"/{s3_server.bucket}/")
    assert re.fullmatch(r"infinitetalk/jobs/job-1\.preview/[0-9a-f]{12}-index\.m3u8", key)
    listing = s3_server.client().head_object(Bucket=s3_server.bucket, Key=key)
    assert listing["ContentType"] == "application/vnd.apple.mpegurl"


@pytest.mark.parametrize("store", ["volume", "s3"])
def test_a_job_that_does_not_end_well_leaves_none(store, local_worker: LocalWorker, s3_server: S3Server):
    local_worker.settings = with_bucket(local_worker.settings, s3_server)

    with pytest.raises(GenerationStopped):
        local_worker.run(job(store), in_chunk(local_worker, 3))
    assert any(event.preview for event in local_worker.events)
    assert list(local_worker.volume.rglob("*.preview")) == []
    assert s3_server.keys() == []


@pytest.mark.parametrize("store", ["volume", "s3"])
def test_what_a_lost_worker_published_goes_with_the_job_that_fails_in_the_next(
    store, local_worker: LocalWorker, s3_server: S3Server
):
    local_worker.settings = with_bucket(local_worker.settings, s3_server)
    name = "infinitetalk/jobs/job-1.preview/segment-00000.ts"
    if store == "volume":
        (local_worker.volume / name).parent.mkdir(parents=True)
        (local_worker.volume / name).write_bytes(b"segment")
    else:
        s3_server.client().put_object(Bucket=s3_server.bucket, Key=name, Body=b"segment")
    failed = local_worker.run(job(store, cond_video="gone.png"))
    assert failed["error"]["code"] == "E_INPUT_VALIDATION"
    assert list(local_worker.volume.rglob("*.preview")) == []
    assert s3_server.keys() == []


@pytest.mark.parametrize("store", ["volume", "s3"])
def test_that_of_a_finished_video_stays_though_the_same_job_fails_later(
    store, local_worker: LocalWorker, s3_server: S3Server
):
    local_worker.settings = with_bucket(local_worker.settings, s3_server)

    def names() -> list[str]:
        files = [file.name for file in local_worker.volume.rglob("*.preview/*")]
        return sorted(files if store == "volume" else filter(re.compile("preview/").search, s3_server.keys()))

    local_worker.run(job(store))
    published = names()
    assert "error" in local_worker.run(job(store, cond_video="gone.png"))
    assert names() == published != []
    assert local_worker.run(job(store, dry_run=True, cond_video="gone.png"))["error"]
    assert names() == published


def test_one_that_was_begun_again_goes_with_the_run_that_fails_and_that_of_the_finished_video_stays(
    local_worker: LocalWorker,
):
    local_worker.run(job())
    published = sorted(local_worker.volume.rglob("*.preview/*"))

    with pytest.raises(GenerationStopped):
        local_worker.run(job(base_seed=7), in_chunk(local_worker, 3))
    assert len(published) == len(SEGMENT_FRAMES) + 1
    assert sorted(local_worker.volume.rglob("*.preview/*")) == published


def test_a_dry_run_touches_none(local_worker: LocalWorker):
    (folder := local_worker.volume / "infinitetalk/jobs/job-1.preview").mkdir(parents=True)
    assert "error" in local_worker.run(job(dry_run=True, cond_video="gone.png"))
    assert folder.exists()


def test_a_prefix_that_leads_out_of_the_volume_costs_nothing_there(local_worker: LocalWorker, tmp_path: Path):
    (outside := tmp_path / "outside/job-1.preview").mkdir(parents=True)
    (local_worker.volume / "link").symlink_to(outside.parent)
    refused = job()
    refused["input"]["output_config"]["prefix"] = "link"
    assert "leads out of the volume" in local_worker.run(refused)["error"]["message"]
    assert outside.exists()


def test_a_job_that_goes_on_publishes_what_was_there_at_once(local_worker: LocalWorker):
    with pytest.raises(GenerationStopped):
        local_worker.run(job(), in_chunk(local_worker, 4), keep=True)
    result = local_worker.run(job())
    sampling = [event for event in local_worker.events if event.stage is Stage.SAMPLING]
    path = sampling[1].preview["preview_path"]
    assert re.fullmatch(r"infinitetalk/jobs/job-1\.preview/[0-9a-f]{12}-index\.m3u8", path)
    whole, _ = decoded(str(local_worker.volume / path))
    assert len(whole) == result["video"]["num_frames"] == NUM_FRAMES


@pytest.mark.parametrize("store", ["inline", "put"])
def test_a_store_without_a_place_for_it_is_refused(store, local_worker: LocalWorker):
    error = local_worker.run(job(store))["error"]
    assert error["code"] == "E_INPUT_VALIDATION"

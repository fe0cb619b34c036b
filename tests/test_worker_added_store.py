"""A store is a file and a line in a registry: one that only these tests have takes result, preview and kept state."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.stores.registry import STORES
from infinitetalk.worker.stores.volume import VolumeObjects
from schemas import STORES as STORE_NAMES
from schemas import Stage, Success
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker
from tests.memory_store import StoredObject, memory_kind

CHUNKS = 4


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, StoredObject]:
    """What the added store holds."""
    shelf: dict[str, StoredObject] = {}
    monkeypatch.setitem(STORES, "memory", memory_kind(shelf))
    monkeypatch.setitem(STORE_NAMES, "memory", True)
    return shelf


def job(**changes: Any) -> dict[str, Any]:
    """A job of four chunks, with a preview, whose result goes to the added store."""
    config = {"store": "memory", "prefix": "films", "preview": True}
    speech = {"person1": speech_uri(0.68)}
    return {
        "id": "job-1",
        "input": small_job(mode="streaming", cond_audio=speech, output_config=config, **changes),
    }


def in_chunk(worker: LocalWorker, number: int) -> Callable[[], bool]:
    """Whether the worker's job has begun a chunk, counted from 1."""
    return lambda: any(event.details.get("chunk") == number for event in worker.events)


def content(shelf: dict[str, StoredObject], address: str) -> bytes:
    """What the store serves at an address."""
    return shelf[address.removeprefix("https://memory.example/")].data


def test_a_result_and_its_preview_go_to_a_store_that_was_added(local_worker: LocalWorker, shelf):
    result = local_worker.run(job())
    video = Success.model_validate(result, strict=False).video
    assert video.url == "https://memory.example/films/job-1.mp4"
    assert len(content(shelf, video.url)) == video.bytes
    assert content(shelf, video.thumbnail_url)[:2] == b"\xff\xd8"
    assert json.loads(content(shelf, video.metadata_url))["job_id"] == "job-1"
    (playlist,) = {event.preview["preview_url"] for event in local_worker.events if event.preview}
    segments = [line for line in content(shelf, playlist).decode().splitlines() if line.endswith(".ts")]
    assert len(segments) == CHUNKS
    assert all(f"films/job-1.preview/{name}" in shelf for name in segments)
    # Of the job's state nothing is left.
    assert len(shelf) == 3 + CHUNKS + 1
    assert list(local_worker.volume.iterdir()) == []


def test_a_job_goes_on_from_what_an_added_store_has_kept_of_it(local_worker: LocalWorker, shelf):
    whole = local_worker.run(job() | {"id": "whole"})
    with pytest.raises(GenerationStopped):
        local_worker.run(job(), in_chunk(local_worker, 3), keep=True)
    assert "infinitetalk/jobs/.resume/job-1/state.json" in shelf
    resumed = local_worker.run(job())
    assert not in_chunk(local_worker, 1)()
    assert resumed["evaluations"] == whole["evaluations"]
    assert content(shelf, resumed["video"]["url"]) == content(shelf, whole["video"]["url"])
    assert not [key for key in shelf if "/.resume/" in key]


def test_a_failed_job_leaves_nothing_in_an_added_store(local_worker: LocalWorker, shelf):
    with pytest.raises(GenerationStopped):
        local_worker.run(job(), in_chunk(local_worker, 3))
    assert Stage.SAMPLING in local_worker.stages
    assert shelf == {}


def test_a_second_holder_of_a_job_adopts_the_video_in_an_added_store(local_worker: LocalWorker, shelf):
    first = local_worker.run(job())
    second = local_worker.run(job())
    assert second["video"]["bytes"] == first["video"]["bytes"]
    assert len([key for key in shelf if key.endswith(".mp4")]) == 1


def test_jobs_of_other_stores_keep_their_state_in_the_first_place_of_the_workers_own(local_worker: LocalWorker, shelf):
    inline = small_job(output_config={"store": "inline"})
    local_worker.run({"id": "job-2", "input": inline}, keep=True)
    folder = VolumeObjects(local_worker.volume, "infinitetalk/jobs/.resume")
    assert folder.head("job-2/state.json") is not None
    assert shelf == {}


def test_every_store_that_a_job_can_name_is_registered():
    assert set(STORES) == set(STORE_NAMES)

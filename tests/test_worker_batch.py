"""Batches: items in turn, each with its own result, whatever becomes of the others."""

import asyncio
from typing import Any

import pytest

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.progress import ProgressReporter
from schemas import BatchResult, ErrorCode, Failure, Stage
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker


def item(item_id: str, **changes: Any) -> dict[str, Any]:
    """A small item, whose store is the batch's."""
    job = {name: value for name, value in small_job(**changes).items() if name != "output_config"}
    return {"id": item_id} | job


def batch(*items: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A batch on the volume."""
    return {"id": "job-1", "input": {"batch": list(items), "output_config": {"store": "volume"}} | changes}


def broken(item_id: str) -> dict[str, Any]:
    """An item whose picture is none."""
    return item(item_id, cond_video="no picture")


def test_an_item_that_fails_does_not_stop_the_others(local_worker: LocalWorker) -> None:
    answer = local_worker.run(batch(broken("first"), item("second", base_seed=7), broken("third")))
    assert "error" not in answer, "Runpod would take the job for failed"
    result = BatchResult.model_validate(answer, strict=False)
    assert (result.job_id, result.status) == ("job-1", "partial")
    assert [(item.item_id, item.status) for item in result.items] == [
        ("first", "error"),
        ("second", "success"),
        ("third", "error"),
    ]
    first, second, _ = result.items
    assert (first.error.code, first.error.at_stage) == (ErrorCode.INPUT_VALIDATION, Stage.DOWNLOAD)
    assert second.video.path == "infinitetalk/jobs/job-1-second.mp4"
    assert second.params["base_seed"] == 7
    assert second.timings["total_ms"] <= result.timings["total_ms"]
    folder = local_worker.volume / "infinitetalk/jobs"
    assert sorted(path.name for path in folder.iterdir()) == [f"job-1-second.{kind}" for kind in ("jpg", "json", "mp4")]


def test_a_batch_of_which_all_succeed_lets_an_item_choose_its_store(local_worker: LocalWorker) -> None:
    inline = item("b") | {"output_config": {"store": "inline"}}
    result = BatchResult.model_validate(local_worker.run(batch(item("a"), inline)), strict=False)
    assert result.status == "success"
    assert result.items[0].video.path and result.items[1].video.data


def test_a_batch_without_a_success_is_a_failed_job_that_says_why(local_worker: LocalWorker) -> None:
    answer = local_worker.run(batch(broken("one"), item("two", cond_video="https://127.0.0.1/x.png")))
    result = BatchResult.model_validate(answer, strict=False)
    assert result.status == "error"
    assert result.error is not None
    assert result.error.code == ErrorCode.INPUT_VALIDATION
    assert result.error.message.startswith("no item of the batch succeeded; one: cond_video")
    assert [item.error.code for item in result.items] == [ErrorCode.INPUT_VALIDATION, ErrorCode.DOWNLOAD_FAILED]


async def progress_of(worker: LocalWorker) -> list[dict[str, Any]]:
    """The messages of the worker's last job as a client sees them when none is overtaken."""
    sent: list[dict[str, Any]] = []
    has_sent = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        has_sent.set()

    async with ProgressReporter("job-1", send, interval_s=0) as reporter:
        for event in worker.events:
            reporter.report(event)
            await has_sent.wait()
            has_sent.clear()
    return sent


def test_progress_names_the_item_and_is_that_of_the_whole_batch(local_worker: LocalWorker) -> None:
    local_worker.run(batch(item("a"), broken("b")))
    messages = asyncio.run(progress_of(local_worker))
    percentages = [message["pct"] for message in messages]
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100
    of_first = [message for message in messages if message["item_id"] == "a"]
    assert {message["item_index"] for message in of_first} == {0}
    assert (of_first[0]["pct"], of_first[-1]["pct"]) == (0, 50)
    of_second = [message for message in messages if message["item_id"] == "b"]
    assert {message["item_index"] for message in of_second} == {1}
    assert of_second[0]["pct"] == 50


def test_a_stop_ends_the_whole_batch(local_worker: LocalWorker) -> None:
    def in_sampling() -> bool:
        return Stage.SAMPLING in local_worker.stages

    with pytest.raises(GenerationStopped):
        local_worker.run(batch(item("a"), item("b")), in_sampling)
    assert {event.item.item_id for event in local_worker.events if event.item is not None} == {"a"}


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([item(f"item-{number}") for number in range(21)], "batch has 21 items; this worker takes at most 20"),
        ([item("a"), item("a")], "different ids"),
        ([item("a/b")], "id must be"),
        ([item("x" * 65)], "at most 64 characters"),
        ([], "at least 1 item"),
        ([item("a", frame_num=80)], "batch.0.frame_num must be 4n+1"),
    ],
    ids=["too many", "equal ids", "a path", "a long id", "none", "a mistake"],
)
def test_a_batch_that_breaks_the_interface_is_refused_as_a_whole(
    items: list[dict[str, Any]], words: str, local_worker: LocalWorker
) -> None:
    failure = Failure.model_validate(local_worker.run(batch(*items)), strict=False)
    assert (failure.error.code, failure.error.at_stage) == (ErrorCode.INPUT_VALIDATION, Stage.VALIDATION)
    assert words in failure.error.message
    assert local_worker.stages == [Stage.VALIDATION]

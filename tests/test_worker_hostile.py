"""Every input of the table of hostile inputs gets the answer it should, and no answer says too much."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.engine import Engine
from schemas import ErrorCode, Failure, Stage
from tests.campaign import ACCEPTED, Campaign
from tests.fuzz_jobs import fuzz_puts, fuzz_states, fuzz_stores, fuzz_to_the_model, fuzz_two_holders, fuzz_whole
from tests.hostile import HOSTILE_FILES, HOSTILE_INPUTS, OK, PICTURE, TEXTS, HostileInput, job_with
from tests.local_jobs import LocalWorker

SEED = 2026
"""Of the fuzz here; the long form takes others."""

LEAKS = ("Traceback", "site-packages", "root:x:", ".py", "0x7f")


def answer_to(job: dict, worker: LocalWorker) -> str:
    """ "ok" for a job that gets as far as the model, with its picture or video open; else its error's code."""
    with capture_logs() as logs:
        try:
            result = worker.run(job, lambda: Stage.SAMPLING in worker.stages)
        except GenerationStopped:
            return OK
    assert not [entry for entry in logs if entry.get("exc_info")], "an error that nobody expected"
    failure = Failure.model_validate(result, strict=False)
    text = json.dumps(result, allow_nan=False, ensure_ascii=False)
    assert text.encode()
    assert not [leak for leak in (*LEAKS, str(worker.volume.parent)) if leak in text]
    assert len(text) < 2000
    return failure.error.code


@pytest.mark.parametrize("hostile", HOSTILE_INPUTS, ids=lambda hostile: hostile.name)
def test_a_hostile_input_gets_its_answer(hostile: HostileInput, local_worker: LocalWorker) -> None:
    assert answer_to(job_with(hostile), local_worker) in hostile.expected


@pytest.mark.parametrize(
    "hostile",
    [hostile for hostile in HOSTILE_FILES if hostile.field == PICTURE and hostile.file_name.partition(".")[0] in TEXTS],
    ids=lambda hostile: hostile.name,
)
def test_a_file_on_the_volume_is_known_by_its_content(hostile: HostileInput, local_worker: LocalWorker) -> None:
    (local_worker.volume / hostile.file_name).write_bytes(hostile.make())
    job = job_with(hostile)
    job["input"][PICTURE] = hostile.file_name
    assert answer_to(job, local_worker) in hostile.expected


@pytest.fixture
def campaign(tiny_engine: Engine, tmp_path: Path) -> Iterator[Campaign]:
    with Campaign(tiny_engine, tmp_path) as campaign:
        yield campaign


def test_random_and_hostile_jobs_end_within_their_limits_with_a_result_or_a_coded_error(campaign: Campaign) -> None:
    fuzz_to_the_model(campaign, 80, SEED)
    assert {ACCEPTED, ErrorCode.INPUT_VALIDATION, ErrorCode.DOWNLOAD_FAILED} <= set(campaign.outcomes)
    campaign.check()


@pytest.mark.parametrize(
    ("fuzz", "num_jobs"),
    [(fuzz_whole, 3), (fuzz_puts, 20), (fuzz_stores, 3), (fuzz_states, 3), (fuzz_two_holders, 1)],
)
def test_random_jobs_that_are_made_whole_end_in_the_same_way(
    fuzz: Callable[[Campaign, int, int], None], num_jobs: int, campaign: Campaign
) -> None:
    fuzz(campaign, num_jobs, SEED)
    assert campaign.outcomes.total() >= num_jobs
    campaign.check()

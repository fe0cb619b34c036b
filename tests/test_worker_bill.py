"""What a job costs is in one line of the log, however the job ends, and counts all workers that made its video."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from infinitetalk import __version__
from infinitetalk.errors import GenerationStopped
from infinitetalk.worker import release
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.bill import LINES, JobEnd, Spent
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.queue.startup import Startup
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from schemas import Stage
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker, worker_on

CHECKOUT = Path(__file__).parents[1]
PRICE = 0.002
STEPS = 6
TWO_CHUNKS = {"mode": "streaming", "cond_audio": {"person1": speech_uri(0.36)}, "sample_steps": STEPS}
EVALUATIONS_A_STEP = 2
"""Of `small_job`, whose guide scale for the text is 1."""


@pytest.fixture
def worker(tiny_engine: Engine, tmp_path: Path) -> LocalWorker:
    return worker_on(tmp_path / "volume", tiny_engine, gpu_price_per_s=PRICE, git_commit="3f2a9c417b08d1e6")


def ends_of(work: Callable[[], Any]) -> tuple[Any, list[dict[str, Any]]]:
    """What a function returns, and the lines that ended jobs meanwhile."""
    with capture_logs() as logs:
        returned = work()
    return returned, [line for line in logs if line["event"] in LINES.values()]


def end_of(work: Callable[[], Any]) -> tuple[Any, JobEnd]:
    """What a function returns, and the `details` of the only line that ended a job."""
    returned, (line,) = ends_of(work)
    assert line["event"] == LINES[line["details"]["outcome"]]
    assert line["lat_ms"] == line["details"]["timings"]["total_ms"]
    assert line["details"].keys() == JobEnd.model_fields.keys()
    return returned, JobEnd.model_validate(line["details"])


def job(**changes: Any) -> dict[str, Any]:
    return {"id": "job-1", "input": small_job(**TWO_CHUNKS | changes)}


def stopped_in(worker: LocalWorker, step: int, chunk: int) -> JobEnd:
    """The end of a job that is cancelled after a step of a chunk."""

    def is_cancelled() -> bool:
        details = worker.events[-1].details
        return (details.get("chunk"), details.get("step")) == (chunk, step)

    def run() -> None:
        with pytest.raises(GenerationStopped):
            worker.run(job(), is_cancelled, keep=True)

    return end_of(run)[1]


def test_a_finished_job_says_what_it_cost_and_who_made_it(worker: LocalWorker) -> None:
    result, end = end_of(lambda: worker.run(job(recipe="quality")))
    assert (end.outcome, end.recipe, end.model, end.at_stage) == ("completed", "quality", "tiny-random", "completed")
    assert (end.gpu, end.gpus) == (worker.engine.devices.name, 1)
    assert end.video_s == result["video"]["duration_s"]
    assert end.evaluations == end.job_evaluations == result["evaluations"] == 2 * STEPS * EVALUATIONS_A_STEP
    assert end.gpu_seconds == end.timings["total_ms"] / 1000 == end.job_gpu_seconds
    assert end.usd == end.job_usd == pytest.approx(PRICE * end.gpu_seconds, abs=1e-6)
    assert re.fullmatch(r"[0-9a-f]{12}", end.weights or "")
    assert end.worker == result["worker"] == f"{__version__}+3f2a9c417b08"
    assert (end.code, end.message, end.retryable) == (None, None, None)


def test_a_job_cancelled_while_it_samples_counts_that_stage_and_the_evaluations_of_its_unfinished_chunk(
    worker: LocalWorker,
) -> None:
    end = stopped_in(worker, step=3, chunk=2)
    assert (end.outcome, end.at_stage) == ("cancelled", "sampling")
    assert end.timings["sampling_ms"] > 0
    assert end.gpu_seconds == end.timings["total_ms"] / 1000 > 0
    assert end.evaluations == (STEPS + 3) * EVALUATIONS_A_STEP
    # The first chunk, without the frame that is held for the fade into the second.
    assert 0 < end.video_s < 9 / 25
    assert (end.usd or 0) > 0


def test_a_job_cancelled_in_its_first_chunk_has_made_no_video_and_still_costs(worker: LocalWorker) -> None:
    end = stopped_in(worker, step=2, chunk=1)
    assert (end.video_s, end.evaluations) == (0, 2 * EVALUATIONS_A_STEP)
    assert end.timings["sampling_ms"] > 0


def test_a_job_that_another_worker_goes_on_with_counts_both(worker: LocalWorker, tmp_path: Path) -> None:
    first = stopped_in(worker, step=3, chunk=2)
    second_worker = worker_on(worker.volume, worker.engine, gpu_price_per_s=PRICE)
    result, second = end_of(lambda: second_worker.run(job()))
    assert first.job_evaluations == first.evaluations
    assert second.evaluations == STEPS * EVALUATIONS_A_STEP
    assert second.job_evaluations == first.evaluations + second.evaluations
    assert first.gpu_seconds is not None and second.gpu_seconds is not None and second.job_gpu_seconds is not None
    # What the first worker did after it had stored its cost, which is next to nothing, is not counted.
    assert second.job_gpu_seconds == pytest.approx(first.gpu_seconds + second.gpu_seconds, abs=0.2)
    assert second.job_usd == pytest.approx(PRICE * second.job_gpu_seconds, abs=1e-5)
    together = {stage: first.timings[stage] + second.timings[stage] for stage in second.timings}
    assert result["timings"] == pytest.approx(together, abs=200)
    assert result["timings"]["sampling_ms"] > second.timings["sampling_ms"]
    # The video's own evaluations: those of the chunk that the first worker lost are in the bill alone.
    assert result["evaluations"] == 2 * STEPS * EVALUATIONS_A_STEP
    assert first.video_s + second.video_s == pytest.approx(result["video"]["duration_s"])


def test_a_job_that_began_anew_counts_what_the_first_worker_spent(worker: LocalWorker) -> None:
    first = stopped_in(worker, step=2, chunk=1)
    result, second = end_of(lambda: worker.run(job()))
    assert second.evaluations == result["evaluations"] == 2 * STEPS * EVALUATIONS_A_STEP
    assert second.job_evaluations == first.evaluations + second.evaluations
    assert result["timings"]["total_ms"] > second.timings["total_ms"]


def test_a_job_whose_time_is_over_says_so(worker: LocalWorker) -> None:
    worker.settings = worker.settings.model_copy(update={"job_timeout_s": 0.001})
    result, end = end_of(lambda: worker.run(job()))
    assert (end.outcome, end.code, end.retryable) == ("timed_out", "E_TIMEOUT", True)
    assert end.message == result["error"]["message"]
    assert sum(value for stage, value in end.timings.items() if stage != "total_ms") == pytest.approx(
        end.timings["total_ms"], abs=5
    )


def test_a_job_that_fails_counts_the_stage_it_failed_in(worker: LocalWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(worker.engine, "embed", fail)
    result, end = end_of(lambda: worker.run(job()))
    assert (end.outcome, end.at_stage, end.code) == ("failed", Stage.EMBEDDING, result["error"]["code"])
    assert (end.evaluations, end.video_s, end.model) == (0, 0, None)
    assert end.gpu_seconds == end.timings["total_ms"] / 1000


def test_a_refused_job_ends_before_the_gpu_is_known(worker: LocalWorker) -> None:
    _, end = end_of(lambda: worker.run({"id": "job-1", "input": {"prompt": "no picture"}}))
    assert (end.outcome, end.code, end.at_stage) == ("failed", "E_INPUT_VALIDATION", "validation")
    assert (end.recipe, end.gpu, end.gpus, end.gpu_seconds, end.usd) == (None, None, None, None, None)


def test_a_job_that_waits_for_the_start_and_is_cancelled_has_a_line_too(tmp_path: Path) -> None:
    stop = Stop()

    def never() -> Any:
        stop.cancel()
        raise GenerationStopped

    def run() -> None:
        with pytest.raises(GenerationStopped):
            run_job(job(), Settings(output_dir=tmp_path), never, lambda event: None, stop)

    assert end_of(run)[1].outcome == "cancelled"


def test_a_dry_run_and_a_result_that_is_sent_again_have_a_line(worker: LocalWorker) -> None:
    plan, end = end_of(lambda: worker.run(job(dry_run=True)))
    assert (end.outcome, end.evaluations, end.video_s) == ("planned", 0, 0)
    assert end.worker == plan["worker"]
    first, _ = end_of(lambda: worker.run(job(), keep=True))
    again, end = end_of(lambda: worker.run(job()))
    assert (end.outcome, end.evaluations, end.video_s) == ("repeated", 0, 0)
    assert again["timings"] == first["timings"]


def test_each_video_of_a_batch_has_a_line(worker: LocalWorker) -> None:
    items = [small_job(id="a"), small_job(id="b", cond_video="missing.png")]
    _, lines = ends_of(lambda: worker.run({"id": "job-1", "input": {"batch": items}}))
    assert [line["details"]["outcome"] for line in lines] == ["completed", "failed"]
    assert [line["item_id"] for line in lines] == ["a", "b"]


def test_what_is_kept_of_another_workers_state_is_not_written_over(worker: LocalWorker) -> None:
    stopped_in(worker, step=3, chunk=2)
    (state,) = worker.volume.rglob(".resume/*/state.json")
    other = state.read_bytes() + b" "

    def is_cancelled() -> bool:
        if Stage.SAMPLING in worker.stages:
            state.write_bytes(other)
            return True
        return False

    with pytest.raises(GenerationStopped):
        worker.run(job(), is_cancelled, keep=True)
    assert state.read_bytes() == other


def test_without_a_commit_a_release_names_the_code() -> None:
    assert release.release_of(Settings()) == f"{__version__}+code.{release.code_hash()}"


def test_the_documented_line_and_the_dashboards_queries_have_the_fields_that_are_logged() -> None:
    page = (CHECKOUT / "docs/metrics.md").read_text(encoding="utf-8")
    # `tools.generated` makes the table.
    assert re.findall(r"^\| `(\w+)` \| ", page.partition("<!-- end -->")[0], re.MULTILINE) == list(JobEnd.model_fields)
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    line = json.loads(example)
    JobEnd.model_validate(line["details"])
    assert line["details"].keys() == JobEnd.model_fields.keys()
    assert line["event"] == LINES[line["details"]["outcome"]]

    dashboard = json.loads((CHECKOUT / "docs/dashboard.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += re.findall(r"```logql\n(.*?)```", page, re.DOTALL)
    assert len(queries) > 5
    ends = {event.removeprefix("job.") for event in LINES.values()}
    for query in queries:
        fields = set(re.findall(r"details_(\w+)", query))
        assert fields and fields <= JobEnd.model_fields.keys(), query
        events = re.findall(r"job\\\.\(([\w|]+)\)", query)
        assert [set(names.split("|")) for names in events] == [ends] * len(events)
        assert events or 'event="model.loaded"' in query
    assert set(re.findall(r"\.details\.(\w+)", page)) <= JobEnd.model_fields.keys()


def test_the_first_lines_of_a_worker_say_which_one_it_is(tmp_path: Path) -> None:
    with capture_logs() as logs:
        startup = Startup(Settings(output_dir=tmp_path, infinitetalk_model="tiny", git_commit="3f2a9c417b08"), None)
        startup.start()
        startup.finish()
    started, *_ = logs
    assert started["event"] == "worker.started"
    assert started["details"] == {"worker": f"{__version__}+3f2a9c417b08", "model": "tiny", "recipe": None}
    (loaded,) = [line for line in logs if line["event"] == "model.loaded"]
    assert (loaded["details"]["gpu"], loaded["details"]["gpus"]) == (startup.resources.result().engine.devices.name, 1)


def test_sums_are_made_stage_by_stage() -> None:
    one = Spent(timings={"sampling_ms": 3, "total_ms": 5}, gpu_seconds=1, evaluations=2)
    other = Spent(timings={"mux_ms": 1, "total_ms": 1}, gpu_seconds=2, evaluations=3)
    timings = {"sampling_ms": 3, "total_ms": 6, "mux_ms": 1}
    assert one + other == Spent(timings=timings, gpu_seconds=3, evaluations=5)
    assert Spent() + one == one

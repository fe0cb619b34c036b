"""The first hour, rehearsed on the embedded talker: a short form of the command, with faults, and its report."""

from __future__ import annotations

import html.parser
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from infinitetalk_client import EndpointError

from benchmarks.first_hour import machine as own_machine
from benchmarks.first_hour.compare import evaluation_estimate, tell, ten_lines
from benchmarks.first_hour.endpoint import Follower, LostError, OverLimitError, client_of
from benchmarks.first_hour.hour import Hour, StepError, Work, error_text, made_of
from benchmarks.first_hour.machine import OwnWorker, works_of
from benchmarks.first_hour.page import Page, _points
from benchmarks.first_hour_record import Job, Limits, Machine, Report, Step, Video, load
from benchmarks.rehearsal import first_hours, prices
from infinitetalk.errors import GenerationStopped
from infinitetalk.family import FAMILIES
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.resume import JobStates
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.progress import ProgressEvent
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from tools.first_hour import __main__ as command
from tools.local_endpoint import JobQueue, LocalEndpoint
from tools.report import __main__ as merging

KEY = "a-key"


class ThreadWorker:
    """A worker of the talker in a thread of this process, which takes jobs from a queue."""

    def __init__(self, queue: JobQueue, volume: Path) -> None:
        self.queue = queue
        self.settings = Settings(
            output_dir=volume, volume_dir=volume, infinitetalk_model="talker", webhook_get_job="set", resume=False
        )
        self.engine = Engine(self.settings)
        self.engine.start()
        #: Ids of jobs that fail, by their number in the order of their coming.
        self.broken: set[int] = set()
        self.on_job: Callable[[int], object] = lambda number: None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join(60)

    def _work(self) -> None:
        number = 0
        while not self._ended.is_set():
            payload = self.queue.take()
            if payload is None:
                time.sleep(0.02)
                continue
            is_dry = payload["input"].get("dry_run") or any(
                item.get("dry_run") for item in payload["input"].get("batch", [])
            )
            if not is_dry:
                number += 1
                self.on_job(number)
            self._run(payload, number in self.broken and not is_dry)

    def _run(self, payload: dict[str, Any], is_broken: bool) -> None:
        job_id = payload["id"]
        if is_broken:
            payload["input"]["sample_steps"] = 1000
        resources = Resources(self.settings, self.engine, JobStates(self.settings))
        stop = Stop()

        def show(event: ProgressEvent) -> None:
            if job_id in self.queue.take_stops():
                stop.cancel()
            progress = {"stage": str(event.stage), "pct": 100 * event.fraction}
            self.queue.report(job_id, {"status": "IN_PROGRESS", "output": progress})

        try:
            result = run_job(payload, self.settings, lambda: resources, show, stop)
        except GenerationStopped:
            return
        except Exception as error:
            # A mistake of this class must not make the test wait.
            self.queue.report(job_id, {"error": repr(error)})
            raise
        error = result.pop("error", None)
        self.queue.report(job_id, {"output": result} | ({"error": error} if error else {}))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadWorker]:
    worker = ThreadWorker(JobQueue(), tmp_path_factory.mktemp("volume"))
    yield worker
    worker.close()


def endpoint_of(worker: ThreadWorker, port: int = 0) -> LocalEndpoint:
    return LocalEndpoint(worker.queue, KEY, port, worker.settings.output_dir)


def options(port: int, folder: Path, *more: str) -> list[str]:
    return [
        *("--endpoint", f"http://127.0.0.1:{port}/v2/local", "--key", KEY, "--folder", str(folder)),
        *("--seconds", "1.2", "--groups", "recipes", "--recipes", "flashtalk", "flashtalk-12", "--patience-s", "0.5"),
        *("--price-per-s", "0.001", *more),
    ]


class Figures(html.parser.HTMLParser):
    """The figures of a page, and numbers outside them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.loose: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("img", "meta", "br", "rect", "polyline"):
            self._open.append((tag, given))
        if "data-field" in given:
            self.found.append((given["data-field"] or "", given.get("value") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        is_figure = any("data-field" in given for _, given in self._open)
        is_bound = self._open and self._open[-1][1].get("class") == "soft" and data[:1] in "≤≥-0123456789"
        if re.search(r"\d", data) and not (is_figure or is_bound or self._open[-1][0] in ("style", "title")):
            self.loose.append(data)


def test_an_hour_with_a_lost_endpoint_a_failed_job_and_no_budget_goes_on_where_it_was(
    worker: ThreadWorker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hour"
    file = folder / "report.json"
    # No money: the steps are not begun, and nothing is sent.
    with endpoint_of(worker) as endpoint:
        port = endpoint.port
        assert command.main(options(port, folder, "--budget", "0", "--minutes", "5")) == command.PARTLY
        assert worker.queue.taken == 0
        assert "greater ones" in load(file).ended

        # The endpoint ends while the first recipe's job runs; before it came the jobs of the cancel.
        lost = threading.Event()
        worker.on_job = lambda number: endpoint._ended.set() or lost.set() if number == 3 else None
        assert command.main(options(port, folder, "--budget", "1", "--minutes", "5")) == command.PARTLY
        assert lost.is_set()
    report = load(file)
    assert "lost" in report.ended and (folder / "report.html").exists()
    assert [step.status for step in report.steps] == ["done", "done"]
    assert report.step("cancel").figures["sent_again_s"] > 0
    assert [job.status for job in report.jobs] == ["lost", "waiting"]

    # The same command finds the job that went on meanwhile; the next one fails.
    worker.broken = {4}
    with endpoint_of(worker, port):
        assert command.main(options(port, folder, "--budget", "1", "--minutes", "5")) == command.PARTLY
    report = load(file)
    assert [job.status for job in report.jobs] == ["done", "failed"]
    assert report.jobs[1].reason and report.jobs[1].reason.startswith("E_INPUT_VALIDATION")
    first = report.jobs[0]
    assert first.videos[0].num_frames == 30 and (folder / first.videos[0].file).exists()
    assert first.videos[0].quality["correlation"] is not None
    assert report.recipes[0].recipe == first.recipe
    assert report.spent.usd == pytest.approx(0.001 * sum(spent_seconds(report)), rel=1.0)
    told = ten_lines(report)
    assert len(told) <= 10 and "\n".join(told) in capsys.readouterr().out

    # Every figure of the page is a field of the file.
    page = Figures()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    shown = Page(report)
    assert len(page.found) > 60
    for field, value in page.found:
        found = shown.value(field)
        assert value in ("", str(found)), field
    assert page.loose == []
    text = (folder / "report.html").read_text() + file.read_text()
    assert KEY not in text and str(port) not in file.read_text()
    assert "http://" not in text


def spent_seconds(report: Report) -> list[float]:
    return [*(step.seconds or 0.0 for step in report.steps), *(job.seconds or 0.0 for job in report.jobs)]


def test_without_a_limit_nothing_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, named in ((["--minutes", "5"], "--budget"), (["--budget", "5"], "--minutes")):
        with pytest.raises(SystemExit) as end:
            command.main(["--folder", str(tmp_path), *given])
        assert end.value.code == command.WRONG
        assert f"{named} is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--budget", "nan"], "--budget must be a number from 0 on"),
        (["--minutes", "inf"], "--minutes must be a number from 0 on"),
        (["--gpu", "H100"], "of an endpoint"),
        (["--endpoint", "https://api.example.com/v2/one", "--key", KEY, "--store", "volume"], "cannot be fetched"),
        (["--endpoint", "https://api.example.com/v2/one", "--key", KEY], "what does a second cost"),
    ],
)
def test_options_that_would_cost_for_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["--folder", str(tmp_path), "--budget", "1", "--minutes", "1", *given])
    assert end.value.code == command.WRONG
    assert told in capsys.readouterr().err


def test_a_second_of_an_endpoint_with_several_gpus_costs_as_much_as_all_of_them() -> None:
    parser = command._parser()
    given = ["--endpoint", "https://api.example.com/v2/one", "--gpu", "H100", "--gpus", "4"]
    machine = command._machine(parser, parser.parse_args(given))
    assert machine.price_per_s == pytest.approx(4 * prices.PRICES["H100"])
    assert machine.gpus == 4


def test_the_end_of_the_terminal_is_like_ctrl_c() -> None:
    before = {end: signal.getsignal(end) for end in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for end in before:
            signal.signal(end, signal.SIG_DFL)
            with pytest.raises(KeyboardInterrupt), command._interrupted_by_signals():
                signal.raise_signal(end)
            assert signal.getsignal(end) == signal.SIG_DFL
        # As nohup leaves it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with command._interrupted_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def hour_of(folder: Path, works: dict[str, Work], follower: Follower | None = None) -> Hour:
    """An hour with these steps and no job."""
    report = Report(
        began="2026-12-01 10:15",
        version="0.1.0",
        limits=Limits(minutes=60, dollars=5),
        machine=Machine(form="machine", price_per_s=0.0, price_from="no GPU"),
        video_s=1.0,
    )
    report.steps = [Step(name=name, title=name) for name in works]
    return Hour(report, folder, works, follower, pays_always=True)


def test_a_step_that_breaks_fails_and_the_next_one_is_done(tmp_path: Path) -> None:
    def breaking(hour: Hour, step: Step) -> None:
        raise IndexError("out of range")

    hour = hour_of(tmp_path, {"first": breaking, "second": lambda hour, step: None})
    assert hour.run() is False
    assert [step.status for step in hour.report.steps] == ["failed", "done"]
    assert hour.report.steps[0].reason == "IndexError: out of range"


def test_after_failed_checks_nothing_is_begun(tmp_path: Path) -> None:
    def failing(hour: Hour, step: Step) -> None:
        raise StepError("no weights")

    hour = hour_of(tmp_path, {"checks": failing, "start": lambda hour, step: None})
    status, how = command._run(hour)
    assert status == command.PARTLY
    assert "weights or settings" in how
    assert [step.status for step in hour.report.steps] == ["failed", "waiting"]


def test_weights_that_are_missing_or_would_not_be_used_fail_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path))
    for name in ("CKPT_DIR", "FLASHTALK_DIR", "INFINITETALK_MODEL"):
        monkeypatch.delenv(name, raising=False)
    checks = works_of(OwnWorker(tmp_path / "worker"))["checks"]
    hour = hour_of(tmp_path, {"checks": checks})
    checks(hour, hour.report.step("checks"))
    assert hour.report.step("checks").figures == {"model": "talker", "weights": "embedded"}

    monkeypatch.setenv("INFINITETALK_MODEL", "published")
    with pytest.raises(StepError, match="CKPT_DIR"):
        checks(hour, hour.report.step("checks"))

    # The checks read no file before they know the model.
    family = next(family for family in FAMILIES.values() if family.adapter_repository is None)
    for name in family.default_repositories:
        (tmp_path / "weights" / family.repositories[name].name).mkdir(parents=True)
    monkeypatch.delenv("INFINITETALK_MODEL")
    with pytest.raises(StepError, match="set INFINITETALK_MODEL=published"):
        checks(hour, hour.report.step("checks"))


def test_a_worker_that_ends_or_hangs_at_its_start_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "handler.py"
    monkeypatch.setattr(own_machine, "HANDLER", script)
    script.write_text("print('KERNELS is nonsense'); raise SystemExit(3)")
    with OwnWorker(tmp_path / "one") as own, pytest.raises(StepError, match=r"ended with 3;.*KERNELS is nonsense"):
        own.answer(lambda: 60.0)
    script.write_text("import time; time.sleep(60)")
    with OwnWorker(tmp_path / "two") as own, pytest.raises(OverLimitError):
        own.answer(lambda: 0.0)


def test_a_benchmark_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_machine, "BENCHMARKS_S", 0.0)
    monkeypatch.setattr(own_machine, "BENCHMARKS_GRACE_S", 0.01)
    (tmp_path / "benchmarks.json").write_text("of an earlier run")
    benchmarks = works_of(OwnWorker(tmp_path / "worker"))["benchmarks"]
    hour = hour_of(tmp_path, {"benchmarks": benchmarks})
    with pytest.raises(StepError, match="had to end after 0 s"):
        benchmarks(hour, hour.report.step("benchmarks"))
    assert not (tmp_path / "benchmarks.json").exists()


def test_a_process_that_cannot_take_the_memory_fails_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setattr(own_machine.sys, "executable", str(python))
    with pytest.raises(StepError, match="ended with 7"), own_machine.memory_taken():
        pass


class OddEndpoint(LocalEndpoint):
    """An endpoint that answers its next requests with statuses."""

    def __init__(self) -> None:
        super().__init__(JobQueue(), KEY)
        self.statuses: list[int] = []

    async def run(self, request: web.Request) -> web.Response:
        return web.Response(status=self.statuses.pop(0)) if self.statuses else await super().run(request)

    async def status(self, request: web.Request) -> web.Response:
        return web.Response(status=self.statuses.pop(0)) if self.statuses else await super().status(request)


@pytest.fixture
def odd() -> Iterator[OddEndpoint]:
    with OddEndpoint() as endpoint:
        yield endpoint


def follower_of(endpoint: LocalEndpoint, patience_s: float = 30.0) -> Follower:
    return Follower(client_of(endpoint.url, KEY), patience_s, "volume")


def test_ctrl_c_in_a_step_cancels_its_job(odd: OddEndpoint, tmp_path: Path) -> None:
    def interrupting(stage: str, pct: float) -> None:
        raise KeyboardInterrupt

    def working(hour: Hour, step: Step) -> None:
        hour.following.follow(hour.following.send({}), hour.left_s, interrupting)

    hour = hour_of(tmp_path, {"plan": working}, follower_of(odd))
    with pytest.raises(KeyboardInterrupt):
        hour.run()
    (job,) = odd.queue.jobs.values()
    assert job.status == "CANCELLED"
    assert (hour.report.step("plan").status, hour.report.step("plan").reason) == ("stopped", "Ctrl-C")


def test_a_busy_endpoint_is_asked_again_and_a_broken_one_is_lost(odd: OddEndpoint) -> None:
    odd.statuses = [429]
    job_id = follower_of(odd).send({})
    assert list(odd.queue.jobs) == [job_id]
    odd.statuses = [502]
    with pytest.raises(LostError, match="502"):
        follower_of(odd).send({})
    # Without patience it is asked once.
    odd.statuses = [503] * 9
    with pytest.raises(LostError, match="503"):
        follower_of(odd, patience_s=0.0).follow(job_id, lambda: 60.0)
    assert len(odd.statuses) == 8


def test_the_limits_count_while_an_endpoint_is_silent(odd: OddEndpoint) -> None:
    follower = follower_of(odd)
    job_id = follower.send({})
    odd.statuses = [503] * 9
    with pytest.raises(OverLimitError):
        follower.follow(job_id, lambda: 0.0)
    assert odd.queue.jobs[job_id].status == "CANCELLED"


def test_an_endpoints_address_is_not_in_its_errors(odd: OddEndpoint) -> None:
    with pytest.raises(EndpointError) as caught:
        follower_of(odd).follow("nowhere", lambda: 60.0)
    assert "the endpoint has no job nowhere" in str(caught.value)
    with pytest.raises(LostError) as lost:
        Follower(client_of("http://127.0.0.1:9/v2/secret-id", KEY), 0.0, "s3").send({})
    assert "secret-id" not in str(lost.value) and "127.0.0.1" not in str(lost.value)


def test_a_failed_item_of_a_batch_takes_its_voice_with_it() -> None:
    first, second = [Path("one.wav")], [Path("two.wav")]
    made = {"status": "success", "item_id": "b"}
    assert made_of({"items": [{"status": "error", "item_id": "a"}, made]}, [first, second]) == [(made, second)]
    assert made_of(made, [first]) == [(made, first)]


def test_runpods_error_in_json_text_is_told_in_words() -> None:
    error = json.dumps({"code": "E_OOM", "message": "The GPU has too little memory"})
    assert error_text({"status": "FAILED", "error": error}) == "E_OOM: The GPU has too little memory"


def test_a_series_without_values_has_no_points() -> None:
    assert _points([], 1040, 84) == ""
    assert _points([1.0, 3.0], 100, 84) == "0.0,84.0 100.0,6.0"


def finished(recipe: str, ratio: float, follows: float = 0.6, missed: tuple[str, ...] = ()) -> Job:
    """A job of the published weights, as an hour on an H100 would have it."""
    video = Video(file="videos/one.mp4", width=640, height=640, num_frames=250, duration_s=10.0, missed=list(missed))
    video.quality = {"follows": follows, "identity_least": 0.95}
    seconds = 50 * ratio
    return Job(
        name=f"single_image by {recipe}",
        group="recipes",
        kind="single_image",
        recipe=recipe,
        status="done",
        estimate_s=50.0,
        estimate_from="table: H100",
        seconds=seconds,
        usd=seconds * 0.00116,
        minute_s=6 * seconds,
        minute_usd=6 * seconds * 0.00116,
        ratio=ratio,
        videos=[video],
    )


@pytest.fixture
def published() -> Report:
    """A made report of the published weights. Its figures are invented."""
    machine = Machine(
        form="machine",
        gpu="NVIDIA H100 80GB HBM3",
        card="H100",
        price_per_s=0.00116,
        price_from="the table's price of H100",
        model="InfiniteTalk",
        settings={"CKPT_DIR": "/secret/place", "KERNELS": "auto"},
    )
    limits = Limits(minutes=60, dollars=5)
    report = Report(began="2026-12-01 10:15", version="0.1.0", limits=limits, machine=machine, video_s=10.0)
    figures: list[dict[str, Any]] = [
        {"name": "one evaluation, 640x640, 81 frames, 1 speaker", "value": 4.0, "unit": "s", "detail": ""},
        {"name": "one evaluation: memory", "value": 5.0, "unit": "GiB", "detail": "estimated 4.00"},
    ]
    report.steps = [
        Step(name="benchmarks", title="benchmarks", status="done", figures={"figures": figures}),
        Step(name="start", title="start", status="done", figures={"start_s": 95.0}),
        Step(
            name="kernels",
            title="kernels",
            status="done",
            figures={"chosen": "cudnn", "tried": ["cudnn: within, 82 ms", "flash_3: crashed (exit code -11)"]},
        ),
    ]
    report.jobs = [finished("flashtalk", 1.1), finished("lora-4", 1.2), finished("quality", 1.0, follows=0.65)]
    return report


def test_what_to_set_follows_from_what_was_measured(published: Report) -> None:
    published.jobs[0].videos[0].missed = ["identity_least"]
    tell(published)
    advice = {advice.setting: advice for advice in published.advice}
    assert advice["KERNELS"].value == "auto" and "flash_3: crashed" in advice["KERNELS"].reason
    assert advice["DEFAULT_RECIPE"].value == "quality" or advice["DEFAULT_RECIPE"].value == "lora-4"
    assert advice["idle timeout"].value == "95 s"
    assert "1.10 times" in advice["GPU"].reason
    parts = {part.name: part for part in published.parts}
    assert parts["one evaluation: memory"].ratio == pytest.approx(1.25)
    assert parts["one evaluation, 640x640, 81 frames, 1 speaker"].unit == "s"
    assert len(ten_lines(published)) <= 10


def test_a_merged_report_turns_estimates_into_what_was_measured(
    published: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.json"
    published.steps[0].reason = published.jobs[0].reason = "see /secret/place"
    published.jobs[0].videos[0].unmeasured = {"all": "/secret/place/one.mp4 has 1 frame"}
    file.write_text(published.model_dump_json())
    folder = tmp_path / "measurements"
    monkeypatch.setattr(first_hours, "FOLDER", folder)
    estimated = {offer.recipe: offer for offer in prices.offers("infinitetalk-480", "H100")}
    assert "estimate, none was measured" in first_hours.origin_lines()
    kept = merging.merge(file, folder)
    assert "/secret/place" not in kept.read_text() and "auto" in kept.read_text()
    first_hours.reports.cache_clear()
    measured = {offer.recipe: offer for offer in prices.offers("infinitetalk-480", "H100")}
    assert measured["flashtalk"].usd == pytest.approx(1.1 * estimated["flashtalk"].usd)
    assert measured["lora-8"] == estimated["lora-8"]
    assert first_hours.MARK in prices.cell(measured["flashtalk"])
    assert "NVIDIA H100 80GB HBM3 on 2026-12-01" in first_hours.origin_lines()
    assert "(measured)" in prices.readme_table()
    assert "1.10" in first_hours.hours_table() or "3 of 3" in first_hours.hours_table()
    assert prices.offers("infinitetalk-720", "H100")[3].origin == "estimate"


def test_a_report_of_an_embedded_model_is_not_merged(published: Report, tmp_path: Path) -> None:
    published.machine.model = "tiny-talker"
    file = tmp_path / "report.json"
    file.write_text(json.dumps(published.model_dump(mode="json")))
    with pytest.raises(merging.UnfitReportError, match="tiny-talker"):
        merging.merge(file, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ({"gpu": "NVIDIA H100 NVL"}, "the table has no NVIDIA H100 NVL"),
        ({"gpu": "NVIDIA H100 PCIe", "factor": 1.16}, "1.16 times those of the H100"),
        ({"gpus": 4}, "4 GPUs made each video"),
    ],
)
def test_a_report_that_is_not_of_one_gpu_of_the_table_is_not_merged(
    published: Report, machine: dict[str, Any], told: str
) -> None:
    published.machine = published.machine.model_copy(update=machine)
    with pytest.raises(merging.UnfitReportError, match=told):
        merging.kept(published)


def test_gpus_that_make_a_video_together_share_an_evaluations_tokens(published: Report) -> None:
    one = evaluation_estimate(published, published.jobs[0], 33_600, 1)
    published.machine.gpus = 4
    four = evaluation_estimate(published, published.jobs[0], 33_600, 1)
    assert one is not None and four is not None
    assert one / 4 <= four < one / 3


def test_an_endpoints_idle_timeout_says_that_it_lacks_the_loading(published: Report) -> None:
    reasons = {}
    for form in ("machine", "endpoint"):
        published.machine = published.machine.model_copy(update={"form": form})
        tell(published)
        reasons[form] = next(advice.reason for advice in published.advice if advice.setting == "idle timeout")
    assert "loading" in reasons["endpoint"] and "loading" not in reasons["machine"]

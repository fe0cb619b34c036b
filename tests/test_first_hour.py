"""The first hour, rehearsed on the embedded talker: a short form of the command, with faults, and its report."""

from __future__ import annotations

import html.parser
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.first_hour.compare import tell, ten_lines
from benchmarks.first_hour.page import Page
from benchmarks.first_hour_record import Job, Limits, Machine, Report, Step, Video, load
from benchmarks.rehearsal import first_hours, prices
from infinitetalk.errors import GenerationStopped
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

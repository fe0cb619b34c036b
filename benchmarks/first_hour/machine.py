"""What the hour does on the GPU machine itself: a worker of its own, and the steps that need one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from infinitetalk_client import InfiniteTalkClient
from infinitetalk_client.endpoint import job_error

from benchmarks.first_hour.endpoint import ENDED, OverLimitError, client_of
from benchmarks.first_hour.hour import Hour, LeftOutError, StepError, Work, cancelling, error_text, planning
from benchmarks.first_hour.jobs import COMPARED, jobs_for
from benchmarks.first_hour_record import Job, Step
from infinitetalk.errors import CheckpointError
from infinitetalk.runtime.check import report as check_report
from infinitetalk.weights.locate import MissingWeightsError, locate_all
from infinitetalk.weights.settings import WeightsSettings
from infinitetalk.worker.settings import Settings
from tools.queue_server import API_KEY, LocalQueue
from tools.worker_process import CHECKOUT, HANDLER, START_TIMEOUT_S, UNREADABLE, Worker

LIFETIME_S = 24 * 3600
MOST_STARTS = 6
"""Workers that one hour starts; with more, something is wrong with the machine."""

TRIAL_S = 300.0
"""Longest trial of kernels that is waited for."""

BENCHMARKS_S = 600.0
"""Time for benchmarks.gpu."""

BENCHMARKS_GRACE_S = 120.0
"""Time after which benchmarks.gpu is ended that has not kept to its time."""

POLL_S = 0.2
LOG_CHARACTERS = 600
"""The end of the log of a worker that has ended, in the reason of a step."""

#: Settings that decide how videos are made, and have no secret.
TOLD = (
    "INFINITETALK_MODEL",
    "KERNELS",
    "DEFAULT_RECIPE",
    "GPUS_PER_JOB",
    "DEVICE",
    "CKPT_DIR",
    "INFINITETALK_DIR",
    "FLASHTALK_DIR",
    "QUANT_DIR",
    "TRANSFORMER_FILE",
    "LORA_DIR",
    "KOKORO_DIR",
)


class OwnWorker:
    """A worker of this command behind an endpoint of its own, inside a `with` block; it starts when it is first needed.

    Args:
        folder: for its volume, its temporary files and its logs.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._queue = LocalQueue(files=folder / "volume", lifetime_s=LIFETIME_S)
        self._worker: Worker | None = None
        self._starts = 0

    def __enter__(self) -> Self:
        self._queue.__enter__()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._worker.stop()
        self._queue.__exit__(None, None, None)

    @property
    def client(self) -> InfiniteTalkClient:
        """A client of its endpoint."""
        return client_of(self._queue.endpoint.url, API_KEY)

    @property
    def worker(self) -> Worker:
        """The running worker."""
        if self._worker is None:
            self._start()
        assert self._worker is not None
        return self._worker

    def answer(self, left_s: Callable[[], float]) -> None:
        """Waits until the worker has answered a job.

        Raises:
            StepError, OverLimitError: as `wait`.
        """
        worker = self.worker
        job = self._queue.jobs[self._queue.post(UNREADABLE)]
        self.wait(worker, lambda: job.ended_at is not None, "has not answered", START_TIMEOUT_S, left_s)

    def wait_for_event(self, events: Sequence[str], limit_s: float, left_s: Callable[[], float]) -> dict[str, Any]:
        """Waits for the first line of the worker's log with one of these events, and returns it.

        Raises:
            StepError, OverLimitError: as `wait`.
        """
        worker = self.worker

        def found() -> list[dict[str, Any]]:
            return [line for line in worker.events() if line.get("event") in events]

        self.wait(worker, lambda: bool(found()), f"has not logged {' or '.join(events)}", limit_s, left_s)
        return found()[0]

    def wait(
        self, worker: Worker, is_there: Callable[[], bool], what: str, limit_s: float, left_s: Callable[[], float]
    ) -> None:
        """Waits for something of a worker.

        Args:
            what: what the worker has not done, if that is not there.
            left_s: seconds that the hour's limits leave.

        Raises:
            StepError: the worker has ended, or `limit_s` seconds are over.
            OverLimitError: the hour's limits are reached.
        """
        deadline = time.monotonic() + limit_s
        while not is_there():
            if (status := worker.process.poll()) is not None:
                end = worker.log.read_text(errors="replace")[-LOG_CHARACTERS:]
                raise StepError(f"the worker has ended with {status}; its log {worker.log.name} ends with: {end}")
            if left_s() <= 0:
                raise OverLimitError
            if time.monotonic() > deadline:
                raise StepError(f"the worker {what} after {limit_s:.0f} s: see {worker.log.name}")
            time.sleep(POLL_S)

    def tend(self) -> None:
        """Starts another worker where there is none, or where it has ended.

        Raises:
            StepError: too many have ended.
        """
        if self._worker is None or self._worker.process.poll() is not None:
            if self._worker is not None:
                self._queue.lose_worker()
            self._start()

    def kill(self) -> None:
        """Kills the worker like the loss of its machine, and starts another one."""
        self.worker.kill()
        self._start()

    def _start(self) -> None:
        self._starts += 1
        if self._starts > MOST_STARTS:
            raise StepError(f"{MOST_STARTS} workers have ended: see the logs in {self._folder}")
        threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
        # An empty value is none: the worker chooses its model as it would anywhere.
        own = {"INFINITETALK_MODEL": os.environ.get("INFINITETALK_MODEL", ""), "OMP_NUM_THREADS": threads}
        self._worker = Worker(self._queue, self._folder, HANDLER, own | {"PROGRESS_INTERVAL_S": "1"})


def settings_told() -> dict[str, str]:
    """The environment's settings that decide how videos are made."""
    return {name: os.environ[name] for name in TOLD if os.environ.get(name)}


def works_of(own: OwnWorker) -> dict[str, Work]:
    """The steps on a GPU machine, in their order."""

    def checks(hour: Hour, step: Step) -> None:
        settings = Settings()
        step.figures["model"] = settings.model
        if settings.infinitetalk_model in ("talker", "tiny"):
            step.figures["weights"] = "embedded"
            return
        try:
            located = locate_all(WeightsSettings())
        except MissingWeightsError as error:
            if settings.model == "published":
                raise StepError(str(error)) from error
            step.figures["weights"] = "embedded"
            return
        except CheckpointError as error:
            raise StepError(str(error)) from error
        if settings.model != "published":
            raise StepError(
                "weights are here, but the worker would use the embedded model: set "
                "INFINITETALK_MODEL=published, or INFINITETALK_MODEL=talker if the embedded one is meant"
            )
        text, is_complete = check_report(located)
        step.figures["weights"] = text.splitlines()
        if not is_complete:
            raise StepError("weights are missing: python -m infinitetalk.weights check says which")

    def benchmarks(hour: Hour, step: Step) -> None:
        # It needs the GPU's memory, so it runs before the worker starts.
        file = hour.folder / "benchmarks.json"
        file.unlink(missing_ok=True)
        limit_s = min(BENCHMARKS_S, hour.left_s() / 3)
        command = [sys.executable, "-m", "benchmarks.gpu", "--output", str(file), "--limit-s", f"{limit_s:.0f}"]
        with (hour.folder / "benchmarks.log").open("wb") as log:
            try:
                status = subprocess.run(
                    command, cwd=CHECKOUT, stdout=log, stderr=log, timeout=limit_s + BENCHMARKS_GRACE_S
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise StepError(f"benchmarks.gpu had to end after {error.timeout:.0f} s: see benchmarks.log") from error
        if not file.exists():
            raise StepError(f"benchmarks.gpu ended with {status}: see benchmarks.log")
        found = json.loads(file.read_text(encoding="utf-8"))
        step.figures["measured"] = sum(figure["value"] is not None for figure in found["figures"])
        step.figures["unmeasured"] = [figure["name"] for figure in found["figures"] if figure["value"] is None]
        step.figures["figures"] = [{**figure, "table": []} for figure in found["figures"]]
        step.figures["versions"] = found["versions"]

    def start(hour: Hour, step: Step) -> None:
        began = time.monotonic()
        own.answer(hour.left_s)
        step.figures["answered_s"] = time.monotonic() - began
        loaded = own.wait_for_event(("model.loaded", "model.not_loaded"), START_TIMEOUT_S, hour.left_s)
        if loaded["event"] == "model.not_loaded":
            raise StepError("the worker could not load the model: see its log")
        step.figures["start_s"] = time.monotonic() - began
        step.figures["loading_s"] = loaded["lat_ms"] / 1000

    def kernels(hour: Hour, step: Step) -> None:
        setting = Settings().kernels or ("auto" if torch.cuda.is_available() else "published")
        if setting != "auto":
            raise LeftOutError(f"KERNELS is {setting} here: nothing is tried")
        line = own.wait_for_event(("kernels.chosen",), TRIAL_S, hour.left_s)
        step.figures["chosen"] = line["details"]["kernels"]
        step.figures["tried"] = line["details"]["tried"]

    def kill(hour: Hour, step: Step) -> None:
        if hour.report.step("plan").status != "done":
            raise LeftOutError("there is no plan, which names the recipes")
        recipe = hour.report.step("plan").figures["recipes"][0]
        job = Job(name="killed", group="recipes", kind=COMPARED, recipe=recipe)
        job_id = hour.following.send(hour.input_of(job))
        before = hour.following.follow(
            job_id,
            hour.left_s,
            lambda stage, pct: hour.show(f"to be killed: {stage}", pct),
            lambda answer: bool(own.worker.events("resume.stored", job_id=job_id)),
        )
        if before["status"] in ENDED:
            raise StepError(f"the job ended before its worker was killed: {error_text(before)}")
        stored = len(own.worker.events("resume.stored", job_id=job_id))
        began = time.monotonic()
        own.kill()
        answer = hour.following.follow(
            job_id, hour.left_s, lambda stage, pct: hour.show(f"after the kill: {stage}", pct)
        )
        if answer["status"] != "COMPLETED":
            raise StepError(f"the job whose worker was killed: {error_text(answer)}")
        resumed = own.worker.events("job.resumed", job_id=job_id)
        step.figures["chunks_stored"] = stored
        step.figures["chunks_found"] = resumed[0]["details"]["chunks"] if resumed else 0
        step.figures["from_kill_to_result_s"] = time.monotonic() - began
        if not resumed:
            raise StepError("the job ended well, but from its beginning: nothing of it was found")

    def memory(hour: Hour, step: Step) -> None:
        if not torch.cuda.is_available():
            raise LeftOutError("no GPU here")
        job = next(jobs_for([]))
        with memory_taken() as held:
            step.figures["taken_bytes"] = held
            short = hour.following.follow(hour.following.send(hour.input_of(job)), hour.left_s)
        step.figures["short_of_memory"] = error_text(short) if short["status"] == "FAILED" else short["status"]
        again = hour.following.follow(hour.following.send(hour.input_of(job)), hour.left_s)
        if again["status"] != "COMPLETED":
            raise StepError(f"the job after the one that lacked memory: {error_text(again)}")
        if short["status"] == "COMPLETED":
            raise LeftOutError("the worker had kept enough memory, and the job ended well")
        if job_error(short).code != "E_OOM":
            raise StepError(f"a job that lacks memory must end with E_OOM: {error_text(short)}")

    return {
        "checks": checks,
        "benchmarks": benchmarks,
        "start": start,
        "kernels": kernels,
        "plan": planning,
        "kill": kill,
        "memory": memory,
    }


def works_at_endpoint() -> dict[str, Work]:
    """The steps at a deployed endpoint, in their order."""
    return {"plan": planning, "cancel": cancelling}


TITLES = {
    "checks": "Weights and settings",
    "benchmarks": "benchmarks.gpu: parts of the published sizes",
    "start": "Start of a worker",
    "kernels": "Trial of kernels",
    "plan": "Plan of every job",
    "kill": "A worker is killed, and its job goes on",
    "memory": "A job lacks memory, and the next one runs",
    "cancel": "A job is cancelled, and sent again",
}


def steps_of(works: dict[str, Work], without: Sequence[str]) -> list[Step]:
    """The report's steps; those that are not wanted are left out."""
    return [
        Step(name=name, title=TITLES[name])
        if name not in without
        else Step(name=name, title=TITLES[name], status="left out", reason="by --without")
        for name in works
    ]


@contextmanager
def memory_taken() -> Iterator[int]:
    """Holds almost all of the GPU's free memory meanwhile; yields its bytes."""
    hog = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.first_hour.hog"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert hog.stdout is not None
        said = hog.stdout.readline()
        if not said:
            raise StepError(f"the process that takes the GPU's memory has ended with {hog.wait()}")
        yield int(said.split()[1])
    finally:
        hog.kill()
        hog.wait()

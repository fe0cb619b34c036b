"""One job in the hands of two workers at once, on one volume or in one bucket, in many orders.

    python -m tests.holders [ORDERS [SEED]]

A queue gives a job again whose worker it takes for lost. Here the first one is killed, stopped, goes on beside the
second one, or sleeps until that has ended. Whatever is told as a success must be there, whole, and be what was told. A
short form is among the tests.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import requests

from schemas import Stage, Success
from tests.job_inputs import small_job, speech_uri
from tests.s3_server import S3Server
from tools.queue_server import LocalQueue
from tools.worker_process import HANDLER, JOB_TIMEOUT_S, Worker

NUM_FRAMES = 13
JOB = small_job(mode="streaming", base_seed=-1, cond_audio={"person1": speech_uri(0.52)}, sample_steps=4)
"""Three chunks."""

LIFETIME_S = 3600
ENDS = ("job.completed", "job.was_completed", "job.stopped", "job.failed")
STAGES = (Stage.DOWNLOAD, Stage.SAMPLING, Stage.DECODE, Stage.MUX, Stage.UPLOAD)
Fate = Literal["race", "sleep", "kill", "stop"]


@dataclass(frozen=True)
class Order:
    """What happens to a job's first holder.

    Attributes:
        store: of the result.
        stage: that the first holder has reported when the second gets the job.
        delay_s: after that.
        fate: of the first holder: goes on beside, sleeps until the other has ended, is killed or drained.
    """

    store: Literal["volume", "s3"]
    stage: Stage
    delay_s: float
    fate: Fate


def orders(count: int, seed: int) -> list[Order]:
    """Orders in which each stage, store and fate has its turn."""
    chance = random.Random(seed)
    fates: list[Fate] = ["race", "sleep", "kill", "stop"]
    return [
        Order(
            store=("volume", "s3")[number // len(fates) % 2],
            stage=STAGES[number % len(STAGES)],
            delay_s=chance.uniform(0.0, 0.3),
            fate=fates[number % len(fates)],
        )
        for number in range(count)
    ]


class Pair:
    """Two workers of one queue with one volume and one bucket; who is gone is replaced before the next order."""

    def __init__(self, queue: LocalQueue, folder: Path, bucket: S3Server) -> None:
        self._queue = queue
        self._folder = folder
        self._bucket = bucket
        self._workers: list[Worker] = []

    def close(self) -> None:
        """Ends both."""
        for worker in self._workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.stop()

    def run(self, order: Order) -> list[Success]:
        """What has been told of a job that goes through an order, each success looked at."""
        self._start_missing()
        job_id = self._queue.post(JOB | {"output_config": {"store": order.store}})
        first = self._holder(job_id, self._workers)
        self._wait(lambda: any(said["stage"] == order.stage for said in self._queue.jobs[job_id].progress))
        time.sleep(order.delay_s)
        match order.fate:
            case "sleep":
                first.process.send_signal(signal.SIGSTOP)
            case "kill":
                first._kill_all()
            case "stop":
                first.process.send_signal(signal.SIGTERM)
        self._queue.give_again(job_id)
        others = [worker for worker in self._workers if worker is not first]
        self._end_of(self._holder(job_id, others if order.fate != "race" else self._workers, first), job_id)
        first.process.send_signal(signal.SIGCONT)
        self._end_of(first, job_id)
        self._wait(lambda: self._queue.jobs[job_id].ended_at is not None)
        told = [json.loads(body) for body in self._queue.endpoint.results[job_id]]
        succeeded = [body["output"] for body in told if "error" not in body]
        results = [Success.model_validate(output, strict=False) for output in succeeded]
        assert results, told
        for result in results:
            self._look_at(result)
        return results

    def _start_missing(self) -> None:
        self._workers = [worker for worker in self._workers if worker.process.poll() is None]
        names = {"endpoint": "S3_ENDPOINT", "access_key": "S3_ACCESS_KEY", "secret_key": "S3_SECRET_KEY"}
        store = {variable: str(getattr(self._bucket, name)) for name, variable in names.items()}
        settings = store | {"S3_BUCKET": self._bucket.bucket, "SHUTDOWN_GRACE_S": "0"}
        while len(self._workers) < 2:
            worker = Worker(self._queue, self._folder, HANDLER, settings)
            self._workers.append(worker)
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while not all(worker.events("job.taken") for worker in self._workers):
            assert time.monotonic() < deadline, "a worker did not start"
            self._queue.wait(self._queue.post({}), JOB_TIMEOUT_S)
            time.sleep(0.5)

    def _holder(self, job_id: str, workers: list[Worker], before: Worker | None = None) -> Worker:
        """The worker that has taken the job, after the one before took it."""
        holders: list[Worker] = []

        def is_taken() -> bool:
            for worker in workers:
                taken = worker.events("job.taken", job_id=job_id)
                if len(taken) > (worker is before):
                    holders.append(worker)
            return bool(holders)

        self._wait(is_taken)
        return holders[0]

    def _end_of(self, worker: Worker, job_id: str) -> None:
        """Waits until a worker is done with the job as often as it took it, or is gone."""

        def is_over() -> bool:
            if worker.process.poll() is not None:
                return True
            num_taken = len(worker.events("job.taken", job_id=job_id))
            ends = [end for event in ENDS for end in worker.events(event, job_id=job_id)]
            delivered = worker.events("result.delivered", job_id=job_id) + worker.events("job.stopped", job_id=job_id)
            return len(ends) >= num_taken and len(delivered) >= num_taken

        self._wait(is_over)

    def _look_at(self, result: Success) -> None:
        """Whether a video, its thumbnail and its account of itself are there, whole, and as was told."""
        video = result.video
        data, thumbnail, account = (self._read(video, name) for name in ("", "thumbnail_", "metadata_"))
        assert len(data) == video.bytes
        copy = self._folder / "told.mp4"
        copy.write_bytes(data)
        with av.open(str(copy)) as container:
            assert sum(1 for _ in container.decode(video=0)) == video.num_frames == NUM_FRAMES
        assert thumbnail[:2] == b"\xff\xd8"
        said = json.loads(account)
        assert (said["job_id"], said["seed"]) == (result.job_id, result.params["base_seed"])
        assert said["video"]["bytes"] == video.bytes

    def _read(self, video: Any, kind: str) -> bytes:
        if (path := getattr(video, f"{kind}path")) is not None:
            return bytes((self._workers[0].volume / path).read_bytes())
        answer = requests.get(getattr(video, f"{kind}url"), timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.content

    def _wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while not is_so():
            jobs = list(self._queue.jobs.values())
            assert time.monotonic() < deadline, [(job.id, job.status, job.progress[-1:]) for job in jobs[-2:]]
            time.sleep(0.02)


@contextmanager
def pair(folder: Path, bucket: S3Server) -> Iterator[Pair]:
    """Two workers; their logs are printed at the end."""
    with LocalQueue(lifetime_s=LIFETIME_S) as queue:
        both = Pair(queue, folder, bucket)
        try:
            yield both
        finally:
            both.close()
            for log in sorted(folder.glob("log-*")):
                print(f"{log.name}: {log.read_text()[-20_000:]}")


def main(count: int = 20, seed: int = 2026) -> int:
    """Runs orders; any that fails ends in its AssertionError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holders-")))
        both = stack.enter_context(pair(folder, stack.enter_context(S3Server())))
        for number, order in enumerate(orders(count, seed), start=1):
            told = both.run(order)
            print(f"order {number}: {order}: told {len(told)} times", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

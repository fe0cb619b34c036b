"""Jobs of all kinds through one worker, one in five bad, one in ten cancelled: what the process holds before and after.

    make soak
    python -m tests.soak [JOBS]

A short form is among the tests.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas import ErrorCode
from tests.job_inputs import data_uri, picture_bytes, scenes_bytes, small_job, speech_uri
from tests.s3_server import S3Server
from tests.weighing_handler import HELD_FILE
from tools.queue_server import LocalQueue
from tools.worker_process import CHECKOUT, JOB_TIMEOUT_S, Worker, worker_of

WEIGHING_HANDLER = CHECKOUT / "tests" / "weighing_handler.py"

NUM_JOBS = 200
LOOK_AFTER = (10, 50, 100, 150)
LIFETIME_S = 3 * 3600
GROWTH = 1.001

VOICES = {"person1": speech_uri(0.2), "person2": speech_uri(0.2, 220)}

GOOD: dict[str, dict[str, Any]] = {
    "text": {"cond_audio": None, "tts_audio": {"text": "Hello there.", "human1_voice": "am_adam"}},
    "bucket": {"output_config": {"store": "s3"}},
    "scenes": {
        "cond_video": data_uri(scenes_bytes([16, 16]), "video/mp4"),
        "scene_seg": True,
        "mode": "streaming",
        "frame_num": 13,
        "motion_frame": 9,
        "cond_audio": {"person1": speech_uri(1.0)},
    },
    "boxes": {"cond_audio": VOICES, "bbox": {"person1": [0, 0, 30, 64], "person2": [34, 0, 64, 64]}},
    "guidance": {"sample_text_guide_scale": 5.0, "use_apg": True, "use_teacache": True, "sample_steps": 8},
    "preview": {
        "mode": "streaming",
        "cond_audio": {"person1": speech_uri(0.6)},
        "output_config": {"store": "volume", "preview": True},
    },
    "picture": {},
    "video": {"cond_video": data_uri(scenes_bytes([12]), "video/mp4")},
    "two speakers": {"cond_audio": VOICES},
    "two in turns": {"cond_audio": VOICES, "audio_type": "add"},
    "streaming": {"mode": "streaming", "cond_audio": {"person1": speech_uri(0.6)}},
    "inline": {"output_config": {"store": "inline"}},
}
"""Those first that make the process load something of their own: Kokoro and its languages, the store's client."""

BAD: dict[str, dict[str, Any]] = {
    "no frames": {"frame_num": 80},
    "no speech": {"cond_audio": None},
    "no picture": {"cond_video": data_uri(b"only words, neither a picture nor a video", "image/png")},
    "cut short": {"cond_video": data_uri(picture_bytes()[:100], "image/png")},
    "private address": {"cond_video": "http://127.0.0.1:9/picture.png"},
    "outside": {"cond_video": "/etc/hostname"},
    "box outside": {"bbox": {"person1": [0, 0, 3000, 60]}},
    "silence": {"cond_audio": {"person1": speech_uri(0.0)}},
}

LONG = {"mode": "streaming", "cond_audio": {"person1": speech_uri(6.0)}, "sample_steps": 30}
"""Long enough to be cancelled."""


@dataclass(frozen=True)
class SoakResult:
    """What came of a soak.

    Attributes:
        outcomes: of the jobs, by kind.
        looks: what the worker held after so many jobs, in order, the last look after all of them.
        seconds: of all.
    """

    outcomes: Counter[str]
    looks: dict[int, dict[str, int]]
    seconds: float


def soak(worker: Worker, num_jobs: int, look_after: Collection[int], kinds: Iterable[str] = GOOD) -> SoakResult:
    """Runs jobs one after the other: every fifth is bad, every tenth is cancelled, the others are of `kinds` in turn.

    Args:
        look_after: how many jobs come before each look at what the worker holds; there is one more at the end.

    Raises:
        AssertionError: a good job failed, or a bad one did not.
    """
    good, bad = itertools.cycle(kinds), itertools.cycle(BAD.values())
    outcomes: Counter[str] = Counter()
    looks: dict[int, dict[str, int]] = {}
    begin = time.monotonic()
    for number in range(num_jobs):
        if number in look_after:
            looks[number] = settled_resources(worker)
        # Not the last before a look: what a cancelled job held may stay until the next one.
        if number % 10 == 3:
            outcomes[cancelled_job(worker)] += 1
        elif number % 5 == 2:
            _, failure = worker.refusal(small_job(**next(bad)))
            assert failure.error.code in (ErrorCode.INPUT_VALIDATION, ErrorCode.DOWNLOAD_FAILED)
            outcomes[failure.error.code] += 1
        elif number % 10 == 4:
            items = [small_job(**kind) | {"id": f"item-{index}"} for index, kind in enumerate(({}, {"frame_num": 9}))]
            job = worker.run({"batch": items})
            assert job.status == "COMPLETED", job
            outcomes["batch"] += 1
        else:
            name = next(good)
            worker.success(small_job(**GOOD[name]))
            outcomes[name] += 1
    looks[num_jobs] = settled_resources(worker)
    return SoakResult(outcomes, looks, time.monotonic() - begin)


def check_steady(before: dict[str, int], after: dict[str, int]) -> None:
    """Asserts that a worker holds no more than before: of memory, but for bounded caches that still fill."""
    for what in ("threads", "open_files", "temporary_files"):
        assert after[what] <= before[what], what
    # Not what is resident: of what is free, malloc keeps now more, now less.
    for what in ("held_bytes", "held_objects"):
        assert after[what] < GROWTH * before[what], what


def cancelled_job(worker: Worker) -> str:
    """Cancels a long job in its midst; returns its status."""
    job_id = worker.queue.post(small_job(**LONG))
    worker.queue.wait_until(
        job_id, lambda job: any(said["details"].get("step", 0) > 1 for said in job.progress), JOB_TIMEOUT_S
    )
    job = worker.queue.cancel(job_id)
    worker.wait_for_event("job.stopped", job_id=job_id)
    return job.status


def settled_resources(worker: Worker) -> dict[str, int]:
    """What the worker holds between two jobs: the least of a few seconds, for pings and polls come and go."""
    samples = []
    for _ in range(20):
        time.sleep(0.2)
        samples.append(worker.resources() | held_memory(worker))
    return {what: min(sample[what] for sample in samples) for what in samples[0]}


def held_memory(worker: Worker) -> dict[str, int]:
    """What the worker's memory holds, as it says itself: what it keeps free is not among it."""
    file = worker.volume.with_name(HELD_FILE)
    file.unlink(missing_ok=True)
    worker.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads(file.read_text())


def main(num_jobs: int = NUM_JOBS) -> None:
    """Runs the long form and prints its figures."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        LocalQueue(lifetime_s=LIFETIME_S) as queue,
        S3Server() as s3,
        worker_of(queue, Path(name), WEIGHING_HANDLER, **store_settings(s3)) as worker,
    ):
        worker.wait_until_ready()
        result = soak(worker, num_jobs, LOOK_AFTER)
        print(f"{num_jobs} jobs in {result.seconds:.0f} s: {dict(result.outcomes.most_common())}")
        for number, held in result.looks.items():
            print(f"after {number} jobs: {held}")
        check_steady(*list(result.looks.values())[-2:])
        print(f"left on the volume of jobs that were cancelled: {len(list(worker.volume.rglob('.resume/*')))} states")


def store_settings(s3: S3Server) -> dict[str, str]:
    """The worker's own bucket."""
    names = ("endpoint", "access_key", "secret_key", "bucket", "region")
    return {f"S3_{name.upper()}": getattr(s3, name) for name in names}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

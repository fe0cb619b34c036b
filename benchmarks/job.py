"""Whole jobs with the tiny model, in a worker process that takes them from a local queue."""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import EVALUATION_S, Goal, Measurement
from tools.worker_process import Worker, running_worker

MEDIA = Path(__file__).parents[1] / "examples" / "media"
SCRIPT = Path(__file__).parent / "timed_worker.py"
#: Sampling steps of the streaming job, half the default; each has three evaluations.
STREAMING_STEPS = 20
MAX_FRAMES = 153
"""Frames of the streaming job: two chunks of 81 frames that share 9."""


def job_input(**fields: Any) -> dict[str, Any]:
    """The example with one speaker and an image; the result goes to the output folder."""
    return {
        "prompt": "A woman talks",
        "cond_video": "portrait.jpg",
        "cond_audio": {"person1": "speech.wav"},
        "output_config": {"store": "volume", "prefix": "jobs"},
        **fields,
    }


def run(worker: Worker, times: Path, given: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds of a job from taking it to its result, seconds of its sampling and VAE, and number of evaluations."""
    worker.volume.mkdir(exist_ok=True)
    for name in ("portrait.jpg", "speech.wav"):
        shutil.copy(MEDIA / name, worker.volume)
    times.write_text("")
    job, result = worker.success(given)
    return job.seconds, sum(float(line.split()[1]) for line in times.read_text().splitlines()), result.evaluations


def measure_warm_job(repeats: int) -> Measurement:
    """The row about a warm job's overhead."""
    given = job_input(mode="clip", sample_steps=2, sample_text_guide_scale=1.0, sample_audio_guide_scale=1.0)
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times"
        with running_worker(Path(folder), SCRIPT, TIMES_FILE=str(times)) as worker:
            run(worker, times, given)
            runs = [run(worker, times, given) for _ in range(repeats)]
    overhead = statistics.median(1000 * (seconds - network) for seconds, network, _ in runs)
    seconds = statistics.median(seconds for seconds, _, _ in runs)
    return Measurement(
        "a warm job of 81 frames, from taken to result posted",
        "its sampling and VAE time",
        Goal(300, unit=" ms more"),
        overhead,
        f"tiny model; job {seconds:.2f} s",
    )


def measure_streaming_job() -> Measurement:
    """The row about the work around the network; it waits for minutes."""
    given = job_input(mode="streaming", max_frame_num=MAX_FRAMES, sample_steps=STREAMING_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times"
        settings = {"TIMES_FILE": str(times), "EVALUATION_S": str(EVALUATION_S)}
        with running_worker(Path(folder), SCRIPT, **settings) as worker:
            run(worker, times, job_input(mode="clip", sample_steps=1))
            seconds, _, evaluations = run(worker, times, given)
    network = evaluations * EVALUATION_S
    return Measurement(
        "a streaming job with decode, features, colour, encode, store",
        "its evaluations alone",
        Goal(5, unit=" % more"),
        100 * (seconds / network - 1),
        f"2 chunks, {evaluations} waits of {EVALUATION_S} s: {seconds:.1f} s / {network:.1f} s; VAE of the tiny model",
    )

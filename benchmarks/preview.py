"""Time until a video can play: that of the first chunk on a playlist, as a share of the job's, with the tiny model.

    python -m benchmarks.preview [SECONDS]

runs a streaming job with SECONDS of speech and output_config.preview, in this process.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.resume import JobStates
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.progress import ProgressEvent
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop


def first_preview(engine: Engine, settings: Settings, seconds: float) -> tuple[float, float, int]:
    """Seconds to the first chunk's preview and to the result, and the number of chunks."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLING_RATE))
    soundfile.write(settings.output_dir / "speech.wav", noise, SAMPLING_RATE)
    job = {
        "prompt": "A woman talks",
        "cond_video": "examples/media/portrait.jpg",
        "cond_audio": {"person1": "speech.wav"},
        "mode": "streaming",
        "max_frame_num": round(seconds * VIDEO_FPS),
        "sample_steps": 8,
        "sample_text_guide_scale": 1.0,
        "sample_audio_guide_scale": 2.0,
        "output_config": {"store": "volume", "preview": True},
    }
    begin = time.perf_counter()
    published: list[float] = []
    chunks: set[int] = set()

    def report(event: ProgressEvent) -> None:
        if event.preview:
            published.append(time.perf_counter() - begin)
        if "chunk" in event.details:
            chunks.add(event.details["chunk"])

    resources = Resources(settings, engine, JobStates(settings))
    result = run_job({"id": "preview", "input": job}, settings, lambda: resources, report, Stop())
    if result["status"] != "success":
        raise RuntimeError(result["error"]["message"])
    return published[0], time.perf_counter() - begin, len(chunks)


def main(seconds: float = 30.0) -> None:
    """Prints both times and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(output_dir=Path(name), infinitetalk_model="tiny")
        engine = Engine(settings)
        engine.start()
        first_preview(engine, settings, 1.0)
        first, whole, num_chunks = first_preview(engine, settings, seconds)
    print(
        f"{seconds:g} s of speech, {num_chunks} chunks: {first:.1f} s to the first playable chunk, "
        f"{whole:.1f} s to the result: {first / whole:.0%}"
    )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))

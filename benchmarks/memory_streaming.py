"""Peak resident memory of the worker for streaming jobs with 10 s and 120 s of speech, with the tiny model.

Each job runs through `handler.py --test_input` in a separate process: `python -m benchmarks.memory_streaming`.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS

CHECKOUT = Path(__file__).parents[1]
DURATIONS_S = (10, 120)


def peak_memory_mb(duration_s: int) -> float:
    """Peak resident memory in MB of a worker that streams `duration_s` seconds, or of its largest child."""
    with tempfile.TemporaryDirectory() as volume:
        noise = 0.1 * np.random.default_rng(0).standard_normal(duration_s * SAMPLING_RATE)
        soundfile.write(Path(volume) / "speech.wav", noise, SAMPLING_RATE)
        job = {
            "prompt": "A woman talks",
            "cond_video": "examples/media/portrait.jpg",
            "cond_audio": {"person1": "speech.wav"},
            "mode": "streaming",
            "max_frame_num": duration_s * VIDEO_FPS,
            "sample_steps": 1,
            "sample_text_guide_scale": 1.0,
            "sample_audio_guide_scale": 1.0,
            "output_config": {"store": "volume", "prefix": "jobs"},
        }
        command = [sys.executable, "handler.py", "--test_input", json.dumps({"id": "memory", "input": job})]
        subprocess.run(
            command, cwd=CHECKOUT, env=os.environ | {"OUTPUT_DIR": volume}, check=True, stdout=subprocess.DEVNULL
        )
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> int:
    """Print one line for each length and the difference; return 1 if it is 5 % or more."""
    # Each task of the pool has a new interpreter, so that no length inherits another's peak.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.map(peak_memory_mb, DURATIONS_S, chunksize=1)
    for duration_s, peak in zip(DURATIONS_S, peaks, strict=True):
        print(f"{duration_s:4d} s of speech: {peak:.0f} MB")
    difference = peaks[-1] / peaks[0] - 1.0
    print(f"difference {difference:+.1%}")
    return int(difference >= 0.05)


if __name__ == "__main__":
    sys.exit(main())

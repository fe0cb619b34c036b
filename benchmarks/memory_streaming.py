"""Peak resident memory of the worker for streaming jobs with 10 s and 120 s of speech, with the tiny model.

Each job runs through `handler.py --test_input` in a separate process: `python -m benchmarks.memory_streaming`.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.growth import compare_durations
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS

CHECKOUT = Path(__file__).parents[1]


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


if __name__ == "__main__":
    sys.exit(compare_durations(peak_memory_mb))

"""Peak resident memory of speech embeddings at the published width, for 10 s and 120 s of speech.

Each length runs in a separate process with random weights: `python -m benchmarks.memory_wav2vec2`.
"""

import resource
import sys

import numpy as np
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from benchmarks.growth import compare_durations
from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.media.speech import SAMPLING_RATE


def peak_memory_mb(duration_s: int) -> float:
    """Peak resident memory of this process in MB after embedding `duration_s` seconds of noise."""
    # transformers' defaults are the published sizes: hidden 768, convolutions 512, 12 layers.
    model = Wav2Vec2Model(Wav2Vec2Config(attn_implementation="sdpa"))
    waveform = np.random.default_rng(0).standard_normal(duration_s * SAMPLING_RATE, dtype=np.float32)
    embeddings = SpeechEncoder(model, Wav2Vec2FeatureExtractor())(waveform)
    if len(embeddings) != duration_s * 25:
        raise RuntimeError(f"{len(embeddings)} rows for {duration_s} s of speech")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(compare_durations(peak_memory_mb))

"""Synthesises the example voices with espeak-ng.

    .venv/bin/python -m tools.example_media.make_speech

writes speech.wav (a woman, about 5 s) and speech2.wav (a man, about 5 s) into examples/media: mono, 16 bit, 22,050 Hz.
The same espeak-ng gives the same bytes.
"""

from pathlib import Path

import numpy as np
import soundfile

from tools.espeak import SAMPLING_RATE, Utterance, say

HERE = Path(__file__).parents[2] / "examples" / "media"

WOMAN = Utterance(
    "Hello, and welcome aboard. Today we turn one picture and one voice into a talking video.",
    voice="en-us+f3",
    words_per_minute=165,
    pitch=55,
)
MAN = Utterance(
    "Thank you. I am the second speaker, and I wait for my turn before I say a word.",
    voice="en-us+m3",
    words_per_minute=165,
    pitch=42,
)
#: Seed of the breath in the voices.
NOISE_SEED = 1795389777


def main() -> None:
    """Writes both voices."""
    files = (HERE / "speech.wav", HERE / "speech2.wav")
    for path, samples in zip(files, say([WOMAN, MAN], NOISE_SEED), strict=True):
        soundfile.write(path, np.frombuffer(samples, dtype=np.int16), SAMPLING_RATE)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

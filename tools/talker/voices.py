"""Synthetic speech: sentences of random words in espeak-ng's voices."""

import math

import librosa
import numpy as np

from infinitetalk.media.speech import SAMPLING_RATE
from tools import espeak
from tools.espeak import Utterance, say

TRAINING_VOICES = ("en-us+m1", "en-us+m3", "en-us+m4", "en-us+m5", "en-us+m6", "en-us+f1", "en-us+f2", "en-us+f4")
HELD_OUT_VOICES = ("en-us+m2", "en-us+m7", "en-us+f3", "en-us+f5")
WORDS = """
about across again all always apple around autumn away beautiful because before begin behind blue boat book bread
bridge bright bring brother build butter call camera candle careful carry change children city clear clever cloud
coffee cold colour common corner country dance day deep different door dream early earth easy evening every eye
family far field find fire flower follow forest forward friend garden gentle give glass golden good green guitar
hand happy hear heart heavy holiday home honest hope house hundred idea island journey kitchen know lamp language
large laugh leaf learn letter light little long lovely machine many market meadow minute moment moon morning mother
mountain music narrow near never new night noise number ocean often old open orange order other over paper people
picture place plain poem poor powder quick quiet rain ready remember river road room round sail school sea second
seven shadow shore simple sing sky slow small snow soft song south speak spring star station stone story street
strong summer sun sweet table talk tall tell thank three through time today together tomorrow tower town travel tree
true turn under valley village voice wait walk warm water weather welcome west wheel white wide wild wind window
winter wonder wood word work world yellow young
"""
#: Shortest length of a sentence; even two fast words take longer.
SHORTEST_SENTENCE_S = 0.4
MEAN_PAUSE_S = 0.15


def random_speech(generator: np.random.Generator, voices: tuple[str, ...], num_samples: int) -> np.ndarray:
    """Sentences of random words in one random voice, with pauses: float32 (num_samples,), mono 16 kHz."""
    words = WORDS.split()
    voice = str(generator.choice(voices))
    rate, pitch = int(generator.integers(120, 215)), int(generator.integers(25, 75))
    num_sentences = math.ceil(num_samples / (SHORTEST_SENTENCE_S * SAMPLING_RATE))
    sentences = [" ".join(generator.choice(words, size=generator.integers(2, 7))) for _ in range(num_sentences)]
    utterances = [Utterance(sentence, voice, rate, pitch) for sentence in sentences]
    parts: list[np.ndarray] = []
    for samples in say(utterances, seed=int(generator.integers(1, 2**31))):
        pause = int(espeak.SAMPLING_RATE * generator.exponential(MEAN_PAUSE_S))
        parts += [
            np.frombuffer(samples, dtype=np.int16).astype(np.float32) / 32768.0,
            np.zeros(pause, dtype=np.float32),
        ]
    speech = librosa.resample(np.concatenate(parts), orig_sr=espeak.SAMPLING_RATE, target_sr=SAMPLING_RATE)
    return speech[:num_samples]

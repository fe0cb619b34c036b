"""Synthetic speech by espeak-ng, whose library comes with Kokoro's requirements: sentences of random words."""

import ctypes

import espeakng_loader
import librosa
import numpy as np

from infinitetalk.speech import SAMPLING_RATE

# Names and numbers of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
CHARS_UTF8 = 1
POSITION_CHARACTER = 1
PARAMETER_RATE = 1
PARAMETER_PITCH = 3
EE_OK = 0

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

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


class Synthesiser:
    """espeak-ng in this process, which it keeps for all its life.

    The same calls in the same order after the same `seed` give the same samples.
    """

    def __init__(self) -> None:
        self._espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sampling_rate = self._espeak.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)

    def seed(self, seed: int) -> None:
        """Starts the noise in the voices anew, which espeak-ng otherwise takes from the clock."""
        self._espeak.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> np.ndarray:
        """`text` as float32 (samples,), mono 16 kHz, with a pitch of 0 to 100.

        Raises:
            RuntimeError: espeak-ng does not know the voice.
        """
        blocks: list[bytes] = []

        @SynthCallback
        def collect(block: ctypes._Pointer, num_samples: int, _events: int | None) -> int:
            if num_samples > 0:
                blocks.append(ctypes.string_at(block, 2 * num_samples))
            return 0

        self._espeak.espeak_SetSynthCallback(collect)
        if self._espeak.espeak_SetVoiceByName(voice.encode()) != EE_OK:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        self._espeak.espeak_SetParameter(PARAMETER_RATE, words_per_minute, 0)
        self._espeak.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
        encoded = text.encode()
        self._espeak.espeak_Synth(encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
        self._espeak.espeak_Synchronize()
        samples = np.frombuffer(b"".join(blocks), dtype=np.int16).astype(np.float32) / 32768.0
        return librosa.resample(samples, orig_sr=self.sampling_rate, target_sr=SAMPLING_RATE)


def random_speech(
    synthesiser: Synthesiser, generator: np.random.Generator, voices: tuple[str, ...], num_samples: int
) -> np.ndarray:
    """Sentences of random words by one random voice, with pauses: float32 (num_samples,), mono 16 kHz."""
    words = WORDS.split()
    voice = str(generator.choice(voices))
    rate, pitch = int(generator.integers(120, 215)), int(generator.integers(25, 75))
    synthesiser.seed(int(generator.integers(1, 2**31)))
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < num_samples:
        sentence = " ".join(generator.choice(words, size=generator.integers(2, 7)))
        parts.append(synthesiser.speak(sentence, voice, rate, pitch))
        parts.append(np.zeros(int(SAMPLING_RATE * generator.exponential(0.15)), dtype=np.float32))
    return np.concatenate(parts)[:num_samples]

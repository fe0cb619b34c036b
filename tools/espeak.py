"""Speech from espeak-ng; its library comes with Kokoro's requirements.

espeak-ng's samples depend on the texts spoken before, and the clock seeds the breath in its voices. Here each call is a
separate process with a seed: the same utterances and seed always give the same samples.
"""

from __future__ import annotations

import base64
import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import espeakng_loader

# Names and numbers of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
CHARS_UTF8 = 1
POSITION_CHARACTER = 1
PARAMETER_RATE = 1
PARAMETER_PITCH = 3
EE_OK = 0

#: Sampling rate of all of espeak-ng's voices.
SAMPLING_RATE = 22_050
TIMEOUT_S = 60
VARIANTS = Path(espeakng_loader.get_data_path()) / "voices" / "!v"

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Utterance:
    """A text and the way to say it.

    Attributes:
        text: the text, in the voice's language.
        voice: espeak-ng's name of the voice, such as "en-us+f3".
        words_per_minute: about 80 to 450.
        pitch: 0 to 100.
    """

    text: str
    voice: str
    words_per_minute: int
    pitch: int


def say(utterances: Sequence[Utterance], seed: int) -> list[bytes]:
    """Each utterance as signed 16-bit samples, mono at `SAMPLING_RATE`.

    Raises:
        subprocess.CalledProcessError: espeak-ng does not know a voice.
        subprocess.TimeoutExpired: it does not answer.
    """
    request = json.dumps({"seed": seed, "utterances": [asdict(utterance) for utterance in utterances]})
    answer = subprocess.run(
        [sys.executable, __file__], input=request, stdout=subprocess.PIPE, text=True, check=True, timeout=TIMEOUT_S
    )
    return [base64.b64decode(samples) for samples in json.loads(answer.stdout)]


def synthesise(espeak: ctypes.CDLL, utterance: Utterance) -> bytes:
    """The samples of one utterance, signed 16-bit.

    Raises:
        RuntimeError: espeak-ng does not know the voice.
    """
    samples = bytearray()

    @SynthCallback
    def collect(block: ctypes._Pointer, num_samples: int, _events: int | None) -> int:
        if num_samples > 0:
            samples.extend(ctypes.string_at(block, 2 * num_samples))
        return 0

    espeak.espeak_SetSynthCallback(collect)
    # espeak-ng silently uses the plain voice for an unknown variant.
    _, _, variant = utterance.voice.partition("+")
    is_known = not variant or (VARIANTS / variant).is_file()
    if not is_known or espeak.espeak_SetVoiceByName(utterance.voice.encode()) != EE_OK:
        raise RuntimeError(f"espeak-ng has no voice {utterance.voice!r}")
    espeak.espeak_SetParameter(PARAMETER_RATE, utterance.words_per_minute, 0)
    espeak.espeak_SetParameter(PARAMETER_PITCH, utterance.pitch, 0)
    encoded = utterance.text.encode()
    espeak.espeak_Synth(encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
    espeak.espeak_Synchronize()
    return bytes(samples)


def main() -> None:
    """Answers one request of `say`, from standard input to standard output."""
    request = json.load(sys.stdin)
    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    sampling_rate = espeak.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
    if sampling_rate != SAMPLING_RATE:
        raise RuntimeError(f"espeak-ng's voices have {sampling_rate} samples a second, not {SAMPLING_RATE}")
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(request["seed"]))
    spoken = [synthesise(espeak, Utterance(**utterance)) for utterance in request["utterances"]]
    json.dump([base64.b64encode(samples).decode() for samples in spoken], sys.stdout)


if __name__ == "__main__":
    main()

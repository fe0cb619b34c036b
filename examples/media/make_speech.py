"""Synthesises the example voices with espeak-ng, whose library comes with kokoro's requirements.

    .venv/bin/python examples/media/make_speech.py

writes speech.wav (a woman, about 5 s) and speech2.wav (a man, about 5 s) beside this file: mono, 16 bit, 22,050 Hz.
The same espeak-ng gives the same bytes.
"""

import ctypes
import wave
from pathlib import Path

import espeakng_loader

HERE = Path(__file__).parent

# Names and numbers of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
CHARS_UTF8 = 1
POSITION_CHARACTER = 1
PARAMETER_RATE = 1
PARAMETER_PITCH = 3
EE_OK = 0

#: Of the breath in the voices, which espeak-ng otherwise takes from the clock; the shipped files were made with it.
NOISE_SEED = 1795389777

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def synthesise(espeak: ctypes.CDLL, text: str, voice: str, words_per_minute: int, pitch: int) -> bytes:
    """Speaks `text`, with a pitch of 0 to 100, and returns its samples, signed 16 bit mono.

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
    if espeak.espeak_SetVoiceByName(voice.encode()) != EE_OK:
        raise RuntimeError(f"espeak-ng has no voice {voice!r}")
    espeak.espeak_SetParameter(PARAMETER_RATE, words_per_minute, 0)
    espeak.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
    encoded = text.encode()
    espeak.espeak_Synth(encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
    espeak.espeak_Synchronize()
    return bytes(samples)


def write_wave(path: Path, samples: bytes, sampling_rate: int) -> None:
    """Writes signed 16 bit mono samples as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(samples)
    print(f"{path.name}: {len(samples) / 2 / sampling_rate:.2f} s, {path.stat().st_size} bytes")


def main() -> None:
    """Writes both voices."""
    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    sampling_rate = espeak.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(NOISE_SEED))
    woman = synthesise(
        espeak,
        "Hello, and welcome aboard. Today we turn one picture and one voice into a talking video.",
        voice="en-us+f3",
        words_per_minute=165,
        pitch=55,
    )
    man = synthesise(
        espeak,
        "Thank you. I am the second speaker, and I wait for my turn before I say a word.",
        voice="en-us+m3",
        words_per_minute=165,
        pitch=42,
    )
    write_wave(HERE / "speech.wav", woman, sampling_rate)
    write_wave(HERE / "speech2.wav", man, sampling_rate)


if __name__ == "__main__":
    main()

"""Synthetic music: chords, a bass drum and a snare."""

import numpy as np

from infinitetalk.media.speech import SAMPLING_RATE

BEAT_S = 0.5
BEATS_A_CHORD = 4
LOWEST_HZ = 220.0
#: Semitones above the lowest note: A minor, F, C and G in some inversion.
CHORDS = ((0, 3, 7), (-4, 0, 3), (3, 7, 10), (-2, 2, 5))
NUM_HARMONICS = 5
PEAK = 0.5


def random_music(generator: np.random.Generator, num_samples: int) -> np.ndarray:
    """Chords in a random order and key, with drums on each beat: float32 (num_samples,), mono 16 kHz."""
    music = np.zeros(num_samples)
    beat = round(BEAT_S * SAMPLING_RATE)
    key = LOWEST_HZ * 2 ** (generator.integers(12) / 12)
    for index, start in enumerate(range(0, num_samples, beat)):
        if index % BEATS_A_CHORD == 0:
            _add(music, start, _chord(key, CHORDS[generator.integers(len(CHORDS))], BEATS_A_CHORD * beat))
        _add(music, start, _snare(generator, beat) if index % 2 else _bass_drum(beat))
    return (music * PEAK / np.abs(music).max()).astype(np.float32)


def _add(music: np.ndarray, start: int, note: np.ndarray) -> None:
    place = music[start : start + len(note)]
    place += note[: len(place)]


def _chord(key: float, semitones: tuple[int, ...], num_samples: int) -> np.ndarray:
    times = np.arange(num_samples) / SAMPLING_RATE
    tones = [
        np.sin(2 * np.pi * key * 2 ** (semitone / 12) * harmonic * times) / harmonic
        for semitone in semitones
        for harmonic in range(1, NUM_HARMONICS + 1)
    ]
    return 0.1 * np.sum(tones, axis=0) * np.exp(-1.2 * times)


def _bass_drum(num_samples: int) -> np.ndarray:
    times = np.arange(num_samples) / SAMPLING_RATE
    return 0.6 * np.sin(2 * np.pi * 60 * times) * np.exp(-20 * times)


def _snare(generator: np.random.Generator, num_samples: int) -> np.ndarray:
    times = np.arange(num_samples) / SAMPLING_RATE
    return 0.3 * generator.standard_normal(num_samples) * np.exp(-18 * times)

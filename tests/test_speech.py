"""Loudness of speech, and the tracks of several speakers."""

import numpy as np
import pytest

from infinitetalk.media.speech import (
    SAMPLING_RATE,
    TARGET_LUFS,
    arrange_tracks,
    measure_loudness,
    mix_tracks,
    normalise_loudness,
)


def tone(seconds: float, amplitude: float = 0.1) -> np.ndarray:
    times = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    return (amplitude * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.2, 0.4, 3.0])
@pytest.mark.parametrize("amplitude", [0.003, 0.9])
def test_speech_of_any_length_comes_to_the_same_loudness(seconds: float, amplitude: float) -> None:
    normalised = normalise_loudness(tone(seconds, amplitude))
    assert normalised.dtype == np.float32
    assert len(normalised) == round(seconds * SAMPLING_RATE)
    assert measure_loudness(normalised) == pytest.approx(TARGET_LUFS, abs=0.05)


@pytest.mark.parametrize("seconds", [0.1, 2.0])
def test_silence_is_left_alone(seconds: float) -> None:
    silence = np.zeros(round(seconds * SAMPLING_RATE), dtype=np.float32)
    assert measure_loudness(silence) == -np.inf
    assert np.array_equal(normalise_loudness(silence), silence)


def test_para_plays_all_from_the_start_and_pads_the_shorter_with_silence() -> None:
    # The published code fails here: it adds up arrays of different lengths.
    long, short = tone(0.5), tone(0.2)
    first, second = arrange_tracks([long, short], "para")
    assert np.array_equal(first, long)
    assert np.array_equal(second[: len(short)], short)
    assert len(second) == len(long)
    assert not second[len(short) :].any()


def test_add_plays_one_speaker_after_the_other() -> None:
    waveforms = [tone(0.1), tone(0.2), tone(0.3)]
    tracks = arrange_tracks(waveforms, "add")
    assert np.array_equal(mix_tracks(tracks), np.concatenate(waveforms))
    assert all(np.count_nonzero(track) <= len(waveform) for track, waveform in zip(tracks, waveforms, strict=True))


@pytest.mark.parametrize("audio_type", ["para", "add"])
def test_a_silent_speaker_gets_a_silent_track_of_the_mixs_length(audio_type: str) -> None:
    speech = tone(0.3)
    silent, speaking = arrange_tracks([None, speech], audio_type)  # type: ignore[arg-type]
    assert not silent.any()
    assert len(silent) == len(speaking)
    assert np.array_equal(mix_tracks([silent, speaking]), speech)


def test_nobody_speaking_is_an_error() -> None:
    with pytest.raises(ValueError, match="every speaker is silent"):
        arrange_tracks([None, None], "para")

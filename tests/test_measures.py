"""The measures tell a talking video from the same one with wrong sound or broken pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infinitetalk.media.decode import read_waveform
from tools.measures.__main__ import main
from tools.measures.mouths import FEWEST_FRAMES, compare
from tools.measures.pictures import border_ratio, colour_drift, flicker, sharpness_drift
from tools.measures.puppet import puppet, read_photograph, write_video
from tools.measures.quality import BOUNDS, Quality, measure
from tools.measures.speech import SAMPLES_A_FRAME, pauses
from tools.measures.table import PORTRAIT, SPEECH

FILMED = Path(__file__).parents[2] / "shared/media/talking_head.mp4"
SHIFT = 12


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Both example voices, one after the other."""
    return np.concatenate([read_waveform(path) for path in SPEECH])


@pytest.fixture(scope="module")
def puppet_quality(speech: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Quality:
    """The measures of the portrait whose mouth is moved by its sound."""
    pytest.importorskip("ai_edge_litert")
    file = tmp_path_factory.mktemp("puppet") / "puppet.mp4"
    photograph = read_photograph(PORTRAIT)[::2, ::2]
    write_video(file, puppet(photograph, speech, FEWEST_FRAMES), speech[: FEWEST_FRAMES * SAMPLES_A_FRAME])
    return measure(file)


def test_a_mouth_that_is_moved_by_its_sound_is_within_every_bound(puppet_quality: Quality) -> None:
    assert puppet_quality.missed == []
    assert puppet_quality.figures["follows"] > 0.7  # type: ignore[operator]
    assert puppet_quality.figures["identity_least"] > 0.95  # type: ignore[operator]
    assert puppet_quality.figures["borders"] is None
    assert puppet_quality.left_out["borders"] == "one chunk"


@pytest.mark.parametrize("frames", [-SHIFT, SHIFT])
def test_a_sound_that_is_late_or_early_is_told_by_its_lag(
    puppet_quality: Quality, speech: np.ndarray, frames: int
) -> None:
    moved = compare(puppet_quality.mouths[0].opening, np.roll(speech, frames * SAMPLES_A_FRAME))
    assert moved.follows is not None
    assert not BOUNDS["follows"].holds(moved.follows)
    assert moved.loudness_lag == pytest.approx(-frames, abs=2)


def test_another_speech_does_not_predict_a_mouth(puppet_quality: Quality, speech: np.ndarray) -> None:
    swapped = compare(puppet_quality.mouths[0].opening, speech[::-1].copy())
    assert swapped.follows is not None
    assert not BOUNDS["follows"].holds(swapped.follows)


def test_a_mouth_that_does_not_move_follows_nothing(speech: np.ndarray) -> None:
    still = compare(np.full(FEWEST_FRAMES, 0.1), speech)
    assert (still.follows, still.correlation, still.movement, still.rest) == (0.0, 0.0, 0.0, None)


def test_a_short_video_has_no_fit_but_a_correlation(puppet_quality: Quality, speech: np.ndarray) -> None:
    short = compare(puppet_quality.mouths[0].opening[:81], speech)
    assert short.follows is None and short.lag is None
    assert short.correlation > 0.5


def test_a_filmed_speaker_is_told_from_late_swapped_and_missing_sound() -> None:
    if not FILMED.exists():
        pytest.skip(f"the filmed speaker is not shipped: {FILMED.name} is missing")
    pytest.importorskip("ai_edge_litert")
    voice = read_waveform(FILMED)
    filmed = measure(FILMED, borders=[81, 153, 225, 297])
    assert filmed.missed == []
    opening = filmed.mouths[0].opening
    others = {
        "late": np.roll(voice, SHIFT * SAMPLES_A_FRAME),
        "early": np.roll(voice, -SHIFT * SAMPLES_A_FRAME),
        "of another moment": np.roll(voice, len(voice) // 2),
        "another's": np.resize(np.concatenate([read_waveform(path) for path in SPEECH]), len(voice)),
    }
    for what, sound in others.items():
        follows = compare(opening, sound).follows
        assert follows is not None and not BOUNDS["follows"].holds(follows), what
    assert not BOUNDS["movement"].holds(float(np.full(len(opening), opening[0]).std()))


def test_a_mouth_that_moves_in_pauses_does_not_rest(speech: np.ndarray) -> None:
    pause = np.concatenate([speech[: 60 * SAMPLES_A_FRAME], np.zeros(40 * SAMPLES_A_FRAME, np.float32)])
    quiet = pauses(pause, 100)
    assert quiet[62:].all() and not quiet[:20].all()
    wave = 0.1 * np.sin(np.arange(100))
    restless, resting = compare(wave, pause), compare(np.where(quiet, 0.0, wave), pause)
    assert restless.rest is not None and restless.rest > BOUNDS["rest"].most  # type: ignore[operator]
    assert resting.rest is not None and resting.rest < 0.2


def test_what_pictures_do_over_time_is_told() -> None:
    generator = np.random.default_rng(5)
    small = generator.uniform(60, 180, (1, 32, 32)).repeat(75, axis=0).astype(np.float32)
    nervous = small + 2 * np.where(np.arange(75) % 2, 1, -1)[:, None, None]
    assert flicker(small) == 0
    assert not BOUNDS["flicker"].holds(flicker(nervous))
    colours = np.tile([100.0, 100, 100], (75, 1))
    assert colour_drift(colours) == 0
    assert colour_drift(colours + np.linspace(0, 9, 75)[:, None] * [1, 0, 0]) == pytest.approx(6, abs=0.1)
    assert sharpness_drift(np.linspace(2, 1, 75)) == pytest.approx(0.6, abs=0.05)
    change = np.ones(74)
    assert border_ratio(change, [25, 50]) == 1
    change[[24, 49]] = 4
    assert border_ratio(change, [25, 50]) == 4


def test_a_video_that_cannot_be_measured_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (tmp_path / "nowhere.mp4", PORTRAIT):
        assert main([str(file)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {file}: ")

"""The embedded model talks: on videos of the worker, speech drives mouths, each voice its own; chunks join.

Short versions of `python -m examples.tiny.quality`; faces and voices are those that training has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from examples.tiny.breakages import shifted_audio, swapped_speakers
from examples.tiny.jobs import Example, ExampleMaker, TalkerWorker
from examples.tiny.measure import best_lag, correlation, psnr_outside_mouths, read_openings
from examples.tiny.quality import WEIGHTS_LIMIT_BYTES
from infinitetalk.tiny import TALKER_FOLDER

SECONDS = 3.24
BORDER = 81


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("talker")


@pytest.fixture(scope="module")
def worker(folder: Path) -> TalkerWorker:
    return TalkerWorker(folder)


@pytest.fixture(scope="module")
def maker(folder: Path) -> ExampleMaker:
    return ExampleMaker(folder)


@pytest.fixture(scope="module")
def one(maker: ExampleMaker) -> Example:
    return maker.make(0, seconds=SECONDS)


@pytest.fixture(scope="module")
def two(maker: ExampleMaker) -> Example:
    return maker.make(0, num_people=2, seconds=SECONDS)


@pytest.fixture(scope="module")
def long(maker: ExampleMaker) -> Example:
    return maker.make(100, seconds=5.0)


def mouths(worker: TalkerWorker, example: Example) -> np.ndarray:
    """What the video shows of each mouth, without the first frame, which is the portrait."""
    return read_openings(worker.frames(example), example.num_people)[:, 1:]


def rule(example: Example, person: int = 0) -> np.ndarray:
    """What the rule says of a voice, for the same frames."""
    return example.rules[person].opening[1:]


@pytest.fixture(scope="module")
def one_mouth(worker: TalkerWorker, one: Example) -> np.ndarray:
    return mouths(worker, one)[0]


@pytest.fixture(scope="module")
def two_mouths(worker: TalkerWorker, two: Example) -> np.ndarray:
    return mouths(worker, two)


@pytest.fixture(scope="module")
def long_video(worker: TalkerWorker, long: Example) -> np.ndarray:
    return worker.frames(long)


def test_its_weights_are_small() -> None:
    size = sum(path.stat().st_size for path in TALKER_FOLDER.rglob("*") if path.is_file())
    assert 0 < size <= WEIGHTS_LIMIT_BYTES


def test_the_mouth_follows_the_speech_in_time(one_mouth: np.ndarray, one: Example) -> None:
    assert correlation(one_mouth, rule(one)) >= 0.6
    assert abs(best_lag(one_mouth, rule(one))) <= 1


def test_it_follows_no_other_speech(one_mouth: np.ndarray, one: Example, maker: ExampleMaker) -> None:
    other = rule(maker.make(1, seconds=SECONDS))
    assert correlation(one_mouth, other) <= correlation(one_mouth, rule(one)) - 0.3


def test_silence_shuts_the_mouth(worker: TalkerWorker, maker: ExampleMaker, one_mouth: np.ndarray) -> None:
    silent = mouths(worker, maker.make(0, seconds=SECONDS, silent=True))[0]
    assert silent.var() <= 0.1 * one_mouth.var()
    assert silent.mean() <= 0.5 * one_mouth.mean()


def test_each_of_two_voices_moves_its_own_mouth(two_mouths: np.ndarray, two: Example) -> None:
    for person in range(2):
        own = correlation(two_mouths[person], rule(two, person))
        assert own >= 0.5
        assert own >= correlation(two_mouths[person], rule(two, 1 - person)) + 0.25


def test_the_second_chunk_talks_too_and_the_picture_stays(long_video: np.ndarray, long: Example) -> None:
    assert len(long_video) == 125
    assert psnr_outside_mouths(long_video[1:26], long_video[-25:]) >= 20.0
    opening = read_openings(long_video)[0]
    assert correlation(opening[BORDER:], long.rules[0].opening[BORDER:]) >= 0.5


@pytest.mark.parametrize("broken", [shifted_audio, swapped_speakers])
def test_the_measures_tell_what_is_broken(
    broken: Callable[[], AbstractContextManager[None]], worker: TalkerWorker, one: Example, two: Example
) -> None:
    with broken():
        if broken is shifted_audio:
            shown = mouths(worker, one)[0]
            assert correlation(shown, rule(one), lag=-2) >= correlation(shown, rule(one)) + 0.1
        else:
            shown = mouths(worker, two)
            assert correlation(shown[0], rule(two, 1)) >= correlation(shown[0], rule(two, 0)) + 0.25

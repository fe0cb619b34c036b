"""The embedded model talks: on videos of the worker, speech drives mouths, each voice its own; chunks join.

Short versions of `python -m tools.talker.quality`; faces and voices are those that training has not seen.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infinitetalk.embedded.tiny import TALKER_FLASHTALK_FOLDER, TALKER_FOLDER
from infinitetalk.generation.color import match_color
from infinitetalk.generation.pipeline import to_frames
from tools.talker.breakages import (
    AFTER_BORDER,
    SEEN_PIXELS,
    color_correction_off,
    dropped_motion_frames,
    ignored_boxes,
    ignored_masks,
    moved_head,
    shifted_audio,
    swapped_speakers,
)
from tools.talker.faces import Place, random_background, random_face
from tools.talker.jobs import CROSSED_BOXES, LAYOUTS, PORTRAIT_SIDE, Example, ExampleMaker, TalkerWorker
from tools.talker.measure import (
    best_lag,
    border_change,
    color_change,
    correlation,
    psnr_outside_mouths,
    read_head_places,
    read_lips,
    read_openings,
)
from tools.talker.quality import WEIGHTS_LIMIT_BYTES
from tools.talker.rule import MouthTrack
from tools.talker.scenes import Scene, to_video

SECONDS = 3.24
SHORT_S, SHORT_FRAMES = 1.64, 41
"""One short chunk."""


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
def one_video(worker: TalkerWorker, one: Example) -> np.ndarray:
    return worker.frames(one)


@pytest.fixture(scope="module")
def one_mouth(one_video: np.ndarray) -> np.ndarray:
    return read_openings(one_video)[0, 1:]


@pytest.fixture(scope="module")
def two_mouths(worker: TalkerWorker, two: Example) -> np.ndarray:
    return mouths(worker, two)


@pytest.fixture(scope="module")
def long_video(worker: TalkerWorker, long: Example) -> np.ndarray:
    return worker.frames(long)


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_mouth_is_read_whatever_the_color_correction_does_to_it(seed: int) -> None:
    generator = np.random.default_rng([seed, 55])
    scene = Scene(128, 128, [random_face(generator)], [Place()], random_background(generator))
    opening = np.sin(np.arange(40) / 3) ** 2
    clip = scene.clip([MouthTrack(opening, np.full(40, 0.5))], 0, 40)
    video = to_video(np.concatenate([scene.portrait()[None], clip]))
    corrected = to_frames(match_color(video, video[:, :, :1], 1.0)[0])
    assert correlation(read_openings(corrected)[0, 1:], opening) >= 0.95


def test_its_weights_are_small() -> None:
    folders = (TALKER_FOLDER, TALKER_FLASHTALK_FOLDER)
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    assert 0 < size <= WEIGHTS_LIMIT_BYTES


def test_the_mouth_follows_the_speech_in_time(one_mouth: np.ndarray, one: Example) -> None:
    assert correlation(one_mouth, rule(one)) >= 0.8
    assert best_lag(one_mouth, rule(one)) == 0


def test_it_follows_no_other_speech(one_mouth: np.ndarray, one: Example, maker: ExampleMaker) -> None:
    other = rule(maker.make(1, seconds=SECONDS))
    assert correlation(one_mouth, other) <= correlation(one_mouth, rule(one)) - 0.3


def test_silence_shuts_the_mouth(worker: TalkerWorker, maker: ExampleMaker, one_mouth: np.ndarray) -> None:
    example = maker.make(0, seconds=SECONDS, silent=True)
    video = worker.frames(example)
    silent = read_openings(video)[0, 1:]
    assert silent.var() <= 0.1 * one_mouth.var()
    assert silent.mean() <= 0.5 * one_mouth.mean()
    drawn = example.drawn(*video.shape[1:3])[: len(video)]
    assert np.abs(read_lips(video) - read_lips(drawn)).mean() <= 30, "its lips are still there"


def test_music_moves_no_mouth_with_the_speech_gate(
    worker: TalkerWorker, maker: ExampleMaker, one: Example, one_mouth: np.ndarray
) -> None:
    music = maker.with_music(one, math.inf)
    heard, gated = (read_openings(worker.frames(music, speech={"gate": gate}))[0, 1:] for gate in ("off", "auto"))
    assert heard.var() >= 0.1 * one_mouth.var(), "without the gate it does"
    assert gated.var() <= 0.01 * one_mouth.var()
    assert gated.mean() <= 0.5 * one_mouth.mean()


def test_each_of_two_voices_moves_its_own_mouth(two_mouths: np.ndarray, two: Example) -> None:
    for person in range(2):
        own = correlation(two_mouths[person], rule(two, person))
        assert own >= 0.65
        assert own >= correlation(two_mouths[person], rule(two, 1 - person)) + 0.25


def crossed_masks(folder: Path) -> dict[str, str]:
    """Pictures, white where `CROSSED_BOXES` are."""
    names = {}
    for person, (left, top, right, bottom) in CROSSED_BOXES.items():
        mask = Image.new("L", (2 * PORTRAIT_SIDE, PORTRAIT_SIDE))
        mask.paste(255, (left, top, right, bottom))
        names[person] = f"mask-{person}.png"
        mask.save(folder / names[person])
    return names


def own_and_other_where_crossed(mouths: np.ndarray, two: Example) -> list[tuple[float, float]]:
    """Of each voice: its correlation with the mouth in its own place, crossed, and with the other's."""
    places = [(0, 1), (1, 0)]
    return [
        (correlation(mouths[own], rule(two, person)), correlation(mouths[other], rule(two, person)))
        for person, (other, own) in enumerate(places)
    ]


@pytest.mark.parametrize("kind", ["bbox", "mask"])
def test_each_voice_is_where_the_job_says(kind: str, worker: TalkerWorker, two: Example, folder: Path) -> None:
    places = {"bbox": CROSSED_BOXES} if kind == "bbox" else {"mask": crossed_masks(folder)}
    shown = read_openings(worker.frames(two, **places), 2)[:, 1:]
    for own, other in own_and_other_where_crossed(shown, two):
        assert own >= 0.65
        assert own >= other + 0.25


def test_ignored_boxes_are_told(worker: TalkerWorker, two: Example) -> None:
    with ignored_boxes():
        shown = read_openings(worker.frames(two, bbox=CROSSED_BOXES), 2)[:, 1:]
    assert all(own <= other - 0.25 for own, other in own_and_other_where_crossed(shown, two))


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_voice_moves_its_own_mouth_where_boxes_are_not_the_halves(
    name: str, worker: TalkerWorker, maker: ExampleMaker
) -> None:
    """A short form of `make quality`'s rows. With the published halves, the first voice moves both mouths."""
    layout = LAYOUTS[name]
    example = maker.placed(maker.make(0, num_people=2, seconds=SHORT_S), layout)

    def follows(**places: Any) -> list[list[float]]:
        """Each mouth's correlation with each voice."""
        frames = worker.frames(example, size=layout.size, frame_num=SHORT_FRAMES, **places)
        mouths = read_openings(frames, places=layout.places)[:, 1:]
        return [[correlation(mouth, rule(example, voice)) for voice in range(2)] for mouth in mouths]

    told, halves = follows(bbox=layout.boxes), follows()
    for mouth in range(2):
        assert told[mouth][mouth] >= 0.65
        assert told[mouth][mouth] >= told[mouth][1 - mouth] + 0.25
    assert halves[1][0] >= halves[1][1] + 0.25


def test_the_second_chunk_talks_too_and_the_picture_stays(long_video: np.ndarray, long: Example) -> None:
    assert len(long_video) == 125
    assert psnr_outside_mouths(long_video[1:26], long_video[-25:]) >= 24.0
    opening = read_openings(long_video)[0]
    assert correlation(opening[AFTER_BORDER.start :], long.rules[0].opening[AFTER_BORDER.start :]) >= 0.7


def test_the_second_chunk_joins_the_first(worker: TalkerWorker, long_video: np.ndarray, long: Example) -> None:
    border = [AFTER_BORDER.start]
    drawn = long.drawn(*long_video.shape[1:3])[: len(long_video)]
    assert border_change(long_video, border) <= border_change(drawn, border) + 0.5
    cut = worker.frames(long, crossfade_frame=0)
    assert border_change(long_video, border) <= border_change(cut, border) - 0.05


def test_shifted_audio_is_told(worker: TalkerWorker, one: Example) -> None:
    with shifted_audio():
        shown = mouths(worker, one)[0]
    assert correlation(shown, rule(one), lag=-2) >= correlation(shown, rule(one)) + 0.1


def test_swapped_speakers_are_told(worker: TalkerWorker, two: Example) -> None:
    with swapped_speakers():
        shown = mouths(worker, two)
    assert correlation(shown[0], rule(two, 1)) >= correlation(shown[0], rule(two, 0)) + 0.25


def test_ignored_masks_are_told(worker: TalkerWorker, two: Example, two_mouths: np.ndarray) -> None:
    with ignored_masks():
        shown = mouths(worker, two)
    own, whole = ([correlation(seen[person], rule(two, person)) for person in range(2)] for seen in (shown, two_mouths))
    assert sum(own) <= sum(whole) - 0.25


def test_a_chunk_goes_on_from_where_the_last_one_ended_and_a_lack_of_motion_frames_is_told(
    worker: TalkerWorker, long: Example, long_video: np.ndarray
) -> None:
    unmoved = read_head_places(long_video)[AFTER_BORDER]
    with moved_head():
        moved = worker.frames(long)
        with dropped_motion_frames():
            broken = worker.frames(long)
    assert (read_head_places(moved)[AFTER_BORDER] - unmoved).mean() >= SEEN_PIXELS
    assert (read_head_places(broken)[AFTER_BORDER] - unmoved).mean() <= 0.5 * SEEN_PIXELS


def test_a_lack_of_color_correction_is_told(worker: TalkerWorker, one: Example, one_video: np.ndarray) -> None:
    with color_correction_off():
        broken = worker.frames(one)
    assert color_change(broken) >= color_change(one_video) + 0.5

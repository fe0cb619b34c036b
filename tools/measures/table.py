"""What the measures say of a filmed person who talks, and of the same video broken in known ways."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from infinitetalk.media.decode import read_waveform
from infinitetalk.media.faces import FaceDetector
from infinitetalk.media.speech import VIDEO_FPS
from tools.frames import frames_of
from tools.measures.puppet import puppet, read_photograph, write_video
from tools.measures.quality import BOUNDS, Quality, measure
from tools.measures.speech import SAMPLES_A_FRAME

CHECKOUT = Path(__file__).parents[2]
PORTRAIT = CHECKOUT / "examples/media/portrait.jpg"
SPEECH = [CHECKOUT / "examples/media" / name for name in ("speech.wav", "speech2.wav")]

LATE_FRAMES = 12
"""Frames, 0.48 s, by which the sound of a row is late."""

CHUNK, MOTION = 81, 9
"""Where borders of chunks are looked for, as in most videos of the worker."""


@dataclass(frozen=True)
class Row:
    """One video of the table, and the measures that must find it wanting."""

    what: str
    quality: Quality
    must_miss: tuple[str, ...]

    @property
    def is_as_expected(self) -> bool:
        """Whether exactly the videos that are broken are found to be, by the measures that should."""
        missed = self.quality.missed
        return any(name in missed for name in self.must_miss) if self.must_miss else not missed

    def cells(self) -> list[str]:
        """The row as text; a figure beyond its bound is bold."""
        missed = self.quality.missed
        return [self.what, *(_cell(name, self.quality.figures[name], name in missed) for name in BOUNDS)]


def _cell(name: str, value: float | None, is_missed: bool) -> str:
    text = "" if value is None else f"{value:.0f}" if name == "lag" else f"{value:.{3 if name == 'movement' else 2}f}"
    return f"**{text}**" if is_missed else text


def borders_of(num_frames: int) -> list[int]:
    """The first frames of chunks of a usual size, but the first."""
    return list(range(CHUNK, num_frames, CHUNK - MOTION))


def rows(video: Path, other: Path) -> Iterator[Row]:
    """The table's rows.

    Args:
        video: a filmed person who talks, 8 s or more, with sound.
        other: speech of somebody else, as long.
    """
    frames = list(frames_of(video))
    voice, foreign = read_waveform(video), read_waveform(other)
    borders = borders_of(len(frames))
    sounds = {
        "filmed, own sound": (voice, ()),
        f"sound {LATE_FRAMES / VIDEO_FPS:.2f} s late": (_later(voice, LATE_FRAMES), ("follows", "lag")),
        f"sound {LATE_FRAMES / VIDEO_FPS:.2f} s early": (_later(voice, -LATE_FRAMES), ("follows", "lag")),
        "sound of another moment": (np.roll(voice, len(voice) // 2), ("follows",)),
        "another's sound": (np.resize(foreign, len(voice)), ("follows",)),
        "sound played backwards": (voice[::-1].copy(), ("follows",)),
    }
    for what, (sound, must_miss) in sounds.items():
        yield Row(what, measure(video, [sound], borders), must_miss)
    broken: dict[str, tuple[Iterable[np.ndarray], tuple[str, ...]]] = {
        "a still picture": ([frames[0]] * len(frames), ("follows", "movement")),
        "turns red": (_each(frames, _redder), ("colour_drift",)),
        "grows soft": (_each(frames, _softer), ("sharpness_drift",)),
        "jumps at borders": (_jumping(frames, borders), ("borders",)),
        "flickers": (_flickering(frames), ("flicker",)),
        "becomes another person": (_becoming(frames), ("identity_least", "identity_last")),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        for what, (shown, must_miss) in broken.items():
            write_video(file, shown)
            yield Row(what, measure(file, [voice], borders), must_miss)
        spoken = np.concatenate([read_waveform(path) for path in SPEECH])
        length = len(spoken) // SAMPLES_A_FRAME
        write_video(file, puppet(read_photograph(PORTRAIT), spoken, length), spoken)
        yield Row("puppet, own sound", measure(file, None, borders), ())
        yield Row(
            "puppet, sound 0.48 s late", measure(file, [_later(spoken, LATE_FRAMES)], borders), ("follows", "lag")
        )


def table(found: Sequence[Row]) -> str:
    """Rows as a Markdown table, with the bounds last."""
    lines = [["", *(f"`{name}`" for name in BOUNDS)], ["---"] * (1 + len(BOUNDS))]
    lines += [row.cells() for row in found]
    lines.append(["bound", *(str(bound) for bound in BOUNDS.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _later(waveform: np.ndarray, frames: int) -> np.ndarray:
    return np.roll(waveform, frames * SAMPLES_A_FRAME)


def _each(frames: Sequence[np.ndarray], change: Callable[[np.ndarray, float], np.ndarray]) -> Iterator[np.ndarray]:
    """Frames changed more and more, from 0 to 1."""
    for number, frame in enumerate(frames):
        yield change(frame, number / (len(frames) - 1))


def _redder(frame: np.ndarray, share: float) -> np.ndarray:
    return np.clip(frame + share * np.array([15.0, 0.0, 0.0]), 0, 255).astype(np.uint8)


def _softer(frame: np.ndarray, share: float) -> np.ndarray:
    return gaussian_filter(frame, (share, share, 0)) if share else frame


def _jumping(frames: Sequence[np.ndarray], borders: Sequence[int]) -> Iterator[np.ndarray]:
    """After each border the picture lies one pixel further to the right."""
    for number, frame in enumerate(frames):
        yield np.roll(frame, sum(border <= number for border in borders), axis=1)


def _flickering(frames: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for number, frame in enumerate(frames):
        yield np.clip(frame.astype(int) + (2 if number % 2 else -2), 0, 255).astype(np.uint8)


def _becoming(frames: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The second half shows the portrait of somebody else, with the face in the same place."""
    detector = FaceDetector()
    photograph = read_photograph(PORTRAIT)
    (here, *_), (there, *_) = detector.find(frames[0]), detector.find(photograph)
    scale = there.side / here.side
    (x, y), (other_x, other_y) = here.centre, there.centre
    affine = (scale, 0, other_x - scale * x, 0, scale, other_y - scale * y)
    height, width = frames[0].shape[:2]
    moved = Image.fromarray(photograph).transform((width, height), Image.Transform.AFFINE, affine)
    yield from frames[: len(frames) // 2]
    yield from [np.asarray(moved)] * (len(frames) - len(frames) // 2)

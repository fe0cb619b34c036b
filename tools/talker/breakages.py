"""Breaks the worker on purpose, in six ways, and checks that a quality figure notices by missing its goal.

python -m tools.talker.breakages [--clips 3]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from infinitetalk.generation import pipeline
from infinitetalk.generation.chunks import ChunkGrid, ChunkPlan
from infinitetalk.generation.sampling import ChunkConditions
from infinitetalk.worker.job import video
from tools.talker.data import MOTION_FRAMES
from tools.talker.jobs import CROSSED_BOXES, ExampleMaker, TalkerWorker
from tools.talker.measure import best_lag, color_change, correlation, read_head_places, read_openings

SHIFT_FRAMES = 2
#: Distance by which a head is moved between two chunks, to check that the second follows the end of the first.
MOVED_PIXELS = 4
#: The least of it that must be seen in the second chunk.
SEEN_PIXELS = 2.0
#: Frames after a border.
AFTER_BORDER = slice(81, 90)


@contextmanager
def shifted_audio() -> Iterator[None]:
    """Every frame gets the audio from two frames later."""
    window_rows = ChunkGrid.window_rows

    def shifted(grid: ChunkGrid, plan: ChunkPlan, num_rows: int) -> Tensor:
        return (window_rows(grid, plan, num_rows) + SHIFT_FRAMES).clamp(max=num_rows - 1)

    with patch.object(ChunkGrid, "window_rows", shifted):
        yield


@contextmanager
def swapped_speakers() -> Iterator[None]:
    """The speakers' voices are swapped."""
    with _changed_conditions(lambda conditions: replace(conditions, audio_windows=conditions.audio_windows.flip(0))):
        yield


@contextmanager
def ignored_masks() -> Iterator[None]:
    """Every speaker's region is the whole image."""

    def everywhere(conditions: ChunkConditions) -> ChunkConditions:
        assert conditions.regions is not None
        return replace(conditions, regions=torch.ones_like(conditions.regions))

    with _changed_conditions(everywhere):
        yield


@contextmanager
def ignored_boxes() -> Iterator[None]:
    """Boxes do not reach the pipeline, which then uses columns from left to right."""
    with patch.object(video, "speaker_regions", lambda *arguments: None):
        yield


@contextmanager
def dropped_motion_frames() -> Iterator[None]:
    """Every chunk starts from the portrait alone."""
    with _changed_conditions(
        lambda conditions: replace(
            conditions, motion_latents=conditions.condition[:, -conditions.motion_latents.shape[1] :, :1]
        )
    ):
        yield


@contextmanager
def moved_head() -> Iterator[None]:
    """Not a breakage: every chunk starts from the previous one's last frames, moved `MOVED_PIXELS` to the right."""
    encode_frames = pipeline.encode_frames

    def moved(vae: Any, frames: Tensor) -> Tensor:
        is_motion = frames.shape[2] == MOTION_FRAMES
        return encode_frames(vae, frames.roll(MOVED_PIXELS, dims=-1) if is_motion else frames)

    with patch.object(pipeline, "encode_frames", moved):
        yield


@contextmanager
def _changed_conditions(change: Callable[[ChunkConditions], ChunkConditions]) -> Iterator[None]:
    sample_chunk = pipeline.sample_chunk

    def changed(denoiser: Any, draw_noise: Any, conditions: ChunkConditions, *more: Any) -> Any:
        return sample_chunk(denoiser, draw_noise, change(conditions), *more)

    with patch.object(pipeline, "sample_chunk", changed):
        yield


@contextmanager
def color_correction_off() -> Iterator[None]:
    """Every chunk keeps its sampled colours."""
    with patch.object(pipeline, "match_color_", lambda frames, reference, strength: None):
        yield


@dataclass(frozen=True)
class Figure:
    """A measure of quality, its goal, and the test whether a value reaches it."""

    name: str
    goal: str
    reaches: Callable[[float], bool]


LAG = Figure("best lag, most", "within 1 frame", lambda value: abs(value) <= 1)
OWN = Figure("own voice", "≥ 0.7", lambda value: value >= 0.7)
CROSSED = Figure("own voice, person1 in a box on the right", "≥ 0.7", lambda value: value >= 0.7)
MOVED = Figure(
    f"a head moved {MOVED_PIXELS} pixels, in the next chunk",
    f"≥ {SEEN_PIXELS:g} pixels",
    lambda value: value >= SEEN_PIXELS,
)
COLOUR = Figure("mean colour against the portrait's, in levels of 255", "≤ 0.75", lambda value: value <= 0.75)

#: The broken part, the breakage, and the figure that must notice it.
BREAKAGES: tuple[tuple[str, Callable[[], AbstractContextManager[None]], Figure], ...] = (
    ("audio two frames early", shifted_audio, LAG),
    ("speakers swapped", swapped_speakers, OWN),
    ("masks ignored", ignored_masks, OWN),
    ("boxes ignored", ignored_boxes, CROSSED),
    ("motion frames dropped", dropped_motion_frames, MOVED),
    ("colour correction off", color_correction_off, COLOUR),
)


class Measures:
    """Measures figures over a few examples, with the worker in its current state."""

    def __init__(self, worker: TalkerWorker, maker: ExampleMaker, num_clips: int) -> None:
        self.worker, self.maker, self.num_clips = worker, maker, num_clips

    def take(self, figure: Figure) -> float:
        """The figure's value, the median over the examples."""
        takes = {
            LAG: self._lag,
            OWN: self._own_voice,
            CROSSED: self._own_voice_in_crossed_boxes,
            MOVED: self._moved,
            COLOUR: self._colour,
        }
        return takes[figure]()

    def _lag(self) -> float:
        lags = []
        for number in range(self.num_clips):
            example = self.maker.make(number)
            opening = read_openings(self.worker.frames(example))[0, 1:]
            lags.append(best_lag(opening, example.rules[0].opening[1:]))
        return max(lags, key=abs)

    def _own_voice(self, is_crossed: bool = False) -> float:
        own = []
        for number in range(self.num_clips):
            example = self.maker.make(number, num_people=2)
            openings = read_openings(self.worker.frames(example, bbox=CROSSED_BOXES if is_crossed else None), 2)[:, 1:]
            rules = example.rules[::-1] if is_crossed else example.rules
            own += [correlation(shown, rule.opening[1:]) for shown, rule in zip(openings, rules, strict=True)]
        return median(own)

    def _own_voice_in_crossed_boxes(self) -> float:
        return self._own_voice(is_crossed=True)

    def _moved(self) -> float:
        distances = []
        for number in range(self.num_clips):
            example = self.maker.make(number)
            unmoved = read_head_places(self.worker.frames(example))
            with moved_head():
                moved = read_head_places(self.worker.frames(example))
            distances.append((moved - unmoved)[AFTER_BORDER].mean())
        return median(distances)

    def _colour(self) -> float:
        return median(color_change(self.worker.frames(self.maker.make(number))) for number in range(self.num_clips))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measures = Measures(TalkerWorker(Path(folder)), ExampleMaker(Path(folder)), arguments.clips)
        print("| broken | figure | goal | whole | broken | |\n|---|---|---|---|---|---|", flush=True)
        for name, breakage, figure in BREAKAGES:
            whole = measures.take(figure)
            with breakage():
                broken = measures.take(figure)
            is_caught = figure.reaches(whole) and not figure.reaches(broken)
            verdict = "CAUGHT" if is_caught else "NOT"
            print(f"| {name} | {figure.name} | {figure.goal} | {whole:.2f} | {broken:.2f} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()

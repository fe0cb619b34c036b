"""Measures the tiny talker on the worker's videos of faces and voices that are not in the training.

    python -m tools.talker.quality [--clips 20] [--only ROWS]

prints the measurements and the goals, with PASS or NOT.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from infinitetalk.embedded.tiny import TALKER_FLASHTALK_FOLDER, TALKER_FOLDER
from infinitetalk.family import FLASHTALK
from infinitetalk.generation.chunks import ChunkGrid
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.media.speech import VIDEO_FPS
from tools.frames import read_frames
from tools.talker.jobs import LAYOUTS, PARAMETERS, Example, ExampleMaker, TalkerWorker, job_input
from tools.talker.measure import (
    best_lag,
    border_change,
    correlation,
    psnr_outside_mouths,
    read_lips,
    read_openings,
)

REPOSITORY = Path(__file__).parents[2]
DEMO_LIMIT_S = 30.0
WEIGHTS_LIMIT_BYTES = 20_000_000
#: The most by which the few-step talker's mouths may follow speech less well than the guided one's.
FLASHTALK_LOSS = 0.05
#: Length of the clips with music, and the seconds from and to which somebody speaks in some of them.
SONG_S, SUNG_S = 3.24, (0.0, 1.4)
#: From here on a mouth that rests after that has shut.
AFTER_SUNG_S = 2.0
AFTER_SUNG = slice(round(AFTER_SUNG_S * VIDEO_FPS) - 1, None)
#: Loudness of music under speech, against it.
MUSIC_DB = -6.0
#: The most by which mouths may follow speech over music less well with the gate.
GATE_LOSS = 0.02
#: A mouth counts as closed if the rule's opening is below this.
CLOSED = 0.05


@dataclass(frozen=True)
class Row:
    """One line of the table; `reached` is None if there is no goal."""

    what: str
    goal: str
    measured: str
    reached: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "PASS", False: "NOT", None: ""}[self.reached]
        return f"| {self.what} | {self.goal} | {self.measured} | {verdict} |"


class Bench:
    """The worker, and the examples for its measurement."""

    def __init__(self, folder: Path, num_clips: int) -> None:
        self.maker = ExampleMaker(folder)
        self.worker = TalkerWorker(folder)
        self.num_clips = num_clips

    def one_speaker(self) -> list[Row]:
        """5 s clips of one speaker: the mouth against its own speech, the lag, and against another clip's speech."""
        examples = [self.maker.make(number) for number in range(self.num_clips)]
        videos = [self.worker.frames(example) for example in examples]
        openings = [_shown(frames) for frames in videos]
        rules = [example.rules[0].opening[1:] for example in examples]
        own = [correlation(opening[0], rule) for opening, rule in zip(openings, rules, strict=True)]
        others = [correlation(opening[0], rule) for opening, rule in zip(openings, rules[1:] + rules[:1], strict=True)]
        lags = [best_lag(opening[0], rule) for opening, rule in zip(openings, rules, strict=True)]
        within = sum(abs(lag) <= 1 for lag in lags)
        return [
            Row(
                f"correlation of the mouth with the rule, {len(own)} clips of 5 s",
                "median ≥ 0.8, worst ≥ 0.6",
                f"median {median(own):.3f}, worst {min(own):.3f}",
                median(own) >= 0.8 and min(own) >= 0.6,
            ),
            Row(
                "best lag",
                "within 1 frame",
                f"{within} of {len(lags)} within 1, from {min(lags)} to {max(lags)}",
                within == len(lags),
            ),
            Row(
                "the same with the audio of another clip",
                "\\|median\\| ≤ 0.2",
                f"median {median(others):.3f}",
                abs(median(others)) <= 0.2,
            ),
            _lips_row(examples, videos),
        ]

    def silence(self) -> list[Row]:
        """A silent clip against a speaking one of the same person."""
        spoken = _shown(self.worker.frames(self.maker.make(0)))[0]
        silent = _shown(self.worker.frames(self.maker.make(0, silent=True)))[0]
        share = float(silent.var() / spoken.var())
        is_closed = silent.mean() <= 0.25 * spoken.mean()
        return [
            Row(
                "silence",
                "mouth closed, variance ≤ 0.1 of speech's",
                f"opening {silent.mean():.2f} px against {spoken.mean():.2f}, variance {share:.4f}",
                is_closed and share <= 0.1,
            )
        ]

    def music(self, num_clips: int = 5) -> list[Row]:
        """Music alone, and speech over music, without and with the gate that tells speech from other sounds."""
        plain = [self.maker.make(number, seconds=SONG_S) for number in range(num_clips)]
        alone = [self.maker.with_music(example, math.inf) for example in plain]
        under = [self.maker.with_music(example, MUSIC_DB) for example in plain]
        after = [self.maker.with_music(example, MUSIC_DB, SUNG_S) for example in plain]
        silent = [self.maker.make(number, seconds=SONG_S, silent=True) for number in range(num_clips)]
        spoken, still = self._mouths(plain), self._mouths(silent)

        def opening(mouths: list[np.ndarray], frames: slice = slice(None)) -> str:
            return f"{median(float(mouth[frames].mean()) for mouth in mouths):.2f}"

        def told(show: Callable[[list[np.ndarray]], str], examples: list[Example]) -> tuple[str, str]:
            return show(self._mouths(examples)), show(self._mouths(examples, gate="auto"))

        def moved(mouths: list[np.ndarray]) -> str:
            share = median(float(mouth.var() / speaks.var()) for mouth, speaks in zip(mouths, spoken, strict=True))
            return f"{opening(mouths)} px, {share:.4f}"

        def follows(mouths: list[np.ndarray]) -> str:
            return f"{median(correlation(mouth, rule) for mouth, rule in zip(mouths, rules, strict=True)):.3f}"

        rules = [example.rules[0].opening[1:] for example in plain]
        off, auto = told(moved, alone)
        sung_off, sung_auto = told(follows, under)
        rest_off, rest_auto = told(lambda mouths: opening(mouths, AFTER_SUNG), after)
        return [
            Row(
                f"music alone, {num_clips} clips of {SONG_S:g} s: opening, variance against speech's",
                "with the gate, no more than in silence",
                f"without the gate {off}; with it {auto}; silence {moved(still)}",
                auto == moved(still),
            ),
            Row(
                f"speech over music of {MUSIC_DB:g} dB: correlation with the rule of the speech",
                f"with the gate, no more than {GATE_LOSS} less",
                f"without the gate {sung_off}; with it {sung_auto}; speech alone {follows(spoken)}",
                float(sung_auto) >= float(sung_off) - GATE_LOSS,
            ),
            Row(
                f"music that goes on after {SUNG_S[1]:g} s of speech: opening in its last {SONG_S - AFTER_SUNG_S:g} s",
                "with the gate, within 0.5 px of silence",
                f"without the gate {rest_off} px; with it {rest_auto} px; silence {opening(still, AFTER_SUNG)} px",
                float(rest_auto) <= float(opening(still, AFTER_SUNG)) + 0.5,
            ),
        ]

    def _mouths(self, examples: list[Example], gate: str = "off") -> list[np.ndarray]:
        """The opening of the mouth in each example of one person, with the speech gate "auto" or "off"."""
        return [_shown(self.worker.frames(example, speech={"gate": gate}))[0] for example in examples]

    def two_speakers(self, num_clips: int = 4) -> list[Row]:
        """Two people who speak at once: each mouth against its own voice and against the other's."""
        own, other = [], []
        for number in range(num_clips):
            example = self.maker.make(number, num_people=2)
            openings = _shown(self.worker.frames(example), 2)
            rules = [rule.opening[1:] for rule in example.rules]
            own += [correlation(openings[0], rules[0]), correlation(openings[1], rules[1])]
            other += [correlation(openings[0], rules[1]), correlation(openings[1], rules[0])]
        return [
            Row(
                f"two speakers, para, {num_clips} clips: own voice / the other's",
                "≥ 0.7 / ≤ 0.25 (medians)",
                f"{median(own):.3f} / {median(other):.3f} (own, worst: {min(own):.3f})",
                median(own) >= 0.7 and median(other) <= 0.25,
            )
        ]

    def placed_speakers(self, num_clips: int = 2) -> list[Row]:
        """Two people who do not stand in the halves of the picture, with boxes or faces that say where they are, and
        with the published halves."""
        rows = []
        for name, layout in LAYOUTS.items():
            told: dict[str, dict[str, Any]] = {
                "boxes": {"bbox": layout.boxes},
                "faces": {"regions": "faces"},
                "halves": {},
            }
            own: dict[str, list[float]] = {how: [] for how in told}
            other: dict[str, list[float]] = {how: [] for how in told}
            for number in range(num_clips):
                example = self.maker.placed(self.maker.make(number, num_people=2, seconds=SONG_S), layout)
                spoken = [rule.opening[1:] for rule in example.rules]
                for how, fields in told.items():
                    frames = self.worker.frames(example, size=layout.size, **fields)
                    openings = read_openings(frames, places=layout.places)[:, 1:]
                    own[how] += [correlation(openings[person], spoken[person]) for person in range(2)]
                    other[how] += [correlation(openings[person], spoken[1 - person]) for person in range(2)]
            shown = {how: f"{min(own[how]):.3f} / {max(other[how]):.3f}" for how in told}
            is_told = all(min(own[how]) >= 0.7 and max(other[how]) <= 0.25 for how in ("boxes", "faces"))
            rows.append(
                Row(
                    f"two speakers, {name}, {num_clips} clips of {SONG_S:g} s: own voice, worst / the other's, most",
                    "≥ 0.7 / ≤ 0.25 with boxes and with faces; not with halves",
                    f"boxes {shown['boxes']}; faces {shown['faces']}; halves {shown['halves']}",
                    is_told and min(own["halves"]) < 0.7 and max(other["halves"]) > 0.25,
                )
            )
        return rows

    def streaming(self, num_clips: int = 10) -> list[Row]:
        """20 s in several chunks: whether the mouth still follows, the image stays the same, and the chunks join."""
        falls: list[float] = []
        psnrs: list[float] = []
        drawn_psnrs: list[float] = []
        borders, drawn_borders, cut_borders, fade_begins, fades = [], [], [], [], []
        for number in range(num_clips):
            example = self.maker.make(100 + number, seconds=20.0)
            frames = self.worker.frames(example)
            opening, rule = _shown(frames)[0], example.rules[0].opening[1:]
            part = 5 * VIDEO_FPS
            falls.append(correlation(opening[:part], rule[:part]) - correlation(opening[-part:], rule[-part:]))
            drawn = example.drawn(*frames.shape[1:3])[: len(frames)]
            for video, found in ((frames, psnrs), (drawn, drawn_psnrs)):
                found.append(psnr_outside_mouths(video[1 : 1 + VIDEO_FPS], video[-VIDEO_FPS:]))
            fade = GenerationSettings.crossfade_frame
            plans = ChunkGrid(PARAMETERS["frame_num"], PARAMETERS["motion_frame"], fade).plans(len(frames))[1:]
            places = [plan.start + plan.num_motion_frames for plan in plans]
            begins = [place - plan.num_fade_frames for place, plan in zip(places, plans, strict=True)]
            joins = [frame for begin, place in zip(begins, places, strict=True) for frame in range(begin, place + 1)]
            borders.append(border_change(frames, places))
            fade_begins.append(border_change(frames, begins))
            fades.append(border_change(frames, joins))
            drawn_borders.append(border_change(drawn, places))
            cut_borders.append(border_change(self.worker.frames(example, crossfade_frame=0), places))
        return [
            Row(
                f"streaming, 20 s, {num_clips} clips: correlation, first 5 s less last 5 s",
                "≤ 0.1 (median)",
                f"{median(falls):.3f}, most {max(falls):.3f}",
                median(falls) <= 0.1,
            ),
            Row(
                "streaming: picture outside the mouth, last second against first",
                "≥ 24 dB",
                f"{_spread(psnrs)} dB; of drawn videos, whose heads sway: {_spread(drawn_psnrs)} dB",
                median(psnrs) >= 24.0,
            ),
            Row(
                "chunk borders: change at a border over change elsewhere",
                "≤ 1.3",
                f"{_spread(borders)}; at the same frames of drawn videos: {_spread(drawn_borders)}",
                median(borders) <= 1.3,
            ),
            Row(
                "the same where a fade begins, and with it a part of the MP4",
                "≤ 1.3",
                _spread(fade_begins),
                median(fade_begins) <= 1.3,
            ),
            Row("the same in all frames from there to the border", "≤ 1.3", _spread(fades), median(fades) <= 1.3),
            Row("the same at borders without a fade (crossfade_frame 0)", "", _spread(cut_borders)),
        ]

    def audio_guidance(self) -> list[Row]:
        """The scale of the audio guidance."""
        examples = [self.maker.make(number) for number in range(self.num_clips)]
        found = {}
        for scale in (1.0, 2.0, 4.0):
            videos = [self.worker.frames(example, sample_audio_guide_scale=scale) for example in examples]
            found[scale] = median(
                correlation(_shown(frames)[0], example.rules[0].opening[1:])
                for frames, example in zip(videos, examples, strict=True)
            )
        return [
            Row(
                f"audio guidance 1, 2, 4: the correlation, {len(examples)} clips",
                "no fall from 1 to 2",
                ", ".join(f"{value:.3f}" for value in found.values()),
                found[2.0] >= found[1.0],
            )
        ]

    def flashtalk(self, num_long_clips: int = 10) -> list[Row]:
        """FlashTalk's recipe, 4 evaluations a chunk, against the guided talker on the same clips."""
        examples = [self.maker.make(number) for number in range(self.num_clips)]
        rules = [example.rules[0].opening[1:] for example in examples]
        guided = [_shown(self.worker.frames(example))[0] for example in examples]
        openings = [_shown(self.worker.frames(example, recipe="flashtalk"))[0] for example in examples]
        own, guided_own = (
            [correlation(opening, rule) for opening, rule in zip(found, rules, strict=True)]
            for found in (openings, guided)
        )
        lags = [best_lag(opening, rule) for opening, rule in zip(openings, rules, strict=True)]
        within = sum(abs(lag) <= 1 for lag in lags)
        silent = _shown(self.worker.frames(self.maker.make(0, silent=True), recipe="flashtalk"))[0]
        share = float(silent.var() / openings[0].var())
        borders, drawn_borders = [], []
        grid = self.flashtalk_grid
        for number in range(num_long_clips):
            example = self.maker.make(100 + number, seconds=20.0)
            frames = self.worker.frames(example, recipe="flashtalk")
            places = [plan.start + plan.num_motion_frames for plan in grid.plans(len(frames))[1:]]
            borders.append(border_change(frames, places))
            drawn_borders.append(border_change(example.drawn(*frames.shape[1:3])[: len(frames)], places))
        return [
            Row(
                f"FlashTalk's recipe, 4 evaluations a chunk: correlation, {len(own)} clips of 5 s",
                f"≥ the guided talker's less {FLASHTALK_LOSS} (median), worst ≥ 0.6",
                f"median {median(own):.3f} against {median(guided_own):.3f}, worst {min(own):.3f}",
                median(own) >= median(guided_own) - FLASHTALK_LOSS and min(own) >= 0.6,
            ),
            Row(
                "FlashTalk's recipe: best lag",
                "within 1 frame",
                f"{within} of {len(lags)} within 1, from {min(lags)} to {max(lags)}",
                within == len(lags),
            ),
            Row(
                "FlashTalk's recipe: silence",
                "mouth closed, variance ≤ 0.1 of speech's",
                f"opening {silent.mean():.2f} px against {openings[0].mean():.2f}, variance {share:.4f}",
                silent.mean() <= 0.25 * openings[0].mean() and share <= 0.1,
            ),
            Row(
                f"FlashTalk's recipe: chunk borders, 20 s, {num_long_clips} clips",
                "≤ 1.3",
                f"{_spread(borders)}; at the same frames of drawn videos: {_spread(drawn_borders)}",
                median(borders) <= 1.3,
            ),
        ]

    @property
    def flashtalk_grid(self) -> ChunkGrid:
        """The chunks of FlashTalk's recipe."""
        defaults = FLASHTALK.defaults
        return ChunkGrid(defaults.frame_num, defaults.motion_frame, defaults.crossfade_frame)

    def handler(self) -> list[Row]:
        """One of the clips through `handler.py` in a separate process, like the demo."""
        example = self.maker.make(0)
        result = run_handler({"id": "handler", "input": job_input(example, self.maker.folder)}, self.maker.folder)
        opening = _shown(read_frames(self.maker.folder / result["video"]["path"]))[0]
        value = correlation(opening, example.rules[0].opening[1:])
        return [
            Row("one clip through handler.py: correlation", "≥ 0.6", f"{value:.3f}, {result['model']}", value >= 0.6)
        ]


def run_handler(job: dict, output_dir: Path) -> dict:
    """The result of a job run by `python handler.py --test_input`; its media are paths below `output_dir`."""
    environment = os.environ | {
        "OUTPUT_DIR": str(output_dir),
        "RUNPOD_VOLUME_DIR": str(output_dir),
        "INFINITETALK_MODEL": "talker",
    }
    done = subprocess.run(
        [sys.executable, "handler.py", "--test_input", json.dumps(job)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def demo() -> list[Row]:
    """`make demo`: the example job through handler.py."""
    begin = time.monotonic()
    job = json.loads((REPOSITORY / "examples" / "single_image.json").read_text())
    subprocess.run(
        [sys.executable, "handler.py", "--test_input", json.dumps(job)],
        cwd=REPOSITORY,
        env=os.environ | {"INFINITETALK_MODEL": "talker"},
        capture_output=True,
        check=True,
    )
    seconds = time.monotonic() - begin
    return [Row("make demo, 81 frames, 8 steps", "≤ 30 s", f"{seconds:.1f} s", seconds <= DEMO_LIMIT_S)]


def weights() -> list[Row]:
    """The size of the shipped weights."""
    folders = (TALKER_FOLDER, TALKER_FLASHTALK_FOLDER)
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    return [Row("weights", "≤ 20 MB", f"{size / 1e6:.2f} MB", size <= WEIGHTS_LIMIT_BYTES)]


def _spread(values: list[float]) -> str:
    return f"median {median(values):.2f}, {min(values):.2f} to {max(values):.2f}"


def _lips_row(examples: list[Example], videos: list[np.ndarray]) -> Row:
    """Whether closed mouths, in pauses, are still visible."""
    found = []
    for example, frames in zip(examples, videos, strict=True):
        is_closed = example.rules[0].opening[: len(frames)] < CLOSED
        drawn = example.drawn(*frames.shape[1:3])[: len(frames)]
        found += list(np.abs(read_lips(frames)[0] - read_lips(drawn)[0])[is_closed])
    return Row(
        f"lips in pauses, {len(found)} frames: their tone against the drawn one's, in levels of 255",
        "≤ 20 (median)",
        f"median {median(found):.1f}, nine in ten below {np.quantile(found, 0.9):.1f}",
        median(found) <= 20,
    )


def _shown(frames: np.ndarray, num_people: int = 1) -> np.ndarray:
    """Openings without the first frame, which is the input image."""
    return read_openings(frames, num_people)[:, 1:]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="some of the rows' names")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.clips)
        measures: dict[str, Callable[[], list[Row]]] = {
            "weights": weights,
            "one_speaker": bench.one_speaker,
            "silence": bench.silence,
            "music": bench.music,
            "two_speakers": bench.two_speakers,
            "placed_speakers": bench.placed_speakers,
            "streaming": bench.streaming,
            "audio_guidance": bench.audio_guidance,
            "flashtalk": bench.flashtalk,
            "handler": bench.handler,
            "demo": demo,
        }
        print("| measured | goal | found | |\n|---|---|---|---|", flush=True)
        for name, measure in measures.items():
            if arguments.only is None or name in arguments.only:
                for row in measure():
                    print(row, flush=True)


if __name__ == "__main__":
    main()

"""Jobs with faces and voices that are not in the training, and a worker in this process to run them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS, measure_loudness
from infinitetalk.recipes import RECIPES
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.resume import JobStates
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from tools.frames import read_frames
from tools.talker.faces import Place, random_background, random_face
from tools.talker.music import random_music
from tools.talker.rule import SAMPLES_A_FRAME, MouthTrack, follow_speech
from tools.talker.scenes import Scene
from tools.talker.voices import HELD_OUT_VOICES, random_speech

#: No training clip uses a generator with this seed.
HELD_OUT_SEED = 977
PORTRAIT_SIDE = 512
#: Side of a person's square in a job's own resolution.
SQUARE_SIDE = 480

#: Default parameters of the tiny talker's jobs, those of `make demo`.
PARAMETERS: dict[str, Any] = {
    "prompt": "a drawn face talks",
    "size": "infinitetalk-480",
    "mode": "streaming",
    "frame_num": 81,
    "motion_frame": 9,
    "sample_steps": 8,
    "sample_text_guide_scale": 1.0,
    "sample_audio_guide_scale": 2.0,
    "base_seed": 42,
    "output_config": {"store": "volume", "prefix": "quality"},
}


@dataclass(frozen=True)
class Layout:
    """Where people are in a portrait that is divided into squares.

    Attributes:
        rows, columns: number of squares below and beside each other.
        squares: each person's square: its row and its column.
    """

    rows: int
    columns: int
    squares: tuple[tuple[int, int], ...]

    @property
    def places(self) -> list[Place]:
        """Each person's place, as drawn people have it: from the middle of their column of the portrait."""
        own_column = self.columns / len(self.squares)
        largest = min(own_column, self.rows)
        return [
            Place(
                (column + 0.5 - own_column * (index + 0.5)) / largest,
                (row + 0.5 - self.rows / 2) / largest,
                1 / largest,
            )
            for index, (row, column) in enumerate(self.squares)
        ]

    @property
    def boxes(self) -> dict[str, list[int]]:
        """Each person's square, as a job's `bbox`."""
        corners = {number: (column, row) for number, (row, column) in enumerate(self.squares, start=1)}
        return {
            f"person{number}": [PORTRAIT_SIDE * edge for edge in (column, row, column + 1, row + 1)]
            for number, (column, row) in corners.items()
        }

    @property
    def size(self) -> dict[str, int]:
        """A job's `size`, of which the tiny talker makes 96 pixels for each square, as for two people side by side."""
        return {"width": SQUARE_SIDE * self.columns, "height": SQUARE_SIDE * self.rows}


#: Two people who do not stand in the halves of the picture, which are beside each other.
LAYOUTS = {
    "both on the left": Layout(1, 3, ((0, 0), (0, 1))),
    "one above the other": Layout(2, 1, ((0, 0), (1, 0))),
}


@dataclass(frozen=True)
class Example:
    """A portrait and the speech of its people.

    Attributes:
        portrait: its file.
        voices: sound files, one per person.
        rules: the mouth's movement by the rule for each voice.
        scene: the scene from which the portrait was drawn.
    """

    portrait: Path
    voices: list[Path]
    rules: list[MouthTrack]
    scene: Scene

    @property
    def num_people(self) -> int:
        """Number of people in the portrait."""
        return len(self.voices)

    def drawn(self, height: int, width: int) -> np.ndarray:
        """The video drawn as in training, uint8 (T, height, width, 3)."""
        num_frames = len(self.rules[0].opening)
        return replace(self.scene, height=height, width=width).clip(self.rules, 0, num_frames)


class ExampleMaker:
    """Writes examples into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def placed(self, example: Example, layout: Layout) -> Example:
        """An example's people with their voices, elsewhere in their portrait."""
        height, width = PORTRAIT_SIDE * layout.rows, PORTRAIT_SIDE * layout.columns
        scene = replace(example.scene, height=height, width=width, places=layout.places)
        name = "-".join(f"{row}{column}" for row, column in layout.squares)
        portrait = example.portrait.with_stem(f"{example.portrait.stem}-{layout.rows}x{layout.columns}-{name}")
        Image.fromarray(scene.portrait()).save(portrait)
        return replace(example, portrait=portrait, scene=scene)

    def make(self, number: int, num_people: int = 1, seconds: float = 5.0, silent: bool = False) -> Example:
        """Makes example `number`; the same arguments give the same faces and voices."""
        generator = np.random.default_rng([HELD_OUT_SEED, number, num_people])
        faces = [random_face(generator) for _ in range(num_people)]
        background = random_background(generator)
        num_frames = round(seconds * VIDEO_FPS)
        portrait = self.folder / f"portrait-{number}-{num_people}.png"
        scene = Scene(PORTRAIT_SIDE, PORTRAIT_SIDE * num_people, faces, [Place()] * num_people, background)
        Image.fromarray(scene.portrait()).save(portrait)
        voices, rules = [], []
        for person in range(num_people):
            waveform = random_speech(generator, HELD_OUT_VOICES, num_frames * SAMPLES_A_FRAME)
            if silent:
                waveform = np.zeros_like(waveform)
            path = self.folder / f"voice-{number}-{num_people}-{person}-{seconds:g}{'-silent' * silent}.wav"
            soundfile.write(path, waveform, SAMPLING_RATE)
            voices.append(path)
            rules.append(follow_speech(waveform))
        return Example(portrait, voices, rules, scene)

    def with_music(self, example: Example, level_db: float, speech_s: tuple[float, float] | None = None) -> Example:
        """An example of one person whose sound has music under the speech; the rule is still that of the speech alone.

        Args:
            level_db: loudness of the music against the speech's, in dB; infinite: music alone.
            speech_s: the person speaks only from and to these seconds; None: all the time.
        """
        (voice,) = example.voices
        speech, _ = soundfile.read(voice, dtype="float32")
        if speech_s is not None:
            begin, end = (round(seconds * SAMPLING_RATE) for seconds in speech_s)
            speech = np.concatenate([np.zeros(begin, np.float32), speech[begin:end], np.zeros_like(speech[end:])])
        generator = np.random.default_rng([HELD_OUT_SEED, len(speech), int(voice.stem.split("-")[1])])
        music = random_music(generator, len(speech))
        if np.isinf(level_db):
            speech = np.zeros_like(speech)
        else:
            music *= 10 ** ((measure_loudness(speech) - measure_loudness(music) + level_db) / 20)
        path = self.folder / f"{voice.stem}-music-{level_db:g}-{'all' if speech_s is None else 'part'}.wav"
        soundfile.write(path, speech + music, SAMPLING_RATE, subtype="FLOAT")
        return replace(example, voices=[path], rules=[follow_speech(speech)])


class TalkerWorker:
    """A worker with the tiny talker, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(
            output_dir=folder, volume_dir=folder, infinitetalk_model="talker", webhook_get_job="set", resume=False
        )
        self.engine = Engine(self.settings)
        self.engine.start()
        self._num_jobs = 0

    def frames(self, example: Example, **parameters: Any) -> np.ndarray:
        """The video of an example, uint8 (T, height, width, 3), decoded from the MP4 that the worker wrote.

        Raises:
            RuntimeError: the job failed.
        """
        result = self.run(job_input(example, self.folder, **parameters))
        return read_frames(self.folder / result["video"]["path"])

    def run(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The result of a job with this input.

        Raises:
            RuntimeError: the job failed.
        """
        self._num_jobs += 1
        job: dict[str, Any] = {"id": f"quality-{self._num_jobs}", "input": parameters}
        resources = Resources(self.settings, self.engine, JobStates(self.settings))
        try:
            result = run_job(job, self.settings, lambda: resources, lambda event: None, Stop())
        finally:
            resources.states.close(job["id"], keep=False)
        if result.get("status") != "success":
            raise RuntimeError(f"the worker refused: {result}")
        return result


#: Boxes for a portrait of two, in the opposite order to the default: person1 on the right.
CROSSED_BOXES = {
    "person1": [PORTRAIT_SIDE, 0, 2 * PORTRAIT_SIDE, PORTRAIT_SIDE],
    "person2": [0, 0, PORTRAIT_SIDE, PORTRAIT_SIDE],
}


def job_input(example: Example, root: Path, **parameters: Any) -> dict[str, Any]:
    """A job's input, with media as paths below `root`; `parameters` replace the default ones, and so does what a recipe
    among them fixes."""
    fixed = RECIPES[parameters["recipe"]].fixed if "recipe" in parameters else {}
    return {
        **{name: value for name, value in PARAMETERS.items() if name not in fixed},
        "cond_video": str(example.portrait.relative_to(root)),
        "cond_audio": {f"person{n}": str(path.relative_to(root)) for n, path in enumerate(example.voices, start=1)},
        **parameters,
    }

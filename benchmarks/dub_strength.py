"""How much of a film's motion stays at each `dub.strength`: the background's optical flow, in finished MP4s.

    python -m benchmarks.dub_strength [STRENGTH …]

A drawn person stands before a pattern that a swaying camera passes; the embedded talker dubs them in this process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infinitetalk.media.encode import PartEncoder
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.resources import Resources
from infinitetalk.worker.job.resume import JobStates
from infinitetalk.worker.job.run import run_job
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stop import Stop
from tools.frames import read_frames
from tools.talker.faces import Place, Pose, draw, random_face

STRENGTHS = (0.3, 0.6, 1.0)
#: The default, that of recipes of few steps, and none.
SHIFTS = (7.0, 2.0, 1.0)
SIDE, NUM_FRAMES = 256, 81
#: The camera sways by so many pixels, across and up, in so many frames.
SWAY, PERIODS = (12.0, 6.0), (32.0, 23.0)
PERSON = Place(y=0.14, size=0.72)
#: Share of a pixel that shows the wall, from which it counts as background.
WALL_SHARE = 0.8
SPEECH = Path(__file__).parents[1] / "examples" / "media" / "speech.wav"
JOB: dict[str, Any] = {
    "prompt": "A drawn person talks to the camera",
    "cond_video": "film.mp4",
    "cond_audio": {"person1": "speech.wav"},
    "mode": "streaming",
    "frame_num": 33,
    "motion_frame": 9,
    "sample_steps": 10,
    "sample_text_guide_scale": 1.0,
    "sample_audio_guide_scale": 2.0,
    "color_correction_strength": 0.0,
    "output_config": {"store": "volume"},
}


@dataclass(frozen=True)
class Dubbed:
    """One strength at one shift of the noise schedule.

    Attributes:
        correlation: of the background's mean flow, frame by frame, with the film's.
        gain: the flow's size over the film's, by least squares.
        planned, evaluations: network evaluations, as the dry run said and as made.
        seconds: of the job.
    """

    shift: float
    strength: float
    correlation: float
    gain: float
    planned: int
    evaluations: int
    seconds: float


def make_film(num_frames: int = NUM_FRAMES, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """A film, uint8 (num_frames, side, side, 3), and its background, bool (side, side)."""
    face = random_face(np.random.default_rng(3))
    # What a black and a white wall show tells each pixel's share of the wall.
    black, white = (draw([(face, Pose(), PERSON)], (wall,) * 3, side, side).astype(np.float32) for wall in (0, 255))
    wall = (white - black).mean(axis=2, keepdims=True) / 255
    frames = [np.clip(black + wall * pattern(index, side), 0, 255).astype(np.uint8) for index in range(num_frames)]
    return np.stack(frames), wall[..., 0] > WALL_SHARE


def pattern(index: int, side: int) -> np.ndarray:
    """The wall as the camera sees it in a frame: float32 (side, side, 3), 0…255."""
    (across, up), (long, short) = SWAY, PERIODS
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / (side / SIDE)
    columns = columns + across * np.sin(2 * np.pi * index / long)
    rows = rows + up * np.sin(2 * np.pi * index / short)
    waves = [np.sin(columns / 11 + rows / 23), np.sin(rows / 13 - columns / 29), np.sin(columns / 17 + rows / 15)]
    return np.stack([140 + 70 * wave for wave in waves], axis=-1)


def background_flow(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Mean optical flow of the background from each frame to the next: (T - 1, 2), pixels across and down.

    Args:
        frames: uint8 (T, height, width, 3).
        background: bool (height, width).
    """
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    inner = cv2.erode(background.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    flows = []
    for one, other in pairwise(greys):
        flow = cv2.calcOpticalFlowFarneback(one, other, np.zeros((*one.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0)
        flows.append(flow[inner].mean(axis=0))
    return np.array(flows)


def compare(frames: np.ndarray, film: np.ndarray, background: np.ndarray) -> tuple[float, float]:
    """Correlation and gain of a video's background flow against the film's, both at the video's size."""
    height, width = frames.shape[1:3]
    small = np.stack(
        [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in film[: len(frames)]]
    )
    mask = cv2.resize(background.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    found, own = background_flow(frames, mask).ravel(), background_flow(small, mask).ravel()
    return float(np.corrcoef(found, own)[0, 1]), float(found @ own / (own @ own))


def dub(
    engine: Engine, settings: Settings, shift: float, strength: float, film: np.ndarray, background: np.ndarray
) -> Dubbed:
    """Plans and makes the film at a shift and a strength.

    Raises:
        RuntimeError: the job failed.
    """
    job = JOB | {"max_frame_num": len(film), "sample_shift": shift, "dub": {"strength": strength, "keep": "none"}}
    resources = Resources(settings, engine, JobStates(settings))
    results = []
    for name, more in (("plan", {"dry_run": True}), (f"film-{shift:g}-{strength:g}", {})):
        begin = time.perf_counter()
        payload = {"id": name, "input": job | more}
        result = run_job(payload, settings, lambda: resources, lambda event: None, Stop())
        if "error" in result:
            raise RuntimeError(result["error"]["message"])
        results.append(result)
    seconds = time.perf_counter() - begin
    plan, made = results
    frames = read_frames(settings.output_dir / made["video"]["path"])
    correlation, gain = compare(frames, film, background)
    return Dubbed(shift, strength, correlation, gain, plan["evaluations"], made["evaluations"], seconds)


def measure(
    folder: Path,
    strengths: tuple[float, ...] = STRENGTHS,
    shifts: tuple[float, ...] = SHIFTS,
    num_frames: int = NUM_FRAMES,
) -> list[Dubbed]:
    """The film at each shift and strength; `folder` takes the film and the results."""
    film, background = make_film(num_frames)
    encoder = PartEncoder(folder / "film.mp4", *film.shape[1:3])
    encoder.write(film)
    encoder.close()
    (folder / "speech.wav").write_bytes(SPEECH.read_bytes())
    settings = Settings(output_dir=folder, volume_dir=folder, infinitetalk_model="talker")
    engine = Engine(settings)
    engine.start()
    return [dub(engine, settings, shift, strength, film, background) for shift in shifts for strength in strengths]


def main(strengths: tuple[float, ...] = STRENGTHS) -> None:
    """Prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), strengths)
    columns = ("shift", "strength", "correlation", "gain", "evaluations planned", "made", "seconds")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for each in found:
        print(
            f"| {each.shift:g} | {each.strength:g} | {each.correlation:.2f} | {each.gain:.2f} | {each.planned} | "
            f"{each.evaluations} | {each.seconds:.1f} |"
        )


if __name__ == "__main__":
    main(tuple(map(float, sys.argv[1:])) or STRENGTHS)

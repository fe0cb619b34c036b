"""Measures what a film that is dubbed costs beside the networks: seconds of one core for a megapixel of each frame.

    python -m benchmarks.film_costs [--seconds 2]

The film is that of `benchmarks.dub`. Decoding, which runs in a child process, counts.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.dub import FILM_RATE, make_film
from infinitetalk.dubbing.composite import lay_over, soft_region
from infinitetalk.dubbing.motion import Motion
from infinitetalk.dubbing.view import View, window_around
from infinitetalk.media.decode import even_frames, film_frames
from infinitetalk.media.encode import PartEncoder
from infinitetalk.media.face_tracks import FaceTracker
from infinitetalk.media.faces import FaceDetector
from infinitetalk.media.speech import VIDEO_FPS

#: Height and width of a film, and the side of a person's square in it.
SHAPES = ((720, 1280, 300), (1080, 1920, 450))
#: Height and width of what is generated of it.
GENERATED = (448, 896)


def core_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def seconds_of(run: Callable[[], None]) -> float:
    """Processor time of a call."""
    begin = core_seconds()
    run()
    return core_seconds() - begin


def costs(folder: Path, shape: tuple[int, int, int], seconds: float) -> dict[str, float]:
    """Seconds of one core for a megapixel of a frame, by what is done."""
    film = make_film(folder, seconds, shape)
    height, width, _ = shape
    num_frames = len(film.cameras)
    boxes = [[round(edge) for edge in film.cameras[0].box(box)] for box in film.boxes]
    motions, regions = [], []
    for x_min, y_min, x_max, y_max in boxes:
        mask = np.zeros((height, width), bool)
        mask[y_min:y_max, x_min:x_max] = True
        motions.append(Motion.still(((x_min + x_max) / 2, (y_min + y_max) / 2), num_frames))
        regions.append(soft_region(mask, None, motions[-1]))
    view = View(window_around(boxes, 0.0, (height, width), GENERATED), *GENERATED, motions)
    generated = np.random.default_rng(0).integers(0, 256, (*GENERATED, 3), np.uint8)
    detector = FaceDetector()

    def decode(count: int) -> None:
        with film_frames(film.path, 0, count) as frames:
            for _ in frames:
                pass

    def follow(count: int) -> None:
        tracker = FaceTracker(detector, search_every=None)
        with film_frames(film.path, 0, count) as frames:
            for pixels in frames:
                tracker.add(pixels)

    def lay(count: int) -> None:
        encoder = PartEncoder(folder / "laid.mp4", height, width, FILM_RATE)
        with film_frames(film.path, 0, count) as frames:
            for number, pixels in enumerate(frames):
                frame = pixels.copy()
                lay_over(frame, generated, view.placement(number), regions, number)
                encoder.write(frame[None])
        encoder.close()

    def read(count: int) -> None:
        with even_frames(film.path, 0, count) as frames:
            for index, pixels in enumerate(frames):
                view.cut(pixels, index)

    megapixels = height * width / 1e6
    few, many = num_frames // 4, int(num_frames * VIDEO_FPS / FILM_RATE)
    parts = {
        "decode": decode,
        "decode and follow two faces": follow,
        "decode, lay over two regions and encode": lay,
        "decode and cut out what sampling starts from": read,
    }
    # What does not depend on the number of frames is left out: processes that start, a film that is looked at.
    return {
        what: (seconds_of(partial(run, many)) - seconds_of(partial(run, few))) / ((many - few) * megapixels)
        for what, run in parts.items()
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    for number, shape in enumerate(SHAPES):
        with tempfile.TemporaryDirectory() as folder:
            found = costs(Path(folder), shape, seconds)
        if number == 0:
            print("| film | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|")
        height, width, _ = shape
        print(f"| {width}x{height} | " + " | ".join(f"{each:.4f}" for each in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()

"""Measures the faces that are found in photographs and drawings against boxes set by hand, and what that costs.

    python -m benchmarks.faces

scikit-image brings one of the photographs (requirements-bench.txt).
"""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from infinitetalk.media.face_tracks import FaceTracker
from infinitetalk.media.faces import FaceDetector, overlap

MEDIA = Path(__file__).parents[1] / "examples/media"

SET_BY_HAND: dict[str, list[tuple[int, int, int, int]]] = {
    "portrait.jpg": [(168, 82, 262, 178)],
    "two_speakers.jpg": [(134, 62, 208, 138), (432, 62, 506, 138)],
    "two_people.jpg": [(132, 71, 204, 142), (406, 124, 548, 246)],
    "drawn_portrait.png": [(85, 120, 435, 480)],
    "drawn_pair.png": [(45, 85, 275, 298), (367, 85, 592, 298)],
}
"""x_min, y_min, x_max, y_max from the brows to the chin and from cheek to cheek, set before anything was found."""

ASTRONAUT = (178, 84, 272, 182)
"""The same in scikit-image's photograph."""

REPEATS = 5


def main() -> None:
    """Prints the measurements."""
    detector = FaceDetector()
    pictures = {name: (MEDIA / name, boxes) for name, boxes in SET_BY_HAND.items()}
    pictures["astronaut.png"] = (Path(str(files("skimage"))) / "data/astronaut.png", [ASTRONAUT])
    for name, (path, boxes) in pictures.items():
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
        found = detector.find(picture)
        shared = [max((overlap(face.box, box) for face in found), default=0.0) for box in boxes]
        shown = ", ".join(f"{share:.2f}" for share in shared)
        print(f"{name}: {len(found)} found of {len(boxes)}; shares of the union with the boxes set by hand: {shown}")
    for height, width in ((320, 640), (720, 1280), (1080, 1920)):
        with Image.open(MEDIA / "two_speakers.jpg") as image:
            picture = np.asarray(image.convert("RGB").resize((width, height)))
        begin = time.process_time()
        for _ in range(REPEATS):
            detector.find(picture)
        searching = (time.process_time() - begin) / REPEATS
        tracker = FaceTracker(detector, search_every=None)
        tracker.add(picture)
        begin = time.process_time()
        for _ in range(REPEATS):
            tracker.add(picture)
        following = (time.process_time() - begin) / REPEATS
        print(f"{width}x{height}, two faces: {1000 * searching:.0f} ms to search, {1000 * following:.1f} ms to follow")


if __name__ == "__main__":
    main()

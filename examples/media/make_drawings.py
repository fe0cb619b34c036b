"""Draws the portraits that the embedded model can speak for.

    .venv/bin/python -m examples.media.make_drawings

writes drawn_portrait.png (one person) and drawn_pair.png (two, side by side) beside this file.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from examples.tiny.faces import Place, random_background, random_face
from examples.tiny.scenes import Scene

HERE = Path(__file__).parent
#: Of people whom no clip of the training shows: its generators take other seeds.
SEEDS = (14, 11)
PORTRAIT_SIDE = 512
PAIR_HEIGHT = 320


def main() -> None:
    """Writes both pictures."""
    generators = [np.random.default_rng(seed) for seed in SEEDS]
    faces = [random_face(generator) for generator in generators]
    background = random_background(generators[0])
    one = Scene(PORTRAIT_SIDE, PORTRAIT_SIDE, faces[:1], [Place()], background)
    Image.fromarray(one.portrait()).save(HERE / "drawn_portrait.png", optimize=True)
    two = Scene(PAIR_HEIGHT, 2 * PAIR_HEIGHT, faces, [Place(), Place()], background)
    Image.fromarray(two.portrait()).save(HERE / "drawn_pair.png", optimize=True)


if __name__ == "__main__":
    main()

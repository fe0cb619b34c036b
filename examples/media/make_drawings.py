"""Draws the portraits that the embedded model can speak for.

    .venv/bin/python -m examples.media.make_drawings

writes drawn_portrait.png (one person) and drawn_pair.png (two, side by side) beside this file.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from examples.tiny.faces import Pose, draw, random_background, random_face

HERE = Path(__file__).parent
#: Of people whom no clip of the training shows: its generators take other seeds.
SEEDS = (14, 11)
PORTRAIT_SIDE = 512
PAIR_HEIGHT = 320


def main() -> None:
    """Writes both pictures."""
    generators = [np.random.default_rng(seed) for seed in SEEDS]
    people = [(random_face(generator), Pose()) for generator in generators]
    background = random_background(generators[0])
    portrait = draw(people[:1], background, PORTRAIT_SIDE, PORTRAIT_SIDE)
    Image.fromarray(portrait).save(HERE / "drawn_portrait.png", optimize=True)
    pair = draw(people, background, PAIR_HEIGHT, 2 * PAIR_HEIGHT)
    Image.fromarray(pair).save(HERE / "drawn_pair.png", optimize=True)


if __name__ == "__main__":
    main()

"""Makes the README's animation from videos of the worker: side by side, enlarged, without sound.

.venv/bin/python -m tools.example_media.make_animation VIDEO.mp4 …
"""

import sys
from pathlib import Path

from PIL import Image

from tools.frames import read_frames

DESTINATION = Path(__file__).parents[2] / "docs" / "images" / "talker.gif"
HEIGHT = 144
#: GIFs cannot hold 25 frames per second: every second frame is shown, for 80 ms.
STRIDE, FRAME_MS = 2, 80


def main() -> None:
    """Writes the animation into the documents' folder."""
    videos = [read_frames(Path(path))[::STRIDE] for path in sys.argv[1:]]
    pictures = []
    for frames in zip(*videos, strict=False):
        enlarged = [
            Image.fromarray(frame).resize((HEIGHT * frame.shape[1] // frame.shape[0], HEIGHT), Image.Resampling.LANCZOS)
            for frame in frames
        ]
        strip = Image.new("RGB", (sum(picture.width for picture in enlarged), HEIGHT))
        left = 0
        for picture in enlarged:
            strip.paste(picture, (left, 0))
            left += picture.width
        pictures.append(strip.quantize(64, dither=Image.Dither.NONE))
    pictures[0].save(DESTINATION, save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0)


if __name__ == "__main__":
    main()

"""Makes the example images of two speakers and the example video from portrait.jpg.

    .venv/bin/python -m tools.example_media.make_pictures   # with what make bench installs

writes two_speakers.jpg (the portrait and its mirror image, side by side), two_people.jpg (the portrait and that of
another person, which matplotlib ships) and talk.mp4 (a camera that moves slowly over the portrait for 4 s, 25 fps,
H.264) into examples/media.
"""

import math
from pathlib import Path

import av
from matplotlib import get_data_path
from PIL import Image, ImageOps

HERE = Path(__file__).parents[2] / "examples" / "media"
FPS, NUM_FRAMES = 25, 100
SIDE = 256
#: Head and shoulders in matplotlib's picture of 512×600.
HOPPER = (62, 10, 472, 420)


def two_speakers(portrait: Image.Image) -> Image.Image:
    """The portrait and its mirror image, so that the two look at each other."""
    picture = Image.new("RGB", (2 * portrait.width, portrait.height))
    picture.paste(portrait, (0, 0))
    picture.paste(ImageOps.mirror(portrait), (portrait.width, 0))
    return picture


def two_people(portrait: Image.Image) -> Image.Image:
    """The portrait and that of Grace Hopper, with heads of about the same size."""
    with Image.open(get_data_path() + "/sample_data/grace_hopper.jpg") as other:
        second = other.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, HOPPER)
    picture = Image.new("RGB", (2 * SIDE, SIDE))
    picture.paste(portrait.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (0, 0))
    picture.paste(second, (SIDE, 0))
    return picture.resize((640, 320), Image.Resampling.LANCZOS)


def camera_view(portrait: Image.Image, frame: int) -> Image.Image:
    """The camera's view in one frame: it closes in, and sways from side to side."""
    progress = frame / NUM_FRAMES
    side = portrait.width * (0.95 - 0.2 * progress)
    left = (portrait.width - side) * (0.5 + 0.4 * math.sin(2 * math.pi * progress))
    top = (portrait.height - side) * 0.3
    return portrait.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def write_video(portrait: Image.Image, path: Path) -> None:
    """Encodes the camera's views."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, width=SIDE, height=SIDE, pix_fmt="yuv420p")
        stream.options = {"crf": "26", "preset": "slow"}
        for frame in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(camera_view(portrait, frame))))
        container.mux(stream.encode(None))


def main() -> None:
    """Writes the files."""
    portrait = Image.open(HERE / "portrait.jpg").convert("RGB")
    two_speakers(portrait).resize((640, 320), Image.Resampling.LANCZOS).save(HERE / "two_speakers.jpg", quality=88)
    two_people(portrait).save(HERE / "two_people.jpg", quality=88)
    write_video(portrait, HERE / "talk.mp4")


if __name__ == "__main__":
    main()

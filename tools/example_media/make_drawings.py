"""Draws portraits and a video that suit the embedded model.

    .venv/bin/python -m tools.example_media.make_drawings

writes drawn_portrait.png (one person), drawn_pair.png (two, side by side) and drawn_video.mp4 (one who listens for 4 s,
25 fps, H.264, while the camera moves) into examples/media.
"""

import math
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from infinitetalk.media.speech import VIDEO_FPS
from tools.talker.faces import Place, poses, random_background, random_face
from tools.talker.rule import MouthTrack
from tools.talker.scenes import Scene

HERE = Path(__file__).parents[2] / "examples" / "media"
#: Seeds of people who are in no training clip: the training's generators have other seeds.
SEEDS = (14, 11)
VIDEO_SEED = 21
PORTRAIT_SIDE = 512
PAIR_HEIGHT = 320
VIDEO_SIDE = 256
VIDEO_FRAMES = 4 * VIDEO_FPS


def camera_view(scene: Scene, frame: int) -> Scene:
    """The camera's view in one frame: it closes in, and sways from side to side."""
    progress = frame / VIDEO_FRAMES
    return replace(scene, places=[Place(x=0.04 * math.sin(2 * math.pi * progress), size=0.9 + 0.12 * progress)])


def write_video(scene: Scene, path: Path) -> None:
    """Encodes one person, who blinks and says nothing."""
    silent = MouthTrack(np.zeros(VIDEO_FRAMES), np.full(VIDEO_FRAMES, 0.5))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS, width=VIDEO_SIDE, height=VIDEO_SIDE, pix_fmt="yuv420p")
        stream.options = {"crf": "20", "preset": "slow"}
        for frame, pose in enumerate(poses(scene.faces[0], silent)):
            picture = av.VideoFrame.from_ndarray(camera_view(scene, frame).draw([pose]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def main() -> None:
    """Writes the pictures and the video."""
    generators = [np.random.default_rng(seed) for seed in SEEDS]
    faces = [random_face(generator) for generator in generators]
    background = random_background(generators[0])
    one = Scene(PORTRAIT_SIDE, PORTRAIT_SIDE, faces[:1], [Place()], background)
    Image.fromarray(one.portrait()).save(HERE / "drawn_portrait.png", optimize=True)
    two = Scene(PAIR_HEIGHT, 2 * PAIR_HEIGHT, faces, [Place(), Place()], background)
    Image.fromarray(two.portrait()).save(HERE / "drawn_pair.png", optimize=True)
    generator = np.random.default_rng(VIDEO_SEED)
    listener = Scene(VIDEO_SIDE, VIDEO_SIDE, [random_face(generator)], [Place()], random_background(generator))
    write_video(listener, HERE / "drawn_video.mp4")


if __name__ == "__main__":
    main()

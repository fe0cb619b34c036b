"""Measures a dubbed film on the embedded talker: what stays of the film, and how the dubbed mouths follow.

    python -m benchmarks.dub [--seconds 10] [--only face]

makes a film of 1280×720 at 29.97 frames a second, in which the camera moves past two drawn people and a bystander, dubs
the two with `dub.keep` "face" and "all", and measures the MP4s that the worker wrote.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image
from scipy.ndimage import gaussian_filter

from infinitetalk.dubbing.composite import Placement, drawn_from, face_mask, soft_region
from infinitetalk.dubbing.motion import Motion
from infinitetalk.media.encode import PartEncoder
from infinitetalk.media.faces import FaceDetector
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS
from tools.talker.faces import Place, Pose, poses, random_background, random_face
from tools.talker.jobs import PARAMETERS, TalkerWorker
from tools.talker.measure import correlation, read_openings, read_openings_as_shown
from tools.talker.rule import SAMPLES_A_FRAME, MouthTrack, follow_speech
from tools.talker.scenes import Scene
from tools.talker.voices import HELD_OUT_VOICES, random_speech

FILM_RATE = Fraction(30_000, 1001)
SEED = 1913
#: Height and width of the film, and the side of a person's square in it.
LARGE, SMALL = (720, 1280, 300), (360, 640, 150)
#: Of so many frames the soft edge is measured in one.
SEAM_EVERY = 5
#: Side of the square in which a mouth is measured.
MEASURED_SIDE = 128


@dataclass(frozen=True)
class Camera:
    """The camera in one frame: the point of the world at the film's left upper corner, and the film's pixels to a pixel
    of the world."""

    x: float
    y: float
    zoom: float

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box of the world in the film's pixels."""
        x_min, y_min, x_max, y_max = box
        left, top = (x_min - self.x) * self.zoom, (y_min - self.y) * self.zoom
        return left, top, (x_max - self.x) * self.zoom, (y_max - self.y) * self.zoom


@dataclass(frozen=True)
class MadeFilm:
    """A film of two people, of whom nobody speaks, and a bystander.

    Attributes:
        path: the film.
        boxes: each speaker's square in the world.
        cameras: the camera in each frame.
        pair: the two as a picture by itself.
        voices: sound files.
        rules: how the mouths should move.
    """

    path: Path
    boxes: list[tuple[float, float, float, float]]
    cameras: list[Camera]
    pair: Path
    voices: list[Path]
    rules: list[MouthTrack]

    def bbox(self) -> dict[str, list[float]]:
        """The job's boxes."""
        boxes = [self.cameras[0].box(box) for box in self.boxes]
        return {f"person{number}": [float(round(edge)) for edge in box] for number, box in enumerate(boxes, start=1)}


def make_film(folder: Path, seconds: float, shape: tuple[int, int, int] = LARGE) -> MadeFilm:
    """Draws the film, and speech of the same length."""
    height, width, side = shape
    generator = np.random.default_rng(SEED)
    faces = [random_face(generator) for _ in range(3)]
    background = random_background(generator)
    num_frames = int(seconds * FILM_RATE)
    world = _wall(generator, round(1.25 * height), round(1.25 * width))
    left, top = round(0.16 * width), round(0.42 * height)
    aside, above = left + 2 * side + round(0.1 * width), top - round(0.12 * height)
    silent = MouthTrack(np.zeros(num_frames), np.full(num_frames, 0.5))
    told = [poses(face, silent) for face in faces]
    cameras = [_camera(number / FILM_RATE, seconds, height, width) for number in range(num_frames)]
    pair = Scene(side, 2 * side, faces[:2], [Place(), Place()], background)
    bystander = Scene(side, side, faces[2:], [Place()], background)
    path = folder / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FILM_RATE, width=width, height=height, pix_fmt="yuv420p")
        stream.options = {"crf": "14", "preset": "fast"}
        for number, camera in enumerate(cameras):
            world[top : top + side, left : left + 2 * side] = pair.draw([told[0][number], told[1][number]])
            world[above : above + side, aside : aside + side] = bystander.draw([told[2][number]])
            affine = (1 / camera.zoom, 0, camera.x, 0, 1 / camera.zoom, camera.y)
            kernel = Image.Resampling.BICUBIC
            seen = Image.fromarray(world).transform((width, height), Image.Transform.AFFINE, affine, kernel)
            container.mux(stream.encode(av.VideoFrame.from_image(seen)))
        container.mux(stream.encode(None))
    portrait = folder / "pair.png"
    Image.fromarray(Scene(512, 1024, faces[:2], [Place(), Place()], background).draw([Pose(), Pose()])).save(portrait)
    voices, rules = [], []
    for person in range(2):
        waveform = random_speech(generator, HELD_OUT_VOICES, round(seconds * VIDEO_FPS) * SAMPLES_A_FRAME)
        voices.append(folder / f"voice-{person}.wav")
        soundfile.write(voices[-1], waveform, SAMPLING_RATE)
        rules.append(follow_speech(waveform))
    boxes = [(float(x), float(top), float(x + side), float(top + side)) for x in (left, left + side)]
    return MadeFilm(path, boxes, cameras, portrait, voices, rules)


def job_input(film: MadeFilm, root: Path, **changes: Any) -> dict[str, Any]:
    """A job that dubs the film."""
    speech = {f"person{number}": str(voice.relative_to(root)) for number, voice in enumerate(film.voices, start=1)}
    return {**PARAMETERS, "cond_video": str(film.path.relative_to(root)), "cond_audio": speech, **changes}


@dataclass(frozen=True)
class Measured:
    """What is found of a dubbed film.

    Attributes:
        times: seconds at which its frames begin, and those of the film.
        psnr, psnr_encoded: dB to the film outside the regions: of the dubbed film, and of the film encoded again.
        mouths: correlation of each mouth with its own voice.
        others: the same with the other's voice.
        seam: mean gradient across the soft edge, as a multiple of the film's there.
        end_s: seconds from the end of the pictures to the end of the sound.
    """

    times: np.ndarray
    film_times: np.ndarray
    psnr: float
    psnr_encoded: float
    mouths: list[float]
    others: list[float]
    seam: float
    end_s: float


def measure(film: MadeFilm, dubbed: Path, folder: Path, keep: str, feather: float) -> Measured:
    """Measures a dubbed film.

    Args:
        keep: what was kept.
        feather: width of the soft edge in pixels.
    """
    edges = soft_edges(film, keep, feather)
    encoded = folder / "again.mp4"
    _encode(film.path, encoded)
    errors, encoded_errors, gradients, film_gradients = [], [], [], []
    times, film_times = [], []
    squares: list[list[np.ndarray]] = [[], []]
    for camera, (time, result), (film_time, source), (_, again) in zip(
        film.cameras, read(dubbed), read(film.path), read(encoded), strict=False
    ):
        times.append(time)
        film_times.append(film_time)
        boxes = [camera.box(box) for box in film.boxes]
        for person, box in enumerate(boxes):
            squares[person].append(_square(result, box))
        # The movement is known to a pixel or two: the border itself is neither inside nor outside.
        outside = ~_within(boxes, 3, source)
        errors.append(np.square(result[outside].astype(float) - source[outside]).mean())
        encoded_errors.append(np.square(again[outside].astype(float) - source[outside]).mean())
        if len(times) % SEAM_EVERY == 1:
            edge = _moved(edges, film.cameras[0], camera)
            gradients.append(_gradient(result)[edge].mean())
            film_gradients.append(_gradient(source)[edge].mean())
    shown = np.array(times)
    openings = [read_openings_as_shown(np.stack(found))[1:] for found in squares]
    rules = [np.interp(shown[1:], np.arange(len(rule.opening)) / VIDEO_FPS, rule.opening) for rule in film.rules]
    return Measured(
        times=shown,
        film_times=np.array(film_times),
        psnr=_psnr(errors),
        psnr_encoded=_psnr(encoded_errors),
        mouths=[correlation(opening, rule) for opening, rule in zip(openings, rules, strict=True)],
        others=[correlation(opening, rule) for opening, rule in zip(openings, rules[::-1], strict=True)],
        seam=float(np.mean(gradients) / np.mean(film_gradients)),
        end_s=_end_of_sound(dubbed),
    )


def soft_edges(film: MadeFilm, keep: str, feather: float) -> np.ndarray:
    """Where in the film's first frame what is generated fades in: float32 (height, width), 1 there and 0 elsewhere."""
    _, frame = next(read(film.path))
    faces = FaceDetector().find(frame)
    edges = np.zeros(frame.shape[:2], np.float32)
    for box in film.boxes:
        mask = _within([film.cameras[0].box(box)], 0, frame)
        if keep == "face":
            (face,) = (face for face in faces if mask[int(face.centre[1]), int(face.centre[0])])
            mask &= face_mask(face, *mask.shape)
        region = soft_region(mask, feather, Motion.still((0, 0), 1))
        at = Placement(region.left, region.top, 1, 0, 0)
        weights = drawn_from(region.weights, at, *mask.shape, beyond=0)
        edges[(weights > 0.02) & (weights < 0.98)] = 1
    return edges


def _moved(marks: np.ndarray, first: Camera, camera: Camera) -> np.ndarray:
    """Marks of the first frame, float32 (height, width), as the camera shows them: bool (height, width)."""
    x, y = (first.x - camera.x) * camera.zoom, (first.y - camera.y) * camera.zoom
    return drawn_from(marks, Placement(x, y, camera.zoom / first.zoom, 0, 0), *marks.shape, beyond=0) > 0.5


def video_bytes(frames: Sequence[np.ndarray], rate: Fraction = Fraction(VIDEO_FPS)) -> bytes:
    """An MP4 of frames, uint8 (height, width, 3) each."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        height, width = frames[0].shape[:2]
        stream = container.add_stream("libx264", rate=rate, width=width, height=height, pix_fmt="yuv420p")
        stream.options = {"crf": "10"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def read(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """A video's frames, each with its time in seconds: uint8 (height, width, 3)."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.time, frame.to_ndarray(format="rgb24")


def _encode(film: Path, output: Path) -> None:
    """Encodes a film as the worker encodes its frames."""
    encoder: PartEncoder | None = None
    for _, frame in read(film):
        encoder = encoder or PartEncoder(output, *frame.shape[:2], FILM_RATE)
        encoder.write(frame[None])
    assert encoder is not None
    encoder.close()


def _camera(seconds: Fraction | float, length: float, height: int, width: int) -> Camera:
    """It pans to the right, shakes a little, and closes in."""
    time = float(seconds)
    progress = time / length
    x = width * (0.02 + 0.10 * progress) + 2.5 * np.sin(5.1 * time)
    y = height * (0.14 + 0.05 * np.sin(0.9 * time)) + 1.5 * np.sin(4.3 * time)
    return Camera(float(x), float(y), 1 + 0.06 * progress)


def _wall(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wall with a pattern at several scales: uint8 (height, width, 3)."""
    wall = np.zeros((height, width, 3))
    for scale, level in ((1.2, 18), (6, 30), (40, 60)):
        noise = gaussian_filter(generator.normal(size=(height, width, 3)), (scale, scale, 0))
        wall += level * noise / noise.std()
    return (128 + 0.6 * wall).clip(0, 255).astype(np.uint8)


def _within(boxes: Sequence[tuple[float, float, float, float]], margin: float, frame: np.ndarray) -> np.ndarray:
    """The pixels of a frame in any of these boxes, each larger by a margin on each side: bool (height, width)."""
    inside = np.zeros(frame.shape[:2], bool)
    for x_min, y_min, x_max, y_max in boxes:
        rows = slice(max(int(np.floor(y_min - margin)), 0), max(int(np.ceil(y_max + margin)), 0))
        inside[rows, max(int(np.floor(x_min - margin)), 0) : max(int(np.ceil(x_max + margin)), 0)] = True
    return inside


def _square(frame: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """A box of a frame, uint8 (`MEASURED_SIDE`, `MEASURED_SIDE`, 3)."""
    size = (MEASURED_SIDE, MEASURED_SIDE)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX, box))


def _gradient(frame: np.ndarray) -> np.ndarray:
    """How much each pixel's luma differs from its neighbours': float64 (height, width)."""
    luma = frame @ np.array([0.299, 0.587, 0.114])
    return np.hypot(*np.gradient(luma))


def _psnr(errors: list[float]) -> float:
    return float(10 * np.log10(255**2 / np.mean(errors)))


def _end_of_sound(path: Path) -> float:
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        ends = [float(stream.duration * stream.time_base) for stream in (video, sound)]
    return ends[1] - ends[0]


def plain_mouths(film: MadeFilm, worker: TalkerWorker, folder: Path) -> list[float]:
    """Correlation of each mouth with its voice in the plain video of the two."""
    result = worker.run(job_input(film, folder, cond_video=str(film.pair.relative_to(folder))))
    frames = np.stack([frame for _, frame in read(folder / result["video"]["path"])])
    openings = read_openings(frames, 2)[:, 1:]
    return [correlation(opening, rule.opening[1:]) for opening, rule in zip(openings, film.rules, strict=True)]


def main() -> None:
    """Prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the film")
    parser.add_argument("--small", action="store_true", help="a film of 640×360")
    parser.add_argument("--only", choices=["face", "all"], help="value of dub.keep; both by default")
    parser.add_argument("--folder", type=Path, help="folder for the film and the videos")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        shape = SMALL if arguments.small else LARGE
        film = make_film(folder, arguments.seconds, shape)
        worker = TalkerWorker(folder)
        print("plain job, mouths:", [f"{value:.3f}" for value in plain_mouths(film, worker, folder)], flush=True)
        feather = shape[2] / 8
        for keep in [arguments.only] if arguments.only else ["face", "all"]:
            changes = {"dub": {"keep": keep, "margin": 0, "feather": feather}, "bbox": film.bbox()}
            result = worker.run(job_input(film, folder, max_frame_num=round(arguments.seconds * VIDEO_FPS), **changes))
            found = measure(film, folder / result["video"]["path"], folder, keep, feather)
            late = np.abs(found.times - found.film_times[: len(found.times)]).max()
            print(f"keep {keep}: {len(found.times)} frames at {result['video']['fps']} a second")
            print(f"  frames' times: within {1000 * late:.2f} ms of the film's")
            print(f"  outside the regions: {found.psnr:.2f} dB; the film encoded again: {found.psnr_encoded:.2f} dB")
            print("  mouths:", [f"{value:.3f}" for value in found.mouths], "other's voice:", found.others)
            print(f"  gradient across the soft edge: {found.seam:.3f} times the film's")
            print(f"  the sound ends {1000 * found.end_s:.1f} ms after the pictures")
            print("  warnings:", result["warnings"], "timings:", result["timings"], flush=True)


if __name__ == "__main__":
    main()

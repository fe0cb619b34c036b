"""Makes small media files for tests, with the ffmpeg binary of the imageio-ffmpeg wheel.

Frames carry a number: nine bars, black or white, are its bits (the first bar is the highest), so a decoded frame tells
which one it is after any codec, and which way up it is.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np

NUM_BITS = 9
HEIGHT, WIDTH = 48, 144


def run_ffmpeg(*arguments: str | Path, stdin: bytes | None = None) -> None:
    """Runs the wheel's ffmpeg; a failure shows its log."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    result = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()


def numbered_frame(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that shows a number below 512: uint8 (height, width, 3)."""
    bits = [number >> (NUM_BITS - 1 - bit) & 1 for bit in range(NUM_BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, -(-width // NUM_BITS))[:width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_number(frame: np.ndarray) -> int:
    """The number that a frame (height, width, 3) shows."""
    width = frame.shape[1]
    bar = -(-width // NUM_BITS)
    centres = [min(bar * bit + bar // 2, width - 1) for bit in range(NUM_BITS)]
    middle = frame.shape[0] // 2
    bits = [int(frame[middle - 2 : middle + 2, centre - 1 : centre + 1].mean() > 127) for centre in centres]
    return sum(bit << (NUM_BITS - 1 - place) for place, bit in enumerate(bits))


def make_numbered_video(
    path: Path,
    numbers: Iterable[int],
    rate: str,
    *options: str,
    filters: str = "null",
    codec: tuple[str, ...] = ("libx264",),
) -> None:
    """Writes a video of numbered frames: `rate` frames a second, then through `filters`, each keeping its timestamp."""
    pixels = b"".join(numbered_frame(number).tobytes() for number in numbers)
    size = f"{WIDTH}x{HEIGHT}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", rate, "-i", "pipe:")
    encode = ("-vf", filters, "-fps_mode", "passthrough", "-c:v", *codec, *options)
    run_ffmpeg(*source, *encode, path, stdin=pixels)


def make_sound(path: Path, seconds: float, *options: str, rate: int = 44_100, expression: str | None = None) -> None:
    """Writes a sound: 440 Hz at half scale, or `expression` of ffmpeg's aevalsrc (one channel a `|`)."""
    source = f"aevalsrc='{expression or '0.5*sin(2*PI*440*t)'}':s={rate}:d={seconds}"
    run_ffmpeg("-f", "lavfi", "-i", source, *options, path)

"""Makes small media files for tests, with the ffmpeg binary of the imageio-ffmpeg wheel.

Frames carry a number: nine bars, black or white, are its bits (the first bar is the highest), so a decoded frame tells
which one it is after any codec, and which way up it is.
"""

import io
import struct
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

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


def make_tagged_video(path: Path, colour: str, conversion: str, tags: str, *options: str) -> None:
    """Writes five frames of one colour of sRGB (hex), converted by zscale (`p=…:t=…:m=…:r=…`), then told by `tags`.

    `tags` are setparams' options, which also take tags away ("color_primaries=unknown").
    """
    source = f"color={colour}:s=64x48:r=25:d=0.2,format=gbrp,setparams=color_primaries=bt709:color_trc=bt709"
    filters = f"zscale={conversion}:npl=203,format=yuv444p10le,setparams={tags}"
    floats = "zscale=t=linear:npl=203,format=gbrpf32le"
    chain = f"{source},{floats},{filters}"
    run_ffmpeg("-f", "lavfi", "-i", chain, *(options or ("-c:v", "libx264", "-qp", "0")), path)


def make_heic(path: Path, picture: Image.Image, turns: int = 0, mirror: int | None = None, icc: bytes = b"") -> None:
    """Writes a HEIC picture: HEVC by x265, and ISO boxes around it.

    Shown, it is turned by so many quarters counterclockwise, then mirrored about the axis `mirror` (0: top to bottom,
    1: left to right).
    """
    movie = path.with_suffix(".mp4")
    size = f"{picture.width}x{picture.height}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-i", "pipe:", "-vf", "scale=out_range=pc")
    encode = ("-c:v", "libx265", "-crf", "4", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p")
    run_ffmpeg(*source, *encode, movie, stdin=picture.convert("RGB").tobytes())
    data = movie.read_bytes()
    coded = _box_in(data, b"mdat")[8:]
    properties = [
        _box_in(data, b"hvcC"),
        _box(b"ispe", struct.pack(">III", 0, picture.width, picture.height)),
        _box(b"colr", b"prof" + icc if icc else b"nclx" + struct.pack(">HHHB", 1, 13, 6, 0x80)),
        _box(b"irot", bytes([turns])),
        *([] if mirror is None else [_box(b"imir", bytes([mirror]))]),
    ]

    def meta(offset: int) -> bytes:
        handler = _box(b"hdlr", struct.pack(">II4s12sx", 0, 0, b"pict", b""))
        item = _box(b"infe", struct.pack(">IHH4sx", 2 << 24, 1, 0, b"hvc1"))
        places = struct.pack(">IHHHHHII", 0, 0x4400, 1, 1, 0, 1, offset, len(coded))
        uses = struct.pack(">IIHB", 0, 1, 1, len(properties)) + bytes(range(0x81, 0x81 + len(properties)))
        return _box(
            b"meta",
            bytes(4)
            + handler
            + _box(b"pitm", struct.pack(">IH", 0, 1))
            + _box(b"iloc", places)
            + _box(b"iinf", struct.pack(">IH", 0, 1) + item)
            + _box(b"iprp", _box(b"ipco", b"".join(properties)) + _box(b"ipma", uses)),
        )

    head = _box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    path.write_bytes(head + meta(len(head) + len(meta(0)) + 8) + _box(b"mdat", coded))


def colour_profile(space: str, gamma: float | None = None) -> bytes:
    """An ICC profile: "P3", Display P3 (its curve sRGB's, or a `gamma`), or "GRAY", grey of a gamma."""
    if gamma is None:
        levels = np.arange(1024) / 1023
        light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        curve = struct.pack(">4s4xI", b"curv", 1024) + np.round(light * 65535).astype(">u2").tobytes()
    else:
        curve = struct.pack(">4s4xIHxx", b"curv", 1, round(gamma * 256))

    def xyz(*values: float) -> bytes:
        return struct.pack(">4s4x3i", b"XYZ ", *(round(value * 65536) for value in values))

    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"desc": struct.pack(">4s4xI80x", b"desc", 1),
        b"cprt": b"text" + bytes(8),
    }
    if space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rXYZ": xyz(0.51512, 0.24120, -0.00105), b"gXYZ": xyz(0.29198, 0.69225, 0.04189)}
        tags |= {b"bXYZ": xyz(0.15710, 0.06657, 0.78407), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, contents = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(contents), len(content))
        contents += content
    size = start + len(contents)
    mode = b"GRAY" if space == "GRAY" else b"RGB "
    head = struct.pack(">I4xI4s4s4s", size, 0x02400000, b"mntr", mode, b"XYZ ").ljust(36, b"\0") + b"acsp"
    return head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0") + table + contents


def png_with_chunk(picture: Image.Image, name: bytes, content: bytes) -> bytes:
    """A PNG with a chunk more, before its pixels."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = file.getvalue()
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data[:33] + chunk + data[33:]


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _box_in(data: bytes, name: bytes) -> bytes:
    start = data.index(name) - 4
    return data[start : start + struct.unpack(">I", data[start : start + 4])[0]]

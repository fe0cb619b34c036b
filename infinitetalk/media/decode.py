"""Decodes the files that users send: images, sound and video.

A child process decodes every file, so that a file that crashes or hangs a decoder costs one child and not the worker.
The child is ffmpeg, or Pillow (`picture_child.py`) for images that ffmpeg does not show correctly. It reads the file
from its standard input, opened through `/dev/stdin`: no name, extension or pattern in a path can change what is read,
and no path can reach an error message. It cannot open another file or address: the allowed containers cannot refer to
any, and its protocols are limited to `file`. Its memory is bounded, and it has no privileges (`sandbox.py`).

All errors are `MediaError`s; their messages can be shown to the client.
"""

import errno
import io
import json
import math
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import ffmpeg
import librosa
import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from infinitetalk.errors import DecoderError, GenerationStopped, MediaError
from infinitetalk.media import picture_child
from infinitetalk.media.sandbox import (
    MAX_CHILD_MEMORY_BYTES,
    child_environment,
    child_slots,
    confined,
    ffmpeg_path,
    is_unprivileged,
    readable_by_others,
)
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS, mix_channels

MAX_PIXELS = 64 * 1024 * 1024
"""Largest image or video frame that is decoded, in pixels."""

KEPT_FILES = 64
"""Number of files whose probe results are cached."""

PROBE_TIMEOUT_S = 60.0
DECODE_TIMEOUT_S = 600.0
DECODER_THREADS = 4

ASK_EVERY_S = 0.2
"""Whoever waits for a child's frames asks so often whether the job is to stop."""

PICTURE_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png_pipe",
    b"\xff\xd8\xff": "jpeg_pipe",
    b"II*\0": "tiff_pipe",
    b"MM\0*": "tiff_pipe",
    b"BM": "bmp_pipe",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
}
"""First bytes of an image file → the ffmpeg demuxer that reads it."""

HEIF_BRANDS = (
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"mif1",
    b"mif2",
    b"msf1",
    b"miaf",
    b"avif",
    b"avis",
)
"""Major brands of HEIC and AVIF images, which start like MP4 files."""

LOOKED_AT: dict[str, tuple[bytes, ...]] = {
    "png_pipe": (b"eXIf", b"iCCP", b"cICP", b"cHRM"),
    "jpeg_pipe": (b"Exif\0", b"ICC_PROFILE\0"),
    "webp_pipe": (b"EXIF", b"ICCP"),
    "tiff_pipe": (),
    "heif": (),
}
"""Demuxers of image formats with metadata that may rotate the image or change its colours, and how such metadata
begins; nothing where every file has some."""

PNG_END = b"IEND"
SEARCHED_BLOCK_BYTES = 2**20

CONTAINERS = "mov,matroska,avi,flv,mpegts,ogg,wav,w64,flac,mp3,aac,aiff,amr"
"""ffmpeg demuxers of sound and video that never open a second file, unlike playlists, scripts and image sequences."""

# EXIF orientation → ffmpeg filters that turn the image upright.
ORIENTATION_FILTERS: dict[int, list[tuple[str, dict[str, str]]]] = {
    2: [("hflip", {})],
    3: [("hflip", {}), ("vflip", {})],
    4: [("vflip", {})],
    5: [("transpose", {"dir": "cclock_flip"})],
    6: [("transpose", {"dir": "clock"})],
    7: [("transpose", {"dir": "clock_flip"})],
    8: [("transpose", {"dir": "cclock"})],
}
WEBP_ANIMATION_FLAG = 0x02

# Frames are counted on a grid of milliseconds, 40 to a frame at 25 fps, see `extract_frames`.
GRID_FPS = 1000
GRID_STEPS_PER_FRAME = GRID_FPS // VIDEO_FPS

# Names from ffmpeg's showinfo filter.
HDR_TRANSFERS = ("smpte2084", "arib-std-b67")
BT2020_TRANSFERS = ("bt2020-10", "bt2020-12")
SWSCALE_MATRICES = ("unknown", "gbr", "bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc")
"""Matrices that ffmpeg's `scale` converts; it refuses frames of any other, and zscale converts them."""
WIDE_PRIMARIES = ("bt2020", "smpte431", "smpte432")

# HDR → BT.709: linear light with 1 at HDR's reference white, 203 cd/m² (ITU-R BT.2408), BT.709 primaries; highlights
# are compressed, everything up to mid-tones is unchanged.
REFERENCE_WHITE = 203
PLAIN_MATRIX = ("setparams", {"colorspace": "bt709"})
"""Makes `scale` take frames of any matrix, and leave their samples as they are."""
TONE_MAPPING = ("tonemap", {"tonemap": "mobius", "desat": 0})

LAST_INTERLACED_HEIGHT = 1088
"""Height in lines of the tallest video that is filmed interlaced."""

LOOKED_AT_FRAMES = 60
"""Number of frames that are searched for interlacing."""

SCANNED_CODECS = ("h264", "hevc", "vp8", "vp9", "av1")
"""Codecs of recordings that may change their shape midway; their key frames show it."""

SCANNED_KEY_FRAMES = 120
SHAPE_TOLERANCE = 0.02

TIMED_CONTAINERS = (b"mov", b"matroska", b"mpegts", b"ogg", b"flv")
"""ffmpeg demuxers of files that hold timestamps; for others ffmpeg makes them up from the rate of the first packet."""

SYNC_TOLERANCE_S = 0.05
"""Jitter of a sound's timestamps that does not count as a gap."""

TIMES_BASE = "1:9000000"
"""Seconds of a tick of a film's times, as ffmpeg reads it: a whole part of a microsecond and of 1/90000 s. By itself
ffmpeg rounds them to the film's usual rate."""

SCENE_FRAME_WIDTH = 256
MIN_SCENE_FRAMES = 15

SWSCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
PICTURE_PIXELS = {"pix_fmt": "rgba", "sws_flags": SWSCALE_FLAGS, "frames:v": 1}

WHITE_FROM = 128
"""Lowest level that counts as white, or as opaque, in a mask."""

COLOURED_FROM = 48
"""A pixel is coloured, not grey, if its red, green and blue levels differ by more than this."""

LARGEST_SHARE_OF_EDGES = 0.1
"""Largest share of pixels that are neither black nor white (the edges) in a black and white drawing."""

TOO_MANY_PIXELS = re.compile(rb"exceeds specified max pixel count|Picture size [1-9]\d*x[1-9]\d* is invalid")
"""ffmpeg's complaints about sizes beyond `max_pixels`, and beyond those that it can count."""

MAX_LOG_BYTES = 2**22
MAX_LOG_LINE_BYTES = 2**16
MAX_PNG_CHUNK_BYTES = 2**29

# Lines of ffmpeg's log. Its option level+ marks each with its severity, so that text in a file's metadata is never
# taken for a complaint.
COMPLAINT = re.compile(rb"^(?:\[[^\]\n]* @ 0x[0-9a-f]+\] )*\[(?:warning|error|fatal|panic)\] .*$", re.MULTILINE)
STREAM = re.compile(rb"^\[info\] +Stream #0:(\d+)[^:\n]*: (Video|Audio): (.*)$", re.MULTILINE)
METADATA = re.compile(rb"\[info\] {4,}(?! *Stream #)")
SHOWN = re.compile(rb"^\[Parsed_showinfo_[^\]\n]*\] \[info\] (.*)$", re.MULTILINE)
FIELDS = re.compile(
    rb"(Single|Multi) frame detection: TFF: *(\d+) BFF: *(\d+) Progressive: *(\d+) Undetermined: *(\d+)"
)

# ffmpeg's words for a file that is cut short; its exit status does not report it.
CUT_SHORT_COMPLAINTS = (b"partial file", b"File ended prematurely")

# Newer versions of ffmpeg stop at such a change, and their exit status does not report it either.
CHANGE_COMPLAINTS = (b"Channel change is not supported", b"Sample rate change is not supported")

NO_SPACE_COMPLAINT = b"No space left on device"
TOO_LONG_COMPLAINT = b"File too large"
NO_MEMORY_COMPLAINTS = (b"Cannot allocate memory", b"MemoryError", b"Out of memory")

# Signals that no file can make a decoder send to itself, and the status with which ffmpeg exits after handling one.
ENDED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT, 255)

# With that status it also exits after a filter that failed with -1, as bwdif does where an interlaced video changes its
# size.
FAILED_FILTER_COMPLAINT = b"Terminating thread with return code -1 ("

UNREADABLE = (
    "The file is damaged or of a kind that cannot be read: send an image as PNG, JPEG, WebP or HEIC, sound as WAV, "
    "MP3, M4A, FLAC or OGG, a video as MP4, MOV, WebM or MKV"
)
ANIMATED = "Animated WebP and AVIF are not supported: send a still image, a GIF or an MP4 video"
NO_FRAME = "The file has no frame that can be decoded: save it again as PNG, JPEG or H.264 MP4"
TOO_LARGE = f"The image is too large: at most {MAX_PIXELS // 2**20} million pixels can be read"


class Source(Protocol):
    """The origin of reference frames. `height` and `width` are of the upright frame, in square pixels."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def frame_at(self, seconds: float) -> Tensor:
        """The frame shown at `seconds`: uint8 (3, height, width), RGB."""
        ...


@dataclass(frozen=True)
class MediaInfo:
    """The contents of a file.

    `height` and `width` are those of the upright image in square pixels, 0 for sound. `duration_s` is the length of the
    video, else of the sound, to within one packet (about 20 ms); 0 for an image. `warnings` describe how the shown
    frames differ from what the file intends.
    """

    kind: Literal["image", "video", "audio"]
    height: int
    width: int
    duration_s: float
    has_audio: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sound:
    """`waveform` is float32 (samples,), mono, 16 kHz; `warnings` describe how it differs from the file's sound."""

    waveform: np.ndarray
    warnings: tuple[str, ...] = ()


@dataclass
class Picture:
    """A still image as a `Source`: the same frame at every time. `pixels` is uint8 (3, height, width)."""

    pixels: Tensor

    @classmethod
    def open(cls, path: Path) -> "Picture":
        """Reads an image file, see `read_picture`."""
        return cls(read_picture(path))

    @property
    def height(self) -> int:
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        return self.pixels.shape[2]

    def frame_at(self, seconds: float) -> Tensor:
        return self.pixels


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video at 0, stride/25, 2·stride/25 … seconds, kept as PNG files.

    If the video ends before `max_frames` (at 25 fps), the last of `paths` is the video's true last frame.
    """

    paths: list[Path]
    stride: int
    max_frames: int
    height: int
    width: int

    def frame_at(self, seconds: float) -> Tensor:
        """The frame shown at `seconds`, or the last one if the video has ended: uint8 (3, height, width).

        Raises `ValueError` if `seconds` is not a multiple of the stride, or is beyond `max_frames`.
        """
        frame = seconds * VIDEO_FPS
        if abs(frame - round(frame)) > 1e-6 or round(frame) % self.stride or not 0 <= round(frame) < self.max_frames:
            raise ValueError(
                f"No frame was extracted for {seconds} s: frames are kept every {self.stride}/{VIDEO_FPS} s, "
                f"from 0 to {self.max_frames}/{VIDEO_FPS} s"
            )
        path = self.paths[min(round(frame) // self.stride, len(self.paths) - 1)]
        with Image.open(path) as image:
            return _over(np.asarray(image), 255)


def probe(path: Path) -> MediaInfo:
    """Identifies a file by its content. An image beside sound (cover art) is not a video.

    Images and the first frame of a video are decoded, with the filters that a job uses; sound is not. Raises
    `MediaError` if the file is not media, is cut short, has no frame, or is larger than `MAX_PIXELS`.
    """
    contents = _contents_of(path)
    if contents.video is None:
        return MediaInfo("audio", 0, 0, contents.duration_s, True)
    frame = _first_frame_of(path)
    kind: Literal["image", "video"] = "image" if contents.is_picture else "video"
    has_audio = contents.audio is not None
    return MediaInfo(kind, frame.height, frame.width, contents.duration_s, has_audio, contents.notes + frame.notes)


def probe_and_read(path: Path) -> tuple[MediaInfo, Picture | None]:
    """`probe`, and the pixels of an image, which are decoded once for both; None if it is not an image."""
    contents = _contents_of(path)
    if not contents.is_picture:
        return probe(path), None
    if contents.reader == "pillow":
        _check_complete(path, contents)
        rgba = _read_by_pillow(path)
    else:
        rgba = _read_by_ffmpeg(path, contents, PROBE_TIMEOUT_S)
    info = MediaInfo("image", rgba.shape[0], rgba.shape[1], 0.0, contents.audio is not None, contents.notes)
    return info, Picture(_over(rgba, 255))


def read_picture(path: Path) -> Tensor:
    """Reads an image, or the first frame of an animated one: uint8 (3, height, width), RGB.

    The result is upright (EXIF orientation), with transparency over white. 16-bit, grey, palette and CMYK images become
    8-bit RGB; other colour spaces become sRGB. Pixels are assumed to be square, as image viewers do. Raises
    `MediaError`.
    """
    return _over(_read_rgba(path), 255)


def read_region(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Reads a mask, an image that is white in one region: bool (height, width), and warnings for the user.

    Transparent pixels are outside the region. If the mask is a cut-out (a coloured image on transparency), the region
    is every opaque pixel. Of a mask video, it is that of the first frame. Raises `MediaError`.
    """
    contents = _contents_of(path)
    if contents.video is not None and not (contents.is_picture or contents.animated):
        with film_frames(path, 0, 1, ground=0) as frames:
            return torch.from_numpy(white_in(next(frames))), ()
    rgba = _read_rgba(path)
    levels = rgba[..., :3].astype(np.int16)
    is_opaque = rgba[..., 3] >= WHITE_FROM
    is_white = levels.mean(axis=2) >= WHITE_FROM
    if is_opaque.all() or not is_opaque.any():
        return torch.from_numpy(is_white & is_opaque), ()
    painted = levels[is_opaque]
    is_coloured = np.ptp(painted, axis=1) > COLOURED_FROM
    is_grey = np.abs(painted.mean(axis=1) - WHITE_FROM) < WHITE_FROM // 2
    if (is_coloured | is_grey).mean() <= LARGEST_SHARE_OF_EDGES:
        return torch.from_numpy(is_white & is_opaque), ()
    note = "it is not black and white but an image on transparency: everything that is not transparent was used"
    return torch.from_numpy(is_opaque), (note,)


def _read_rgba(path: Path) -> np.ndarray:
    """An image, upright and in sRGB: uint8 (height, width, 4), alpha not premultiplied."""
    contents = _contents_of(path)
    if contents.video is None or not (contents.is_picture or contents.animated):
        raise MediaError("The file is not an image: send a PNG, JPEG, WebP, HEIC, AVIF, BMP, TIFF or GIF image")
    return _read_by_pillow(path) if contents.reader == "pillow" else _read_by_ffmpeg(path, contents, DECODE_TIMEOUT_S)


def _read_by_pillow(path: Path) -> np.ndarray:
    """An image, upright and in sRGB: uint8 (height, width, 4)."""
    facts, pixels = _ask_pillow(path, "read")
    return np.frombuffer(pixels, np.uint8).reshape(facts["height"], facts["width"], 4)


def _read_by_ffmpeg(path: Path, contents: "_Contents", timeout_s: float) -> np.ndarray:
    """An image, or the first frame of an animated one, upright: uint8 (height, width, 4)."""
    # PAM begins with lines of a name and a value, such as the width, and ENDHDR.
    output = _upright(contents).output("pipe:", format="image2pipe", vcodec="pam", **PICTURE_PIXELS)
    with _child(path, output, timeout_s) as child:
        header = {}
        while (line := child.stdout.readline()) not in (b"", b"ENDHDR\n"):
            name, _, value = line.partition(b" ")
            header[name] = value
        rgba = child.stdout.read()
    if not rgba:
        raise MediaError(NO_FRAME)
    return np.frombuffer(rgba, np.uint8).reshape(int(header[b"HEIGHT"]), int(header[b"WIDTH"]), 4)


def read_waveform(path: Path, max_seconds: float | None = None) -> np.ndarray:
    """The waveform of `read_sound`."""
    return read_sound(path, max_seconds).waveform


def read_sound(path: Path, max_seconds: float | None = None) -> Sound:
    """Reads the sound of an audio or video file; if it has several tracks, the default one.

    Channels are averaged, except those that cancel each other out (`mix_channels`). Time zero is the first sample of
    the sound, even if the video starts earlier; the encoder's delay (MP3, AAC, Opus) is removed; gaps in the timestamps
    become silence. At most `max_seconds` are decoded. Raises `MediaError` if the file has no sound or no samples, or
    has samples that are not finite.
    """
    contents = _contents_of(path)
    if contents.audio is None:
        raise MediaError("The file has no sound: send an audio file (WAV, MP3, M4A, FLAC, OGG) or a video with sound")
    notes = []
    if contents.num_sounds > 1:
        notes.append(
            f"has {contents.num_sounds} sound tracks, and only one is used: the default one, or else the first"
        )
    sound = contents.sound_input()[str(contents.audio.index)]
    if contents.is_timed:
        sound = sound.filter("aresample", **{"async": 1, "min_hard_comp": SYNC_TOLERANCE_S})
    else:
        sound = sound.filter("asetpts", "N/SR/TB")
    if max_seconds is not None:
        sound = sound.filter("atrim", duration=max_seconds)
    with tempfile.TemporaryFile() as wav:
        # The child writes to it as another user.
        os.fchmod(wav.fileno(), 0o666)
        written = sound.output("file:/dev/stdout", format="wav", acodec="pcm_f32le", rf64="auto")
        with _child(path, written, DECODE_TIMEOUT_S, stdout=wav):
            pass
        wav.seek(0)
        samples, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    if samples.size == 0:
        raise MediaError("The sound is empty: send one of at least 0.2 s")
    if max_seconds is not None:
        # When a sound's parameters change, ffmpeg's atrim starts counting from zero again.
        samples = samples[: max(round(max_seconds * rate), 1)]
    try:
        waveform, cancelled = mix_channels(samples, rate)
    except ValueError as error:
        raise MediaError("The sound has samples that are not finite numbers: export it again as 16-bit WAV") from error
    if cancelled:
        notes.append("its channels are of opposite phase and would cancel each other out: only the loudest is used")
    waveform = librosa.resample(waveform, orig_sr=rate, target_sr=SAMPLING_RATE)
    if waveform.size == 0:
        raise MediaError("The sound is empty: send one of at least 0.2 s")
    return Sound(waveform, tuple(notes))


def sound_seconds(path: Path) -> float:
    """Length of the sound that `read_waveform` reads, to within one packet. Raises `MediaError` if there is none."""
    audio = _contents_of(path).audio
    if audio is None:
        raise MediaError("The file has no sound: send an audio file (WAV, MP3, M4A, FLAC, OGG) or a video with sound")
    return audio.duration_s


def extract_frames(path: Path, folder: Path, stride: int, max_frames: int, start: int = 0) -> VideoFrames:
    """Writes the frames that a video shows at 0, stride/25, 2·stride/25 … seconds into `folder`, as PNG.

    Time zero is `start`/25 seconds into the video, by default its first frame. The frame shown at a time is the last
    one with a timestamp that is not later, at any frame rate, constant or not. Frames are upright, deinterlaced, 8-bit
    RGB in square pixels, with transparency over white. HDR is tone-mapped, wide gamuts become BT.709, untagged colours
    are taken as BT.601 (ffmpeg's default). Frames with another aspect ratio than the first get black bars. If the video
    ends before `start`, its last frame stands for all. Nothing is decoded beyond `max_frames`/25 seconds from time
    zero. Raises `MediaError`.
    """
    contents = _contents_of(path)
    if contents.video is None or contents.is_picture:
        raise MediaError("The file is not a video: send an MP4, MOV, WebM, MKV or AVI video")
    first_frame = _first_frame_of(path)
    frames = _frames(contents, first_frame, stride, max_frames, start)
    paths = []
    with _child(path, frames, DECODE_TIMEOUT_S) as child:
        for index, png in enumerate(_split_png(child.stdout)):
            paths.append(folder / f"{index:06d}.png")
            paths[-1].write_bytes(png)
    if not paths:
        raise MediaError("The video has no frame that can be decoded: export it again as H.264 MP4")
    return VideoFrames(paths, stride, max_frames, first_frame.height, first_frame.width)


def film_times(
    path: Path, max_seconds: float, max_rate: int, should_stop: Callable[[], bool] = lambda: False
) -> list[float]:
    """When each frame of a video is shown, in seconds from the first one, ascending; those before `max_seconds`.

    Every frame is decoded, since a container tells neither which are damaged nor which are shown, and none is
    converted: the filters of `film_frames` change no times. Only while a frame is waited for does the child's time run.
    Raises `MediaError`, also if there are more frames than `max_rate` a second make in one second more, and
    `GenerationStopped` once `should_stop` returns true.
    """
    contents, first_frame = _film(path)
    max_frames = math.floor(max_rate * (max_seconds + 1))
    frames = (
        _whole_frames(contents, first_frame)
        .filter("setpts", "PTS-STARTPTS")
        .filter("trim", end=max_seconds)
        # What is written and summed up of a frame is small, and has one size even if the film changes its own.
        .filter("crop", "min(iw,16)", "min(ih,16)", 0, 0, exact=1)
        .output(
            "pipe:",
            format="framecrc",
            fps_mode="passthrough",
            enc_time_base=TIMES_BASE,
            flush_packets=1,
            **{"frames:v": max_frames + 1},
        )
    )
    time_base, starts = Fraction(1), []
    with _child(path, frames, None) as child:
        for line in child.lines(should_stop):
            text = line.decode("ascii", "replace")
            if text.startswith("#tb 0: "):
                time_base = Fraction(text.removeprefix("#tb 0: ").strip())
            elif should_stop():
                raise GenerationStopped
            elif not text.startswith("#"):
                starts.append(int(text.split(",")[2]))
    if not starts:
        raise MediaError("The video has no frame that can be decoded: export it again as H.264 MP4")
    if len(starts) > max_frames:
        raise MediaError(f"The video has more than {max_rate} frames a second: convert it to fewer")
    # Timestamps of a damaged file may run backwards.
    return [float((start - starts[0]) * time_base) for start in accumulate(starts, max)]


@contextmanager
def film_frames(
    path: Path, first: int, count: int, ground: int = 255, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Iterator[np.ndarray]]:
    """A video's own frames, from frame `first` on, each as it is shown: uint8 (height, width, 3), RGB.

    They have the size, the shape and the colours of `extract_frames`, with transparency over a grey of level `ground`,
    which is white for pictures and black, 0, for masks. The child decodes as they are taken, and waits
    meanwhile; only while one is waited for does its time run. There are fewer than `count` if the video ends before.
    Raises `MediaError`, and `GenerationStopped` once `should_stop` returns true.
    """
    contents, first_frame = _film(path)
    # The frames before are decoded, not converted.
    frames = _whole_frames(contents, first_frame).filter("setpts", "PTS-STARTPTS").filter("trim", start_frame=first)
    with _raw_frames(path, frames, first_frame, first, count, ground, should_stop) as taken:
        yield taken


@contextmanager
def even_frames(
    path: Path, start: int, count: int, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Iterator[np.ndarray]]:
    """The frames that `extract_frames` keeps at a stride of 1, one after the other as `film_frames` gives them: uint8
    (height, width, 3), RGB. There are fewer than `count` if the video ends before; the last is then its last frame.

    Raises `MediaError`, and `GenerationStopped` once `should_stop` returns true.
    """
    contents, first_frame = _film(path)
    frames = _frames_at_steps(contents, first_frame, 1, start)
    with _raw_frames(path, frames, first_frame, start, count, 255, should_stop) as taken:
        yield taken


@contextmanager
def _raw_frames(
    path: Path,
    frames: Any,
    first_frame: "_FirstFrame",
    num_skipped: int,
    count: int,
    ground: int,
    should_stop: Callable[[], bool],
) -> Iterator[Iterator[np.ndarray]]:
    """The pixels of at most `count` frames of an ffmpeg node, which are converted here.

    Args:
        num_skipped: number of frames that are decoded before the first one of them.
        ground: level of the grey under what is transparent.
    """
    pixel_format = _film_format(first_frame)
    has_alpha = pixel_format == "rgba"
    shape = (first_frame.height, first_frame.width, 4 if has_alpha else 3)
    output = _fitted(frames, first_frame, pixel_format).output(
        "pipe:", format="rawvideo", pix_fmt=pixel_format, fps_mode="passthrough", **{"frames:v": count}
    )
    with _child(path, output, None) as child:

        def taken() -> Iterator[np.ndarray]:
            # What is skipped may take as long as it is.
            timeout_s = DECODE_TIMEOUT_S + num_skipped / VIDEO_FPS
            for _ in range(count):
                if should_stop():
                    raise GenerationStopped
                data = child.read(math.prod(shape), should_stop, timeout_s)
                if len(data) < math.prod(shape):
                    child.end()
                    return
                pixels = np.frombuffer(data, np.uint8).reshape(shape)
                yield _over(pixels, ground).permute(1, 2, 0).numpy() if has_alpha else pixels
                timeout_s = DECODE_TIMEOUT_S

        yield taken()


def white_in(frame: np.ndarray) -> np.ndarray:
    """Where a frame of a mask video, uint8 (height, width, 3), is white: bool (height, width)."""
    return frame.mean(axis=2) >= WHITE_FROM


def sound_delay(path: Path) -> float:
    """Seconds from a video's first frame to the first sample of its sound; negative if the sound is first.

    Raises `MediaError` if the file has no sound.
    """
    contents = _contents_of(path)
    if contents.audio is None or contents.video is None:
        raise MediaError("The file is not a video with sound")
    return contents.audio.start_s - contents.video.start_s


def _film(path: Path) -> tuple["_Contents", "_FirstFrame"]:
    """A video's contents and its first frame."""
    contents = _contents_of(path)
    if contents.video is None or contents.is_picture:
        raise MediaError("The file is not a video: send an MP4, MOV, WebM, MKV or AVI video")
    return contents, _first_frame_of(path)


def detect_scenes(path: Path, max_frames: int, should_stop: Callable[[], bool] = lambda: False) -> list[int]:
    """Start frames, counted at 25 fps, of the scenes in a video's first `max_frames`; the first is 0.

    No scene is shorter than `MIN_SCENE_FRAMES`, because each costs at least one chunk. PySceneDetect's content detector
    gets small frames, decoded by the child. Raises `MediaError`, and `GenerationStopped` once `should_stop` returns
    true.
    """
    # PySceneDetect imports OpenCV; only jobs that ask for scenes pay for that.
    from scenedetect import ContentDetector, FrameTimecode

    contents = _contents_of(path)
    if contents.video is None or contents.is_picture:
        raise MediaError("The file is not a video: send an MP4, MOV, WebM, MKV or AVI video")
    first_frame = _first_frame_of(path)
    small_height = max(1, round(first_frame.height * SCENE_FRAME_WIDTH / first_frame.width))
    frames = _whole_frames(contents, first_frame)
    if first_frame.colours.color_space not in SWSCALE_MATRICES:
        frames = frames.filter(PLAIN_MATRIX[0], **PLAIN_MATRIX[1])
    frames = (
        frames.filter("setpts", "PTS-STARTPTS")
        .filter("fps", fps=VIDEO_FPS, round="up")
        .filter("scale", SCENE_FRAME_WIDTH, small_height, flags="area")
        .output("pipe:", format="rawvideo", pix_fmt="bgr24", **{"frames:v": max_frames})
    )
    detector = ContentDetector(min_scene_len=MIN_SCENE_FRAMES)
    cuts: list[int] = []
    frame_bytes = small_height * SCENE_FRAME_WIDTH * 3
    with _child(path, frames, None) as child:
        small_frames = iter(lambda: child.read(frame_bytes, should_stop, DECODE_TIMEOUT_S), b"")
        for index, frame in enumerate(small_frames):
            if should_stop():
                raise GenerationStopped
            if len(frame) < frame_bytes:
                # The child has ended within a frame, and not by itself.
                break
            pixels = np.frombuffer(frame, np.uint8).reshape(small_height, SCENE_FRAME_WIDTH, 3)
            found = detector.process_frame(FrameTimecode(index, fps=float(VIDEO_FPS)), pixels)
            cuts += [cut.frame_num for cut in found]
    return [0, *(cut for cut in cuts if cut <= max_frames - MIN_SCENE_FRAMES)]


@dataclass(frozen=True)
class _Stream:
    index: int
    codec: str
    height: int
    width: int
    sample_aspect_ratio: Fraction
    num_packets: int
    duration_s: float
    start_s: float = 0.0


@dataclass(frozen=True)
class _Colours:
    """The colour format of a video, in ffmpeg's names; "unknown" where the file does not say."""

    pixel_format: str = "unknown"
    color_range: str = "unknown"
    color_space: str = "unknown"
    color_primaries: str = "unknown"
    color_trc: str = "unknown"
    is_mastered: bool = False


@dataclass(frozen=True)
class _FirstFrame:
    """`fields`: "tff" or "bff" for an interlaced video, and whether the file flags its frames as such; else None."""

    height: int
    width: int
    colours: _Colours = _Colours()
    fields: tuple[str, bool] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Contents:
    """The video (or image) and sound of a file, as its container describes them: the default tracks, else the first.

    `reader` is the decoder of an image's pixels, "ffmpeg" or "pillow"; if `input_options` is empty, ffmpeg never reads
    the file.
    """

    input_options: dict[str, Any]
    is_picture: bool
    animated: bool
    orientation: int
    video: _Stream | None
    audio: _Stream | None
    num_sounds: int = 0
    is_timed: bool = False
    reader: str = "ffmpeg"
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        stream = self.video or self.audio
        return 0.0 if self.is_picture or stream is None else stream.duration_s

    def input(self) -> Any:
        """The ffmpeg-python input node."""
        options = dict(self.input_options)
        # ffmpeg's own VP8 and VP9 decoders drop the alpha channel that WebM keeps beside each frame.
        if self.video is not None and self.video.codec in ("vp8", "vp9"):
            options["vcodec"] = {"vp8": "libvpx", "vp9": "libvpx-vp9"}[self.video.codec]
        # If the frame size changes, the filters must continue; reinitialised, they would count from zero again.
        return ffmpeg.input("file:/dev/stdin", **options, reinit_filter=0)

    def sound_input(self) -> Any:
        """The input node for the sound; its filters must be reinitialised when channels or rate change."""
        return ffmpeg.input("file:/dev/stdin", **self.input_options)


def _contents_of(path: Path) -> _Contents:
    """The contents of a file, cached: a job asks several times for each file, and a child takes a while to start."""
    if not path.is_file():
        raise MediaError("The file does not exist")
    return _read_contents(path, _version_of(path))


def _first_frame_of(path: Path) -> _FirstFrame:
    """The first frame of a file, cached likewise."""
    return _read_first_frame(path, _version_of(path))


def _version_of(path: Path) -> tuple[int, int, int]:
    """A value that changes when the file at a path is replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _picture_demuxer(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp_pipe"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return "heif"
    return next((name for signature, name in PICTURE_SIGNATURES.items() if head.startswith(signature)), None)


@lru_cache(maxsize=KEPT_FILES)
def _read_contents(path: Path, version: tuple[int, int, int]) -> _Contents:
    """Reads every packet of a file and decodes none, except those that ffmpeg needs for a stream's parameters; of a
    still image, only metadata."""
    with path.open("rb") as opened:
        head = opened.read(32)
    if not head:
        raise MediaError("The file is empty: upload it again")
    demuxer = _picture_demuxer(head)
    if demuxer == "webp_pipe" and head[12:16] == b"VP8X" and head.ljust(21)[20] & WEBP_ANIMATION_FLAG:
        raise MediaError(ANIMATED)
    if demuxer not in LOOKED_AT:
        return _read_packets(path, demuxer)
    metadata = LOOKED_AT[demuxer]
    found = _found_in(path, (*metadata, PNG_END)) if metadata else set()
    if demuxer == "png_pipe" and PNG_END not in found:
        # ffmpeg's decoder alone would read zeros in place of the missing end as pixels.
        raise MediaError(UNREADABLE)
    still = _Contents(
        input_options=_input_options(demuxer),
        is_picture=True,
        animated=False,
        orientation=1,
        video=_Stream(0, "picture", 0, 0, Fraction(1), 1, 0.0),
        audio=None,
    )
    if metadata and found.isdisjoint(metadata):
        return still
    looked, _ = _ask_pillow(path, "look")
    if looked["reader"] == "pillow" and demuxer in ("tiff_pipe", "heif"):
        # ffmpeg may not read it at all.
        still = replace(still, input_options={})
    notes = tuple(looked["notes"])
    return replace(still, orientation=looked["orientation"], reader=looked["reader"], notes=notes)


def _found_in(path: Path, sequences: Collection[bytes]) -> set[bytes]:
    """Those of some sequences of bytes that a file contains."""
    found: set[bytes] = set()
    overlap = max(map(len, sequences)) - 1
    data = b""
    with path.open("rb") as file:
        while block := file.read(SEARCHED_BLOCK_BYTES):
            data = data[-overlap:] + block
            found.update(sequence for sequence in sequences if sequence in data)
    return found


def _input_options(demuxer: str | None) -> dict[str, Any]:
    """What ffmpeg opens a file with; `demuxer` is that of a picture."""
    options: dict[str, Any] = {
        "protocol_whitelist": "file",
        "max_pixels": MAX_PIXELS,
        "threads": DECODER_THREADS,
        **({"format_whitelist": CONTAINERS} if demuxer is None else {"format": demuxer, "noautorotate": None}),
    }
    if demuxer == "jpeg_pipe":
        # Otherwise ffmpeg silently fills the missing rows of a truncated JPEG with grey.
        options["err_detect"] = "explode"
    return options


def _read_packets(path: Path, demuxer: str | None) -> _Contents:
    """The contents of a file as ffmpeg describes them; `demuxer` is that of a picture."""
    options = _input_options(demuxer)
    file = ffmpeg.input("file:/dev/stdin", **options)
    packets = ffmpeg.output(file["V?"], file["a?"], "pipe:", format="framecrc", c="copy")
    with _child(path, packets, PROBE_TIMEOUT_S, loglevel="info") as child:
        streams = _parse_packets(child.stdout)
    order, defaults = _parse_tracks(child.log)
    tracks = [(media_type, track, order.get(place, place)) for (media_type, place), track in streams.items()]
    if not tracks:
        raise MediaError(UNREADABLE)
    video = _chosen([replace(track, index=index) for kind, track, index in tracks if kind == "video"], defaults)
    sounds = [replace(track, index=index) for kind, track, index in tracks if kind == "audio"]
    if video is not None and max(video.sample_aspect_ratio, Fraction(1)) * video.height * video.width > MAX_PIXELS:
        raise MediaError(TOO_LARGE)
    animated = demuxer == "gif" and video is not None and video.num_packets > 1
    return _Contents(
        input_options=options,
        is_picture=demuxer is not None and not animated,
        animated=animated,
        orientation=1,
        video=video,
        audio=_chosen(sounds, defaults),
        num_sounds=len(sounds),
        is_timed=re.search(rb"^\[info\] Input #0, (?:%s)\b" % b"|".join(TIMED_CONTAINERS), child.log, re.M) is not None,
    )


def _chosen(tracks: list[_Stream], defaults: set[int]) -> _Stream | None:
    """The track that a player would choose: the first default one, or else the first."""
    return min(tracks, key=lambda track: (track.index not in defaults, track.index), default=None)


def _parse_tracks(log: bytes) -> tuple[dict[int, int], set[int]]:
    """Reads ffmpeg's description of its input: each output stream's input stream, and the default input streams."""
    described = log.partition(b"Input #0")[2].partition(b"Output #0")[0].partition(b"Stream mapping:")[0]
    lines = {int(index): (kind, facts) for index, kind, facts in STREAM.findall(described)}
    videos = [index for index, (kind, facts) in lines.items() if kind == b"Video" and b"(attached pic)" not in facts]
    sounds = [index for index, (kind, _) in lines.items() if kind == b"Audio"]
    defaults = {index for index, (_, facts) in lines.items() if b"(default)" in facts}
    return dict(enumerate(sorted(videos) + sorted(sounds))), defaults


def _parse_packets(lines: IO[bytes]) -> dict[tuple[str, int], _Stream]:
    """Reads ffmpeg's framecrc output: `#key stream: value`, then `stream, dts, pts, duration, size, crc` per packet.

    Returns the streams that have packets, by media type and number.
    """
    facts: dict[tuple[str, str], str] = {}
    num_packets: dict[str, int] = {}
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for line in lines:
        text = line.decode("ascii", "replace").strip()
        if text.startswith("#"):
            key, _, value = text[1:].partition(": ")
            name, _, stream = key.partition(" ")
            facts[name, stream] = value
            continue
        stream, _, pts, duration = (field.strip() for field in text.split(",")[:4])
        num_packets[stream] = num_packets.get(stream, 0) + 1
        starts[stream] = min(starts.get(stream, int(pts)), int(pts))
        ends[stream] = max(ends.get(stream, int(pts)), int(pts) + int(duration))
    result = {}
    for (name, stream), media_type in facts.items():
        if name != "media_type" or stream not in num_packets:
            continue
        width, _, height = facts.get(("dimensions", stream), "0x0").partition("x")
        numerator, _, denominator = facts.get(("sar", stream), "1/1").partition("/")
        # An encoder's delay comes before time zero and is not heard.
        start = max(starts[stream], 0) if media_type == "audio" else starts[stream]
        result[media_type, int(stream)] = _Stream(
            index=int(stream),
            codec=facts["codec_id", stream],
            height=int(height),
            width=int(width),
            sample_aspect_ratio=Fraction(int(numerator) or 1, int(denominator)),
            num_packets=num_packets[stream],
            duration_s=float((ends[stream] - start) * Fraction(facts["tb", stream])),
            start_s=float(start * Fraction(facts["tb", stream])),
        )
    return result


def _ask_pillow(path: Path, task: Literal["look", "read"]) -> tuple[dict[str, Any], bytes]:
    """The answer of `picture_child.py` about an image, and the pixels that it reads."""
    timeout_s = PROBE_TIMEOUT_S if task == "look" else DECODE_TIMEOUT_S
    command = [sys.executable, "-I", "-B", picture_child.__file__, task, str(MAX_PIXELS)]
    with _running(path, command, timeout_s) as child:
        answer, pixels = child.stdout.readline(), child.stdout.read()
    facts = json.loads(answer)
    match facts.get("refused"):
        case None:
            return facts, pixels
        case "too large":
            raise MediaError(TOO_LARGE)
        case "animated":
            raise MediaError(ANIMATED)
        case _:
            raise MediaError(UNREADABLE)


def _upright(contents: _Contents) -> Any:
    """The decoded image or video, upright; ffmpeg rotates videos by itself."""
    assert contents.video is not None
    stream = contents.input()[str(contents.video.index)]
    for name, arguments in ORIENTATION_FILTERS.get(contents.orientation, []):
        stream = stream.filter(name, **arguments)
    return stream


def _frames(contents: _Contents, first_frame: _FirstFrame, stride: int, max_frames: int, start: int) -> Any:
    """ffmpeg with the filters of `extract_frames`; it writes PNG files one after another to its standard output."""
    frames = _frames_at_steps(contents, first_frame, stride, start)
    return _fitted(frames, first_frame, "rgba").output(
        "pipe:",
        format="image2pipe",
        vcodec="png",
        pix_fmt="rgba",
        compression_level=1,
        fps_mode="passthrough",
        **{"frames:v": -(-max_frames // stride)},
    )


def _frames_at_steps(contents: _Contents, first_frame: _FirstFrame, stride: int, start: int) -> Any:
    """The frames that a video shows at `start`/25, (`start` + `stride`)/25 … seconds, as they are decoded."""
    # Each frame's time is rounded up to the grid, so position n shows the last frame that is not later than n ms;
    # rounding up to 1 ms does not change the frames shown at 40 ms steps. The grid is finer than any frame is long, so
    # even a last frame between two 40 ms steps is on it; repeated for one more stride, it is also the last selected. It
    # is repeated up to `start` as well, where the video ends before.
    return (
        _whole_frames(contents, first_frame)
        .filter("setpts", "PTS-STARTPTS")
        .filter("fps", fps=GRID_FPS, round="up")
        .filter("tpad", stop_mode="clone", stop=GRID_STEPS_PER_FRAME * (start + stride))
        .filter("trim", start_frame=GRID_STEPS_PER_FRAME * start)
        .filter("select", f"not(mod(n,{GRID_STEPS_PER_FRAME * stride}))")
    )


def _film_format(first_frame: _FirstFrame) -> str:
    """The pixels in which a film's frames are read: with alpha if they have it."""
    name = first_frame.colours.pixel_format
    return "rgba" if name in ("pal8", "unknown") or "a" in name.replace("gray", "") else "rgb24"


def _fitted(frames: Any, first_frame: _FirstFrame, pixel_format: str) -> Any:
    """Frames as they are shown, of the first one's size: those of another shape get black bars."""
    return (
        _shown(frames, first_frame)
        .filter("format", pixel_format)
        .filter("pad", first_frame.width, first_frame.height, "(ow-iw)/2", "(oh-ih)/2", color="black", eval="frame")
    )


def _shown(frames: Any, first_frame: _FirstFrame) -> Any:
    """Frames in the colours of BT.709 and, where their shape allows it, the size of the first one."""
    for name, arguments in _colour_filters(first_frame.colours):
        frames = frames.filter(name, **arguments)
    height, width = first_frame.height, first_frame.width
    # A frame with another aspect ratio than the first is fitted into it; stretching by one pixel does no harm.
    fitted = f"iw*sar*{height}/ih"
    fits = f"lte(abs({fitted}-{width}),1)"
    return frames.filter(
        "scale",
        f"if({fits},{width},clip(round({fitted}),1,{width}))",
        f"if({fits},{height},clip(round({height}*{width}/({fitted})),1,{height}))",
        eval="frame",
        flags=SWSCALE_FLAGS,
    )


def _whole_frames(contents: _Contents, first_frame: _FirstFrame) -> Any:
    """A video's frames, upright and deinterlaced."""
    frames = _upright(contents)
    if first_frame.fields is None:
        return frames
    parity, is_told = first_frame.fields
    return frames.filter("bwdif", mode="send_frame", parity=parity, deint="interlaced" if is_told else "all")


def _colour_filters(colours: _Colours) -> list[tuple[str, dict[str, Any]]]:
    """ffmpeg filters that convert HDR and wide gamuts to BT.709; none if the video is BT.709 already or untagged.

    Recordings often lack some tags, and zscale refuses unknown values: missing tags are inferred from the others.
    """
    matrix, primaries, transfer = colours.color_space, colours.color_primaries, colours.color_trc
    if transfer == "unknown" and colours.is_mastered:
        transfer = "smpte2084"
    is_hdr = transfer in HDR_TRANSFERS
    if primaries == "unknown" and (is_hdr or transfer in BT2020_TRANSFERS or matrix.startswith("bt2020")):
        primaries = "bt2020"
    is_known = matrix in SWSCALE_MATRICES
    if not is_hdr and primaries not in WIDE_PRIMARIES and is_known:
        return []
    if primaries == "unknown":
        primaries = "bt709"
    is_rgb = colours.pixel_format.startswith(("gbr", "rgb", "bgr", "argb", "abgr"))
    if matrix == "unknown" or is_rgb:
        matrix = "gbr" if is_rgb else "bt2020nc" if primaries == "bt2020" else "bt709"
    value_range = colours.color_range
    if value_range == "unknown":
        value_range = "pc" if is_rgb else "tv"
    if not is_hdr and transfer != "iec61966-2-1":
        # The other transfers look the same, and players treat them as BT.709.
        transfer = "bt709"
    alpha = "a" if "a" in colours.pixel_format.replace("gray", "") else ""
    return [
        *([] if is_known else [PLAIN_MATRIX]),
        # zscale cannot read subsampled video of an odd size.
        ("format", {"pix_fmts": "gbrap16le|gbrp16le" if is_rgb else f"yuv{alpha}444p16le"}),
        (
            "setparams",
            {"color_primaries": primaries, "color_trc": transfer, "colorspace": matrix, "range": value_range},
        ),
        ("zscale", {"transfer": "linear", "npl": REFERENCE_WHITE}),
        ("format", {"pix_fmts": f"gbr{alpha}pf32le"}),
        ("zscale", {"primaries": "bt709"}),
        *([TONE_MAPPING] if is_hdr else []),
        ("zscale", {"transfer": "bt709" if is_hdr else transfer, "matrix": "gbr", "range": "full"}),
        ("format", {"pix_fmts": f"gbr{alpha}p"}),
    ]


def _split_png(stream: IO[bytes]) -> Iterator[bytes]:
    """The PNG files in a stream, one after another."""
    while signature := stream.read(8):
        parts, name = [signature], b""
        while name != b"IEND":
            header = stream.read(8)
            if len(header) < 8:
                return
            length, name = struct.unpack(">I4s", header)
            if length > MAX_PNG_CHUNK_BYTES:
                raise MediaError(UNREADABLE)
            parts += [header, stream.read(length + 4)]
        yield b"".join(parts)


@lru_cache(maxsize=KEPT_FILES)
def _read_first_frame(path: Path, version: tuple[int, int, int]) -> _FirstFrame:
    """Decodes the first frame with the filters that a job uses; a video's has square pixels (the height is kept)."""
    contents = _read_contents(path, version)
    if contents.is_picture:
        size = _check_complete(path, contents)
        if contents.reader == "pillow":
            # Another decoder may see another size.
            facts, _ = _ask_pillow(path, "read")
            return _FirstFrame(facts["height"], facts["width"])
        assert size is not None
        return size
    first_frame = _look_at_frames(path, contents)
    try:
        with _child(path, _frames(contents, first_frame, 1, 1, 0), PROBE_TIMEOUT_S) as child:
            num_frames = sum(1 for _ in _split_png(child.stdout))
    except MediaError as error:
        if str(error) == UNREADABLE and _colour_filters(first_frame.colours):
            raise MediaError("The video's colours cannot be converted: export it as H.264 MP4 without HDR") from error
        raise
    if num_frames == 0:
        raise MediaError(NO_FRAME)
    return first_frame


def _check_complete(path: Path, contents: _Contents) -> _FirstFrame | None:
    """Decodes an image with ffmpeg, which refuses one that is not complete; returns its size. None if ffmpeg does not
    read the format."""
    if not contents.input_options:
        return None
    measured = _upright(contents).output("pipe:", format="framecrc", **PICTURE_PIXELS)
    with _child(path, measured, PROBE_TIMEOUT_S) as child:
        picture = _parse_packets(child.stdout).get(("video", 0))
    if picture is None:
        raise MediaError(NO_FRAME)
    return _FirstFrame(picture.height, picture.width)


def _look_at_frames(path: Path, contents: _Contents) -> _FirstFrame:
    """Examines a video's first frames: size, colours and fields, and whether the aspect ratio stays the same."""
    assert contents.video is not None
    num_frames = LOOKED_AT_FRAMES if contents.video.height <= LAST_INTERLACED_HEIGHT else 1
    frames = _upright(contents).filter("showinfo", checksum=0).filter("idet")
    looked_at = frames.output("pipe:", format="framecrc", **{"frames:v": num_frames})
    with _child(path, looked_at, PROBE_TIMEOUT_S, loglevel="info") as child:
        video = _parse_packets(child.stdout).get(("video", 0))
    if video is None:
        raise MediaError(NO_FRAME)
    shown = [line.decode("ascii", "replace") for line in SHOWN.findall(child.log)]
    colours = _parse_colours(shown)
    notes = _scan_shapes(path, contents)
    if _colour_filters(colours) and "unknown" in (colours.color_primaries, colours.color_trc, colours.color_space):
        notes += ("it does not fully say what its colours mean: missing tags were guessed from the others",)
    return _FirstFrame(
        video.height,
        max(1, math.floor(video.width * video.sample_aspect_ratio + Fraction(1, 2))),
        colours=colours,
        fields=_parse_fields(shown, child.log) if video.height >= 4 and video.width >= 4 else None,
        notes=notes,
    )


def _parse_colours(shown: list[str]) -> _Colours:
    """The first frame's colours, from the lines of showinfo."""
    facts: dict[str, str] = {}
    for line in shown:
        if line.startswith("n:") and "fmt" in facts:
            break
        facts |= dict(word.split(":", 1) for word in line.split() if ":" in word)
    names = ("color_range", "color_space", "color_primaries", "color_trc")
    known = {name: facts[name] for name in names if facts.get(name, "reserved") not in ("reserved", "unspecified")}
    is_mastered = any("mastering display" in line.lower() or "content light" in line.lower() for line in shown)
    return _Colours(facts.get("fmt", "unknown"), **known, is_mastered=is_mastered)


def _parse_fields(shown: list[str], log: bytes) -> tuple[str, bool] | None:
    """The field order of the examined frames, and whether they are flagged; None if they are progressive.

    The image counts more than the flags: progressive film is often flagged as interlaced. Film flagged as progressive
    counts as interlaced only if most of its frames do when examined one by one: small images with sharp edges make the
    detector see fields in a few frames, and its multi-frame mode then sees them in all.
    """
    told = [match[1] for line in shown if (match := re.search(r" i:([PTB?]) ", line))]
    is_told = any(flag in "TB" for flag in told)
    top, bottom, progressive, undetermined = _count_fields(log, "Multi" if is_told else "Single")
    others = progressive if is_told else progressive + undetermined
    if top + bottom > others:
        return ("tff" if top >= bottom else "bff"), is_told
    if is_told and progressive == 0:
        return ("bff" if told.count("B") > told.count("T") else "tff"), True
    return None


def _count_fields(log: bytes, detection: str) -> tuple[int, int, int, int]:
    """Numbers of frames with the top field first, the bottom field first, no fields, and undetermined.

    Args:
        detection: "Single" examines each frame alone, "Multi" takes earlier frames into account.
    """
    counts = [list(map(int, found[1:])) for found in FIELDS.findall(log) if found[0] == detection.encode()]
    top, bottom, progressive, undetermined = (max(column) for column in zip(*counts, strict=True))
    return top, bottom, progressive, undetermined


def _scan_shapes(path: Path, contents: _Contents) -> tuple[str, ...]:
    """A warning if the aspect ratio of the video changes; else empty."""
    assert contents.video is not None
    if contents.video.codec not in SCANNED_CODECS:
        return ()
    options = contents.input_options | {"skip_frame": "nokey", "reinit_filter": 0}
    key_frames = ffmpeg.input("file:/dev/stdin", **options)[str(contents.video.index)].filter("showinfo", checksum=0)
    scanned = key_frames.output("pipe:", format="null", fps_mode="passthrough", **{"frames:v": SCANNED_KEY_FRAMES})
    with _child(path, scanned, PROBE_TIMEOUT_S, loglevel="info") as child:
        child.stdout.read()
    sizes = []
    for line in SHOWN.findall(child.log):
        if found := re.search(rb" sar:(\d+)/(\d+) s:(\d+)x(\d+) ", line):
            numerator, denominator, width, height = map(int, found.groups())
            sizes.append((round(width * (numerator or 1) / (denominator or 1)), height))
    first = sizes[0] if sizes else (1, 1)
    for size in sizes:
        if abs(size[0] * first[1] / (size[1] * first[0]) - 1) > SHAPE_TOLERANCE:
            return (
                f"its size changes from {first[0]}x{first[1]} to {size[0]}x{size[1]} pixels: frames with another "
                "aspect ratio than the first get black bars",
            )
    return ()


def _over(rgba: np.ndarray, ground: int) -> Tensor:
    """RGBA uint8 (height, width, 4), alpha not premultiplied → RGB over a grey, uint8 (3, height, width)."""
    if rgba[..., 3].min() == 255:
        # Nothing shows through: blending takes a second for a large photograph.
        return torch.from_numpy(rgba[..., :3].transpose(2, 0, 1).copy())
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    blended = (colour * alpha + ground * (255 - alpha) + 127) // 255
    return torch.from_numpy(blended.astype(np.uint8)).permute(2, 0, 1).contiguous()


@dataclass
class _Child:
    """A running ffmpeg: its standard output, and its log once it has ended.

    `stop` ends it as too slow: it took longer than so many seconds. `end` waits for the end of a child that has closed
    its output, and raises what `_running` would raise after it: whoever takes a short output for the end of a film
    must know why it is short before, since the next frame may be taken hours later.
    """

    stdout: IO[bytes]
    stop: Callable[[float], None]
    end: Callable[[], None]
    log: bytes = b""

    @contextmanager
    def watched(self, timeout_s: float) -> Iterator[None]:
        """Ends the child if the code within takes longer."""
        watchdog = threading.Timer(timeout_s, self.stop, [timeout_s])
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def read(self, num_bytes: int, should_stop: Callable[[], bool], timeout_s: float) -> bytearray:
        """The next bytes of its output, fewer at the end. Raises `GenerationStopped` if `should_stop` returns true
        while they are waited for; ends the child if that takes longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        data, filled = bytearray(num_bytes), 0
        while filled < num_bytes and (block := self._arrived(num_bytes - filled, should_stop, deadline, timeout_s)):
            data[filled : filled + len(block)] = block
            filled += len(block)
        return data[:filled]

    def lines(self, should_stop: Callable[[], bool]) -> Iterator[bytes]:
        """The lines of its output, likewise; each may take `DECODE_TIMEOUT_S`."""
        rest = b""
        while block := self._arrived(
            MAX_LOG_LINE_BYTES, should_stop, time.monotonic() + DECODE_TIMEOUT_S, DECODE_TIMEOUT_S
        ):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines

    def _arrived(self, num_bytes: int, should_stop: Callable[[], bool], deadline: float, timeout_s: float) -> bytes:
        """Up to `num_bytes` as soon as there are some; none at the end."""
        arrival = select.poll()
        arrival.register(self.stdout, select.POLLIN)
        while not arrival.poll(1000 * ASK_EVERY_S):
            if should_stop():
                raise GenerationStopped
            if time.monotonic() > deadline:
                self.stop(timeout_s)
        return os.read(self.stdout.fileno(), num_bytes)


@contextmanager
def _child(
    path: Path, output: Any, timeout_s: float | None, loglevel: str = "error", stdout: IO[bytes] | None = None
) -> Iterator[_Child]:
    """Runs ffmpeg on a file, see `_running`."""
    threads = ["-filter_threads", str(DECODER_THREADS)]
    log = ["-loglevel", f"level+{loglevel}"]
    command = output.compile(cmd=[ffmpeg_path(), "-nostdin", "-y", "-hide_banner", *log, *threads])
    with _running(path, command, timeout_s, stdout) as child:
        yield child


def _read_log(log: IO[bytes]) -> bytes:
    """A child's log without the lines that show a file's metadata and chapters, which can be millions."""
    kept, num_bytes = [], 0
    for line in iter(lambda: log.readline(MAX_LOG_LINE_BYTES), b""):
        if METADATA.match(line) is None:
            kept.append(line)
            num_bytes += len(line)
        if num_bytes > MAX_LOG_BYTES:
            break
    return b"".join(kept)


@contextmanager
def _handed_over(path: Path, program: str) -> Iterator[IO[bytes]]:
    """The file, open for a child that reopens it; a copy if the child, running as nobody, has no permission to."""
    with path.open("rb") as media:
        if readable_by_others(path) or not is_unprivileged(program):
            yield media
            return
        with tempfile.TemporaryFile() as copied:
            shutil.copyfileobj(media, copied)
            copied.flush()
            os.fchmod(copied.fileno(), 0o644)
            copied.seek(0)
            yield copied


@contextmanager
def _running(
    path: Path, command: list[str], timeout_s: float | None, stdout: IO[bytes] | None = None
) -> Iterator[_Child]:
    """Runs a child on a file, in a sandbox. Without `stdout`, the caller must read its standard output to the end.

    The child is killed after `timeout_s`; None: the caller watches it. Raises `MediaError` if the child refuses the
    file, crashes, or takes too long or too much memory; `DecoderError` if another process kills it.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    exceeded: list[float] = []
    with child_slots, _handed_over(path, command[0]) as media, tempfile.TemporaryFile() as log:
        with subprocess.Popen(
            confined(command),
            stdin=media,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=log,
            env=child_environment(),
            cwd="/",
        ) as process:

            def stop(seconds: float) -> None:
                exceeded.append(seconds)
                process.kill()

            def end() -> None:
                with child.watched(PROBE_TIMEOUT_S):
                    process.wait()
                log.seek(0)
                _check_end(_read_log(log), process.returncode, exceeded)

            child = _Child(process.stdout or io.BytesIO(), stop, end)
            try:
                with nullcontext() if timeout_s is None else child.watched(timeout_s):
                    yield child
                    with child.watched(PROBE_TIMEOUT_S) if timeout_s is None else nullcontext():
                        process.wait()
            finally:
                process.kill()
        log.seek(0)
        child.log = _read_log(log)
    _check_end(child.log, process.returncode, exceeded)


def _check_end(log: bytes, returncode: int, exceeded: list[float]) -> None:
    """Raises the error by which a child has ended, if it has.

    Args:
        exceeded: seconds that it took too long; empty if it did not.
    """
    complaints = b"\n".join(COMPLAINT.findall(log))
    if exceeded:
        raise MediaError(f"The file could not be decoded within {exceeded[0]:g} s: send a shorter or simpler one")
    if any(complaint in complaints for complaint in CUT_SHORT_COMPLAINTS):
        raise MediaError("The file is cut short: upload it again")
    if any(complaint in complaints for complaint in CHANGE_COMPLAINTS):
        raise MediaError("The sound changes its channels or rate within the Ogg file: export it again as WAV or MP3")
    if TOO_MANY_PIXELS.search(complaints):
        raise MediaError(TOO_LARGE)
    if NO_SPACE_COMPLAINT in complaints:
        raise DecoderError("The worker's disk is full: send the job again, or a smaller file")
    if returncode != 0 and any(complaint in log for complaint in NO_MEMORY_COMPLAINTS):
        raise MediaError(
            f"The file takes more than {MAX_CHILD_MEMORY_BYTES // 2**30} GB of memory to decode: send a smaller one"
        )
    if returncode == -signal.SIGXFSZ or TOO_LONG_COMPLAINT in complaints:
        raise MediaError("The sound takes too much space when it is decoded: send a shorter part, or mono at 48 kHz")
    if returncode in ENDED_FROM_OUTSIDE and FAILED_FILTER_COMPLAINT not in complaints:
        raise DecoderError("The decoder was ended before it was done: send the job again, or a smaller file")
    if returncode != 0:
        raise MediaError(UNREADABLE)

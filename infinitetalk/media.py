"""Reading what users send: pictures, sound and video frames.

Everything is decoded by a child ffmpeg, so that a file which crashes or hangs a decoder costs one child and not the
worker. The child sees the file as its standard input, opened through `/dev/stdin`: no name, extension or pattern in a
path can change what is read, and no path can reach an error message. It may open no other file or address: the
containers allowed cannot refer to any, and its protocols are limited to `file`.

All errors are `MediaError`s whose messages can be shown to the client.
"""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import ffmpeg
import imageio_ffmpeg
import librosa
import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from infinitetalk.speech import SAMPLING_RATE, VIDEO_FPS

MAX_PIXELS = 64 * 1024 * 1024
"""Largest picture or video frame that is decoded, in pixels."""

MAX_CHILD_FILE_BYTES = 2**31
"""Largest file that a child may write: 90 minutes of 48 kHz stereo float32 sound."""

KEPT_FILES = 64
"""Files of which is remembered what they hold."""

PROBE_TIMEOUT_S = 60.0
DECODE_TIMEOUT_S = 600.0
DECODER_THREADS = 4

PICTURE_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png_pipe",
    b"\xff\xd8\xff": "jpeg_pipe",
    b"II*\0": "tiff_pipe",
    b"MM\0*": "tiff_pipe",
    b"BM": "bmp_pipe",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
}
"""First bytes of a picture → the ffmpeg demuxer that reads it."""

CONTAINERS = "mov,matroska,avi,flv,mpegts,ogg,wav,w64,flac,mp3,aac,aiff,amr"
"""ffmpeg demuxers of sound and video that never open a second file, unlike playlists, scripts and image sequences."""

# EXIF orientation → ffmpeg filters that bring the picture upright.
ORIENTATION_FILTERS: dict[int, list[tuple[str, dict[str, str]]]] = {
    2: [("hflip", {})],
    3: [("hflip", {}), ("vflip", {})],
    4: [("vflip", {})],
    5: [("transpose", {"dir": "cclock_flip"})],
    6: [("transpose", {"dir": "clock"})],
    7: [("transpose", {"dir": "clock_flip"})],
    8: [("transpose", {"dir": "cclock"})],
}
EXIF_ORIENTATION_TAG = 0x0112

WEBP_ANIMATION_FLAG = 0x02

# Frames are counted on a grid of milliseconds, 40 to a frame at 25 fps, see `extract_frames`.
GRID_FPS = 1000
GRID_STEPS_PER_FRAME = GRID_FPS // VIDEO_FPS

# How ffmpeg's showinfo filter names the transfer curves of HDR10 and HLG.
HDR_TRANSFERS = (b"color_trc:smpte2084", b"color_trc:arib-std-b67")

# HDR → BT.709: to linear light with 1 at HDR's reference white, 203 cd/m² (ITU-R BT.2408), BT.709 primaries, highlights
# compressed while all up to mid-tones stays as it is.
TONE_MAPPING_FILTERS: list[tuple[str, dict[str, Any]]] = [
    ("zscale", {"transfer": "linear", "npl": 203}),
    ("format", {"pix_fmts": "gbrpf32le"}),
    ("zscale", {"primaries": "bt709"}),
    ("tonemap", {"tonemap": "mobius", "desat": 0}),
    ("zscale", {"transfer": "bt709", "matrix": "bt709", "range": "tv"}),
    ("format", {"pix_fmts": "yuv444p"}),
]

SCENE_FRAME_WIDTH = 256
MIN_SCENE_FRAMES = 15

SWSCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


MAX_LOG_BYTES = 65_536

# ffmpeg's words for a file whose end is missing; it reports no failure then.
CUT_SHORT_COMPLAINTS = (b"partial file", b"File ended prematurely")

NO_SPACE_COMPLAINT = b"No space left on device"

# A signal that no file makes a decoder send itself, and ffmpeg's own status where it heeded one.
ENDED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT, 255)

UNREADABLE = (
    "The file is damaged or of a kind that cannot be read: send a picture as PNG, JPEG or WebP, sound as WAV, MP3, "
    "M4A, FLAC or OGG, a video as MP4, MOV, WebM or MKV"
)
TOO_LARGE = f"The picture is too large: at most {MAX_PIXELS // 2**20} million pixels can be read"


class MediaError(ValueError):
    """A file is no usable picture, sound or video. The message says what is wrong and what to send instead."""


class DecoderError(RuntimeError):
    """The decoder was ended from outside, for want of memory as a rule, or its disk is full.

    The message can be shown to the client.
    """


class Source(Protocol):
    """Where reference frames come from. `height` and `width` are in pixels, upright, of square pixels."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def frame_at(self, seconds: float) -> Tensor:
        """The frame shown at an instant: uint8 (3, height, width), RGB."""
        ...


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds.

    `height` and `width` are those of the upright picture with square pixels, 0 for sound. `duration_s` is that of the
    video, else of the sound, to within one packet (some 20 ms); 0 for a picture.
    """

    kind: Literal["image", "video", "audio"]
    height: int
    width: int
    duration_s: float
    has_audio: bool


@dataclass
class Picture:
    """A still picture as a `Source`: the same frame at every instant. `pixels` is uint8 (3, height, width)."""

    pixels: Tensor

    @classmethod
    def open(cls, path: Path) -> "Picture":
        """Reads a picture file, see `read_picture`."""
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
    """Frames of a video at the instants 0, stride/25, 2·stride/25 … seconds, kept as PNG files.

    `paths` ends with the video's true last frame where the video ends before `max_frames` (at 25 fps).
    """

    paths: list[Path]
    stride: int
    max_frames: int
    height: int
    width: int

    def frame_at(self, seconds: float) -> Tensor:
        """The frame shown at `seconds`, the video's last one beyond its end: uint8 (3, height, width).

        Raises `ValueError` for an instant that is no multiple of the stride, or beyond `max_frames`.
        """
        frame = seconds * VIDEO_FPS
        if abs(frame - round(frame)) > 1e-6 or round(frame) % self.stride or not 0 <= round(frame) < self.max_frames:
            raise ValueError(
                f"No frame was extracted for {seconds} s: frames are kept every {self.stride}/{VIDEO_FPS} s, "
                f"from 0 to {self.max_frames}/{VIDEO_FPS} s"
            )
        path = self.paths[min(round(frame) // self.stride, len(self.paths) - 1)]
        with Image.open(path) as image:
            return _over_white(np.asarray(image))


def ffmpeg_path() -> str:
    """The ffmpeg binary: `FFMPEG_BINARY` from the environment, else the one on the PATH, else imageio-ffmpeg's."""
    return os.environ.get("FFMPEG_BINARY") or shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()


def probe(path: Path) -> MediaInfo:
    """Tells what a file holds, by its content. A picture beside sound (cover art) is not a video.

    The first frame of a picture or video is decoded; sound is not. Raises `MediaError` for what is no media, cut
    short, without a single frame, or larger than `MAX_PIXELS`.
    """
    contents = _contents_of(path)
    if contents.video is None:
        return MediaInfo("audio", 0, 0, contents.duration_s, True)
    frame = _first_frame_of(path)
    kind: Literal["image", "video"] = "image" if contents.is_picture else "video"
    return MediaInfo(kind, frame.height, frame.width, contents.duration_s, contents.audio is not None)


def read_picture(path: Path) -> Tensor:
    """Reads a picture, the first frame of an animated one: uint8 (3, height, width), RGB.

    The picture is upright (EXIF orientation), transparency is shown over white, 16-bit, grey, palette and CMYK
    pictures become 8-bit RGB. Pixels are taken as square, as picture viewers do. Raises `MediaError`.
    """
    contents = _contents_of(path)
    if contents.video is None or not (contents.is_picture or contents.animated):
        raise MediaError("The file is no picture: send a PNG, JPEG, WebP, BMP, TIFF or GIF picture")
    frame = _first_frame_of(path)
    picture = _upright(contents).output(
        "pipe:", format="rawvideo", pix_fmt="rgba", sws_flags=SWSCALE_FLAGS, **{"frames:v": 1}
    )
    with _child(path, picture, DECODE_TIMEOUT_S) as child:
        rgba = child.stdout.read()
    return _over_white(np.frombuffer(rgba, np.uint8).reshape(frame.height, frame.width, 4))


def read_waveform(path: Path, max_seconds: float | None = None) -> np.ndarray:
    """Reads the first sound of an audio or video file: float32 (samples,), mono, 16 kHz.

    Channels are averaged. Time zero is the sound's own first sample, also where it starts later than the picture; an
    encoder's delay (MP3, AAC, Opus) is taken off. At most `max_seconds` are decoded. Raises `MediaError` for a file
    without sound, without samples, or with samples that are not finite.
    """
    contents = _contents_of(path)
    if contents.audio is None:
        raise MediaError("The file has no sound: send an audio file (WAV, MP3, M4A, FLAC, OGG) or a video with sound")
    sound = contents.input()["a:0"].filter("asetpts", "N/SR/TB")
    if max_seconds is not None:
        sound = sound.filter("atrim", duration=max_seconds)
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "sound.wav"
        with _child(path, sound.output(str(wav), format="wav", acodec="pcm_f32le"), DECODE_TIMEOUT_S):
            pass
        try:
            waveform, _ = librosa.load(wav, sr=SAMPLING_RATE, mono=True)
        except librosa.ParameterError as error:
            raise MediaError(
                "The sound has samples that are not finite numbers: export it again as 16-bit WAV"
            ) from error
    if waveform.size == 0:
        raise MediaError("The sound is empty: send one of at least 0.2 s")
    return waveform


def sound_seconds(path: Path) -> float:
    """Seconds of the sound that `read_waveform` reads, to within one packet. Raises `MediaError` for a file without."""
    audio = _contents_of(path).audio
    if audio is None:
        raise MediaError("The file has no sound: send an audio file (WAV, MP3, M4A, FLAC, OGG) or a video with sound")
    return audio.duration_s


def extract_frames(path: Path, folder: Path, stride: int, max_frames: int, start: int = 0) -> VideoFrames:
    """Writes the frames that a video shows at 0, stride/25, 2·stride/25 … seconds into `folder`, as PNG.

    Time zero is `start`/25 seconds into the video, its first frame by default. An instant shows the last frame whose
    timestamp is not later, at any frame rate, constant or not. Frames are upright, 8-bit RGB, of square pixels,
    transparency over white; HDR is tone-mapped, colours without a tag are taken as BT.601 (ffmpeg's default). Nothing
    is decoded beyond `max_frames`/25 seconds from time zero. Raises `MediaError`.
    """
    contents = _contents_of(path)
    if contents.video is None or contents.is_picture:
        raise MediaError("The file is no video: send an MP4, MOV, WebM, MKV or AVI video")
    first_frame = _first_frame_of(path)
    # A frame's first place on the grid is its time rounded up, so place n shows the last frame not later than n ms; and
    # rounding up to 1 ms does not change what 40 ms steps show. The grid is finer than any frame is long, so even a
    # last frame that no 40 ms step meets is on it; repeated for one more stride, it is also the last one selected.
    frames = (
        _upright(contents)
        .filter("setpts", "PTS-STARTPTS")
        .filter("fps", fps=GRID_FPS, round="up")
        .filter("tpad", stop_mode="clone", stop=GRID_STEPS_PER_FRAME * stride)
        .filter("trim", start_frame=GRID_STEPS_PER_FRAME * start)
        .filter("select", f"not(mod(n,{GRID_STEPS_PER_FRAME * stride}))")
    )
    if first_frame.high_dynamic_range:
        for name, arguments in TONE_MAPPING_FILTERS:
            frames = frames.filter(name, **arguments)
    files = frames.filter("scale", first_frame.width, first_frame.height, flags=SWSCALE_FLAGS).output(
        str(folder / "%06d.png"),
        format="image2",
        vcodec="png",
        pix_fmt="rgba",
        compression_level=1,
        fps_mode="passthrough",
        start_number=0,
        **{"frames:v": -(-max_frames // stride)},
    )
    with _child(path, files, DECODE_TIMEOUT_S):
        pass
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise MediaError("The video has no frame that can be decoded: export it again as H.264 MP4")
    return VideoFrames(paths, stride, max_frames, first_frame.height, first_frame.width)


def detect_scenes(path: Path, max_frames: int) -> list[int]:
    """Start frames, counted at 25 fps, of the scenes in a video's first `max_frames`; the first is 0.

    None is shorter than `MIN_SCENE_FRAMES`, which would cost a chunk of its own. PySceneDetect's content detector sees
    small frames decoded by the child. Raises `MediaError`.
    """
    # PySceneDetect brings OpenCV; only jobs that ask for scenes pay for importing it.
    from scenedetect import ContentDetector, FrameTimecode

    contents = _contents_of(path)
    if contents.video is None or contents.is_picture:
        raise MediaError("The file is no video: send an MP4, MOV, WebM, MKV or AVI video")
    first_frame = _first_frame_of(path)
    small_height = max(1, round(first_frame.height * SCENE_FRAME_WIDTH / first_frame.width))
    frames = (
        _upright(contents)
        .filter("setpts", "PTS-STARTPTS")
        .filter("fps", fps=VIDEO_FPS, round="up")
        .filter("scale", SCENE_FRAME_WIDTH, small_height, flags="area")
        .output("pipe:", format="rawvideo", pix_fmt="bgr24", **{"frames:v": max_frames})
    )
    detector = ContentDetector(min_scene_len=MIN_SCENE_FRAMES)
    cuts: list[int] = []
    frame_bytes = small_height * SCENE_FRAME_WIDTH * 3
    with _child(path, frames, DECODE_TIMEOUT_S) as child:
        for index, frame in enumerate(iter(lambda: child.stdout.read(frame_bytes), b"")):
            pixels = np.frombuffer(frame, np.uint8).reshape(small_height, SCENE_FRAME_WIDTH, 3)
            found = detector.process_frame(FrameTimecode(index, fps=float(VIDEO_FPS)), pixels)
            cuts += [cut.frame_num for cut in found]
    return [0, *(cut for cut in cuts if cut <= max_frames - MIN_SCENE_FRAMES)]


@dataclass(frozen=True)
class _Stream:
    codec: str
    height: int
    width: int
    sample_aspect_ratio: Fraction
    num_packets: int
    duration_s: float


@dataclass(frozen=True)
class _FirstFrame:
    height: int
    width: int
    high_dynamic_range: bool


@dataclass(frozen=True)
class _Contents:
    """The first picture and the first sound of a file, as its container describes them."""

    input_options: dict[str, Any]
    is_picture: bool
    animated: bool
    orientation: int
    video: _Stream | None
    audio: _Stream | None

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
        return ffmpeg.input("file:/dev/stdin", **options)


def _contents_of(path: Path) -> _Contents:
    """What a file holds. A job looks at each of its files several times, and a child takes a while to start."""
    if not path.is_file():
        raise MediaError("The file does not exist")
    return _read_contents(path, _version_of(path))


def _first_frame_of(path: Path) -> _FirstFrame:
    """A file's first frame, likewise."""
    return _read_first_frame(path, _version_of(path))


def _version_of(path: Path) -> tuple[int, int, int]:
    """Differs once the file at a path is another."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _picture_demuxer(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp_pipe"
    return next((name for signature, name in PICTURE_SIGNATURES.items() if head.startswith(signature)), None)


@lru_cache(maxsize=KEPT_FILES)
def _read_contents(path: Path, version: tuple[int, int, int]) -> _Contents:
    """Reads every packet of a file, decoding none (beyond what ffmpeg needs to know a stream's parameters)."""
    with path.open("rb") as opened:
        head = opened.read(32)
    if not head:
        raise MediaError("The file is empty: upload it again")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"):
        raise MediaError("HEIC and AVIF pictures are not supported: send the picture as JPEG, PNG or WebP")
    demuxer = _picture_demuxer(head)
    if demuxer == "webp_pipe" and head[12:16] == b"VP8X" and head.ljust(21)[20] & WEBP_ANIMATION_FLAG:
        raise MediaError("Animated WebP is not supported: send a still WebP, a GIF or an MP4 video")
    options: dict[str, Any] = {
        "protocol_whitelist": "file",
        "max_pixels": MAX_PIXELS,
        "threads": DECODER_THREADS,
        # A video whose frames change size goes on in the same filters, which would start counting anew otherwise.
        "reinit_filter": 0,
        **({"format_whitelist": CONTAINERS} if demuxer is None else {"format": demuxer, "noautorotate": None}),
    }
    if demuxer == "jpeg_pipe":
        # Otherwise the rows missing from a JPEG cut short are grey, and nothing is said.
        options["err_detect"] = "explode"
    file = ffmpeg.input("file:/dev/stdin", **options)
    packets = ffmpeg.output(file["V:0?"], file["a:0?"], "pipe:", format="framecrc", c="copy")
    with _child(path, packets, PROBE_TIMEOUT_S) as child:
        streams = _parse_packets(child.stdout)
    if not streams:
        raise MediaError(UNREADABLE)
    video, audio = streams.get("video"), streams.get("audio")
    if video is not None and max(video.sample_aspect_ratio, Fraction(1)) * video.height * video.width > MAX_PIXELS:
        raise MediaError(TOO_LARGE)
    animated = demuxer == "gif" and video is not None and video.num_packets > 1
    return _Contents(
        input_options=options,
        is_picture=demuxer is not None and not animated,
        animated=animated,
        orientation=1 if demuxer is None else _read_orientation(path),
        video=video,
        audio=audio,
    )


def _parse_packets(lines: IO[bytes]) -> dict[str, _Stream]:
    """Reads ffmpeg's framecrc output: `#key stream: value`, then `stream, dts, pts, duration, size, crc` a packet."""
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
        result[media_type] = _Stream(
            codec=facts["codec_id", stream],
            height=int(height),
            width=int(width),
            sample_aspect_ratio=Fraction(int(numerator) or 1, int(denominator)),
            num_packets=num_packets[stream],
            duration_s=float((ends[stream] - start) * Fraction(facts["tb", stream])),
        )
    return result


def _read_orientation(path: Path) -> int:
    """The EXIF orientation of a picture, 1 (upright) where it has none. Only the tag is read, no pixel.

    ffmpeg itself heeds the tag in JPEG alone before version 8.
    """
    try:
        with Image.open(path, formats=["JPEG", "PNG", "WEBP", "TIFF"]) as image:
            if isinstance(image, TiffImageFile):
                return int(image.tag_v2.get(EXIF_ORIENTATION_TAG, 1))
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            return int(exif.get(EXIF_ORIENTATION_TAG, 1))
    except Exception:
        # Pillow raises errors of many kinds for other formats and damaged metadata. Like a viewer, show the picture as
        # it is; whether its pixels can be read is the child's to say.
        return 1


def _upright(contents: _Contents) -> Any:
    """The decoded picture or video, upright; ffmpeg itself turns videos."""
    stream = contents.input()["V:0"]
    for name, arguments in ORIENTATION_FILTERS.get(contents.orientation, []):
        stream = stream.filter(name, **arguments)
    return stream


@lru_cache(maxsize=KEPT_FILES)
def _read_first_frame(path: Path, version: tuple[int, int, int]) -> _FirstFrame:
    """Decodes the first frame, upright and, for a video, of square pixels (its height is kept)."""
    contents = _read_contents(path, version)
    frame = _upright(contents)
    if not contents.is_picture:
        frame = frame.filter("scale", "max(1,round(iw*sar))", "ih").filter("setsar", 1).filter("showinfo")
    measured = frame.output("pipe:", format="framecrc", **{"frames:v": 1})
    with _child(path, measured, PROBE_TIMEOUT_S, loglevel="info") as child:
        video = _parse_packets(child.stdout).get("video")
    if video is None:
        raise MediaError("The file has no frame that can be decoded: save it again as PNG, JPEG or H.264 MP4")
    return _FirstFrame(video.height, video.width, any(transfer in child.log for transfer in HDR_TRANSFERS))


def _over_white(rgba: np.ndarray) -> Tensor:
    """RGBA uint8 (height, width, 4), alpha not premultiplied → RGB over white, uint8 (3, height, width)."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    blended = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return torch.from_numpy(blended.astype(np.uint8)).permute(2, 0, 1).contiguous()


@dataclass
class _Child:
    """A running ffmpeg: its standard output, and its log once it has ended."""

    stdout: IO[bytes]
    log: bytes = b""


@contextmanager
def _child(path: Path, output: Any, timeout_s: float, loglevel: str = "error") -> Iterator[_Child]:
    """Runs ffmpeg on a file; its standard output must be read to the end.

    The child is killed after `timeout_s`, and may write no file above `MAX_CHILD_FILE_BYTES`. Raises `MediaError`
    for a child that refuses, crashes or takes too long, `DecoderError` for one that somebody else kills.
    """
    command = output.compile(cmd=[ffmpeg_path(), "-nostdin", "-hide_banner", "-loglevel", loglevel])
    timed_out = threading.Event()
    with path.open("rb") as media, tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdin=media, stdout=subprocess.PIPE, stderr=log) as process:

            def stop() -> None:
                timed_out.set()
                process.kill()

            watchdog = threading.Timer(timeout_s, stop)
            watchdog.start()
            try:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (MAX_CHILD_FILE_BYTES, MAX_CHILD_FILE_BYTES))
                assert process.stdout is not None
                child = _Child(process.stdout)
                yield child
                process.wait()
            finally:
                watchdog.cancel()
                process.kill()
        log.seek(0)
        child.log = log.read(MAX_LOG_BYTES)
    if timed_out.is_set():
        raise MediaError(f"The file could not be decoded within {timeout_s:g} s: send a shorter or simpler one")
    if any(complaint in child.log for complaint in CUT_SHORT_COMPLAINTS):
        raise MediaError("The file is cut short: upload it again")
    if b"exceeds specified max pixel count" in child.log:
        raise MediaError(TOO_LARGE)
    if NO_SPACE_COMPLAINT in child.log:
        raise DecoderError("The worker's disk is full: send the job again, or a smaller file")
    if process.returncode in ENDED_FROM_OUTSIDE:
        raise DecoderError("The decoder was ended before it was done: send the job again, or a smaller file")
    if process.returncode != 0:
        raise MediaError(UNREADABLE)

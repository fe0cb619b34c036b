"""Encodes frames to H.264 parts and joins the parts to one MP4 with sound; writes thumbnails.

A video is encoded once, in parts, as its frames arrive. Each part starts with an IDR frame and is complete in itself,
and all have the same parameters, so that `join_parts` can copy their packets into the final file. PyAV encodes; it
only ever reads frames and parts that we have made: parts from a store are signed.
"""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from PIL import Image

from infinitetalk.errors import EncodeError
from infinitetalk.media.provenance import Mark, append_xmp
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS

H264_OPTIONS = {"crf": "18", "preset": "medium", "profile": "high"}

SMALL_PICTURE = 256 * 256
"""Videos with fewer pixels per frame use `SMALL_H264_OPTIONS`, because they are usually viewed enlarged."""

SMALL_H264_OPTIONS = H264_OPTIONS | {"crf": "4", "x264-params": "mbtree=0"}
"""Each part starts with a key frame, which visibly flickers in small videos when enlarged; a lower CRF hides it, at
about twice the audio bitrate."""

TICKS_PER_FRAME = 512
"""Ticks of the joined video's time base, 1/12800 s, which ffmpeg's MP4 muxer also picks for 25 fps."""

VIDEO_TIME_BASE = Fraction(1, VIDEO_FPS * TICKS_PER_FRAME)

SOUND_RATE = 48_000
"""Sampling rate of the AAC track: an AAC frame lasts 21 ms at 48 kHz, but 64 ms at 16 kHz."""

SOUND_BIT_RATE = 128_000

THUMBNAIL_QUALITY = 90


@dataclass(frozen=True)
class Timing:
    """When each frame of a joined video is shown.

    Attributes:
        time_base: seconds of a tick.
        starts: ticks of each frame's start, ascending, and of the last one's end; None: 25 frames a second.
    """

    time_base: Fraction = VIDEO_TIME_BASE
    starts: tuple[int, ...] | None = None

    @property
    def rate(self) -> Fraction:
        """Frames a second: of the frame of median length."""
        if self.starts is None:
            return Fraction(VIDEO_FPS)
        lengths = sorted(after - start for start, after in pairwise(self.starts))
        return 1 / (lengths[len(lengths) // 2] * self.time_base)

    def start(self, frame: int) -> int:
        """Ticks of a frame's start; before the first one, and after the last, at the rate there."""
        if self.starts is None:
            return frame * TICKS_PER_FRAME
        last = len(self.starts) - 1
        if frame < 0:
            return self.starts[0] + frame * (self.starts[1] - self.starts[0])
        return self.starts[frame] if frame <= last else self.starts[last] + frame - last

    def samples(self, frame: int) -> slice:
        """The samples at 16 kHz during a frame."""
        return slice(*(round(self.start(number) * self.time_base * SAMPLING_RATE) for number in (frame, frame + 1)))


EVEN = Timing()
"""25 frames a second."""


def because(error: BaseException) -> str:
    """The end of a message about a failed write: the reason, if it is known."""
    return ": the disk is full" if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else ""


class PartEncoder:
    """Encodes one part of a video: an MP4 file with H.264, yuv420p, BT.709 colours in limited range.

    Its threads end with its `with` block; after an error, the part is not complete.
    """

    def __init__(self, path: Path, height: int, width: int, rate: Fraction = EVEN.rate) -> None:
        """Opens a part of `width`×`height` pixels, both even, and `rate` frames a second. Raises `EncodeError`."""
        if height % 2 or width % 2:
            raise EncodeError(f"A video of {width}×{height} pixels cannot be encoded: both sides must be even")
        self._num_frames = 0
        self._rate = rate
        self._reformatter = VideoReformatter()
        try:
            self._container = av.open(str(path), "w", format="mp4")
            options = SMALL_H264_OPTIONS if height * width < SMALL_PICTURE else H264_OPTIONS
            self._stream = self._container.add_stream("libx264", rate=rate, options=options)
            self._stream.height, self._stream.width = height, width
            self._stream.pix_fmt = "yuv420p"
            codec_context = self._stream.codec_context
            codec_context.colorspace = Colorspace.ITU709
            codec_context.color_primaries = ColorPrimaries.BT709
            codec_context.color_trc = ColorTrc.BT709
            codec_context.color_range = ColorRange.MPEG
            self._container.start_encoding()
        except av.FFmpegError as error:
            raise EncodeError("A part of the video could not be opened for writing") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            # What cannot be written to the end either has the same reason, which the first error says.
            with suppress(av.FFmpegError):
                self._container.close()
        # Their threads end only with them.
        del self._stream, self._reformatter

    def write(self, frames: np.ndarray) -> None:
        """Encodes frames: uint8 (T, height, width, 3), RGB. Raises `EncodeError`."""
        expected = (self._stream.height, self._stream.width, 3)
        if frames.dtype != np.uint8 or frames.shape[1:] != expected:
            raise ValueError(
                f"frames are {frames.dtype} {frames.shape}, not uint8 (T, {expected[0]}, {expected[1]}, 3)"
            )
        for pixels in frames:
            frame = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                dst_color_trc=ColorTrc.BT709,
                dst_color_primaries=ColorPrimaries.BT709,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP,
            )
            frame.pts, frame.time_base = self._num_frames, 1 / self._rate
            self._encode(frame)
            self._num_frames += 1

    def close(self) -> int:
        """Finishes the part and returns its number of frames. Raises `EncodeError`, also if there are none."""
        if self._num_frames == 0:
            self._container.close()
            raise EncodeError("A part of the video has no frames")
        self._encode(None)
        try:
            self._container.close()
        except av.FFmpegError as error:
            raise EncodeError(f"A part of the video could not be written{because(error)}") from error
        return self._num_frames

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            raise EncodeError(f"A part of the video could not be written{because(error)}") from error


class EncodedSound:
    """A video's sound as mono AAC at 48 kHz, encoded once, one video frame after the other. Any thread may ask for it.

    Args:
        waveform: float32 (samples,) at 16 kHz; clipped to [-1, 1] (a mix of loud voices may exceed it), and followed by
            silence.
        timing: when the video's frames are shown.

    Attributes:
        timing: the same.
    """

    def __init__(self, waveform: np.ndarray, timing: Timing = EVEN) -> None:
        self.timing = timing
        self._waveform = waveform
        self._container = av.open(os.devnull, "w", format="null")
        self._stream = _add_sound(self._container)
        self._lock = threading.Lock()
        self._packets: list[list[av.Packet]] = []
        self._rest: list[av.Packet] | None = None

    def packets(self, frame: int) -> list[av.Packet]:
        """The packets that follow a video frame; there may be none."""
        with self._lock:
            while len(self._packets) <= frame:
                self._packets.append(self._encode(len(self._packets)))
            return self._packets[frame]

    def _encode(self, frame: int) -> list[av.Packet]:
        """The packets of the next frame; of one without a sample, none: the encoder would take it as the end."""
        during = self.timing.samples(frame)
        if during.start == during.stop:
            return []
        return list(self._stream.encode(sound_of_frame(self._waveform, frame, self.timing)))

    def rest(self, num_frames: int) -> list[av.Packet]:
        """The packets after the last one of `num_frames` video frames. Always the same number must be given.

        Raises:
            ValueError: more frames' sound has been encoded.
        """
        if num_frames:
            self.packets(num_frames - 1)
        with self._lock:
            if len(self._packets) != num_frames:
                raise ValueError(f"the sound of {len(self._packets)} frames was encoded for a video of {num_frames}")
            if self._rest is None:
                self._rest = list(self._stream.encode(None))
                self._container.close()
            return self._rest

    def num_bytes(self, num_frames: int) -> int:
        """Size of the sound of a whole video of this many frames."""
        packets = [*self.rest(num_frames), *(packet for index in range(num_frames) for packet in self.packets(index))]
        return sum(packet.size for packet in packets)

    @contextmanager
    def ahead(self, num_frames: int) -> Iterator[None]:
        """Encodes the sound of a video of this many frames in a thread of its own, while the inside runs; what that
        thread raises is raised here once the inside has ended. If the inside fails, no more sound can be encoded: the
        encoder's own threads end.

        Raises:
            EncodeError: the sound could not be encoded.
        """
        is_over = threading.Event()

        def encode() -> None:
            for index in range(num_frames):
                if is_over.is_set():
                    return
                self.packets(index)

        with ThreadPoolExecutor(1, thread_name_prefix="sound") as thread:
            encoding = thread.submit(encode)
            try:
                yield
            except BaseException:
                is_over.set()
                encoding.exception()
                self._container.close()
                raise
            is_over.set()
        try:
            encoding.result()
        except av.FFmpegError as error:
            raise EncodeError("The video's sound could not be encoded") from error


def join_parts(parts: list[Path], sound: EncodedSound, output: Path, mark: Mark | None = None) -> None:
    """Joins parts and sound into one MP4 that can play before it is fully loaded (moov first).

    `mark` is written into the file, as XMP for machines and as its comment for people; None: the file is not marked.
    The frames are shown by the sound's timing; the parts must have been encoded at its rate.

    The packets of parts and sound are copied; the sound is cut or padded with silence to the video's duration. Of the
    pictures, memory holds one packet; of the sound, all of them, less than its waveform takes. Raises `EncodeError`.
    """
    if not parts:
        raise EncodeError("There is no part of a video to join")
    timing = sound.timing
    try:
        with (
            av.open(str(parts[0]), format="mp4") as first,
            av.open(str(output), "w", format="mp4", options={"movflags": "+faststart"}) as container,
        ):
            if mark is not None:
                container.metadata["comment"] = mark.sentence
            video = container.add_stream_from_template(first.streams.video[0])
            video.time_base = timing.time_base
            audio = _add_sound(container)
            container.start_encoding()

            def add_sound(packets: list[av.Packet]) -> None:
                for packet in packets:
                    packet.stream = audio
                    container.mux(packet)

            num_frames = 0
            for packet in joined_packets(parts, timing=timing):
                packet.stream = video
                container.mux(packet)
                add_sound(sound.packets(num_frames))
                num_frames += 1
            add_sound(sound.rest(num_frames))
    except av.FFmpegError as error:
        raise EncodeError(f"The video's parts and sound could not be joined{because(error)}") from error
    if mark is not None:
        append_xmp(output, mark)


def check_parts(parts: Sequence[tuple[Path, int]]) -> None:
    """Checks that parts, each given with its number of frames, can be joined. Raises `EncodeError`."""
    try:
        num_packets = sum(1 for _ in joined_packets([part for part, _ in parts]))
    except av.FFmpegError as error:
        raise EncodeError("A part of the video cannot be read") from error
    if num_packets != sum(num_frames for _, num_frames in parts):
        raise EncodeError("The video's parts do not have the expected number of frames")


def picture_bytes(part: Path) -> int:
    """Size of a part's encoded frames, which `join_parts` copies."""
    return sum(packet.size for packet in joined_packets([part]))


def write_thumbnail(frame: np.ndarray, path: Path, mark: Mark | None = None) -> None:
    """Writes a frame, uint8 (height, width, 3) RGB, as JPEG with a mark in its XMP, if given. Raises `EncodeError`."""
    try:
        Image.fromarray(frame).save(
            path, format="JPEG", quality=THUMBNAIL_QUALITY, xmp=b"" if mark is None else mark.xmp
        )
    except OSError as error:
        raise EncodeError(f"The thumbnail could not be written{because(error)}") from error


def joined_packets(parts: list[Path], num_before: int = 0, timing: Timing = EVEN) -> Iterator[av.Packet]:
    """The parts' video packets in decoding order, timed as one video after `num_before` earlier frames.

    A packet's decoding time is that of the frame of its index in decoding order minus the encoder's reordering depth.
    The parts' own decoding times cannot be used: parts too short for a B-frame start at another time than long parts,
    so that times would run backwards.
    """
    num_decoded, rate = num_before, timing.rate
    parameters: bytes | None = None
    for part in parts:
        first_frame = num_decoded
        with av.open(str(part), format="mp4") as container:
            stream = container.streams.video[0]
            codec_context = stream.codec_context
            if parameters not in (None, codec_context.extradata):
                raise EncodeError("The video's parts differ in size or encoding and cannot be joined")
            parameters = codec_context.extradata
            for packet in container.demux(stream):
                if packet.pts is None:  # PyAV's mark of the end
                    continue
                frame = first_frame + round(packet.pts * packet.time_base * rate)
                packet.time_base = timing.time_base
                packet.pts = timing.start(frame)
                packet.dts = timing.start(num_decoded - codec_context.reorder_depth)
                packet.duration = timing.start(frame + 1) - timing.start(frame)
                num_decoded += 1
                yield packet


def _add_sound(container: av.container.OutputContainer) -> av.AudioStream:
    return container.add_stream("aac", rate=SOUND_RATE, layout="mono", bit_rate=SOUND_BIT_RATE)


def sound_of_frame(waveform: np.ndarray, index: int, timing: Timing = EVEN) -> av.AudioFrame:
    """The samples during a video frame; silence after the waveform's end."""
    during = timing.samples(index)
    samples = np.zeros((1, during.stop - during.start), np.float32)
    heard = waveform[during]
    samples[0, : len(heard)] = np.clip(heard, -1, 1)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = SAMPLING_RATE
    frame.pts, frame.time_base = during.start, Fraction(1, SAMPLING_RATE)
    return frame

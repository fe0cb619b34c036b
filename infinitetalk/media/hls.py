"""A growing video as HTTP Live Streaming (RFC 8216), one MPEG-TS segment per chunk.

The segments' video packets are copied from the parts that become the MP4, so that nothing is encoded twice. The sound
is encoded in one pass over all segments, so that it has no gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from infinitetalk.errors import EncodeError
from infinitetalk.media.encode import SOUND_BIT_RATE, SOUND_RATE, because, joined_packets, sound_of_frame
from infinitetalk.media.provenance import Mark
from infinitetalk.media.speech import VIDEO_FPS

PLAYLIST_TYPE = "application/vnd.apple.mpegurl"
SEGMENT_TYPE = "video/mp2t"

_FRAMES_BEFORE = VIDEO_FPS
"""All times are shifted by one second, because MPEG-TS has no negative decoding times."""

_SEGMENT_OPTIONS = {"mpegts_flags": "+initial_discontinuity", "avoid_negative_ts": "disabled"}
"""Each segment counts its packets from 0; this tells players so."""


class SegmentWriter:
    """Writes a video's segments, in order.

    Args:
        waveform: float32 (samples,) at 16 kHz, of the whole video.
        mark: is named as each segment's service, since MPEG-TS has no place for XMP; None: segments are not marked.
    """

    def __init__(self, waveform: np.ndarray, mark: Mark | None = None) -> None:
        self._waveform = waveform
        self._mark = mark
        self._num_frames = 0
        self._encoder = av.CodecContext.create("aac", "w")
        self._encoder.sample_rate = SOUND_RATE
        self._encoder.layout = "mono"
        self._encoder.format = "fltp"
        self._encoder.bit_rate = SOUND_BIT_RATE
        self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=SOUND_RATE)

    def write(self, part: Path, segment: Path) -> int:
        """Writes the segment of a video's next part; returns its number of frames.

        Raises:
            EncodeError: it could not be written.
        """
        try:
            with av.open(str(segment), "w", format="mpegts", options=_SEGMENT_OPTIONS) as container:
                if self._mark is not None:
                    container.metadata["service_provider"] = self._mark.tool
                    container.metadata["service_name"] = self._mark.sentence
                with av.open(str(part), format="mp4") as opened:
                    video = container.add_stream_from_template(opened.streams.video[0])
                sound = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
                num_frames = 0
                for packet in joined_packets([part], self._num_frames + _FRAMES_BEFORE):
                    packet.stream = video
                    container.mux(packet)
                    for heard in self._sound_of(self._num_frames + num_frames):
                        heard.stream = sound
                        container.mux(heard)
                    num_frames += 1
        except av.FFmpegError as error:
            raise EncodeError(f"A part of the preview could not be written{because(error)}") from error
        self._num_frames += num_frames
        return num_frames

    def _sound_of(self, index: int) -> list[av.Packet]:
        packets = []
        for frame in self._resampler.resample(sound_of_frame(self._waveform, index)):
            packets += self._encoder.encode(frame)
        before = Fraction(_FRAMES_BEFORE, VIDEO_FPS)
        for packet in packets:
            assert packet.pts is not None and packet.dts is not None and packet.time_base is not None
            offset = round(before / packet.time_base)
            packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
        return packets


def playlist(addresses: Sequence[str], lengths: Sequence[int], longest: int, is_complete: bool) -> str:
    """The playlist (M3U8) of the existing segments of a video.

    Args:
        addresses: the segments' addresses.
        lengths: the segments' lengths in video frames.
        longest: the largest length that a segment will have.
        is_complete: whether no segment follows.
    """
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:3",
        f"#EXT-X-TARGETDURATION:{math.ceil(longest / VIDEO_FPS)}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
    ]
    for address, length in zip(addresses, lengths, strict=True):
        lines += [f"#EXTINF:{length / VIDEO_FPS:.3f},", address]
    return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if is_complete else [])]) + "\n"

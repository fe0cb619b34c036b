"""Hostile and odd inputs, made on the spot, and what a worker must answer to each: a table for parametrised tests.

Every `HostileInput` has a field and a value; `job_with` puts it into a small job. None needs the network. Redirects,
which need a site that sends them, are `REDIRECT_TARGETS`.
"""

from __future__ import annotations

import base64
import copy
import io
import math
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import soundfile
from PIL import Image

from schemas import ErrorCode
from tests.job_inputs import data_uri, picture_bytes, small_job, speech_bytes

OK = "ok"
INVALID = ErrorCode.INPUT_VALIDATION
REFUSED = ErrorCode.DOWNLOAD_FAILED

PICTURE = "cond_video"
VOICE = "cond_audio.person1"

SECONDS = 0.4
"""Length of the odd sounds that are fit to be spoken: ten frames."""

REDIRECT_TARGETS = (
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "gopher://127.0.0.1/",
    "http://127.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "//127.0.0.1/",
    "http://2130706433/",
    "data:image/png;base64,AAAA",
    "http://",
    "\x00",
)
"""Where a public address may redirect to; every one is E_DOWNLOAD_FAILED."""


@dataclass(frozen=True)
class HostileInput:
    """One input and the answers that are right.

    Attributes:
        name: a test's id.
        field: where it goes, by dots: a field of `input`, "input" itself, or "job.id", "job.s3Config" beside it.
        make: makes the value; bytes are a file's content.
        expected: "ok" or error codes; several where either a result or a refusal is right.
        file_name: the name of the file when it is given as a path or URL; the content decides, not the name.
        changes: other fields of `input` that the case needs.
    """

    name: str
    field: str
    make: Callable[[], Any]
    expected: tuple[str, ...]
    file_name: str = "file"
    changes: dict[str, Any] = field(default_factory=dict)


def job_with(hostile: HostileInput) -> dict[str, Any]:
    """A small job, id and input, with the hostile value in its place; files go as data URIs."""
    value = hostile.make()
    if isinstance(value, bytes):
        value = data_uri(value, "application/octet-stream")
    job: dict[str, Any] = {"id": "hostile", "input": small_job(**copy.deepcopy(hostile.changes))}
    # An unknown field's name may hold anything, so only the beginning and the known parents are told apart.
    parent, _, name = hostile.field.rpartition(".")
    target = job if hostile.field == "input" or parent == "job" else job["input"]
    if parent not in ("", "job"):
        target = target[parent]
    target[name] = value
    return job


# Pictures


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file: length, kind, content, checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, *extra_chunks: bytes) -> bytes:
    """A grey PNG of one bit a pixel; `pixels` are its rows, each after a filter byte, and need not be complete."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), *extra_chunks, png_chunk(b"IDAT", zlib.compress(pixels, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def blank_png(width: int, height: int) -> bytes:
    """A complete black PNG of one bit a pixel."""
    return png(width, height, bytes((1 + (width + 7) // 8) * height))


def text_bomb_png() -> bytes:
    """A small picture with a compressed comment of 50 MB."""
    comment = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9)
    return png(64, 64, bytes(9 * 64), png_chunk(b"zTXt", comment))


def wrong_checksum_png() -> bytes:
    """A PNG whose pixels do not have the checksum that it says."""
    content = bytearray(picture_bytes())
    end_of_pixels = content.index(b"IEND") - 4
    content[end_of_pixels - 1] ^= 0xFF
    return bytes(content)


def picture(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """A picture of another mode or kind, saved by Pillow."""
    image = Image.open(io.BytesIO(picture_bytes(size[1], size[0]))).convert("RGB")
    if mode in ("LA", "I;16"):
        image = image.convert("L")
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def animation(kind: str) -> bytes:
    """Five frames that differ."""
    frames = [Image.new("RGB", (64, 64), (50 * index, 0, 90)) for index in range(5)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=80)
    return file.getvalue()


def rotated_jpeg() -> bytes:
    """A picture that its EXIF tag turns by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(kind="JPEG", exif=exif)


def with_broken_exif() -> bytes:
    """A picture whose EXIF block is noise."""
    return picture(kind="JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 200)


# Files made by ffmpeg


@cache
def encoded(arguments: str, container: str, seconds: float = SECONDS, source: str = "") -> bytes:
    """What ffmpeg makes of a moving test picture and a tone, or of the `source` given as its arguments."""
    inputs = source or (
        f"-f lavfi -i testsrc2=size=64x64:rate=25:duration={seconds} -f lavfi -i sine=frequency=220:duration={seconds}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        command = f"-nostdin -v error {inputs} {arguments} -f {container}"
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command.split(), str(path)], check=True, capture_output=True)
        return path.read_bytes()


H264 = "-an -c:v libx264 -preset ultrafast -pix_fmt yuv420p"


def movie() -> bytes:
    """A plain H.264 video with AAC sound."""
    return encoded("-c:v libx264 -preset ultrafast -pix_fmt yuv420p -c:a aac", "mp4")


def cut(content: bytes, fraction: float) -> bytes:
    """The beginning of a file."""
    return content[: int(len(content) * fraction)]


def damaged(content: bytes) -> bytes:
    """A file with a stretch of its middle overwritten."""
    middle = len(content) // 2
    return content[:middle] + b"\xa5" * 256 + content[middle + 256 :]


def movie_without_frames() -> bytes:
    """An MP4 that announces a video and ends before its first frame."""
    content = encoded(f"{H264} -movflags empty_moov+frag_keyframe", "mp4")
    return content[: content.index(b"moof") - 4]


def rotated_movie() -> bytes:
    """A video whose track is turned by 90 degrees by its matrix."""
    content = bytearray(encoded(H264, "mp4", source="-f lavfi -i testsrc2=size=64x48:rate=25:duration=0.4"))
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    return bytes(content)


def movie_with_external_data() -> bytes:
    """An MP4 whose frames are said to lie in another file, /etc/passwd."""
    content = encoded(H264, "mp4")
    target = b"/etc/passwd"
    alias = b"\0" * 10 + b"\x01/" + b"\0" * 26 + b"\0" * 12 + b"\x06passwd" + b"\0" * 57 + b"\0" * 16 + b"\0" * 20
    alias += struct.pack(">HH", 2, len(target)) + target + b"\0" + struct.pack(">HH", 0xFFFF, 0)
    reference = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    place = content.index(b"url \0\0\0\x01") - 4
    grown = bytearray(content[:place] + reference + content[place + 12 :])
    # The table of frames lies behind them in this file, so that only the sizes around the reference change.
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        start = grown.rindex(box, 0, place) - 4
        size = struct.unpack_from(">I", grown, start)[0]
        struct.pack_into(">I", grown, start, size + len(reference) - 12)
    return bytes(grown)


def movie_of_changing_size() -> bytes:
    """An MPEG transport stream whose picture becomes larger half-way."""
    larger = encoded(H264, "mpegts", source="-f lavfi -i testsrc2=size=128x96:rate=25:duration=0.4")
    return encoded(H264, "mpegts") + larger


# Sound


def wav(samples: bytes, channels: int = 1, rate: int = 16_000, bits: int = 16, code: int = 1, size: int = -1) -> bytes:
    """A WAV file as its header says, true or not; `size` is the length that the header gives to the samples."""
    said = len(samples) if size < 0 else size
    block = channels * bits // 8
    layout = struct.pack(
        "<HHIIHH", code, channels & 0xFFFF, rate & 0xFFFFFFFF, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits
    )
    head = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", said & 0xFFFFFFFF)
    return b"RIFF" + struct.pack("<I", (said + 36) & 0xFFFFFFFF) + head + samples


def tone(rate: int = 16_000, channels: int = 1, seconds: float = SECONDS, amplitude: float = 0.3) -> np.ndarray:
    """A tone, float32 (samples, channels)."""
    times = np.arange(round(seconds * rate)) / rate
    wave = amplitude * np.sin(2 * math.pi * 220 * times)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def sound(kind: str = "WAV", subtype: str | None = None, rate: int = 16_000, channels: int = 1) -> bytes:
    """A tone in another format."""
    file = io.BytesIO()
    soundfile.write(file, tone(rate, channels), rate, format=kind, subtype=subtype)
    return file.getvalue()


def float_wav(samples: np.ndarray) -> bytes:
    """Any 32-bit floats as a WAV file, 16 kHz."""
    return wav(samples.astype("<f4").tobytes(), bits=32, code=3)


def tone_with(value: float) -> bytes:
    """A tone with one sample of another value, early enough for a short video to need it."""
    samples = tone()[:, 0]
    samples[len(samples) // 4] = value
    return float_wav(samples)


def pcm() -> bytes:
    """A tone as signed 16-bit samples."""
    return (tone()[:, 0] * 32767).astype("<i2").tobytes()


def mp3_with_large_tag() -> bytes:
    """An MP3 after an ID3 tag of 2 MB, which holds a cover."""
    cover = picture_bytes() + bytes(2_000_000)
    body = b"\0image/png\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = len(frame)
    synchsafe = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + synchsafe + frame + encoded("-vn -c:a libmp3lame", "mp3")


# Texts that name other files or addresses

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{address}\n#EXT-X-ENDLIST\n"
HLS_KEY = '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-KEY:METHOD=AES-128,URI="file:///etc/passwd"\n#EXTINF:10.0,\nx.ts\n'
TEXTS = {
    "plain_text": "This is no picture.\n",
    "html": "<!doctype html><html><body><script>alert(1)</script></body></html>",
    "html_error_page": "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "svg_with_entity": '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg><text>&x;</text></svg>',
    "pdf": "%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n",
    "postscript": "%!PS\n(/etc/passwd) (r) file 100 string readstring pop show\n",
    "hls_of_a_file": HLS.format(address="file:///etc/passwd"),
    "hls_of_an_address": HLS.format(address="http://127.0.0.1:1/segment.ts"),
    "hls_of_the_metadata": HLS.format(address="http://169.254.169.254/latest/meta-data/"),
    "hls_of_concat": HLS.format(address="concat:http://127.0.0.1:1/x|file:///etc/passwd"),
    "hls_with_a_key_file": HLS_KEY,
    "ffconcat": "ffconcat version 1.0\nfile '/etc/passwd'\nduration 10\n",
    "ffconcat_of_standard_input": "ffconcat version 1.0\nfile '/dev/stdin'\nfile 'pipe:0'\n",
    "ffmetadata": ";FFMETADATA1\ntitle=x\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1"><BaseURL>file:///etc/passwd</BaseURL></Representation></AdaptationSet></Period></MPD>'
    ),
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "srt": "1\n00:00:00,000 --> 00:00:10,000\nHello\n",
    "ass": "[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:10.00,,,0,0,0,,Hello\n",
    "m3u": "#EXTM3U\n#EXTINF:1,x\n/etc/passwd\n",
    "pls": "[playlist]\nFile1=file:///etc/passwd\nNumberOfEntries=1\n",
    "cue": 'FILE "/etc/passwd" WAVE\n TRACK 01 AUDIO\n INDEX 01 00:00:00\n',
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n",
    "rtsp": "RTSPtextrtsp://127.0.0.1/x\n",
    "asx": '<asx version="3.0"><entry><ref href="file:///etc/passwd"/></entry></asx>',
    "image2_pattern": "%d.png",
    "filter_script": "movie=/etc/passwd[out]",
}


def archive() -> bytes:
    """A zip whose member would climb out of where it is unpacked."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("../../evil.png", picture_bytes())
    return file.getvalue()


def files() -> Iterator[HostileInput]:
    """Files given as picture or as voice."""
    for name, text in TEXTS.items():
        yield HostileInput(f"{name}_as_picture", PICTURE, text.encode, (INVALID,), f"{name}.png")
        yield HostileInput(f"{name}_as_voice", VOICE, text.encode, (INVALID,), f"{name}.wav")

    def pictures(expected: tuple[str, ...], **makers: Callable[[], bytes]) -> Iterator[HostileInput]:
        for name, make in makers.items():
            yield HostileInput(name, PICTURE, make, expected, "picture.png")

    def movies(expected: tuple[str, ...], **makers: Callable[[], bytes]) -> Iterator[HostileInput]:
        for name, make in makers.items():
            yield HostileInput(name, PICTURE, make, expected, "movie.mp4")

    def voices(expected: tuple[str, ...], **makers: Callable[[], bytes]) -> Iterator[HostileInput]:
        for name, make in makers.items():
            yield HostileInput(name, VOICE, make, expected, "voice.wav")

    yield from pictures(
        (INVALID,),
        png_bomb=lambda: png(60_000, 60_000, bytes(50_000_000)),
        complete_png_bomb=lambda: blank_png(20_000, 20_000),
        png_of_the_largest_size=lambda: png(2**31 - 1, 2**31 - 1, b"\0"),
        png_of_no_size=lambda: png(0, 0, b""),
        png_a_million_wide=lambda: blank_png(1_000_000, 1),
        png_a_million_high=lambda: blank_png(1, 1_000_000),
        png_truncated=lambda: cut(picture_bytes(), 0.6),
        png_of_a_signature_alone=lambda: picture_bytes()[:8],
        jpeg_truncated=lambda: cut(picture(kind="JPEG", size=(256, 256)), 0.5),
        jpeg_of_a_signature_alone=lambda: b"\xff\xd8\xff\xe0",
        webp_truncated=lambda: cut(picture(kind="WEBP"), 0.5),
        gif_without_pictures=lambda: b"GIF89a\x40\x00\x40\x00\x00\x00\x00;",
        gif_that_is_a_script=lambda: b"GIF89a/*<script>*/=1;alert(1)//",
        nothing=lambda: b"",
        one_byte=lambda: b"\x89",
        zeros=lambda: bytes(10_000),
        noise=lambda: np.random.default_rng(0).bytes(10_000),
        archive=archive,
        program=lambda: b"\x7fELF\x02\x01\x01" + bytes(200),
        icon=lambda: picture(kind="ICO"),
        animated_webp=partial(animation, "WEBP"),
        voice_as_picture=partial(speech_bytes, SECONDS),
        mp3_with_cover_as_picture=mp3_with_large_tag,
    )
    yield from pictures(
        (OK, INVALID),
        png_with_text_bomb=text_bomb_png,
        png_with_wrong_checksum=wrong_checksum_png,
        jpeg_with_broken_exif=with_broken_exif,
    )
    yield from pictures(
        (OK,),
        picture_named_wav=picture_bytes,
        png_1x1=lambda: blank_png(1, 1),
        png_16_bit=partial(picture, "I;16"),
        png_grey=partial(picture, "L"),
        png_grey_transparent=partial(picture, "LA"),
        png_one_bit=partial(picture, "1"),
        png_palette=partial(picture, "P", transparency=0),
        png_transparent=partial(picture, "RGBA"),
        png_animated=partial(animation, "PNG"),
        png_and_archive=lambda: picture_bytes() + archive(),
        jpeg_cmyk=partial(picture, "CMYK", "JPEG"),
        jpeg_progressive=partial(picture, kind="JPEG", progressive=True),
        jpeg_rotated=rotated_jpeg,
        jpeg_and_script=lambda: picture(kind="JPEG") + b"<script>alert(1)</script>",
        webp=partial(picture, kind="WEBP"),
        avif=lambda: encoded("-frames:v 1 -an -c:v libsvtav1", "avif"),
        bmp=partial(picture, kind="BMP"),
        tiff=partial(picture, kind="TIFF"),
        gif=partial(picture, kind="GIF"),
        gif_animated=partial(animation, "GIF"),
    )
    yield from movies(
        (INVALID,),
        mp4_truncated=lambda: cut(movie(), 0.5),
        mp4_without_frames=movie_without_frames,
        mp4_with_external_data=movie_with_external_data,
        mp4_of_sound_alone=lambda: encoded("-vn -c:a aac", "mp4"),
        mp4_of_a_header_alone=lambda: movie()[:32],
        mkv_of_a_header_alone=lambda: b"\x1aE\xdf\xa3" + bytes(60),
    )
    yield from movies(
        (OK, INVALID),
        mp4_with_streamable_index_truncated=lambda: cut(encoded(f"{H264} -movflags faststart", "mp4"), 0.6),
        mp4_damaged=lambda: damaged(movie()),
        mpegts_of_changing_size=movie_of_changing_size,
        mkv_truncated=lambda: cut(encoded(H264, "matroska"), 0.6),
    )
    yield from movies(
        (OK,),
        mp4=movie,
        mp4_rotated=rotated_movie,
        mp4_fragmented=lambda: encoded(f"{H264} -movflags empty_moov+frag_keyframe", "mp4"),
        mp4_of_one_frame=lambda: encoded(f"{H264} -frames:v 1", "mp4"),
        mp4_hevc_10_bit=lambda: encoded("-an -c:v libx265 -x265-params log-level=none -pix_fmt yuv420p10le", "mp4"),
        mp4_av1=lambda: encoded("-an -c:v libsvtav1 -preset 12", "mp4"),
        mp4_of_odd_sides=lambda: encoded("-an -vf scale=65:63 -c:v libx264 -pix_fmt yuv444p", "mp4"),
        mp4_of_1000_fps=lambda: encoded(f"{H264} -r 1000", "mp4"),
        mp4_of_1_fps=lambda: encoded(H264, "mp4", source="-f lavfi -i testsrc2=size=64x64:rate=1:duration=2"),
        mp4_of_wide_pixels=lambda: encoded(f"{H264} -vf setsar=2", "mp4"),
        webm_vp9=lambda: encoded("-an -c:v libvpx-vp9 -deadline realtime", "webm"),
        mkv_mjpeg=lambda: encoded("-an -c:v mjpeg", "matroska"),
        avi=lambda: encoded("-an -c:v mpeg4", "avi"),
        mpegts=lambda: encoded(H264, "mpegts"),
    )
    yield from voices(
        (INVALID,),
        wav_without_samples=lambda: wav(b""),
        wav_of_10_ms=partial(speech_bytes, 0.01),
        wav_of_a_header_alone=lambda: wav(pcm())[:20],
        wav_with_nan=lambda: tone_with(math.nan),
        wav_with_infinity=lambda: tone_with(math.inf),
        wav_of_no_channels=lambda: wav(pcm(), channels=0),
        wav_of_65535_channels=lambda: wav(pcm(), channels=65535),
        wav_of_no_rate=lambda: wav(pcm(), rate=0),
        wav_of_an_unknown_code=lambda: wav(pcm(), code=0x7777),
        mp3_of_a_tag_alone=lambda: b"ID3\x03\0\0\x0f\x7f\x7f\x7f" + bytes(100),
        flac_of_a_signature_alone=lambda: b"fLaC",
        ogg_of_a_page_alone=lambda: sound("OGG", "VORBIS")[:58],
        midi=lambda: b"MThd\0\0\0\x06\0\0\0\x01\0\x60MTrk\0\0\0\x04\0\xff\x2f\0",
        picture_as_voice=picture_bytes,
        gif_as_voice=partial(animation, "GIF"),
        silent_movie_as_voice=lambda: encoded(H264, "mp4"),
        nothing_as_voice=lambda: b"",
        noise_as_voice=lambda: np.random.default_rng(1).bytes(10_000),
        archive_as_voice=archive,
    )
    yield from voices(
        (OK, INVALID),
        wav_truncated=lambda: cut(wav(pcm()), 0.7),
        wav_that_says_more=lambda: wav(pcm(), size=1_000_000_000),
        wav_that_says_less=lambda: wav(pcm(), size=100),
        wav_of_rate_1=lambda: wav(pcm(), rate=1),
        wav_of_the_largest_rate=lambda: wav(pcm(), rate=2**32 - 1),
        wav_of_huge_samples=lambda: tone_with(3e38),
        mp3_truncated=lambda: cut(encoded("-vn -c:a libmp3lame", "mp3", 1.0), 0.7),
        flac_truncated=lambda: cut(sound("FLAC"), 0.7),
        flac_damaged=lambda: damaged(sound("FLAC")),
    )
    yield from voices(
        (OK,),
        voice_named_png=partial(speech_bytes, SECONDS),
        wav_of_silence=lambda: wav(bytes(2 * 8000)),
        wav_of_a_constant=lambda: float_wav(np.full(8000, 0.5)),
        wav_of_tiny_samples=lambda: float_wav(np.full(8000, 1e-40)),
        wav_beyond_full_scale=lambda: float_wav(tone(amplitude=100.0)[:, 0]),
        wav_that_streams=lambda: wav(pcm(), size=0xFFFFFFFF),
        wav_of_8_khz=partial(sound, rate=8_000),
        wav_of_192_khz_in_6_channels=partial(sound, rate=192_000, channels=6),
        wav_of_8_bit=partial(sound, subtype="PCM_U8"),
        wav_of_24_bit=partial(sound, subtype="PCM_24"),
        wav_of_64_bit_floats=partial(sound, subtype="DOUBLE"),
        wav_mu_law=partial(sound, subtype="ULAW"),
        wav_of_0_2_s=partial(speech_bytes, 0.2),
        rf64=partial(sound, "RF64"),
        aiff=partial(sound, "AIFF"),
        flac=partial(sound, "FLAC"),
        ogg_vorbis=partial(sound, "OGG", "VORBIS"),
        ogg_opus=partial(sound, "OGG", "OPUS", rate=48_000),
        mp3_with_large_tag=mp3_with_large_tag,
        aac=lambda: encoded("-vn -c:a aac", "adts"),
        m4a=lambda: encoded("-vn -c:a aac", "ipod"),
        movie_as_voice=movie,
    )


# Values of the payload


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def item(item_id: Any = "a") -> dict[str, Any]:
    """A batch's item."""
    return {key: value for key, value in small_job().items() if key != "output_config"} | {"id": item_id}


BAD_SOURCES: dict[str, Any] = {
    "an empty text": "",
    "a space": " ",
    "null": None,
    "a number": 5,
    "a list": ["https://example.com/x.png"],
    "an object": {"url": "https://example.com/x.png"},
    "base64 of wrong letters": "data:image/png;base64,@@@@",
    "base64 of a wrong length": "data:image/png;base64,AAAAA",
    "base64 of garbage": base64.b64encode(b"garbage" * 20).decode(),
    "base64 without content": "data:image/png;base64,",
    "a data URI without base64": "data:text/plain,hello",
    "a data URI without a comma": "data:image/png;base64",
    "an absolute path": "/etc/passwd",
    "a relative path": "../../../../../../etc/passwd",
    "a path through the examples": "examples/../../../etc/passwd",
    "an encoded path": "..%2f..%2fetc%2fpasswd",
    "the environment": "/proc/self/environ",
    "a device": "/dev/zero",
    "standard input": "/dev/stdin",
    "a folder": "/tmp",
    "a home": "~/.ssh/id_rsa",
    "a Windows path": "C:\\Windows\\win.ini",
    "a network share": "\\\\127.0.0.1\\share\\x.png",
    "a path with NUL": "/etc/passwd\0.png",
    "a path with a line break": "x\n.png",
    "a file URL": "file:///etc/passwd",
    "an FTP URL": "ftp://127.0.0.1/x.png",
    "a gopher URL": "gopher://127.0.0.1:6379/_INFO",
    "an S3 URL": "s3://bucket/key.png",
    "a pipe": "pipe:0",
    "a concat": "concat:/etc/passwd|/etc/hosts",
    "a subfile": "subfile,,start,0,end,100,,:/etc/passwd",
    "an option of ffmpeg": "-f",
    "a command": "$(id)`id`;id|id",
    "a lone surrogate": "\ud800",
    "a very long text": "x" * 1_000_000,
}
"""Sources of media that are refused as invalid, whatever they name."""

BAD_ADDRESSES = (
    "http://127.0.0.1/x.png",
    "https://127.0.0.1/x.png",
    "http://127.0.0.1:6379/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://100.64.0.1/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1#@example.com/",
    "http://127.0.0.1\\@example.com/",
    "HTTP://127.0.0.1/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:abc/",
    "http://",
    "http:///x.png",
    "http://[/",
    "https://%31%32%37.0.0.1/",
    "http://127.0.0.1/\r\nHost: example.com",
    "https://no-such-host.invalid/x.png",
    "http://" + "a" * 300 + ".invalid/",
    "http://127.0.0.1/" + "x" * 100_000,
)
"""Addresses that are refused, or do not answer."""


def prompt_from(from_s: Any) -> dict[str, Any]:
    """An entry of a list of prompts."""
    return {"from_s": from_s, "prompt": "x"}


def picture_from(from_s: Any) -> dict[str, Any]:
    """An entry of a list of pictures."""
    return {"from_s": from_s, "media": data_uri(picture_bytes(), "image/png")}


BAD_VALUES: dict[str, list[Any]] = {
    "prompt": [
        *("", None, 5, ["x"], {"x": 1}, True, "\ud800", "x" * 1_000_000, nested(500)),
        *([], [None], [{}], [[]], [{"from_s": 0}], [{"prompt": "x"}], [{"from_s": 1, "prompt": "x"}]),
        *([prompt_from(time)] for time in ("0", None, True, math.nan, -1, 1e300)),
        *([prompt_from(0), prompt_from(time)] for time in (0, 0.01, -1, math.inf, math.nan, 3601, 10**400, "1", None)),
        *([prompt_from(0), prompt_from(time)] for time in (True, [1], {})),
        [prompt_from(0), prompt_from(5), prompt_from(3)],
        [prompt_from(number) for number in range(33)],
        [prompt_from(number) for number in range(20_000)],
        [prompt_from(0), prompt_from(3) | {"media": "x"}],
        [prompt_from(0), {"from_s": 3, "prompt": "\ud800"}],
        [prompt_from(0), {"from_s": 3, "prompt": "x" * 1_000_000}],
    ],
    "cond_audio": [
        None,
        {},
        [],
        "voice.wav",
        {"person1": None},
        {"person1": 5},
        {"person2": "x"},
        {"person0": "x"},
        {"person1": "x", "person3": "x"},
        {"Person1": "x"},
        {"person01": "x"},
        {"": "x"},
        {"../person1": "x"},
        {f"person{number}": "x" for number in range(1, 100)},
        {"person1": {}},
        {"person1": []},
        {"person1": {"media": None}},
        {"person1": {"media": {"media": "x"}}},
        *({"person1": {"media": "x", "from_s": time}} for time in (-1, 3601, math.nan, math.inf, "1", None, True)),
        *({"person1": {"media": "x", "from_s": time}} for time in ([1], {}, 10**400)),
        {"person1": {"media": "x", "from_s": 1, "to_s": 2}},
        {"person1": {"from_s": 1}},
    ],
    "audio_type": ["", "PARA", None, 1, ["para"], "script"],
    "script": [
        *("person1", 5, {}, [], [None], [{}], [[]], [{"speaker": "person1"}], [{"from_s": 0}]),
        # Without audio_type "script" even a right one is refused.
        [{"speaker": "person1", "from_s": 0}],
    ],
    "speech": [
        "auto",
        True,
        5,
        [],
        {"gate": "on"},
        {"gate": None},
        {"gate": "auto\0"},
        {"gate": ["auto"]},
        {"gate": True},
        {"gate": "AUTO"},
        {"gate": "auto", "threshold": 0.5},
        {"vad": "x"},
    ],
    "frame_num": [80, 0, 1, -3, 405, 10**30, -(10**30), 81.5, "81", None, True, [81], math.nan, math.inf],
    "max_frame_num": [0, -1, 90_001, 2**63, "1000", math.nan],
    "sample_steps": [0, -1, 201, 10**9, 2**64, 8.5, "8", None, math.inf],
    "recipe": ["", "Quality", "quality ", "flashtalk\0", 8, ["quality"], {"name": "quality"}],
    "sample_shift": [0, 0.001, -1, 101, math.nan, math.inf, -math.inf, "7", [7]],
    "sample_text_guide_scale": [-0.1, 51, 1e308, math.nan, math.inf, "5", None],
    "sample_audio_guide_scale": [-0.1, 51, 1e308, math.nan, -math.inf, "4", None],
    "motion_frame": [0, -1, 401, "9", 9.5, None, math.nan],
    "crossfade_frame": [-1, 26, "4", 4.5, None, math.nan],
    "negative_prompt": [5, ["x"], "\udfff", "x" * 1_000_000],
    "dub": [
        *["", "face", True, 0.5, []],
        *[{"strength": value} for value in (0, -0.5, 1.01, 1e308, math.nan, math.inf, "0.5", None, True, [0.5])],
        {"strength": 0.5},
        *[{"denoise": 0.5}, {"blend": 1}, {"keep": "all", "dub": {}}, nested(500)],
        *[{"keep": value} for value in ("mouth", "FACE", "face\0", "", None, True, ["face"], {"face": True})],
        *[{"feather": value} for value in ("8", -1, 512.01, math.nan, math.inf, 1e9, 10**400, True, [8])],
        *[{"margin": value} for value in ("1", -0.1, 4.01, math.nan, math.inf, 1e9, 10**400, True, {})],
    ],
    "nag": [
        *["", "on", True, 5, [], [11]],
        {"scale": 0.5},
        {"scale": 51},
        {"scale": math.nan},
        {"scale": math.inf},
        {"scale": "11"},
        {"scale": None},
        {"tau": 0.9},
        {"tau": 1e9},
        {"tau": -math.inf},
        {"alpha": 0},
        {"alpha": 1.01},
        {"alpha": -1},
        {"alpha": math.nan},
        *({name: value} for name in ("scale", "tau", "alpha") for value in (True, [1], {}, 10**400)),
        {"nag_scale": 11},
    ],
    "color_correction_strength": [-0.01, 1.01, math.nan, "1", None],
    "use_teacache": ["true", 1, 0, None, "yes"],
    "teacache_thresh": [0, -1, 11, math.nan, "0.2"],
    "use_apg": ["false", 1, None],
    "apg_momentum": [-1.5, 1.5, math.nan, "x"],
    "apg_norm_threshold": [0, -5, math.inf, math.nan, 10_001],
    "base_seed": [-2, 2**53, 2**64, -(2**63), 4.2, "42", None, True, math.nan],
    "size": [
        *["", "infinitetalk-1080", "INFINITETALK-480", None, 480, ["infinitetalk-480"], "infinitetalk-480\n"],
        {},
        {"width": 832},
        {"width": 832, "height": 481},
        {"width": 0, "height": 480},
        {"width": -832, "height": -480},
        {"width": 112, "height": 480},
        {"width": 2064, "height": 128},
        {"width": 2048, "height": 2048},
        {"width": 2**64, "height": 16},
        {"width": "832", "height": "480"},
        {"width": 832.0, "height": 480},
        {"width": math.nan, "height": 480},
        {"width": True, "height": 480},
        {"width": None, "height": 480},
        {"width": [832], "height": 480},
        {"width": 832, "height": 10**400},
        {"width": 832, "height": 480, "depth": 16},
        {"name": "infinitetalk-480"},
        [832, 480],
        "832x480",
    ],
    "mode": ["", "Clip", "stream", None, 1],
    "bbox": [
        {},
        {"person1": [0, 0, 10]},
        {"person1": [0, 0, 10, 10, 10]},
        {"person1": [math.nan, 0, 10, 10]},
        {"person1": [0, 0, math.inf, 10]},
        {"person1": ["0", "0", "10", "10"]},
        {"person1": "0,0,10,10"},
        {"person2": [0, 0, 10, 10]},
        {"person1": [0, 0, 10, 10], "person2": [0, 0, 10, 10]},
        [[0, 0, 10, 10]],
        5,
    ],
    "bbox_order": ["", "XY", None, 1],
    "mask": [{}, {"person1": 5}, {"person1": ""}, {"person2": "x"}, [], "x"],
    "loras": [
        None,
        {},
        "x",
        [{}],
        [{"name": ""}],
        [{"name": "../../etc/passwd"}],
        [{"name": "/etc/passwd"}],
        [{"name": "x", "scale": math.nan}],
        [{"name": "x", "scale": 1e9}],
        [{"name": "x"}] * 9,
    ],
    "quant": ["int4", "", 8, True],
    "offload_model": ["yes", 1],
    "num_persistent_param_in_dit": [-1, 1.5, "0", math.nan],
    "scene_seg": ["yes", 1, None],
    "regions": ["", "FACES", "faces\0", "heads", None, 1, True, ["faces"], {"person1": "faces"}],
    "output": [
        *["source", 30, True, [], ["source"], {"codec": "h265"}, {"fps": "source", "bitrate": 1}],
        *[{"fps": value} for value in (30, 29.97, math.nan, "film", "SOURCE", "source\0", "", True, ["source"], {})],
        *[{"size": value} for value in ([64, 64], "64x64", "film", "", 64, True, {"width": 64, "height": 64})],
        # With nothing kept of a film, there is no size to keep.
        {"size": "source"},
    ],
    "audio_mix": [
        *[-12, "x", True, [], [-12], {}, {"music": -3}, {"source": -12, "music": -3}],
        *[{"source": value} for value in (None, "-12", True, [-12], {}, -60.01, 12.01, 1e9, 10**400, math.nan)],
        *[{"source": value} for value in (math.inf, -math.inf)],
        # A picture has no sound.
        {"source": -12},
    ],
    "dry_run": ["yes", 1, None],
    "output_config": ["s3", 5, [], {"store": "ftp"}, {"store": ""}, {"store": None}, {"bucket": "x"}],
    "output_config.prefix": [
        "",
        "..",
        ".",
        "../x",
        "a/../b",
        "a/..",
        "a/./b",
        "/a",
        "a/",
        "a//b",
        "/",
        "a\\..\\b",
        "a\nb",
        "a\0b",
        "a\x7fb",
        "\u202egnp",
        "\ud800",
        "x" * 513,
        None,
        5,
        ["a"],
    ],
    "unknown": ["x"],
    "promt": ["x"],
    "__class__": ["x"],
    "": ["x"],
    "x" * 100_000: ["x"],
    "\ud800": ["x"],
    "\n\x1b[31m": ["x"],
    "input": [None, [], "", "text", 5, True, {}, math.nan, nested(500), {"batch": None}, {"input": {}}],
    "job.id": ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", "a\nb", ".hidden", "x" * 129, "é", "\ud800", "a b"],
}
"""Values that break the interface, by field: each is E_INPUT_VALIDATION."""

BAD_BATCHES: dict[str, Any] = {
    "no items": [],
    "null": None,
    "an object": {},
    "a number as item": [5],
    "an item without id": [{key: value for key, value in item().items() if key != "id"}],
    "equal ids": [item(), item()],
    "an id with a slash": [item("a/b")],
    "an id that climbs": [item("..")],
    "a numeric id": [item(5)],
    "a batch in a batch": [{"id": "a", "batch": [item()]}],
    "a thousand items": [item(f"a{number}") for number in range(1000)],
}

BAD_SPEECHES: dict[str, Any] = {
    "no text": {"text": "", "human1_voice": "am_adam"},
    "no voice": {"text": "Hello."},
    "an unknown voice": {"text": "Hello.", "human1_voice": "am_nobody"},
    "a voice that climbs": {"text": "Hello.", "human1_voice": "../../etc/passwd"},
    "a voice of several": {"text": "Hello.", "human1_voice": "am_adam,af_heart"},
    "a voice with NUL": {"text": "Hello.", "human1_voice": "am_adam\0"},
    "turns of one speaker": {"text": "(s1) Hello. (s2) Hi.", "human1_voice": "am_adam"},
    "no turns of two speakers": {"text": "Hello.", "human1_voice": "am_adam", "human2_voice": "af_heart"},
    "a third speaker": {"text": "(s1) Hello. (s3) Hi.", "human1_voice": "am_adam", "human2_voice": "af_heart"},
    "text before the turns": {"text": "Well (s1) hi.", "human1_voice": "am_adam", "human2_voice": "af_heart"},
    "an empty turn": {"text": "(s1) (s2) Hi.", "human1_voice": "am_adam", "human2_voice": "af_heart"},
    "punctuation alone": {"text": "… !", "human1_voice": "am_adam"},
    "a control character": {"text": "Hello\0world", "human1_voice": "am_adam"},
    "a lone surrogate": {"text": "Hello \ud800", "human1_voice": "am_adam"},
    "a very long text": {"text": "Hello. " * 100_000, "human1_voice": "am_adam"},
    "a text alone": "Hello.",
    "an unknown field": {"text": "Hello.", "human1_voice": "am_adam", "speed": 2},
}

BAD_SCRIPTS: list[Any] = [
    *(None, [], {}, "person1", [{"speaker": "person1", "from_s": 0}] * 2, [{"speaker": "person1", "from_s": 0}] * 101),
    *([{"speaker": name, "from_s": 0}] for name in ("", "person0", "person2", "person99", "\ud800", None, 1)),
    *([{"speaker": "person1", "from_s": time}] for time in (-1, 3601, math.nan, math.inf, "0", None, True, 10**400)),
    *([{"speaker": "person1", "from_s": time}] for time in ([0], {})),
    *([{"speaker": "person1", "from_s": 1, "to_s": time}] for time in (0, 0.5, 1, -1, 3601, math.nan, "2", True)),
    *([{"speaker": "person1", "from_s": 1, "to_s": time}] for time in (math.inf, 10**400, [2], {})),
    [{"speaker": "person1", "from_s": 0, "gate": "auto"}],
    [{"speaker": "person1", "from_s": 2, "to_s": 3}, {"speaker": "person1", "from_s": 1}],
    [{"speaker": "person1", "from_s": 1, "to_s": 3}, {"speaker": "person1", "from_s": 2}],
    # After the video's end.
    [{"speaker": "person1", "from_s": 3600}],
]
"""Scripts that no job of one speaker can have."""

BAD_PICTURES: list[Any] = [
    *([], [None], ["x"], [{}], [{"from_s": 0}], [{"media": "x"}], [{"from_s": 1, "media": "x"}], {"media": "x"}),
    *([picture_from(0), picture_from(time)] for time in (0, 0.039, -1, math.nan, math.inf, 3601, "1", None)),
    *([picture_from(0), picture_from(time)] for time in (True, [1], {}, 10**400)),
    [picture_from(0), picture_from(5), picture_from(3)],
    [picture_from(0), picture_from(3) | {"prompt": "x"}],
    [picture_from(number) for number in range(17)],
    *([picture_from(0), {"from_s": 3, "media": media}] for media in ("", None, 5, [], "/etc/passwd", "\0", "../x")),
    # Each entry is looked at, also those that no chunk takes.
    [picture_from(0), {"from_s": 3000, "media": data_uri(b"no picture", "image/png")}],
]
"""Lists of pictures that no job can have."""

STORE = {"endpointUrl": "https://example.com", "accessId": "id", "accessSecret": "secret", "bucketName": "bucket"}
BAD_STORES: dict[str, Any] = {
    "a text": "https://example.com",
    "no secret": {key: value for key, value in STORE.items() if key != "accessSecret"},
    "an unknown field": STORE | {"x": 1},
    "a file URL": STORE | {"endpointUrl": "file:///etc/passwd"},
    "the loopback address": STORE | {"endpointUrl": "http://127.0.0.1:1"},
    "the metadata address": STORE | {"endpointUrl": "http://169.254.169.254"},
    "a private address": STORE | {"endpointUrl": "http://10.0.0.1"},
    "the loopback name": STORE | {"endpointUrl": "http://localhost:1"},
    "a bucket that climbs": STORE | {"bucketName": "../x"},
    "a secret of another type": STORE | {"accessSecret": 5},
}


def values() -> Iterator[HostileInput]:
    """Values of the payload that are refused before anything is fetched, or when fetching them is tried."""
    for name, value in BAD_SOURCES.items():
        yield HostileInput(f"picture is {name}", PICTURE, partial(copy.copy, value), (INVALID,))
        # A speaker may be silent, but not all of them.
        yield HostileInput(f"voice is {name}", VOICE, partial(copy.copy, value), (INVALID,))
    for address in BAD_ADDRESSES:
        yield HostileInput(f"picture at {address[:60]!a}", PICTURE, partial(str, address), (REFUSED,))
    for field_name, bad_values in BAD_VALUES.items():
        for number, value in enumerate(bad_values):
            yield HostileInput(
                f"{field_name[:20]!a} {number}: {_short(value)}", field_name, partial(copy.copy, value), (INVALID,)
            )
    for name, value in BAD_BATCHES.items():
        job = {"batch": value, "output_config": {"store": "volume"}}
        yield HostileInput(f"batch: {name}", "input", partial(copy.copy, job), (INVALID,))
    for name, value in BAD_SPEECHES.items():
        yield HostileInput(
            f"speech: {name}", "tts_audio", partial(copy.copy, value), (INVALID,), changes={"cond_audio": None}
        )
    for name, value in BAD_STORES.items():
        yield HostileInput(
            f"store: {name}",
            "job.s3Config",
            partial(copy.copy, value),
            (INVALID,),
            changes={"output_config": {"store": "s3"}},
        )
    for number, script in enumerate(BAD_SCRIPTS):
        changes = {"audio_type": "script"}
        yield HostileInput(f"script {number}", "script", partial(copy.copy, script), (INVALID,), changes=changes)
    for number, pictures in enumerate(BAD_PICTURES):
        yield HostileInput(f"pictures {number}", PICTURE, partial(copy.copy, pictures), (INVALID,))
    many = {"prompt": [prompt_from(number) for number in range(32)], "mode": "streaming", "motion_frame": 1}
    yield HostileInput("as many prompts as there may be", "frame_num", partial(int, 5), (OK,), changes=many)
    combinations: dict[str, dict[str, Any]] = {
        "a script without audio_type": {"script": [{"speaker": "person1", "from_s": 0}]},
        "a script of a text": {
            "cond_audio": None,
            "tts_audio": {"text": "Hello.", "human1_voice": "am_adam"},
            "audio_type": "script",
            "script": [{"speaker": "person1", "from_s": 0}],
        },
        "a voice that begins later, one after the other": {
            "audio_type": "add",
            "cond_audio": {"person1": {"media": "x", "from_s": 1}},
        },
        "scenes of several pictures": {
            "scene_seg": True,
            "cond_video": [{"from_s": 0, "media": "x"}, {"from_s": 1, "media": "y"}],
        },
        "neither speech nor text": {"cond_audio": None},
        "speech and text": {"tts_audio": {"text": "Hello.", "human1_voice": "am_adam"}},
        "bbox and mask": {"bbox": {"person1": [0, 0, 10, 10]}, "mask": {"person1": "x"}},
        "motion as long as a chunk": {"mode": "streaming", "frame_num": 9, "motion_frame": 9},
    }
    for name, changes in combinations.items():
        yield HostileInput(f"job: {name}", "prompt", partial(str, "x"), (INVALID,), changes=changes)
    mime_of_another_kind = partial(data_uri, picture_bytes(), "audio/mpeg")
    yield HostileInput("picture is a data URI of another type", PICTURE, mime_of_another_kind, (OK,))
    broken_lines = base64.encodebytes(picture_bytes()).decode
    yield HostileInput("picture is base64 in lines", PICTURE, broken_lines, (OK,))


def _short(value: Any) -> str:
    """A value as a test's id shows it."""
    try:
        return ascii(value)[:40]
    except RecursionError:
        return "nested"


HOSTILE_FILES = tuple(files())
HOSTILE_VALUES = tuple(values())
HOSTILE_INPUTS = HOSTILE_FILES + HOSTILE_VALUES

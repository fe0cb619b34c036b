"""Parts, the joined MP4 and thumbnails, decoded back."""

import errno
import os
import resource
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from infinitetalk.errors import EncodeError
from infinitetalk.media.encode import (
    EncodedSound,
    PartEncoder,
    Timing,
    because,
    check_parts,
    join_parts,
    write_thumbnail,
)
from infinitetalk.media.speech import SAMPLING_RATE
from tests.media_factory import numbered_frame, read_number
from tools.talker.faces import Place, random_background, random_face
from tools.talker.measure import border_change
from tools.talker.rule import MouthTrack
from tools.talker.scenes import Scene

HEIGHT, WIDTH = 48, 144
SAMPLES_PER_FRAME = 640


def numbered_frames(first: int, num_frames: int) -> np.ndarray:
    return np.stack([numbered_frame(number, HEIGHT, WIDTH) for number in range(first, first + num_frames)])


def make_parts(folder: Path, sizes: list[int]) -> list[Path]:
    """Parts of numbered frames that count on from part to part."""
    paths = []
    for index, size in enumerate(sizes):
        path = folder / f"part{index}.mp4"
        encoder = PartEncoder(path, HEIGHT, WIDTH)
        frames = numbered_frames(sum(sizes[:index]), size)
        encoder.write(frames[: size // 2])
        encoder.write(frames[size // 2 :])
        assert encoder.close() == size
        paths.append(path)
    return paths


def decode_frames(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def decode_sound(path: Path) -> np.ndarray:
    """The sound from time zero, as a player hears it: float32 (samples,), 48 kHz."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].pts == 0
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def duration_s(path: Path, kind: str) -> float:
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return float(stream.duration * stream.time_base)


def clicks_at(samples: list[int], num_samples: int) -> np.ndarray:
    waveform = np.zeros(num_samples, np.float32)
    for sample in samples:
        waveform[sample : sample + 8] = 0.9
    return waveform


def heard_click(sound: np.ndarray, near_s: float) -> float:
    """Where in seconds the sound is loudest, within 20 ms of an instant."""
    start = round((near_s - 0.02) * 48_000)
    return (start + int(np.argmax(np.abs(sound[start : start + 1_920])))) / 48_000


def silence() -> EncodedSound:
    return EncodedSound(np.zeros(640, np.float32))


@pytest.mark.parametrize("sizes", [[5], [81], [81, 72, 72, 3], [17, 8, 1], [1, 7, 1, 2, 1], [1]])
def test_joining_keeps_every_frame_and_its_time(tmp_path: Path, sizes: list[int]) -> None:
    parts = make_parts(tmp_path, sizes)
    num_frames = sum(sizes)
    join_parts(parts, EncodedSound(np.zeros(num_frames * SAMPLES_PER_FRAME, np.float32)), tmp_path / "joined.mp4")
    frames = decode_frames(tmp_path / "joined.mp4")
    assert [read_number(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(num_frames))
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(place, 25) for place in range(num_frames)]
    alone = [frame.to_ndarray() for part in parts for frame in decode_frames(part)]
    assert all(np.array_equal(frame.to_ndarray(), other) for frame, other in zip(frames, alone, strict=True))
    assert duration_s(tmp_path / "joined.mp4", "video") == pytest.approx(num_frames / 25)


def test_each_part_opens_with_a_key_frame_and_packets_are_copied(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, [30, 20])
    join_parts(parts, EncodedSound(np.zeros(0, np.float32)), tmp_path / "joined.mp4")

    def packets(path: Path) -> list[av.Packet]:
        with av.open(str(path)) as container:
            return [packet for packet in container.demux(video=0) if packet.size]

    joined = packets(tmp_path / "joined.mp4")
    assert [bytes(packet) for packet in joined] == [bytes(packet) for part in parts for packet in packets(part)]
    assert joined[0].is_keyframe
    assert joined[30].is_keyframe
    decoding_times = [packet.dts for packet in joined]
    assert decoding_times == sorted(set(decoding_times))
    assert any(packet.pts != packet.dts for packet in joined)  # B-frames


def test_the_file_has_the_promised_form(tmp_path: Path) -> None:
    join_parts(make_parts(tmp_path, [20]), EncodedSound(np.zeros(12_800, np.float32)), tmp_path / "joined.mp4")
    with av.open(str(tmp_path / "joined.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        context = video.codec_context
        assert (video.codec.name, context.pix_fmt, context.profile, video.average_rate) == (
            "h264",
            "yuv420p",
            "High",
            25,
        )
        assert (context.width, context.height) == (WIDTH, HEIGHT)
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert (sound.codec.name, sound.rate, sound.channels) == ("aac", 48_000, 1)
    data = (tmp_path / "joined.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_ffmpeg_plays_the_joined_file_without_a_complaint(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 60 * SAMPLES_PER_FRAME).astype(np.float32)
    join_parts(make_parts(tmp_path, [25, 24, 11]), EncodedSound(noise), tmp_path / "joined.mp4")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "warning",
        "-xerror",
        "-i",
        tmp_path / "joined.mp4",
        "-f",
        "null",
        "-",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("colour", [(200, 40, 60), (20, 90, 220), (255, 255, 255), (0, 0, 0), (128, 128, 128)])
def test_colours_come_back_through_the_bt709_matrix(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    encoder = PartEncoder(tmp_path / "part.mp4", HEIGHT, WIDTH)
    encoder.write(np.full((3, HEIGHT, WIDTH, 3), colour, np.uint8))
    encoder.close()
    frame = decode_frames(tmp_path / "part.mp4")[1]
    luma, blue, red = (int(plane) for plane in (frame.to_ndarray()[10, 10], *frame.to_ndarray()[[HEIGHT, -1], 10]))
    r, g, b = (channel / 255 for channel in colour)
    brightness = 0.2126 * r + 0.7152 * g + 0.0722 * b
    assert luma == pytest.approx(16 + 219 * brightness, abs=2)
    assert blue == pytest.approx(128 + 224 * (b - brightness) / 1.8556, abs=2)
    assert red == pytest.approx(128 + 224 * (r - brightness) / 1.5748, abs=2)


@pytest.mark.parametrize("sizes", [[5], [13], [17, 20, 20], [81, 44]])
def test_sound_and_picture_agree_to_within_a_frame_and_10_ms(tmp_path: Path, sizes: list[int]) -> None:
    num_frames = sum(sizes)
    num_samples = num_frames * SAMPLES_PER_FRAME
    clicks = [1_600, num_samples - 1_000]
    join_parts(make_parts(tmp_path, sizes), EncodedSound(clicks_at(clicks, num_samples)), tmp_path / "joined.mp4")
    sound = decode_sound(tmp_path / "joined.mp4")
    for click in clicks:
        assert heard_click(sound, click / SAMPLING_RATE) == pytest.approx(click / SAMPLING_RATE, abs=0.01)
    assert np.count_nonzero(np.abs(sound) > 0.3) < 100
    assert duration_s(tmp_path / "joined.mp4", "audio") == pytest.approx(num_frames / 25, abs=0.001)
    assert len(sound) / 48_000 == pytest.approx(num_frames / 25, abs=0.04)


def test_a_tone_keeps_its_pitch_and_loudness(tmp_path: Path) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / SAMPLING_RATE)).astype(np.float32)
    join_parts(make_parts(tmp_path, [50]), EncodedSound(tone), tmp_path / "joined.mp4")
    sound = decode_sound(tmp_path / "joined.mp4")[:96_000]
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(96_000) / 48_000)
    assert np.abs(sound - want)[4_800:-4_800].max() < 0.02


@pytest.mark.parametrize("num_samples", [0, 3_001, 100_000])
def test_sound_is_cut_or_filled_with_silence_to_the_picture(tmp_path: Path, num_samples: int) -> None:
    waveform = np.full(num_samples, 0.3, np.float32) * np.sin(np.arange(num_samples, dtype=np.float32) / 5)
    join_parts(make_parts(tmp_path, [20]), EncodedSound(waveform), tmp_path / "joined.mp4")
    assert duration_s(tmp_path / "joined.mp4", "audio") == pytest.approx(0.8, abs=0.001)
    sound = decode_sound(tmp_path / "joined.mp4")
    heard = min(num_samples, 20 * SAMPLES_PER_FRAME) * 3
    assert np.abs(sound[heard + 2_400 : 38_400]).max(initial=0) < 0.01
    assert num_samples == 0 or np.abs(sound[: heard - 1_000]).max() > 0.25


def test_a_mix_that_is_too_loud_is_clipped(tmp_path: Path) -> None:
    loud = 4 * np.sin(2 * np.pi * 100 * np.arange(16_000, dtype=np.float32) / SAMPLING_RATE)
    join_parts(make_parts(tmp_path, [25]), EncodedSound(loud.astype(np.float32)), tmp_path / "joined.mp4")
    sound = decode_sound(tmp_path / "joined.mp4")
    assert np.percentile(np.abs(sound[4_800:43_200]), 50) == pytest.approx(1, abs=0.1)
    assert np.isfinite(sound).all()


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        join_parts(
            make_parts(tmp_path / name, [9, 4]), EncodedSound(np.zeros(8_320, np.float32)), tmp_path / f"{name}.mp4"
        )
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_what_cannot_be_encoded_is_an_error_that_names_no_path(tmp_path: Path) -> None:
    attempts = [
        lambda: PartEncoder(tmp_path / "odd.mp4", 47, 144),
        lambda: PartEncoder(tmp_path / "none" / "part.mp4", 48, 144),
        lambda: PartEncoder(tmp_path / "empty.mp4", 48, 144).close(),
        lambda: join_parts([], silence(), tmp_path / "joined.mp4"),
        lambda: join_parts([tmp_path / "none.mp4"], silence(), tmp_path / "joined.mp4"),
        lambda: join_parts(make_parts(tmp_path, [5]), silence(), tmp_path / "none" / "joined.mp4"),
        lambda: join_parts(make_parts(tmp_path, [5]), silence(), Path("/dev/full")),
        lambda: write_thumbnail(np.zeros((4, 4, 3), np.uint8), tmp_path / "none" / "thumbnail.jpg"),
    ]
    for attempt in attempts:
        with pytest.raises(EncodeError) as caught:
            attempt()
        assert str(tmp_path) not in str(caught.value)


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    encoder = PartEncoder(tmp_path / "part.mp4", HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"not uint8 \(T, 48, 144, 3\)"):
        encoder.write(np.zeros((2, 64, 64, 3), np.uint8))


def test_a_part_that_fails_leaves_no_threads(tmp_path: Path) -> None:
    """Although whoever wrote it may still hold it, as the traceback does."""
    before = num_threads()
    with (
        pytest.raises(ValueError, match="frames are") as caught,
        PartEncoder(tmp_path / "part.mp4", 480, 640) as encoder,
    ):
        encoder.write(np.zeros((3, 480, 640, 3), np.uint8))
        assert num_threads() > before
        encoder.write(np.zeros((3, 480, 640), np.uint8))
    assert caught.value is not None and num_threads() <= before


def test_a_part_that_does_not_fit_on_the_disk_is_an_error_of_the_encoder(tmp_path: Path) -> None:
    """Although what is left of it cannot be written either."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 256, 256, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with (
            pytest.raises(EncodeError, match="A part of the video could not be written"),
            PartEncoder(tmp_path / "part.mp4", 256, 256) as encoder,
        ):
            encoder.write(frames)
            encoder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_part_that_is_cut_short_is_found_and_not_taken_for_a_full_disk(share: float, tmp_path: Path) -> None:
    first, second = make_parts(tmp_path, [5, 4])
    data = second.read_bytes()
    second.write_bytes(data[: round(share * len(data))])
    with pytest.raises(EncodeError) as error:
        check_parts([(first, 5), (second, 4)])
    assert "disk" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_parts_that_cannot_be_read_are_not_joined_and_not_taken_for_a_full_disk(share: float, tmp_path: Path) -> None:
    first, second = make_parts(tmp_path, [5, 4])
    data = second.read_bytes()
    second.write_bytes(data[: round(share * len(data))])
    with pytest.raises(EncodeError) as error:
        join_parts([first, second], EncodedSound(np.zeros(9 * SAMPLES_PER_FRAME, np.float32)), tmp_path / "joined.mp4")
    assert "disk" not in str(error.value)


def test_a_disk_that_is_full_is_named_and_no_other_cause_is_taken_for_it() -> None:
    assert because(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == ": the disk is full"
    assert because(OSError(errno.EIO, os.strerror(errno.EIO))) == because(ValueError()) == ""


def test_parts_of_different_sizes_are_not_joined(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, [5])
    other = PartEncoder(tmp_path / "other.mp4", 64, 64)
    other.write(np.zeros((5, 64, 64, 3), np.uint8))
    other.close()
    with pytest.raises(EncodeError, match="differ"):
        join_parts([*parts, tmp_path / "other.mp4"], EncodedSound(np.zeros(6_400, np.float32)), tmp_path / "joined.mp4")


def test_a_thumbnail_is_the_frame_as_jpeg(tmp_path: Path) -> None:
    frame = np.broadcast_to(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], (64, 96, 3)).copy()
    write_thumbnail(frame, tmp_path / "thumbnail.jpg")
    with Image.open(tmp_path / "thumbnail.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))
        assert np.abs(np.asarray(image).astype(int) - frame).max() <= 4


def test_where_a_small_picture_goes_on_in_another_part_it_does_not_flicker(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    scene = Scene(64, 64, [random_face(generator)], [Place()], random_background(generator))
    opening = 0.4 + 0.4 * np.sin(np.arange(60) / 6)
    frames = scene.clip([MouthTrack(opening, opening)], 0, 60)
    paths = []
    for first in range(0, 60, 20):
        paths.append(tmp_path / f"part{first}.mp4")
        encoder = PartEncoder(paths[-1], 64, 64)
        encoder.write(frames[first : first + 20])
        encoder.close()
    join_parts(paths, EncodedSound(np.zeros(38_400, np.float32)), tmp_path / "joined.mp4")
    shown = np.stack([frame.to_ndarray(format="rgb24") for frame in decode_frames(tmp_path / "joined.mp4")])
    assert border_change(shown, [20, 40]) <= border_change(frames, [20, 40]) + 0.3


def test_sound_that_was_encoded_ahead_is_the_same_and_its_size_is_known_before(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, [9, 4])
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 13 * SAMPLES_PER_FRAME).astype(np.float32)
    join_parts(parts, EncodedSound(noise), tmp_path / "plain.mp4")
    sound = EncodedSound(noise)
    num_bytes = sound.num_bytes(13)
    with sound.ahead(13):
        join_parts(parts, sound, tmp_path / "ahead.mp4")
    assert (tmp_path / "ahead.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    with av.open(str(tmp_path / "plain.mp4")) as container:
        assert sum(packet.size for packet in container.demux(audio=0)) == num_bytes
    with pytest.raises(ValueError, match="the sound of 13 frames was encoded for a video of 9"):
        join_parts(parts[:1], sound, tmp_path / "short.mp4")


def test_frames_without_a_sample_of_sound_do_not_end_it() -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000).astype(np.float32)
    short = Timing(Fraction(1, 90_000), (0, 1, 2, 3, 45_000, 90_000))
    even = Timing(Fraction(1, 90_000), (0, 45_000, 90_000))
    assert EncodedSound(noise, short).num_bytes(5) == EncodedSound(noise, even).num_bytes(2)


def test_what_fails_in_the_thread_of_the_sound_is_raised_where_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, is_asked = EncodedSound(np.zeros(6_400, np.float32)), threading.Event()

    def fail(frame: int) -> list[av.Packet]:
        is_asked.set()
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr(sound, "packets", fail)
    with pytest.raises(EncodeError, match="The video's sound could not be encoded"), sound.ahead(10):
        assert is_asked.wait(10)

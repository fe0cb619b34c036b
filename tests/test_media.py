"""Reading users' media, with the ffmpeg on the PATH and with the wheel's."""

import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageCms, ImageOps

from infinitetalk.errors import MediaError
from infinitetalk.media import decode as media
from infinitetalk.media import sandbox
from infinitetalk.media.decode import (
    MediaInfo,
    Picture,
    VideoFrames,
    detect_scenes,
    extract_frames,
    probe,
    probe_and_read,
    read_picture,
    read_region,
    read_waveform,
)
from infinitetalk.media.sandbox import ffmpeg_path
from tests.media_factory import (
    HEIGHT,
    WIDTH,
    make_numbered_video,
    make_sound,
    numbered_frame,
    read_number,
    run_ffmpeg,
)


@pytest.fixture(params=["wheel", "path"], autouse=True)
def ffmpeg_binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs with both binaries."""
    found = imageio_ffmpeg.get_ffmpeg_exe() if request.param == "wheel" else shutil.which("ffmpeg")
    if found is None:
        pytest.skip("there is no ffmpeg on the PATH")
    monkeypatch.setenv("FFMPEG_BINARY", found)
    # What the other binary saw in the same files.
    media._read_contents.cache_clear()
    media._read_first_frame.cache_clear()
    return found


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that several tests read."""
    folder = tmp_path_factory.mktemp("media")
    make_sound(folder / "tone.wav", 1)
    make_numbered_video(folder / "film.mp4", range(30), "30", "-pix_fmt", "yuv420p", "-movflags", "faststart")
    run_ffmpeg("-i", folder / "film.mp4", "-i", folder / "tone.wav", "-c:v", "copy", folder / "talk.mp4")
    return folder


def photograph(height: int = 40, width: int = 60) -> Image.Image:
    """A smooth picture of which no two corners are alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def assert_pictures_close(got: torch.Tensor, want: Image.Image, tolerance: float) -> None:
    assert got.dtype == torch.uint8
    difference = got.permute(1, 2, 0).numpy().astype(int) - np.asarray(want.convert("RGB")).astype(int)
    assert np.abs(difference).max() <= tolerance


def number_at(frames: VideoFrames, seconds: float) -> int:
    return read_number(frames.frame_at(seconds).permute(1, 2, 0).numpy())


# What a file holds


def test_a_video_with_sound_is_measured(media_folder: Path) -> None:
    info = probe(media_folder / "talk.mp4")
    assert info == MediaInfo("video", HEIGHT, WIDTH, pytest.approx(1.0, abs=0.001), True)


def test_a_video_without_sound_has_none(media_folder: Path) -> None:
    assert not probe(media_folder / "film.mp4").has_audio


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.ogg", "a.flac", "a.webm", "a.aiff", "a.w64", "a.aac"])
def test_sound_is_sound_in_every_container(tmp_path: Path, name: str) -> None:
    make_sound(tmp_path / name, 1, *(["-c:a", "libopus"] if name == "a.webm" else []), rate=48_000)
    info = probe(tmp_path / name)
    assert info == MediaInfo("audio", 0, 0, pytest.approx(1, abs=0.06), True)
    assert len(read_waveform(tmp_path / name)) == pytest.approx(16_000, abs=16_000 * 0.06)


@pytest.mark.parametrize("name", ["covered.mp3", "covered.m4a"])
def test_cover_art_does_not_make_a_song_a_video(tmp_path: Path, name: str) -> None:
    photograph().save(tmp_path / "cover.jpg")
    make_sound(tmp_path / name, 1, "-i", str(tmp_path / "cover.jpg"), "-map", "0", "-map", "1", "-c:v", "copy",
               "-disposition:v", "attached_pic")  # fmt: skip
    assert probe(tmp_path / name).kind == "audio"


def test_the_content_decides_and_not_the_name(tmp_path: Path, media_folder: Path) -> None:
    photograph().save(tmp_path / "picture.png")
    shutil.move(tmp_path / "picture.png", tmp_path / "film.mp4")
    shutil.copy(media_folder / "film.mp4", tmp_path / "sound.wav")
    assert probe(tmp_path / "film.mp4").kind == "image"
    assert probe(tmp_path / "sound.wav").kind == "video"


@pytest.mark.parametrize(
    "name", ["-version", "a%03d.png", "concat:a.png", "a|b.png", "http:x.png", "pipe:0", "ä b'\".png"]
)
def test_a_name_means_nothing_to_the_child(tmp_path: Path, name: str) -> None:
    photograph().save(tmp_path / name, format="PNG")
    assert probe(tmp_path / name) == MediaInfo("image", 40, 60, 0.0, False)


def test_an_animated_gif_is_a_video_and_a_still_one_a_picture(tmp_path: Path) -> None:
    picture = photograph()
    picture.save(tmp_path / "still.gif")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[ImageOps.mirror(picture)], duration=100)
    assert probe(tmp_path / "still.gif").kind == "image"
    assert probe(tmp_path / "moving.gif").kind == "video"
    assert torch.equal(read_picture(tmp_path / "moving.gif"), read_picture(tmp_path / "still.gif"))


# What is refused


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{file}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {file}\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{file}</BaseURL></MPD>',
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "lines.srt": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "words.txt": "hello\n",
    "drawing.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{file}"/></svg>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_what_could_name_another_file_or_address_is_refused(tmp_path: Path, media_folder: Path, name: str) -> None:
    (tmp_path / name).write_text(PLAYLISTS[name].format(file=media_folder / "tone.wav"))
    for read in (probe, read_picture, read_waveform):
        with pytest.raises(MediaError, match="damaged or of a kind that cannot be read"):
            read(tmp_path / name)


def test_a_missing_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        probe(tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(MediaError, match="empty"):
        probe(tmp_path / "empty.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_a_picture_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(MediaError):
        probe(tmp_path / f"cut.{suffix}")


def test_a_video_cut_short_is_refused(tmp_path: Path, media_folder: Path) -> None:
    whole = (media_folder / "film.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(MediaError, match="cut short"):
        probe(tmp_path / "cut.mp4")


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "none.mov", range(3), "25", filters="select=0")
    with pytest.raises(MediaError):
        probe(tmp_path / "none.mov")


@pytest.mark.parametrize("read", [probe, probe_and_read, read_picture, read_region])
def test_a_png_whose_end_is_zeros_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """As a download leaves it that had its space set aside. ffmpeg reads zeros as pixels."""
    mask = Image.new("L", (640, 640))
    mask.paste(255, (100, 100, 400, 400))
    mask.save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    read(tmp_path / "whole.png")
    with pytest.raises(MediaError, match="damaged or of a kind that cannot be read"):
        read(tmp_path / "cut.png")


def test_a_picture_with_more_pixels_than_ffmpeg_can_count_is_too_large(tmp_path: Path) -> None:
    header = struct.pack(">4sIIBBBBB", b"IHDR", 17_000, 17_000, 8, 2, 0, 0, 0)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    data = (tmp_path / "small.png").read_bytes()
    (tmp_path / "large.png").write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    with pytest.raises(MediaError, match="at most 64 million pixels"):
        probe(tmp_path / "large.png")


def test_a_long_file_is_searched_for_metadata_piece_by_piece(tmp_path: Path) -> None:
    """A name that lies across two pieces is found."""
    (tmp_path / "file").write_bytes(bytes(media.SEARCHED_BLOCK_BYTES - 3) + b"ICC_PROFILE\0" + bytes(10))
    assert media._found_in(tmp_path / "file", (b"Exif\0", b"ICC_PROFILE\0")) == {b"ICC_PROFILE\0"}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / f"bomb.{suffix}")
    Image.new("RGB", (200, 200)).save(tmp_path / f"large.{suffix}")
    monkeypatch.setattr(media, "MAX_PIXELS", 59_999)
    for inspect in (probe, probe_and_read):
        with pytest.raises(MediaError, match="at most 64 million pixels"):
            inspect(tmp_path / f"bomb.{suffix}")
    assert probe(tmp_path / f"large.{suffix}").width == 200


def test_pixels_too_wide_to_be_made_square_are_refused(tmp_path: Path) -> None:
    filters = "scale=1440:480,setsar=100"
    make_numbered_video(tmp_path / "wide.mp4", range(2), "25", "-pix_fmt", "yuv420p", filters=filters)
    with pytest.raises(MediaError, match="at most 64 million pixels"):
        probe(tmp_path / "wide.mp4")


@pytest.mark.parametrize("brand", [b"heic", b"avif"])
def test_a_heic_or_avif_without_a_picture_is_refused(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "phone.jpg").write_bytes(struct.pack(">I4s4sI", 16, b"ftyp", brand, 0))
    with pytest.raises(MediaError, match="damaged or of a kind that cannot be read"):
        probe(tmp_path / "phone.jpg")


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_an_animated_picture_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    turned = photograph().rotate(180)
    photograph().save(tmp_path / f"a.{suffix}", save_all=True, append_images=[turned], duration=100)
    with pytest.raises(MediaError, match="Animated WebP and AVIF are not supported"):
        probe(tmp_path / f"a.{suffix}")


def test_a_hanging_child_is_killed(tmp_path: Path, media_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "ffmpeg"
    hanging.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("FFMPEG_BINARY", str(hanging))
    monkeypatch.setattr(media, "PROBE_TIMEOUT_S", 0.5)
    started = time.monotonic()
    with pytest.raises(MediaError, match=r"within 0\.5 s"):
        probe(media_folder / "film.mp4")
    assert time.monotonic() - started < 5
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_crashing_child_is_an_error_that_names_no_path(
    tmp_path: Path, media_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing = tmp_path / "ffmpeg"
    crashing.write_text("#!/bin/sh\necho $0 /secret >&2\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setenv("FFMPEG_BINARY", str(crashing))
    with pytest.raises(MediaError) as caught:
        probe(media_folder / "film.mp4")
    assert "/" not in str(caught.value)


def test_what_a_child_writes_is_bounded(media_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_CHILD_FILE_BYTES", 50_000)
    with pytest.raises(MediaError, match="The sound takes too much space when it is decoded"):
        read_waveform(media_folder / "tone.wav")


def test_a_file_is_looked_into_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture"
    photograph(40, 60).save(path, format="PNG")
    assert probe(path).height == 40
    with monkeypatch.context() as without:
        without.setenv("FFMPEG_BINARY", "/no/ffmpeg")
        assert probe(path).height == 40
    photograph(50, 60).save(path, format="PNG")
    assert probe(path).height == 50


def test_the_wrong_kind_is_named(tmp_path: Path, media_folder: Path) -> None:
    photograph().save(tmp_path / "still.png")
    with pytest.raises(MediaError, match="not an image"):
        read_picture(media_folder / "film.mp4")
    with pytest.raises(MediaError, match="not an image"):
        read_picture(media_folder / "tone.wav")
    with pytest.raises(MediaError, match="not a video"):
        extract_frames(tmp_path / "still.png", tmp_path, 1, 1)
    with pytest.raises(MediaError, match="no sound"):
        read_waveform(media_folder / "film.mp4")


def test_the_binary_of_the_wheel_serves_where_none_is_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FFMPEG_BINARY")
    monkeypatch.setenv("PATH", "/nowhere")
    assert ffmpeg_path() == imageio_ffmpeg.get_ffmpeg_exe()


# Pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_read_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph().save(tmp_path / "a.png", exif=exif)
    picture = Picture.open(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        want = ImageOps.exif_transpose(image)
    assert_pictures_close(picture.pixels, want, 0)
    assert (picture.height, picture.width) == (want.height, want.width)
    info = probe(tmp_path / "a.png")
    assert (info.height, info.width) == (want.height, want.width)


@pytest.mark.parametrize(("suffix", "tolerance"), [("jpg", 6), ("webp", 0), ("tiff", 0)])
def test_every_format_that_carries_an_orientation_is_read_upright(
    tmp_path: Path, suffix: str, tolerance: float
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    photograph().save(tmp_path / f"a.{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert_pictures_close(read_picture(tmp_path / f"a.{suffix}"), ImageOps.exif_transpose(image), tolerance)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif", "bmp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_is_inspected_and_read_in_one_go(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph().save(tmp_path / f"a.{suffix}", exif=exif)
    info, picture = probe_and_read(tmp_path / f"a.{suffix}")
    assert info == probe(tmp_path / f"a.{suffix}")
    assert picture is not None
    assert torch.equal(picture.pixels, read_picture(tmp_path / f"a.{suffix}"))


def test_of_a_film_nothing_is_read_when_it_is_inspected(media_folder: Path) -> None:
    assert probe_and_read(media_folder / "film.mp4") == (probe(media_folder / "film.mp4"), None)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_without_metadata_is_not_searched_for_it(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that only finds nothing takes as long as the rest of the inspection."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    photograph().save(tmp_path / f"plain.{suffix}")
    photograph().save(tmp_path / f"told.{suffix}", icc_profile=profile.tobytes())
    asked: list[Path] = []
    ask = media._ask_pillow

    def count(path: Path, task: Literal["look", "read"]) -> tuple[dict[str, Any], bytes]:
        asked.append(path)
        return ask(path, task)

    monkeypatch.setattr(media, "_ask_pillow", count)
    for name in ("plain", "told"):
        probe(tmp_path / f"{name}.{suffix}")
    assert {path.stem for path in asked} == {"told"}


def test_a_picture_with_damaged_metadata_is_shown_as_it_is(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert_pictures_close(read_picture(tmp_path / "a.jpg"), photograph(), 6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA"])
def test_every_kind_of_png_is_rgb_over_white(tmp_path: Path, mode: str) -> None:
    picture = photograph()
    if mode in ("RGBA", "LA", "PA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    if mode == "PA":
        picture.quantize(64).save(tmp_path / "a.png")
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        rgba = image.convert("RGBA")
    want = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    assert_pictures_close(read_picture(tmp_path / "a.png"), want, 1)


def test_a_png_with_one_transparent_colour_shows_white_there(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    picture.putpixel((3, 4), (1, 2, 3))
    picture.save(tmp_path / "a.png", transparency=(1, 2, 3))
    pixels = read_picture(tmp_path / "a.png")
    assert pixels[:, 4, 3].tolist() == [255, 255, 255]
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("pixel_format", ["rgb48be", "gray16be", "rgba64be"])
def test_a_16_bit_png_keeps_its_high_bytes(tmp_path: Path, pixel_format: str) -> None:
    photograph().save(tmp_path / "8.png")
    run_ffmpeg("-i", tmp_path / "8.png", "-pix_fmt", pixel_format, tmp_path / "16.png")
    run_ffmpeg("-i", tmp_path / "8.png", "-pix_fmt", "gray" if "gray" in pixel_format else "rgb24", tmp_path / "w.png")
    with Image.open(tmp_path / "w.png") as want:
        assert_pictures_close(read_picture(tmp_path / "16.png"), want, 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_kind_of_jpeg_is_rgb(tmp_path: Path, mode: str) -> None:
    photograph().convert(mode).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as want:
        assert_pictures_close(read_picture(tmp_path / "a.jpg"), want, 6)


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "gif", "webp"])
def test_every_picture_format_is_read(tmp_path: Path, suffix: str) -> None:
    photograph().save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(tmp_path / f"a.{suffix}") as want:
        assert_pictures_close(read_picture(tmp_path / f"a.{suffix}"), want, 0)


def test_a_picture_shows_the_same_at_every_instant() -> None:
    picture = Picture(torch.zeros(3, 4, 6, dtype=torch.uint8))
    assert picture.frame_at(0) is picture.frame_at(99.5) is picture.pixels
    assert (picture.height, picture.width) == (4, 6)


# Sound


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (44_100, 2), (192_000, 6)])
def test_any_rate_and_channels_become_mono_at_16_khz(tmp_path: Path, rate: int, channels: int) -> None:
    tone = "0.5*sin(2*PI*440*t)"
    make_sound(tmp_path / "a.wav", 0.5, "-c:a", "pcm_s24le", rate=rate, expression="|".join([tone] * channels))
    waveform = read_waveform(tmp_path / "a.wav")
    assert waveform.dtype == np.float32
    assert waveform.shape == (8_000,)
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    assert np.abs(waveform - want)[200:-200].max() < 0.01


def test_channels_are_averaged(tmp_path: Path) -> None:
    tones = "0.6*sin(2*PI*500*t)|0.2*sin(2*PI*1500*t)"
    make_sound(tmp_path / "a.wav", 0.3, "-c:a", "pcm_f32le", rate=16_000, expression=tones)
    times = np.arange(4_800) / 16_000
    want = 0.3 * np.sin(2 * np.pi * 500 * times) + 0.1 * np.sin(2 * np.pi * 1500 * times)
    assert read_waveform(tmp_path / "a.wav") == pytest.approx(want, abs=0.01)


def test_the_sound_of_a_video_is_read_up_to_a_length(media_folder: Path) -> None:
    assert read_waveform(media_folder / "talk.mp4", max_seconds=0.3).shape == (4_800,)


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.ogg", "a.flac"])
def test_an_encoders_delay_is_taken_off(tmp_path: Path, name: str) -> None:
    make_sound(tmp_path / name, 1, expression="0.9*gt(t,0.5)*sin(2*PI*1000*t)*lt(t,0.6)", rate=48_000)
    waveform = read_waveform(tmp_path / name)
    loud = np.flatnonzero(np.abs(waveform) > 0.3) / 16_000
    assert loud[0] == pytest.approx(0.5, abs=0.003)
    assert loud[-1] == pytest.approx(0.6, abs=0.003)


def test_a_sound_that_starts_later_than_the_picture_starts_at_its_own_first_sample(
    tmp_path: Path, media_folder: Path
) -> None:
    run_ffmpeg("-i", media_folder / "film.mp4", "-itsoffset", "0.5", "-i", media_folder / "tone.wav",
               "-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "pcm_s16le", tmp_path / "late.mkv")  # fmt: skip
    waveform = read_waveform(tmp_path / "late.mkv", max_seconds=0.9)
    assert waveform.shape == (14_400,)
    assert np.abs(waveform[:200]).max() > 0.4


def test_sound_without_samples_or_with_broken_ones_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(MediaError):
        read_waveform(tmp_path / "none.wav")
    broken = np.zeros(16_000, np.float32)
    broken[5_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="not finite"):
        read_waveform(tmp_path / "nan.wav")


# Video frames


@pytest.mark.parametrize(
    ("rate", "suffix"),
    [
        ("24000/1001", "mp4"),
        ("25", "mp4"),
        ("30", "mp4"),
        ("60", "mp4"),
        ("12", "mp4"),
        ("24000/1001", "mkv"),
        ("60", "mkv"),
    ],
)
def test_each_instant_shows_the_last_frame_not_later_than_it(tmp_path: Path, rate: str, suffix: str) -> None:
    numerator, _, denominator = rate.partition("/")
    fps = int(numerator) / int(denominator or 1)
    num_frames = int(fps * 1.5)
    make_numbered_video(tmp_path / f"a.{suffix}", range(num_frames), rate, "-pix_fmt", "yuv420p")
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / f"a.{suffix}", tmp_path / "frames", stride=1, max_frames=50)
    # Matroska rounds timestamps to milliseconds.
    grain = 1000 if suffix == "mkv" else 1_000_000
    timestamps = np.round(np.arange(num_frames) / fps * grain) / grain
    want = [int(np.flatnonzero(timestamps <= frame / 25 + 1e-9)[-1]) for frame in range(50)]
    assert [number_at(frames, frame / 25) for frame in range(50)] == want


def test_a_variable_frame_rate_is_read_by_time(tmp_path: Path) -> None:
    # The number of a frame is its time in hundredths of a second.
    kept = [0, 1, 2, 3, 9, 30, 31, 33, 60, 61, 62, 100, 141]
    select = "+".join(f"eq(n,{number})" for number in kept)
    make_numbered_video(tmp_path / "a.mp4", range(150), "100", "-pix_fmt", "yuv420p", filters=f"select='{select}'")
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / "a.mp4", tmp_path / "frames", stride=3, max_frames=60)
    want = [max(number for number in kept if number <= 4 * frame) for frame in range(0, 60, 3)]
    assert [number_at(frames, frame / 25) for frame in range(0, 60, 3)] == want


def test_time_zero_is_the_first_frame_of_a_stream_that_starts_late(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "a.mkv", range(10), "25", "-pix_fmt", "yuv420p", filters="setpts=PTS+2/TB")
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / "a.mkv", tmp_path / "frames", stride=4, max_frames=9)
    assert [number_at(frames, seconds) for seconds in (0, 0.16, 0.32)] == [0, 4, 8]


@pytest.mark.parametrize("num_frames", [1, 37, 38, 48])
def test_beyond_the_end_the_videos_own_last_frame_is_shown(tmp_path: Path, num_frames: int) -> None:
    make_numbered_video(tmp_path / "a.mp4", range(num_frames), "60", "-pix_fmt", "yuv420p")
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / "a.mp4", tmp_path / "frames", stride=7, max_frames=200)
    assert number_at(frames, 189 / 25) == num_frames - 1
    assert len(frames.paths) <= 48 / 60 * 25 / 7 + 2


def test_frames_count_from_a_start_within_the_video(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "a.mp4", range(60), "50", "-pix_fmt", "yuv420p")
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / "a.mp4", tmp_path / "frames", stride=5, max_frames=40, start=13)
    assert [number_at(frames, frame / 25) for frame in (0, 5, 15, 20)] == [26, 36, 56, 59]


def test_an_instant_between_the_strides_or_beyond_what_was_extracted_is_refused(
    tmp_path: Path, media_folder: Path
) -> None:
    frames = extract_frames(media_folder / "film.mp4", tmp_path, stride=8, max_frames=10)
    assert number_at(frames, 8 / 25) == 9
    for seconds in (0.04, 16 / 25, -8 / 25):
        with pytest.raises(ValueError, match="No frame was extracted"):
            frames.frame_at(seconds)


CODECS = {
    "hevc.mp4": (("libx265", "-x265-params", "log-level=error"), "yuv420p"),
    "hevc10.mp4": (("libx265", "-x265-params", "log-level=error"), "yuv420p10le"),
    "vp8.webm": (("libvpx",), "yuv420p"),
    "vp9.webm": (("libvpx-vp9",), "yuv420p"),
    "vp9.mp4": (("libvpx-vp9",), "yuv420p"),
    "av1.mkv": (("libaom-av1", "-cpu-used", "8"), "yuv420p"),
    "prores.mov": (("prores_ks",), "yuv422p10le"),
    "mpeg4.avi": (("mpeg4",), "yuv420p"),
    "h264.ts": (("libx264",), "yuv420p"),
    "h264.flv": (("libx264",), "yuv420p"),
    "theora.ogg": (("libtheora",), "yuv420p"),
}


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_is_decoded(tmp_path: Path, name: str) -> None:
    codec, pixel_format = CODECS[name]
    make_numbered_video(tmp_path / name, range(12), "25", "-pix_fmt", pixel_format, codec=codec)
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / name, tmp_path / "frames", stride=5, max_frames=30)
    assert [number_at(frames, seconds) for seconds in (0, 0.2, 0.4, 0.6)] == [0, 5, 10, 11]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webm", ("-pix_fmt", "yuva420p", "-c:v", "libvpx-vp9", "-auto-alt-ref", "0")),
        ("a.mov", ("-pix_fmt", "yuva444p10le", "-c:v", "prores_ks", "-profile:v", "4444")),
    ],
)
def test_a_transparent_video_is_shown_over_white(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    run_ffmpeg("-f", "lavfi", "-i", "color=red@0.5:s=64x48:r=25:d=0.2,format=rgba", *options, tmp_path / name)
    frame = extract_frames(tmp_path / name, tmp_path, stride=1, max_frames=2).frame_at(0)
    assert frame[:, 24, 32].tolist() == pytest.approx([255, 128, 128], abs=6)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_phone_video_is_read_upright(tmp_path: Path, media_folder: Path, degrees: int) -> None:
    run_ffmpeg("-display_rotation", str(degrees), "-i", media_folder / "film.mp4", "-c", "copy", tmp_path / "a.mp4")
    info = probe(tmp_path / "a.mp4")
    frames = extract_frames(tmp_path / "a.mp4", tmp_path, stride=24, max_frames=25)
    want = (HEIGHT, WIDTH) if degrees == 180 else (WIDTH, HEIGHT)
    assert (info.height, info.width) == (frames.height, frames.width) == want
    # ffmpeg's option counts counterclockwise.
    lying = np.rot90(frames.frame_at(24 / 25).permute(1, 2, 0).numpy(), -degrees // 90)
    assert read_number(lying) == 28


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "a.mp4", [5], "25", "-pix_fmt", "yuv420p", filters="setsar=4/3")
    info = probe(tmp_path / "a.mp4")
    frame = extract_frames(tmp_path / "a.mp4", tmp_path, stride=1, max_frames=1).frame_at(0)
    assert (info.height, info.width) == tuple(frame.shape[1:]) == (HEIGHT, WIDTH * 4 // 3)


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "a.mp4", [300], "25", "-pix_fmt", "yuv444p", filters="crop=143:47:0:0:exact=1")
    frames = extract_frames(tmp_path / "a.mp4", tmp_path, stride=1, max_frames=1)
    assert frames.frame_at(0).shape == (3, 47, 143)
    assert number_at(frames, 0) == 300


def test_colours_follow_the_tags_of_the_video(tmp_path: Path) -> None:
    for matrix in ("bt709", "smpte170m"):
        name = f"{matrix}.mp4"
        run_ffmpeg("-f", "lavfi", "-i", "color=0x3060c0:s=64x48:r=25:d=0.2,format=rgb24",
                   "-vf", f"scale=out_color_matrix={matrix}:out_range=tv", "-pix_fmt", "yuv420p", "-c:v", "libx264",
                   "-colorspace", matrix, "-color_range", "tv", tmp_path / name)  # fmt: skip
        folder = tmp_path / matrix
        folder.mkdir()
        frame = extract_frames(tmp_path / name, folder, stride=1, max_frames=1).frame_at(0)
        assert frame[:, 24, 32].tolist() == pytest.approx([0x30, 0x60, 0xC0], abs=3)


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_a_high_dynamic_range_video_keeps_its_brightness(tmp_path: Path, transfer: str) -> None:
    # BT.709 mid-grey as an HDR camera records it, white at 203 cd/m².
    to_hdr = (
        "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,zscale=t=linear:npl=203,"
        f"format=gbrpf32le,zscale=t={transfer}:m=bt2020nc:p=bt2020:r=tv:npl=203,format=yuv420p10le"
    )
    tags = f"log-level=error:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    run_ffmpeg("-f", "lavfi", "-i", "color=0x808080:s=64x48:r=25:d=0.2,format=yuv444p", "-vf", to_hdr,
               "-c:v", "libx265", "-x265-params", tags, tmp_path / "a.mp4")  # fmt: skip
    pixel = extract_frames(tmp_path / "a.mp4", tmp_path, stride=1, max_frames=1).frame_at(0)[:, 24, 32].tolist()
    assert pixel == pytest.approx([128] * 3, abs=6)


def test_a_change_of_size_within_a_video_does_not_upset_the_count(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "1.ts", range(20), "25", "-pix_fmt", "yuv420p", "-bf", "0")
    make_numbered_video(
        tmp_path / "2.ts",
        range(20, 40),
        "25",
        "-pix_fmt",
        "yuv420p",
        "-bf",
        "0",
        filters="scale=288:96,setpts=PTS+0.8/TB",
    )
    (tmp_path / "both.ts").write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / "both.ts", tmp_path / "frames", stride=6, max_frames=40)
    assert frames.frame_at(0).shape == frames.frame_at(30 / 25).shape == (3, HEIGHT, WIDTH)
    assert [number_at(frames, frame / 25) for frame in range(0, 40, 6)] == list(range(0, 40, 6))


def test_scenes_begin_at_the_cuts(tmp_path: Path) -> None:
    cuts = "color=red:s=96x64:r=30:d=1[a];testsrc2=s=96x64:r=30:d=1[b];color=blue:s=96x64:r=30:d=1[c]"
    run_ffmpeg("-filter_complex", f"{cuts};[a][b][c]concat=n=3", "-c:v", "libx264", tmp_path / "a.mp4")
    assert detect_scenes(tmp_path / "a.mp4", max_frames=75) == [0, 25, 50]
    assert detect_scenes(tmp_path / "a.mp4", max_frames=40) == [0, 25]
    # One too short to be a scene belongs to the one before, at the end as well.
    assert detect_scenes(tmp_path / "a.mp4", max_frames=39) == [0]


def test_frames_of_the_factory_show_their_number() -> None:
    assert [read_number(numbered_frame(number)) for number in (0, 1, 300, 511)] == [0, 1, 300, 511]

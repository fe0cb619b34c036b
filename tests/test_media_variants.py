"""What users' devices and programs make of pictures, sound and video, beyond the plain forms."""

import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageOps
from structlog.testing import capture_logs

from infinitetalk.errors import MediaError
from infinitetalk.media import decode as media
from infinitetalk.media import sandbox
from infinitetalk.media.decode import extract_frames, probe, read_picture, read_region, read_sound, read_waveform
from infinitetalk.worker.machine.fitness import look_at_privileges
from tests.media_factory import (
    colour_profile,
    make_heic,
    make_numbered_video,
    make_sound,
    make_tagged_video,
    png_with_chunk,
    read_number,
    run_ffmpeg,
)

SRGB, SAME_IN_P3 = (200, 60, 60), (184, 72, 68)
"""One colour in two spaces."""


def colour_at_centre(path: Path) -> list[int]:
    pixels = read_picture(path)
    return pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].tolist()


def corners(height: int = 48, width: int = 64) -> Image.Image:
    """A picture whose four corners have four colours."""
    pixels = np.zeros((height, width, 3), np.uint8)
    half, middle = height // 2, width // 2
    pixels[:half, :middle], pixels[:half, middle:] = (220, 40, 40), (40, 200, 60)
    pixels[half:, :middle], pixels[half:, middle:] = (50, 60, 220), (230, 220, 60)
    return Image.fromarray(pixels)


def assert_shows(path: Path, want: Image.Image) -> None:
    pixels = read_picture(path).permute(1, 2, 0).numpy()
    assert pixels.shape[:2] == (want.height, want.width)
    wanted = np.asarray(want.convert("RGB"))
    for row in (want.height // 4, 3 * want.height // 4):
        for column in (want.width // 4, 3 * want.width // 4):
            assert pixels[row, column].tolist() == pytest.approx(wanted[row, column].tolist(), abs=8)
    info = probe(path)
    assert (info.kind, info.height, info.width) == ("image", want.height, want.width)


# Pictures


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif", "heic"])
def test_a_pictures_profile_is_applied(tmp_path: Path, suffix: str) -> None:
    picture, icc = Image.new("RGB", (64, 48), SAME_IN_P3), colour_profile("P3")
    if suffix == "heic":
        make_heic(tmp_path / "a.heic", picture, icc=icc)
    else:
        picture.save(tmp_path / f"a.{suffix}", quality=95, icc_profile=icc)
    assert colour_at_centre(tmp_path / f"a.{suffix}") == pytest.approx(SRGB, abs=4)
    assert probe(tmp_path / f"a.{suffix}").warnings == ()


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "L"])
def test_a_profile_is_applied_in_every_mode(tmp_path: Path, mode: str) -> None:
    if mode in ("L", "I;16"):
        level = 100 * 257 if mode == "I;16" else 100
        picture, icc = Image.new(mode, (8, 8), level), colour_profile("GRAY", 1.0)
        want = [168] * 3  # sRGB of 100/255 of the light
    else:
        picture, icc, want = Image.new("RGB", (8, 8), SAME_IN_P3).convert(mode), colour_profile("P3"), list(SRGB)
        if mode == "P":
            picture = Image.new("RGB", (8, 8), SAME_IN_P3).quantize(4)
    picture.save(tmp_path / "a.png", icc_profile=icc)
    assert colour_at_centre(tmp_path / "a.png") == pytest.approx(want, abs=3)


def test_grey_with_a_profile_of_colours_is_grey(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 100).save(tmp_path / "a.jpg", icc_profile=colour_profile("P3"))
    assert colour_at_centre(tmp_path / "a.jpg") == pytest.approx([100] * 3, abs=2)


def test_a_damaged_profile_is_ignored_and_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), SRGB).save(tmp_path / "a.png", icc_profile=b"nothing" * 30)
    assert colour_at_centre(tmp_path / "a.png") == list(SRGB)
    assert "profile is damaged" in probe(tmp_path / "a.png").warnings[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"cICP", bytes([12, 13, 0, 1])),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
    ],
)
def test_a_png_may_tell_its_primaries_by_numbers(tmp_path: Path, name: bytes, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png_with_chunk(Image.new("RGB", (8, 8), SAME_IN_P3), name, content))
    assert colour_at_centre(tmp_path / "a.png") == pytest.approx(SRGB, abs=4)


def test_an_hdr_png_keeps_its_mid_tones(tmp_path: Path) -> None:
    # 18 % of the reference white, 36.5 cd/m², in PQ.
    (tmp_path / "a.png").write_bytes(
        png_with_chunk(Image.new("RGB", (8, 8), (104,) * 3), b"cICP", bytes([9, 16, 0, 1]))
    )
    assert colour_at_centre(tmp_path / "a.png") == pytest.approx([118] * 3, abs=6)


def test_a_jpeg_with_a_profile_that_is_cut_short_is_refused_and_without_a_mark_of_its_end_is_read(
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg", icc_profile=colour_profile("P3"))
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 4 // 5])
    with pytest.raises(MediaError):
        probe(tmp_path / "cut.jpg")
    (tmp_path / "open.jpg").write_bytes(whole[:-2])
    assert read_picture(tmp_path / "open.jpg").equal(read_picture(tmp_path / "whole.jpg"))


@pytest.mark.parametrize("compression", ["jpeg", "tiff_deflate", "packbits", "tiff_lzw"])
def test_a_tiff_is_read_in_every_compression(tmp_path: Path, compression: str) -> None:
    corners().save(tmp_path / "a.tif", compression=compression)
    assert_shows(tmp_path / "a.tif", corners())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners().save(tmp_path / "a.png", exif=exif)
    # Pillow takes the tag out of what it is given.
    corners().save(tmp_path / "a.avif", quality=95, exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert_shows(tmp_path / "a.avif", ImageOps.exif_transpose(image))


@pytest.mark.parametrize(("turns", "mirror"), [(0, None), (1, None), (2, None), (3, None), (0, 1), (0, 0), (3, 1)])
def test_a_heic_is_upright(tmp_path: Path, turns: int, mirror: int | None) -> None:
    make_heic(tmp_path / "a.heic", corners(), turns, mirror)
    want = corners().rotate(90 * turns, expand=True)
    if mirror is not None:
        want = ImageOps.mirror(want) if mirror == 1 else ImageOps.flip(want)
    assert_shows(tmp_path / "a.heic", want)


def test_heic_and_avif_cut_short_are_refused(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.avif")
    make_heic(tmp_path / "a.heic", corners())
    for suffix in ("avif", "heic"):
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) * 3 // 4])
        with pytest.raises(MediaError):
            probe(tmp_path / f"cut.{suffix}")


# Masks


def painted(mode: str, opaque: bool) -> Image.Image:
    """White over the left quarter, on black or on nothing."""
    mask = Image.new("LA" if mode == "P" else mode, (40, 20), (0, 255 if opaque else 0)[: 2 if mode != "RGBA" else 0] or
                     (0, 0, 0, 255 if opaque else 0))  # fmt: skip
    mask.paste((255,) * len(mask.getbands()), (0, 0, 10, 20))
    return mask.convert("RGBA").quantize(4) if mode == "P" else mask


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("opaque", [True, False])
def test_what_is_transparent_is_not_of_the_place(tmp_path: Path, mode: str, opaque: bool) -> None:
    painted(mode, opaque).save(tmp_path / "a.png")
    region, notes = read_region(tmp_path / "a.png")
    assert region[:, :10].all()
    assert not region[:, 10:].any()
    assert notes == ()


def test_a_cut_out_is_the_place_whatever_its_colours(tmp_path: Path) -> None:
    cut_out = corners(40, 40).convert("RGBA")
    cut_out.putalpha(Image.new("L", (40, 40), 0))
    cut_out.paste(corners(40, 40).crop((0, 0, 20, 40)), (0, 0))
    cut_out.save(tmp_path / "a.png")
    region, notes = read_region(tmp_path / "a.png")
    assert region[:, :20].all()
    assert not region[:, 20:].any()
    assert "not black and white" in notes[0]


def test_a_place_painted_black_around_a_hole_is_no_place(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (40, 20), (0, 0, 0, 255))
    mask.paste((255, 255, 255, 0), (0, 0, 10, 20))
    mask.save(tmp_path / "a.png")
    assert not read_region(tmp_path / "a.png")[0].any()


# Sound


def levels(waveform: np.ndarray, step: float = 0.5) -> list[bool]:
    """Whether something is heard in each stretch of `step` seconds; their edges left out."""
    size = round(step * 16_000)
    parts = [waveform[start : start + size] for start in range(0, len(waveform) - size // 2, size)]
    return [bool(np.abs(part[size // 4 : 3 * size // 4]).max() > 0.05) for part in parts]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.webm", "libopus"), ("a.mkv", "pcm_s16le"), ("a.mkv", "aac"), ("a.ts", "aac"), ("a.mp4", "aac")],
)
def test_a_gap_in_the_timestamps_is_silence(tmp_path: Path, name: str, codec: str) -> None:
    speaks = "aselect='lt(t,1)+gte(t,2.5)'"
    make_sound(tmp_path / name, 4, "-af", speaks, "-c:a", codec, rate=48_000)
    assert levels(read_waveform(tmp_path / name)) == [True, True, False, False, False, True, True, True]


def test_mutes_one_after_the_other_do_not_add_up(tmp_path: Path) -> None:
    speaks = "aselect='lt(mod(t,1),0.5)'"
    make_sound(tmp_path / "a.webm", 6, "-af", speaks, "-c:a", "libopus", rate=48_000)
    assert levels(read_waveform(tmp_path / "a.webm")) == [True, False] * 5 + [True]


@pytest.mark.parametrize("suffix", ["mp3", "aac", "ts"])
@pytest.mark.parametrize("second", [("2", "48000"), ("1", "24000"), ("1", "48000")])
def test_sound_whose_channels_and_rate_change_is_read_to_its_end(
    tmp_path: Path, suffix: str, second: tuple[str, str]
) -> None:
    make_sound(tmp_path / f"1.{suffix}", 1, "-ac", "1", "-ar", "48000")
    make_sound(tmp_path / f"2.{suffix}", 1, "-ac", second[0], "-ar", second[1])
    whole = b"".join((tmp_path / f"{number}.{suffix}").read_bytes() for number in (1, 2))
    (tmp_path / f"a.{suffix}").write_bytes(whole)
    waveform = read_waveform(tmp_path / f"a.{suffix}")
    assert len(waveform) == pytest.approx(32_000, abs=2_500)
    loudness = [np.abs(waveform[start : start + 8_000]).max() for start in (4_000, 20_000)]
    assert loudness == pytest.approx([0.5, 0.5], abs=0.16)


@pytest.mark.parametrize("channels", ["1", "2"])
def test_chained_ogg_is_read_to_its_end_or_refused(tmp_path: Path, channels: str) -> None:
    for number, count in enumerate(("1", channels)):
        make_sound(tmp_path / f"{number}.opus", 1, "-ac", count, rate=48_000)
    (tmp_path / "a.opus").write_bytes((tmp_path / "0.opus").read_bytes() + (tmp_path / "1.opus").read_bytes())
    try:
        waveform = read_waveform(tmp_path / "a.opus")
    except MediaError as error:
        assert channels == "2"
        assert "changes its channels or rate within the Ogg file" in str(error)
    else:
        assert len(waveform) == pytest.approx(32_000, abs=500)


@pytest.mark.parametrize(("right", "gain"), [(-1.0, 1.0), (-0.5, 1.0), (-1.0, 0.1)])
def test_channels_of_opposite_phase_do_not_cancel_each_other_out(tmp_path: Path, right: float, gain: float) -> None:
    tone = f"{gain}*0.6*sin(2*PI*300*t)"
    make_sound(tmp_path / "a.wav", 1, expression=f"{tone}|{right}*{tone}")
    sound = read_sound(tmp_path / "a.wav")
    assert np.abs(sound.waveform).max() == pytest.approx(0.6 * gain, rel=0.02)
    assert "opposite phase" in sound.warnings[0]


@pytest.mark.parametrize("expression", ["T|0", "0|T", "T|T", "T|0.5*sin(2*PI*433*t)", "0|0|T|0|0|0"])
def test_channels_that_do_not_cancel_are_averaged(tmp_path: Path, expression: str) -> None:
    make_sound(tmp_path / "a.wav", 1, expression=expression.replace("T", "0.6*sin(2*PI*300*t)"))
    sound = read_sound(tmp_path / "a.wav")
    assert sound.warnings == ()
    assert np.abs(sound.waveform).max() > 0.09


def test_the_default_track_is_heard(tmp_path: Path) -> None:
    sources = ("-f", "lavfi", "-i", "sine=300:d=1", "-f", "lavfi", "-i", "sine=1000:d=1")
    for name, dispositions in {"first": ("default", "0"), "second": ("0", "default"), "none": ("0", "0")}.items():
        flags = [word for number, flag in enumerate(dispositions) for word in (f"-disposition:a:{number}", flag)]
        path = tmp_path / f"{name}.mkv"
        run_ffmpeg(
            *sources, "-map", "0", "-map", "1", "-c:a", "pcm_s16le", *flags, "-default_mode", "passthrough", path
        )
        sound = read_sound(path)
        pitch = np.abs(np.fft.rfft(sound.waveform[:16_000])).argmax()
        assert pitch == pytest.approx(1000 if name == "second" else 300, abs=2)
        assert "2 sound tracks" in sound.warnings[0]


@pytest.mark.parametrize("scale", [1e38, 32_768.0, 1e4])
def test_samples_of_another_scale_are_brought_to_full_scale(tmp_path: Path, scale: float) -> None:
    times = np.arange(16_000) / 16_000
    samples = np.stack([np.sin(2 * np.pi * 300 * times)] * 2, axis=1) * scale
    soundfile.write(tmp_path / "a.wav", samples.astype(np.float32), 16_000, subtype="FLOAT")
    waveform = read_waveform(tmp_path / "a.wav")
    assert np.isfinite(waveform).all()
    assert np.abs(waveform).max() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("offsets", [(0.05, 0.05), (0.3, -0.3), (0.5, 0.0)])
def test_an_offset_is_taken_off(tmp_path: Path, offsets: tuple[float, float]) -> None:
    times = np.arange(48_000) / 16_000
    voice = 0.003 * np.sin(2 * np.pi * 200 * times)
    samples = np.stack([voice + offset for offset in offsets], axis=1)
    soundfile.write(tmp_path / "a.wav", samples.astype(np.float32), 16_000, subtype="FLOAT")
    assert read_waveform(tmp_path / "a.wav") == pytest.approx(voice, abs=2e-4)


# Video


def colour_of_video(path: Path) -> list[int]:
    folder = path.parent / f"{path.stem}-frames"
    folder.mkdir()
    return extract_frames(path, folder, stride=1, max_frames=1).frame_at(0)[:, 24, 32].tolist()


@pytest.mark.parametrize(
    ("conversion", "tags"),
    [
        ("p=smpte432:t=bt709:m=bt709:r=tv", "range=tv"),
        ("p=smpte432:t=iec61966-2-1:m=bt709:r=tv", "range=tv"),
        ("p=smpte432:t=bt709:m=bt709:r=tv", "range=unknown:colorspace=unknown:color_trc=unknown"),
        ("p=2020:t=2020_10:m=2020_ncl:r=tv", "range=tv"),
        ("p=2020:t=2020_10:m=2020_ncl:r=tv", "color_primaries=unknown"),
        ("p=2020:t=bt709:m=2020_ncl:r=tv", "color_trc=unknown:color_primaries=unknown"),
    ],
)
def test_wide_gamuts_become_bt709(tmp_path: Path, conversion: str, tags: str) -> None:
    make_tagged_video(tmp_path / "a.mkv", "0xc83c3c", conversion, tags)
    tolerance = 14 if "iec61966" in conversion else 4
    assert colour_of_video(tmp_path / "a.mkv") == pytest.approx(SRGB, abs=tolerance)


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
@pytest.mark.parametrize(
    "lost", [(), ("color_primaries",), ("colorspace",), ("range", "colorspace", "color_primaries")]
)
def test_hdr_needs_not_all_of_its_tags_and_the_probe_tries_what_the_job_does(
    tmp_path: Path, transfer: str, lost: tuple[str, ...]
) -> None:
    tags = ":".join(f"{name}=unknown" for name in lost) or "range=tv"
    make_tagged_video(tmp_path / "a.mkv", "0x806060", f"p=2020:t={transfer}:m=2020_ncl:r=tv", tags)
    assert (lost != ()) == bool(probe(tmp_path / "a.mkv").warnings) or lost == ("range",)
    assert colour_of_video(tmp_path / "a.mkv") == pytest.approx([128, 96, 96], abs=6)


def test_an_hdr_video_of_an_odd_size_is_read(tmp_path: Path) -> None:
    make_tagged_video(tmp_path / "a.mkv", "0x808080", "w=63:h=47:p=2020:t=smpte2084:m=2020_ncl:r=tv", "range=tv")
    folder = tmp_path / "frames"
    folder.mkdir()
    assert extract_frames(tmp_path / "a.mkv", folder, stride=1, max_frames=1).frame_at(0).shape == (3, 47, 63)


MOVING_BAR = "geq=lum='if(lt(mod(X-24*N,320),60),235,16)':cb=128:cr=128"


def combing(path: Path) -> float:
    """How much lines differ from their neighbours, in levels; a bar that moves to the side has no such lines."""
    folder = path.parent / f"{path.stem}-frames"
    folder.mkdir()
    frames = extract_frames(path, folder, stride=1, max_frames=8)
    worst = 0.0
    for index in range(2, 8):
        luma = frames.frame_at(index / 25).float().mean(dim=0)
        worst = max(worst, (luma[2:-2:2] - (luma[1:-3:2] + luma[3:-1:2]) / 2).abs().mean().item())
    return worst


@pytest.mark.parametrize("rate", ["50", "60000/1001"])
@pytest.mark.parametrize(("first", "flag"), [("top", "tff=1"), ("bottom", "tff=0"), ("top", None)])
def test_fields_are_not_seen(tmp_path: Path, rate: str, first: str, flag: str | None) -> None:
    interlace = f"{MOVING_BAR},interlace=scan={'tff' if first == 'top' else 'bff'}:lowpass=0"
    told = "fieldorder=tff" if first == "top" else "null"
    if flag is None:
        told = "setfield=prog"
    options = () if flag is None else ("-x264-params", f"{'tff' if first == 'top' else 'bff'}=1")
    run_ffmpeg("-f", "lavfi", "-i", f"color=black:s=320x240:r={rate}:d=0.6,format=yuv420p,{interlace},{told}",
               "-c:v", "libx264", "-qp", "10", *options, tmp_path / "a.mp4")  # fmt: skip
    assert combing(tmp_path / "a.mp4") < 2


def test_film_that_is_flagged_as_interlaced_keeps_its_lines(tmp_path: Path) -> None:
    # Every second line is brighter: what a deinterlacer would blur.
    lines = "geq=lum='if(lt(mod(X-24*N,320),60),235,16)+if(mod(Y,2),0,20)':cb=128:cr=128"
    for name, options in {"flagged": ("-x264-params", "tff=1"), "plain": ()}.items():
        run_ffmpeg("-f", "lavfi", "-i", f"color=black:s=320x240:r=25:d=0.6,format=yuv420p,{lines}",
                   "-c:v", "libx264", "-qp", "4", *options, tmp_path / f"{name}.mp4")  # fmt: skip
    frames = []
    for name in ("flagged", "plain"):
        folder = tmp_path / name
        folder.mkdir()
        frames.append(extract_frames(tmp_path / f"{name}.mp4", folder, stride=1, max_frames=8).frame_at(5 / 25).int())
    assert (frames[0] - frames[1]).abs().float().mean() < 3


def test_small_progressive_film_with_sharp_edges_is_not_deinterlaced() -> None:
    # What the detector says of ffmpeg's testsrc2 at 64x64 pixels, 15 frames.
    seen = b"""
        Single frame detection: TFF:     5 BFF:     0 Progressive:     0 Undetermined:    10
        Multi frame detection: TFF:     8 BFF:     0 Progressive:     0 Undetermined:     7
    """
    assert media._parse_fields(["n:0 i:P iskey:1"], seen) is None
    assert media._parse_fields(["n:0 i:T iskey:1"], seen) == ("tff", True)


def test_deinterlacing_keeps_the_count_of_frames(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "a.mp4", range(30), "25", "-pix_fmt", "yuv420p", "-x264-params", "tff=1")
    (tmp_path / "frames").mkdir()
    frames = extract_frames(tmp_path / "a.mp4", tmp_path / "frames", stride=4, max_frames=29)
    shown = [read_number(frames.frame_at(frame / 25).permute(1, 2, 0).numpy()) for frame in range(0, 29, 4)]
    assert shown == list(range(0, 29, 4))


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "libx264"), ("webm", "libvpx")])
def test_a_picture_that_changes_its_shape_is_not_stretched(tmp_path: Path, suffix: str, codec: str) -> None:
    """A square stays a square: the phone was turned."""
    square = "drawbox=(iw-60)/2:(ih-60)/2:60:60:white:fill"
    for number, size in ((1, "192x108"), (2, "108x192")):
        source = f"color=0x404040:s={size}:r=25:d=0.8,format=yuv420p,{square}"
        options = ("-b:v", "2M", "-bf", "0", "-output_ts_offset", f"{0.8 * (number - 1)}")
        run_ffmpeg("-f", "lavfi", "-i", source, "-c:v", codec, *options, tmp_path / f"{number}.{suffix}")
    if suffix == "ts":
        (tmp_path / "a.ts").write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    else:
        (tmp_path / "list").write_text(f"file {tmp_path}/1.webm\nfile {tmp_path}/2.webm\n")
        run_ffmpeg("-f", "concat", "-safe", "0", "-i", tmp_path / "list", "-c", "copy", tmp_path / "a.webm")
    path = tmp_path / f"a.{suffix}"
    info = probe(path)
    assert (info.height, info.width) == (108, 192)
    assert "changes from 192x108 to 108x192" in info.warnings[0]
    (tmp_path / "frames").mkdir()
    frames = extract_frames(path, tmp_path / "frames", stride=5, max_frames=40)
    before, after = (frames.frame_at(frame / 25).float().mean(dim=0) for frame in (5, 35))
    assert (before > 128).any(dim=0).sum() == pytest.approx(60, abs=2)
    wide, high = (after > 128).any(dim=0).sum().item(), (after > 128).any(dim=1).sum().item()
    assert wide == pytest.approx(60 * 108 / 192, abs=3)
    assert high == pytest.approx(wide, abs=2)
    assert after[:, :40].max() < 20


# What children may do


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_child_has_a_limit_of_memory(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8000, 6000), SRGB).save(path, compress_level=1, compression="packbits")
    monkeypatch.setattr(sandbox, "MAX_CHILD_MEMORY_BYTES", 400_000_000)
    with pytest.raises(MediaError, match="of memory to decode"):
        probe(path)
    monkeypatch.undo()
    assert probe(path).width == 8000


def test_no_more_children_run_than_there_are_slots(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), SRGB).save(tmp_path / "a.png")
    waiting = threading.Thread(target=probe, args=(tmp_path / "a.png",), daemon=True)
    for _ in range(sandbox.MAX_CHILDREN):
        sandbox.child_slots.acquire()
    try:
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
    finally:
        sandbox.child_slots.release(sandbox.MAX_CHILDREN)
    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_a_child_of_root_is_nobody_and_reads_even_what_root_alone_may(tmp_path: Path) -> None:
    program = "/usr/bin/id"
    if not sandbox.is_unprivileged(program):
        pytest.skip("this machine lets root become nobody else")
    Image.new("RGB", (8, 8), SRGB).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0o600)
    with media._running(tmp_path / "a.png", [program, "-u"], 10) as child:
        assert int(child.stdout.read()) != 0
    assert colour_at_centre(tmp_path / "a.png") == list(SRGB)


def test_the_image_has_the_user_that_its_children_become() -> None:
    dockerfile = (Path(__file__).parents[1] / "Dockerfile").read_text()
    assert f"/usr/sbin/nologin {sandbox.UNPRIVILEGED_USERS[0]}\n" in dockerfile


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_a_worker_whose_children_stay_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "UNPRIVILEGED_USERS", ())
    sandbox._without_privileges.cache_clear()
    try:
        with capture_logs() as logged:
            look_at_privileges()
    finally:
        sandbox._without_privileges.cache_clear()
    assert {line["event"] for line in logged} == {"decoder.runs_as_root"}
    assert all("setpriv" in line["details"]["remedy"] for line in logged)


def test_what_metadata_say_is_no_complaint(tmp_path: Path) -> None:
    title = "No space left on device\n[error] partial file: File ended prematurely"
    make_sound(tmp_path / "a.mp3", 0.5, "-metadata", f"title={title}")
    assert probe(tmp_path / "a.mp3").kind == "audio"
    make_numbered_video(tmp_path / "a.mp4", range(5), "25", "-pix_fmt", "yuv420p", "-metadata", f"title={title}")
    assert probe(tmp_path / "a.mp4").kind == "video"

"""A program that reads the image on its standard input with Pillow, where ffmpeg falls short.

`look` prints one line of JSON: which decoder must read the image, and its metadata. `read` prints such a line with the
size, then the pixels: upright, in sRGB, RGBA, 8 bits. ffmpeg ignores colour profiles, reads JPEG in TIFF as black, and
reads HEIC and AVIF only in some versions. The program is run by its file name, does not need the package, and may be
crashed by its input.
"""

import io
import json
import struct
import sys
from collections.abc import Iterator
from itertools import product
from typing import IO, Any, NamedTuple

from PIL import ExifTags, Image

# Most images need no conversion, and loading a module takes longer than looking at one: the modules for it, and numpy,
# are imported where they are used.

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
READ_HERE = ("TIFF", "AVIF", "HEIF")
"""Formats that Pillow and its plugins read better than ffmpeg does."""

READ_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L")

SRGB_TOLERANCE = 1
"""A profile that changes colours by at most this many levels counts as sRGB: ffmpeg then reads the pixels."""

# Chromaticities (x, y) of red, green, blue and white, by their code in ITU-T H.273.
D65 = (0.3127, 0.3290)
BT709_PRIMARIES = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65)
BT2020_PRIMARIES = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65)
PRIMARIES = {
    9: BT2020_PRIMARIES,
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
ADOBE_RGB_PRIMARIES = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), D65)
HDR_CURVES = {16: "pq", 18: "hlg"}

CHROMATICITY_TOLERANCE = 0.005
"""Primaries that are closer than this to sRGB's count as sRGB's."""

SMALLEST_GAMUT = 0.02
"""Smallest valid area of the triangle of primaries; sRGB's is 0.112."""

DAMAGED_PROFILE = "its colour profile is damaged or does not fit the image, and was ignored"

Primaries = tuple[tuple[float, float], ...]


class Colours(NamedTuple):
    """The colour space of an image without an ICC profile.

    Attributes:
        primaries: chromaticities of red, green, blue, white.
        curve: "srgb", "adobe", "pq" or "hlg".
    """

    primaries: Primaries
    curve: str


class Refusal(Exception):
    """The image is refused. The argument is one of the reasons that the parent knows."""


def main(task: str, max_pixels: int) -> None:
    """Runs the task, `look` or `read`."""
    try:
        answer, pixels = run(task, sys.stdin.buffer, max_pixels)
    except Refusal as refusal:
        answer, pixels = {"refused": str(refusal)}, b""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + pixels)


def run(task: str, file: IO[bytes], max_pixels: int) -> tuple[dict[str, Any], bytes]:
    """The answer and, for `read`, the pixels.

    Raises:
        Refusal: the image is too large, animated, or unreadable.
    """
    Image.MAX_IMAGE_PIXELS = None
    head = file.read(32)
    file.seek(0)
    is_heif = head[4:8] == b"ftyp"
    try:
        image = open_picture(file, is_heif)
    except MemoryError:
        raise
    except Exception:
        if task == "look" and not is_heif:
            # Like a viewer: an image with damaged metadata is shown as it is, and ffmpeg decides whether its pixels can
            # be read.
            return {"reader": "ffmpeg", "orientation": 1, "notes": []}, b""
        raise Refusal("unreadable") from None
    if image.width * image.height > max_pixels:
        raise Refusal("too large")
    if image.format == "AVIF" and getattr(image, "n_frames", 1) > 1:
        raise Refusal("animated")
    if image.format == "TIFF" and image.mode not in READ_MODES:
        raise Refusal("unreadable")
    notes: list[str] = []
    if task == "look":
        is_read_here = image.format in READ_HERE or changes_colours(image, file, notes)
        answer = {"reader": "pillow" if is_read_here else "ffmpeg", "orientation": orientation_of(image)}
        return answer | {"notes": notes}, b""
    return read(image, file, notes)


def open_picture(file: IO[bytes], is_heif: bool) -> Image.Image:
    """Opens the image and reads only its header (AVIF and HEIC: everything)."""
    if not is_heif:
        return Image.open(file, formats=FORMATS[:4])
    try:
        return Image.open(file, formats=["AVIF"])
    except Exception:
        import pi_heif

        pi_heif.register_heif_opener(thumbnails=False)
        file.seek(0)
        return Image.open(file, formats=["HEIF"])


def read(image: Image.Image, file: IO[bytes], notes: list[str]) -> tuple[dict[str, Any], bytes]:
    """Size and pixels of an image."""
    from PIL import ImageOps

    orientation = orientation_of(image)
    icc, colours = meaning_of(image, file)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:
        image = load_without_end(image, file)
    alpha = alpha_of(image)
    base = without_alpha(image)
    if icc is not None:
        base = from_profile(base, icc, notes)
    rgb = base.convert("RGB")
    if colours is not None:
        from pathlib import Path

        sys.path.insert(0, str(Path(__file__).parents[2]))
        from infinitetalk.media.picture_colours import to_srgb

        rgb = to_srgb(rgb, colours.primaries, colours.curve)
    rgb.putalpha(alpha)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    rgb.info["exif"] = exif.tobytes()
    upright = ImageOps.exif_transpose(rgb)
    return {"height": upright.height, "width": upright.width, "notes": notes}, upright.tobytes()


def load_without_end(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """A JPEG without an end marker. ffmpeg has checked that no row is missing.

    Raises:
        Refusal: the image has another fault.
    """
    if image.format not in ("JPEG", "MPO"):
        raise Refusal("unreadable")
    file.seek(0)
    try:
        ended = Image.open(io.BytesIO(file.read() + b"\xff\xd9"), formats=["JPEG"])
        ended.load()
    except Exception:
        raise Refusal("unreadable") from None
    return ended


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none, or the metadata is damaged."""
    if image.format in ("TIFF", "HEIF"):
        # Pillow rotates TIFF when it loads it, libheif rotates HEIF.
        return 1
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def alpha_of(image: Image.Image) -> Image.Image:
    """The opacity of each pixel, mode L."""
    if image.mode in ("La", "LA", "PA", "RGBa", "RGBA"):
        return image.getchannel(image.getbands()[-1])
    if image.has_transparency_data:
        return image.convert("RGBA").getchannel("A")
    return Image.new("L", image.size, 255)


def without_alpha(image: Image.Image) -> Image.Image:
    """The colours alone: mode L, RGB or CMYK."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips levels above 255.
        return image.convert("I").point(lambda level: level * (1 / 256)).convert("L")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("L" if is_grey(image) else "CMYK" if image.mode == "CMYK" else "RGB")


def changes_colours(image: Image.Image, file: IO[bytes], notes: list[str]) -> bool:
    """Whether the image's colours differ from sRGB."""
    icc, colours = meaning_of(image, file)
    if icc is None:
        return colours is not None
    if image.mode == "CMYK":
        return True
    from PIL import ImageChops

    samples = bytes(level for colour in product(range(0, 256, 15), repeat=3) for level in colour)
    before = Image.frombytes("RGB", (18, 18 * 18), samples)
    if is_grey(image):
        before = before.convert("L")
    after = from_profile(before, icc, notes).convert("RGB")
    differences = ImageChops.difference(after, before.convert("RGB"))
    return max(differences.tobytes()) > SRGB_TOLERANCE


def is_grey(image: Image.Image) -> bool:
    """Whether `without_alpha` returns mode L."""
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")


def meaning_of(image: Image.Image, file: IO[bytes]) -> tuple[bytes | None, Colours | None]:
    """The ICC profile of an image, or else its colours if they are not sRGB."""
    icc = image.info.get("icc_profile") or None
    if image.format == "PNG":
        codes = png_codes(file)
        if codes is not None:
            return None, colours_of(*codes)
        if icc is None and "srgb" not in image.info and "chromaticity" in image.info:
            return None, colours_of_chromaticity(image.info["chromaticity"])
    if icc is not None:
        return icc, None
    if image.format in ("AVIF", "HEIF"):
        return None, colours_of(*heif_codes(image, file))
    if image.format in ("JPEG", "MPO") and is_adobe_rgb(image):
        return None, Colours(ADOBE_RGB_PRIMARIES, "adobe")
    return None, None


def is_adobe_rgb(image: Image.Image) -> bool:
    """Whether the EXIF data alone marks the colours as Adobe RGB (DCF's optional colour space)."""
    try:
        exif = image.getexif()
        return exif.get_ifd(ExifTags.IFD.Interop).get(1) == "R03"
    except Exception:
        return False


def colours_of(primaries: int, transfer: int) -> Colours | None:
    """Colours from their codes in H.273; None for sRGB and for unspecified colours."""
    if transfer in HDR_CURVES:
        return Colours(
            BT709_PRIMARIES if primaries == 1 else PRIMARIES.get(primaries, BT2020_PRIMARIES), HDR_CURVES[transfer]
        )
    return Colours(PRIMARIES[primaries], "srgb") if primaries in PRIMARIES else None


def colours_of_chromaticity(values: tuple[float, ...]) -> Colours | None:
    """Colours from PNG's cHRM: white, red, green and blue; None for sRGB and for impossible values."""
    wx, wy, rx, ry, gx, gy, bx, by = values
    primaries = ((rx, ry), (gx, gy), (bx, by), (wx, wy))
    known = [value for pair in BT709_PRIMARIES for value in pair]
    if all(
        abs(ours - theirs) < CHROMATICITY_TOLERANCE for ours, theirs in zip(known, (*values[2:], wx, wy), strict=True)
    ):
        return None
    area = abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) / 2
    is_possible = area > SMALLEST_GAMUT and all(0 < y <= 1 and 0 <= x <= 1 for x, y in primaries)
    return Colours(primaries, "srgb") if is_possible else None


def png_codes(file: IO[bytes]) -> tuple[int, int] | None:
    """Primaries and transfer from a PNG's cICP chunk, which Pillow does not expose."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name == b"cICP" and length == 4:
            primaries, transfer, _, _ = file.read(4)
            return primaries, transfer
        if name in (b"IDAT", b"IEND"):
            break
        file.seek(length + 4, io.SEEK_CUR)
    return None


def heif_codes(image: Image.Image, file: IO[bytes]) -> tuple[int, int]:
    """Primaries and transfer of a HEIC or AVIF image; 2 (unspecified) if the file does not say."""
    nclx = image.info.get("nclx_profile")
    if nclx is not None:
        return int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])
    file.seek(0)
    # Pillow does not expose them for AVIF. All items' properties are in one list; the first colour is the image's.
    for box in colour_boxes(file.read(2**20)):
        if box[:4] == b"nclx":
            return struct.unpack(">HH", box[4:8])
    return 2, 2


def colour_boxes(data: bytes) -> Iterator[bytes]:
    """The contents of the `colr` boxes among an ISO file's item properties."""
    containers = {b"meta": 4, b"iprp": 0, b"ipco": 0}
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + size]
        if name in containers:
            yield from colour_boxes(content[containers[name] :])
        elif name == b"colr" and len(content) >= 8:
            yield content
        if size < 8:
            break
        at += size


def from_profile(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image:
    """Converts an image of mode L, RGB or CMYK from its profile to sRGB; a bad profile is ignored, with a note."""
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if space == "GRAY" and image.mode == "RGB":
            raise ImageCms.PyCMSError("a profile for grey images")
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        if DAMAGED_PROFILE not in notes:
            notes.append(DAMAGED_PROFILE)
        return image
    assert converted is not None
    return converted


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Converts images with colours given by numbers instead of a profile to sRGB: wide gamuts and HDR."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

D65 = (0.3127, 0.3290)
BT709_PRIMARIES = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65)
ADOBE_RGB_GAMMA = 563 / 256

BLOCK_PIXELS = 2**20
"""Number of pixels that are converted at a time."""

REFERENCE_WHITE = 203.0
"""Luminance of SDR white in HDR, in cd/m² (ITU-R BT.2408)."""

PQ_PEAK = 10_000.0
HLG_PEAK = 1000.0

TONE_MAPPING_KNEE = 0.3
"""Share of white up to which tone mapping changes nothing, as in ffmpeg's tonemap=mobius."""

Primaries = Sequence[tuple[float, float]]
"""Chromaticities (x, y) of red, green, blue and white."""


def to_srgb(rgb: Image.Image, primaries: Primaries, curve: str) -> Image.Image:
    """Converts an image of mode RGB to sRGB; `curve` is "srgb", "adobe", "pq" or "hlg"."""
    levels = np.arange(256, dtype=np.float32) / 255
    light_of_level = CURVES[curve](levels).astype(np.float32)
    matrix = (np.linalg.inv(to_xyz(BT709_PRIMARIES)) @ to_xyz(primaries)).astype(np.float32).T
    pixels = np.array(rgb).reshape(-1, 3)
    for start in range(0, len(pixels), BLOCK_PIXELS):
        light = light_of_level[pixels[start : start + BLOCK_PIXELS]]
        if curve == "hlg":
            light = shown_light(light)
        light = light @ matrix
        if curve in ("pq", "hlg"):
            light = tone_mapped(light, (PQ_PEAK if curve == "pq" else HLG_PEAK) / REFERENCE_WHITE)
        pixels[start : start + BLOCK_PIXELS] = np.round(light_to_srgb(np.clip(light, 0, 1)) * 255)
    return Image.fromarray(pixels.reshape(rgb.height, rgb.width, 3))


def to_xyz(primaries: Primaries) -> np.ndarray:
    """The matrix from linear RGB to XYZ; a white point other than D65 is adapted to D65 (Bradford)."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries])
    matrix = xyz[:3].T * np.linalg.solve(xyz[:3].T, xyz[3])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65 = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    gains = np.diag((bradford @ d65) / (bradford @ xyz[3]))
    return np.linalg.inv(bradford) @ gains @ bradford @ matrix


def srgb_to_light(values: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: values 0…1 to light 0…1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def light_to_srgb(light: np.ndarray) -> np.ndarray:
    """The inverse of `srgb_to_light`."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)


def adobe_to_light(values: np.ndarray) -> np.ndarray:
    """Adobe RGB (1998)."""
    return values**ADOBE_RGB_GAMMA


def pq_to_light(values: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: light; 1 is SDR white."""
    power = values ** (1 / 78.84375)
    linear = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return linear ** (1 / 0.1593017578125) * PQ_PEAK / REFERENCE_WHITE


def hlg_to_light(values: np.ndarray) -> np.ndarray:
    """ARIB STD-B67: scene light, 0…1."""
    above = (np.exp((np.maximum(values, 0.5) - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(values <= 0.5, values**2 / 3, above)


def shown_light(light: np.ndarray) -> np.ndarray:
    """Scene light, (n, 3), as a display of 1,000 cd/m² shows it (BT.2100)."""
    luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return light * np.maximum(luminance, 1e-6)[:, None] ** 0.2 * (HLG_PEAK / REFERENCE_WHITE)


def tone_mapped(light: np.ndarray, peak: float) -> np.ndarray:
    """Maps HDR light, (n, 3), from 0…`peak` (1 is white) to 0…1; highlights are compressed."""
    knee = TONE_MAPPING_KNEE
    a = -(knee**2) * (peak - 1) / (knee**2 - 2 * knee + peak)
    b = (knee**2 - 2 * knee * peak + peak) / (peak - 1)
    brightest = np.maximum(light.max(axis=1, keepdims=True), 1e-6)
    mapped = (b**2 + 2 * b * knee + knee**2) / (b - a) * (brightest + a) / (brightest + b)
    return light * np.where(brightest <= knee, 1, mapped / brightest)


CURVES = {"srgb": srgb_to_light, "adobe": adobe_to_light, "pq": pq_to_light, "hlg": hlg_to_light}
"""Functions from levels 0…1 to light."""

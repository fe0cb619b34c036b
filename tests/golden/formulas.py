"""Weights, inputs and pictures made by formula from a key, and the strings of an index that speak of them."""

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np

NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"


def formula_input(key: str, shape: Sequence[int], s: float = 1.0, m: float = 0.0) -> np.ndarray:
    """Normal numbers of deviation `s` and mean `m`, float32 of `shape`, from a generator seeded by the key's CRC-32."""
    generator = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    return generator.standard_normal(tuple(shape)).astype(np.float32) * np.float32(s) + np.float32(m)


def formula_weight(key: str, shape: Sequence[int]) -> np.ndarray:
    """The weight of a state-dict key, float32 of `shape`; deviation and mean follow from the kind of weight."""
    return formula_input(key, shape, *_weight_statistics(key, shape))


def _weight_statistics(key: str, shape: Sequence[int]) -> tuple[float, float]:
    if key.endswith(".bias"):
        return 0.02, 0.0
    if key.endswith("modulation"):
        return 0.1, 0.0
    if key.endswith((".gamma", ".weight_g")) or (key.endswith(".weight") and len(shape) == 1):
        return 0.1, 1.0
    return 1.0 / math.sqrt(math.prod(shape[1:])), 0.0


def formula_image(height: int, width: int, frame: int = 0) -> np.ndarray:
    """A picture, uint8 (height, width, 3), that moves with `frame`."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((3 * y + 5 * x + 40 * c + 11 * frame + (y * x) % 17) % 256).astype(np.uint8)


def picture_size(text: str) -> tuple[int, int]:
    """(height, width) of the first `formula_image(height,width…` in a text."""
    height, width = _search(r"formula_image\((\d+),\s*(\d+)", text)
    return int(height), int(width)


def number_after(label: str, text: str, default: float | None = None) -> float:
    """The first number that follows `label`, a regular expression, in a text."""
    found = re.search(rf"{label}\s*({NUMBER})", text)
    if found is None and default is not None:
        return default
    return float(_search(rf"{label}\s*({NUMBER})", text)[0])


def scaled_weight(text: str) -> float:
    """The factor in "formula value times 0.03"."""
    return number_after("formula value times", text)


def evaluate_sum(text: str, known: dict[str, np.ndarray], prefix: str, step: int, shape: Sequence[int]) -> np.ndarray:
    """A sum such as `cond+formula_input(P+"input/x/i",s=0.3)`: P is `prefix`, a final i of a key the step's number."""
    total = np.zeros(tuple(shape), dtype=np.float32)
    for sign, term in re.findall(r"([+-]?)\s*(formula_input\([^)]*\)|\w+)", text):
        if term.startswith("formula_input"):
            key = re.sub(r"/i$", f"/{step}", _search(r'"([^"]*)"', term)[0])
            key = prefix + key if re.search(r"P\s*\+", term) else key
            value = formula_input(key, shape, number_after(r"\bs=", term, 1.0), number_after(r"\bm=", term, 0.0))
        else:
            value = known[term]
        total = total - value if sign == "-" else total + value
    return total


def evaluate_wave(text: str, prefix: str) -> np.ndarray:
    """A sine with a stepped envelope plus formula noise, as case 03 writes it; float32 (samples,).

    For example `n=0..47999; env=1 for n<20000, 0.02 for n<34000, 0.5 after;
    x=float32(0.3*sin(2*pi*220*n/16000)*env + 0.02*formula_input("key",[48000]))`.
    """
    first, last = _search(r"n\s*=\s*(\d+)\s*\.\.\s*(\d+)", text)
    n = np.arange(int(first), int(last) + 1)
    envelope_text = _search(r"env\s*=([^;]*)", text)[0]
    envelope = np.full(len(n), number_after("", _search(rf"({NUMBER})\s*after", envelope_text)[0]))
    for value, end in reversed(re.findall(rf"({NUMBER})\s*for\s*n\s*<\s*(\d+)", envelope_text)):
        envelope[n < int(end)] = float(value)
    amplitude, frequency, rate = _search(rf"({NUMBER})\s*\*\s*sin\(2\*pi\*({NUMBER})\*n/({NUMBER})\)\s*\*\s*env", text)
    noise_amplitude, key, size = _search(
        rf'({NUMBER})\s*\*\s*formula_input\((?:P\s*\+\s*)?"([^"]*)",\s*\[(\d+)\]', text
    )
    noise = formula_input(with_prefix(key, prefix), (int(size),)).astype(np.float64)
    tone = float(amplitude) * np.sin(2 * np.pi * float(frequency) * n / float(rate)) * envelope
    return (tone + float(noise_amplitude) * noise).astype(np.float32)


def with_prefix(key: str, prefix: str) -> str:
    """A key with the folder's prefix, which it may have already."""
    return key if key.startswith(prefix) else prefix + key


def _search(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{pattern!r} finds nothing in {text!r}")
    return found.groups()

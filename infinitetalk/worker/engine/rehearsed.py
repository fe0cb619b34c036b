"""What a GPU takes for each part of a video, until this worker has measured its own.

The figures are those of the rehearsal at typical rates: `python -m benchmarks.rehearsal --write` writes them to
rehearsed.json, and docs/deploy.md says which of them rest on measurements. This module imports nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Gpu:
    """A GPU, as CUDA describes it.

    Attributes:
        name: as of `torch.cuda.get_device_name`.
        capability: CUDA's compute capability, as 9.0.
        multiprocessors: their number.
    """

    name: str
    capability: float
    multiprocessors: int


@dataclass(frozen=True)
class TokenSeconds:
    """Seconds that depend on the number of tokens: linear layers and memory on the number, attention on its square."""

    fixed: float
    per_token: float
    per_token_squared: float

    def seconds(self, num_tokens: int, gpus: int = 1) -> float:
        """With the tokens split over so many GPUs, their exchange aside."""
        split = self.per_token * num_tokens + self.per_token_squared * num_tokens**2
        return self.fixed + split / gpus


@dataclass(frozen=True)
class FrameSeconds:
    """Seconds for one frame: the GPU's, and at least those in which the CPU starts its kernels."""

    cpu: float
    fixed: float
    per_pixel: float

    def seconds(self, pixels: float, kernels: float = 1.0) -> float:
        """For a frame of so many pixels of the video, by so many times as many kernels."""
        return max(kernels * self.cpu, self.fixed + self.per_pixel * pixels)


@dataclass(frozen=True)
class VaeSeconds:
    """Seconds of a pass of the VAE over latent frames: the first has one frame of the video, each further one four."""

    first: FrameSeconds
    further: FrameSeconds

    def seconds(self, latent_frames: int, pixels: float, kernels: float = 1.0) -> float:
        """For so many latent frames of so many pixels of the video, by so many times as many kernels."""
        return self.first.seconds(pixels, kernels) + (latent_frames - 1) * self.further.seconds(pixels, kernels)


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
        name: in tables.
        device_names: as CUDA names it.
        capability, multiprocessors: as of `Gpu`.
        evaluation: one evaluation of the published network in bf16, one speaker.
        further_speaker: what each further speaker adds to it.
        widening: seconds that weights in 8 bits add to an evaluation, since they are widened at each use.
        host_bytes_per_s: copies from pinned memory of the CPU.
        link_bytes_per_s: what one GPU sends to the others of the machine.
        stream_wait: seconds for which the GPU stands idle before each streamed block.
        decode, encode: the VAE.
        colours: for each frame of the video: colours, and its way to the CPU.
        prompt, image: seconds of the text encoder for a prompt, and of the image encoder for a frame.
        speech: seconds of the audio encoder for a second of speech.
    """

    name: str
    device_names: tuple[str, ...]
    capability: float
    multiprocessors: int
    evaluation: TokenSeconds
    further_speaker: TokenSeconds
    widening: float
    host_bytes_per_s: float
    link_bytes_per_s: float
    stream_wait: float
    decode: VaeSeconds
    encode: VaeSeconds
    colours: FrameSeconds
    prompt: float
    image: float
    speech: float


@dataclass(frozen=True)
class Likeness:
    """The card of the table whose seconds stand for a GPU's.

    Attributes:
        card: the card.
        factor: how many times its seconds the GPU is taken to need; 1 where the table has the GPU itself.
        origin: in words.
    """

    card: Card
    factor: float
    origin: str


@cache
def cards() -> tuple[Card, ...]:
    """The cards of the table."""
    return TypeAdapter(tuple[Card, ...]).validate_json(FILE.read_bytes())


def card_named(name: str) -> Card:
    """The card that tables name so."""
    return next(card for card in cards() if card.name == name)


def likeness_of(gpu: Gpu) -> Likeness:
    """A GPU's own card; for one that the table does not have, the card with the nearest compute capability, and of
    several that with the nearest number of multiprocessors. Its seconds are multiplied by the ratio of these numbers.
    """
    for card in cards():
        if gpu.name in card.device_names:
            return Likeness(card, 1.0, f"table: {card.name}")

    def distance(card: Card) -> tuple[float, float]:
        return abs(card.capability - gpu.capability), abs(math.log(card.multiprocessors / gpu.multiprocessors))

    card = min(cards(), key=distance)
    factor = card.multiprocessors / gpu.multiprocessors
    return Likeness(card, factor, f"table: {factor:.2f} times {card.name}, the nearest to {gpu.name}")

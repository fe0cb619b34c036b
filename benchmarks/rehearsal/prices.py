"""What a minute of video costs, by recipe and card: tables for the documents, from the worker's own estimate.

python -m benchmarks.rehearsal --tables
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.rehearsal.first_hours import MARK, hours_table, measured, origin_lines
from benchmarks.rehearsal.rates import CARDS
from benchmarks.rehearsal.recorder import CHECKOUT
from benchmarks.rehearsal.report import table
from infinitetalk.family import Family
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.recipes import RECIPES, Recipe
from infinitetalk.runtime.memory import GIB, MemoryMode, Workload, choose_mode
from infinitetalk.worker.engine.estimate import (
    VideoWork,
    chunk_work,
    first_chunk_seconds,
    number_of_chunks,
    video_seconds,
)
from infinitetalk.worker.engine.rehearsed import card_named
from infinitetalk.worker.engine.scenes import Scene, generation_settings
from schemas import SingleJob
from tools.generated import fill_tables

#: Dollars for a second of a worker with this GPU that runs only while there are jobs, by Runpod's price list
#: (docs.runpod.io/serverless/pricing, 2026). The list does not name the RTX 5090: its price is ASSUMED, between an RTX
#: 4090's and an L40S's.
PRICES = {
    "RTX 4090": 0.00031,
    "RTX 5090": 0.00044,
    "L40S": 0.00053,
    "RTX PRO 6000": 0.00111,
    "A100": 0.00076,
    "H100": 0.00116,
    "H200": 0.00155,
}
ASSUMED_PRICES = ("RTX 5090",)
#: How far the rates of a card can be trusted: marks, as the text around the tables explains them.
MARKS = {"H200": "ᵐ", "H100": "ʰ"}
ASSUMED = "ᵃ"

#: A job that leaves everything to its recipe.
JOB = {
    "prompt": "A woman talks",
    "cond_video": "face.png",
    "cond_audio": {"person1": "voice.wav"},
    "mode": "streaming",
}
MINUTE = 60 * VIDEO_FPS
SIZES = {"480": "infinitetalk-480", "720": "infinitetalk-720"}
README_CARDS = ("H100", "H200")
DOCUMENTS = (CHECKOUT / "README.md", CHECKOUT / "docs/deploy.md", CHECKOUT / "docs/performance.md")


@dataclass(frozen=True)
class Offer:
    """A video by one recipe on one card.

    Attributes:
        recipe, card: their names.
        work: what the video asks of the GPUs.
        seconds: of the job, with the networks loaded.
        first_s: seconds until the first chunk can be played.
        usd: dollars.
        origin: "estimate", or where and when it was measured.
    """

    recipe: str
    card: str
    work: VideoWork
    seconds: float
    first_s: float
    usd: float
    origin: str = "estimate"

    @property
    def is_measured(self) -> bool:
        """Whether the figures were corrected by a measurement."""
        return self.origin != "estimate"


def settings_of(recipe: Recipe, size: str, num_frames: int) -> GenerationSettings:
    """A recipe's settings for a video of so many frames, as the worker makes them of a job."""
    job = SingleJob.model_validate(JOB | {"size": size}).by_recipe(recipe)
    return generation_settings(job, 0, Scene(0, num_frames))


def usual_workload(family: Family, size: str, num_frames: int, gpus: int = 1) -> Workload:
    """A chunk of the size's usual resolution."""
    return Workload(num_frames, *family.sizes[size].usual_resolution, family, gpus=gpus)


def mode_on(card: str, workload: Workload) -> MemoryMode:
    """The memory mode that a worker on this card chooses."""
    (found,) = (each for each in CARDS.values() if each.name == card)
    return choose_mode(int(found.free_gib * GIB), workload.family.model_sizes, workload)


def minute(recipe: Recipe, size: str, card: str, speakers: int = 1, gpus: int = 1) -> Offer:
    """A minute of video of an image."""
    settings = settings_of(recipe, size, MINUTE)
    workload = usual_workload(recipe.family, size, settings.frame_num, gpus)
    workload = replace(workload, branches=len(settings.branches))
    work = VideoWork(
        chunk=chunk_work(settings, workload, mode_on(card, workload), speakers),
        num_chunks=number_of_chunks(settings, recipe.family),
        references=1,
        speech_s=60.0 * speakers,
    )
    row = card_named(card)
    seconds = video_seconds(row, work)
    first_s = first_chunk_seconds(row, work)
    return Offer(recipe.name, card, work, seconds, first_s, seconds * gpus * PRICES[card])


def offers(size: str, card: str) -> list[Offer]:
    """A minute by every recipe on a card; measured where a first hour has measured it."""
    return [as_measured(minute(recipe, size, card), size) for recipe in RECIPES.values()]


def as_measured(offer: Offer, size: str) -> Offer:
    """An offer, corrected by what a first hour has measured of its recipe on its card; first hours compare recipes at
    640×640."""
    found = measured(offer.card, offer.recipe) if size == SIZES["480"] else None
    if found is None:
        return offer
    return replace(
        offer,
        seconds=offer.seconds * found.ratio,
        first_s=offer.first_s * found.ratio,
        usd=offer.usd * found.ratio,
        origin=f"measured on an {found.gpu}, {found.date}",
    )


def marked(card: str) -> str:
    """A card's name with the mark of its origin, and of an assumed price."""
    return card + MARKS.get(card, ASSUMED) + (" *" if card in ASSUMED_PRICES else "")


def clock(seconds: float) -> str:
    """As 3:05 (minutes) or 4:05:10 (hours)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def cell(offer: Offer) -> str:
    """Time, dollars, and seconds to the first playable chunk."""
    return f"{clock(offer.seconds)}, ${offer.usd:.2f}, {offer.first_s:.0f} s{MARK if offer.is_measured else ''}"


def short_mode(mode: MemoryMode) -> str:
    """A memory mode without numbers of parameters."""
    words = [mode.precision(torch.bfloat16)]
    words += ["blocks streamed"] if mode.resident_parameters is not None else []
    words += ["VAE in tiles"] if mode.vae_tiling else []
    return ", ".join(words)


def price_table(size: str) -> str:
    """A minute of this size by card (rows) and recipe (columns)."""
    rows = []
    for card in PRICES:
        found = offers(size, card)
        modes = list(dict.fromkeys(short_mode(offer.work.chunk.memory) for offer in found))
        rows.append([marked(card), *map(cell, found), "; ".join(modes)])
    return table(("", *(f"`{name}`" for name in RECIPES), "memory mode"), rows)


def gpus_table() -> str:
    """A minute at 480 by several H100, which make each step together."""
    rows = []
    for gpus in (1, 2, 4, 8):
        found = [minute(RECIPES[name], SIZES["480"], "H100", gpus=gpus) for name in ("quality", "flashtalk")]
        rows.append([str(gpus), *map(cell, found)])
    return table(("H100", "`quality`", "`flashtalk`"), rows)


def speakers_line() -> str:
    """What a second speaker adds, on an H100 at 480."""
    added = []
    for name in ("quality", "lora-8"):
        one, two = (minute(RECIPES[name], SIZES["480"], "H100", speakers).seconds for speakers in (1, 2))
        added.append(f"{100 * (two / one - 1):.1f} % by `{name}`")
    return f"A second speaker adds {' and '.join(added)} (H100, 640×640)."


def readme_table() -> str:
    """A minute at 480 by each recipe on the two fastest cards: dollars, time, and whether this was measured."""
    by_card = [offers(SIZES["480"], card) for card in README_CARDS]
    rows = []
    for name, *found in zip(RECIPES, *by_card, strict=True):
        rows.append([f"`{name}`", *(_in_readme(offer) for offer in found)])
    return table(("a minute of video at 640×640 by recipe", *README_CARDS), rows)


def _in_readme(offer: Offer) -> str:
    return f"${offer.usd:.2f}, {clock(offer.seconds)}" + (" (measured)" if offer.is_measured else "")


def tables() -> dict[Path, dict[str, Callable[[], str]]]:
    """The documents with these tables."""
    readme, deploy, performance = DOCUMENTS
    return {
        readme: {"prices": readme_table},
        deploy: {f"prices: {name}": partial(price_table, size) for name, size in SIZES.items()}
        | {"prices: speakers": speakers_line, "prices: GPUs": gpus_table, "prices: origin": origin_lines},
        performance: {"first hour": hours_table},
    }


def filled() -> dict[Path, str]:
    """The documents with their tables as they must be."""
    return {path: fill_tables(path.read_text(encoding="utf-8"), found) for path, found in tables().items()}


def write() -> None:
    """Writes the tables into the documents."""
    for path, text in filled().items():
        path.write_text(text, encoding="utf-8")

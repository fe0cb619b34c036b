"""What was measured on an H200, beside what the rehearsal estimates for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.rehearsal import parts
from benchmarks.rehearsal.log import Log
from benchmarks.rehearsal.rates import CARDS
from benchmarks.rehearsal.recorder import CHECKOUT
from benchmarks.rehearsal.stage import Stage

H200_FILE = CHECKOUT / "docs/measurements/h200.json"

#: A figure's name in the file, the run that made it, and the part that it is held against.
FIGURES: tuple[tuple[str, int, Callable[[Stage], Log]], ...] = (
    ("one evaluation, 640x640, 33 frames, 1 speaker", 1, lambda stage: parts.evaluation(stage, parts.SHORT)),
    ("one evaluation, 640x640, 81 frames, 1 speaker", 1, lambda stage: parts.evaluation(stage, parts.SMALL)),
    ("one evaluation, 960x960, 81 frames, 1 speaker", 1, lambda stage: parts.evaluation(stage, parts.SQUARE)),
    ("one evaluation, 640x640, 81 frames, 2 speakers", 1, lambda stage: parts.evaluation(stage, parts.SMALL, 2)),
    (
        "one evaluation, fp8 weights widened at each use",
        1,
        lambda stage: parts.weight_only_evaluation(stage, parts.SMALL, "fp8"),
    ),
    # Measured with the layers that diffusers gives the VAE.
    ("decoding of a chunk, float32 with TF32", 1, lambda stage: parts.vae_decode(stage, parts.SMALL, is_lean=False)),
    ("encoding of a reference for a chunk", 1, lambda stage: parts.vae_encode(stage, parts.SMALL, is_lean=False)),
)


@dataclass(frozen=True)
class Comparison:
    """Seconds and memory of one part on an H200.

    Attributes:
        name: of the measured figure.
        measured_s, estimated_s: seconds, the latter at typical rates.
        measured_bytes: the most memory beside weights; None where it was not measured.
        rehearsed_bytes: the same in the rehearsal, which knows of no library's workspaces.
    """

    name: str
    measured_s: float
    estimated_s: float
    measured_bytes: float | None
    rehearsed_bytes: int

    @property
    def ratio(self) -> float:
        """Estimated to measured seconds: 1 where the estimate is right, less where it is too hopeful."""
        return self.estimated_s / self.measured_s


def figure(name: str, run: int) -> float | None:
    """A measured value; None where there is none of this name."""
    figures = json.loads(H200_FILE.read_text(encoding="utf-8"))["figures"]
    return next((entry["value"] for entry in figures if (entry["name"], entry["run"]) == (name, run)), None)


def comparisons(stage: Stage) -> Iterator[Comparison]:
    """Each measured part beside its rehearsal."""
    for name, run, rehearse in FIGURES:
        measured_s = figure(name, run)
        assert measured_s is not None, name
        memory_gib = figure(f"{name}: memory beside weights", run)
        log = rehearse(stage)
        yield Comparison(
            name=name,
            measured_s=measured_s,
            estimated_s=log.seconds(CARDS["h200"].typical),
            measured_bytes=None if memory_gib is None else memory_gib * 2**30,
            rehearsed_bytes=log.peak_bytes,
        )

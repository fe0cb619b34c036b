"""The rehearsal's tables, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from benchmarks.rehearsal.log import Log, Operation, grouped
from benchmarks.rehearsal.measured import Comparison
from benchmarks.rehearsal.parts import AUDIO, COLOURS, DECODE, ENCODE, EVALUATION, FRAMES, IMAGE, TEXT, label
from benchmarks.rehearsal.rates import CARDS, H100_BY_PUBLISHED_FIGURES, Card, Rates
from infinitetalk.runtime.memory import GIB, Workload, choose_mode

#: Sampling steps and evaluations a step: of a distilled LoRA, and as published.
RECIPES = ((8, 2), (40, 3))
#: Goals of an eager evaluation on an H100 at 640x640, one speaker: times its floor at ideal rates, seconds by published
#: figures.
GOAL_OF_FLOOR, GOAL_S = 1.14, 3.3
#: Parts of every chunk, and of a job, with how often they run.
_EACH_CHUNK = (DECODE, COLOURS, FRAMES)
_ONCE: Mapping[str, int] = {ENCODE: 1, TEXT: 2, IMAGE: 1, AUDIO: 1}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def part_table(logs: Mapping[str, Log], card: Card) -> str:
    """Each part's seconds on one card, and what it does."""
    rows = [
        [
            name,
            f"{len(log.operations):,}",
            f"{log.flop / 1e12:,.4g}",
            f"{log.bytes / 1e9:,.4g}",
            f"{log.floor_seconds(card.ideal):.3f}",
            f"{log.seconds(card.ideal):.3f}",
            f"{log.seconds(card.typical):.3f}",
            f"{log.peak_bytes / GIB:.2f}",
        ]
        for name, log in logs.items()
    ]
    header = ("part", "kernels", "TFLOP", "GB", "floor s", "ideal s", "typical s", "peak GiB beside weights")
    return table(header, rows)


def kind_table(log: Log, card: Card) -> str:
    """Where a part's seconds go on one card."""
    total = log.seconds(card.ideal)
    rows = [
        [
            kind,
            f"{group.kernels:,}",
            f"{group.flop / 1e12:,.3g}",
            f"{group.bytes / 1e9:,.4g}",
            f"{group.ideal_s:.4f}",
            f"{100 * group.ideal_s / total:.1f}",
            f"{group.typical_s:.4f}",
        ]
        for kind, group in grouped(log.operations, lambda operation: operation.kind, card.ideal, card.typical).items()
    ]
    return table(("kind", "kernels", "TFLOP", "GB", "ideal s", "%", "typical s"), rows)


def yardstick_table(log: Log) -> str:
    """An evaluation on an H100 by each yardstick, beside its goals."""
    card = CARDS["h100"]
    floor, ideal = log.floor_seconds(card.ideal), log.seconds(card.ideal)
    by_figures = log.seconds(H100_BY_PUBLISHED_FIGURES)
    rows = [
        ["floor: products alone, ideal rates", f"{floor:.3f}", ""],
        ["ideal rates", f"{ideal:.3f}", f"{ideal / floor:.3f} of the floor; at most {GOAL_OF_FLOOR}"],
        ["typical, by published figures", f"{by_figures:.3f}", f"at most {GOAL_S}"],
        ["typical, from an H200's profile", f"{log.seconds(card.typical):.3f}", ""],
    ]
    return table(("yardstick", "s", "goal"), rows)


def line_table(log: Log, card: Card, count: int = 15) -> str:
    """The lines whose operations take longest for their bytes."""

    def place(operation: Operation) -> str:
        return f"{operation.name} | {operation.place} | {operation.kind}"

    bound = [
        operation
        for operation in log.operations
        if operation.product_seconds(card.ideal) < operation.bytes / card.ideal.bytes_per_s(operation.traffic)
    ]
    rows = [
        [name, str(group.kernels), f"{group.bytes / 1e9:.1f}", f"{1e3 * group.ideal_s:.1f}"]
        for name, group in list(grouped(bound, place, card.ideal, card.typical).items())[:count]
    ]
    return table(("operation", "line", "kind", "kernels", "GB", "ideal ms"), rows)


def waits_and_mixtures(logs: Mapping[str, Log]) -> list[str]:
    """Lines about what makes the CPU wait, and about operations that mix devices."""
    lines = []
    for name, log in logs.items():
        for wait, count in log.waits.most_common():
            lines.append(f"{name}: {count} x {wait.what} at {wait.file}, {wait.function}")
        lines += [f"{name}: MIXES DEVICES at {place}" for place in log.mixed]
    return lines


def chunk_seconds(logs: Mapping[str, Log], rates: Rates, evaluations: int) -> float:
    """Seconds of a job's first chunk: its evaluations, decoding, colours, frames, and what a job has once."""
    total = evaluations * logs[EVALUATION].seconds(rates)
    total += sum(logs[name].seconds(rates) for name in _EACH_CHUNK)
    return total + sum(count * logs[name].seconds(rates) for name, count in _ONCE.items())


def mode_of(card: Card, workload: Workload) -> str:
    """What a worker on this card would choose, in short."""
    mode = choose_mode(int(card.free_gib * GIB), workload.family.model_sizes, workload)
    words = [mode.precision(torch.bfloat16)]
    if mode.resident_parameters is not None:
        words.append("blocks streamed")
    if mode.vae_tiling:
        words.append("VAE in tiles")
    return ", ".join(words)


def budget_table(sizes: Sequence[tuple[Workload, Mapping[str, Log]]], cards: Iterable[Card]) -> str:
    """An evaluation and a chunk by card and size, seconds at ideal and in brackets at typical rates, in bf16 whatever
    the card's memory; beside it the mode that its memory would have a worker choose."""
    rows = []
    for card in cards:
        for workload, logs in sizes:
            row = [card.name, label(workload)]
            for name in (EVALUATION, DECODE):
                row.append(_both(logs[name].seconds(card.ideal), logs[name].seconds(card.typical)))
            row.insert(3, f"{logs[EVALUATION].seconds(card.ideal) / logs[EVALUATION].floor_seconds(card.ideal):.2f}")
            for steps, branches in RECIPES:
                ideal, typical = (chunk_seconds(logs, rates, steps * branches) for rates in (card.ideal, card.typical))
                row.append(_both(ideal, typical))
            row.append(mode_of(card, workload))
            rows.append(row)
    recipes = [f"first chunk, {steps} steps x {branches}" for steps, branches in RECIPES]
    return table(("card", "size", "evaluation", "of its floor", "VAE decode", *recipes, "mode chosen"), rows)


def compiled_table(sizes: Sequence[tuple[str, Log, Log]], cards: Iterable[Card]) -> str:
    """One evaluation by card and size, with eager and with compiled blocks: seconds at ideal and in brackets at typical
    rates, and what its products and attention alone take, which no compiler spares.

    Args:
        sizes: a size's name, the evaluation with eager blocks, and the one with compiled blocks.
    """
    rows = []
    for card in cards:
        for name, eager, compiled in sizes:
            floor, typical_floor = eager.floor_seconds(card.ideal), eager.floor_seconds(card.typical)
            row = [card.name, name, _both(floor, typical_floor)]
            for log in (eager, compiled):
                ideal = log.seconds(card.ideal)
                row += [_both(ideal, log.seconds(card.typical)), f"{ideal / floor:.3f}"]
            rows.append(row)
    header = ("card", "size", "products and attention", "eager", "of its floor", "compiled", "of its floor")
    return table(header, rows)


def _both(ideal: float, typical: float) -> str:
    digits = 2 if typical < 100 else 0
    return f"{ideal:.{digits}f} ({typical:.{digits}f})"


def comparison_table(comparisons: Iterable[Comparison]) -> str:
    """What was measured on an H200 beside the estimate."""
    rows = [
        [
            comparison.name,
            f"{comparison.measured_s:.2f}",
            f"{comparison.estimated_s:.2f}",
            f"{comparison.ratio:.2f}",
            "" if comparison.measured_bytes is None else f"{comparison.measured_bytes / GIB:.2f}",
            f"{comparison.rehearsed_bytes / GIB:.2f}",
        ]
        for comparison in comparisons
    ]
    header = ("on an H200", "measured s", "estimated s", "ratio", "measured GiB", "rehearsed GiB")
    return table(header, rows)

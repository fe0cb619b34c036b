"""Prints the budget of a chunk by card: `python -m benchmarks.rehearsal`, or `make rehearse`."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.rehearsal import compiled, host, modes, parts, prices, report
from benchmarks.rehearsal.device import missing
from benchmarks.rehearsal.log import Log, grouped
from benchmarks.rehearsal.measured import comparisons
from benchmarks.rehearsal.rates import CARDS, Card
from benchmarks.rehearsal.stage import Stage
from benchmarks.rehearsal.table import Logs, table_text
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.weights.loading import Quantisation
from infinitetalk.worker.engine import rehearsed


class Program:
    """One run.

    Args:
        card: that the tables of single parts are for.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.stage = Stage(card.kernel)
        self.logs: dict[str, Log] = {}

    def record(self, name: str, run: Callable[[], Log]) -> Log:
        """A part's log, recorded once."""
        if name not in self.logs:
            print(f"rehearsing {name}", file=sys.stderr, flush=True)
            self.logs[name] = run()
        return self.logs[name]

    def sized(self, workload: parts.Workload) -> dict[str, Log]:
        """The parts of a chunk of this size, by their bare names."""
        return {
            name: self.record(f"{name}, {parts.label(workload)}", lambda run=run: run(self.stage, workload))
            for name, run in parts.CHUNK_PARTS.items()
        }

    def budget(self) -> None:
        """The budget of a chunk by card, and the parts behind it."""
        job = {name: self.record(name, lambda run=run: run(self.stage)) for name, run in parts.JOB_PARTS.items()}
        sizes = [(workload, {**self.sized(workload), **job}) for workload in (parts.SMALL, parts.LARGE)]
        show("Budget of a chunk, seconds at ideal (typical) rates", report.budget_table(sizes, CARDS.values()))
        show(f"Parts, {self.card.name}", report.part_table(self.logs, self.card))

    def evaluation(self) -> None:
        """Where the seconds of an evaluation go, with one and with two speakers."""
        for speakers in (1, 2):
            name = f"{parts.EVALUATION}, {parts.label(parts.SMALL)}" + (", two speakers" if speakers > 1 else "")
            log = self.record(name, lambda speakers=speakers: parts.evaluation(self.stage, parts.SMALL, speakers))
            show(f"{name}, {self.card.name}", report.kind_table(log, self.card))
            show("Operations that memory bounds", report.line_table(log, self.card))
            if speakers == 1:
                show(f"{name}, H100, by yardstick", report.yardstick_table(log))

    def nag(self) -> None:
        """What normalised attention guidance adds to an evaluation."""
        found = {}
        for workload in (parts.SHORT, parts.SMALL, parts.LARGE):
            name = f"{parts.EVALUATION}, {parts.label(workload)}"
            found[name] = self.record(name, partial(parts.evaluation, self.stage, workload))
            guided = f"{name}, with NAG"
            found[guided] = self.record(guided, partial(parts.evaluation, self.stage, workload, with_nag=True))
        show(f"Normalised attention guidance, {self.card.name}", report.part_table(found, self.card))

    def quantised(self) -> None:
        """What weights in 8 bits cost, which are widened at each use."""
        found = {}
        for quantisation in get_args(Quantisation):
            name = f"{parts.EVALUATION}, {parts.label(parts.SMALL)}, weights in {quantisation}"
            found[name] = self.record(
                name,
                lambda quantisation=quantisation: parts.weight_only_evaluation(self.stage, parts.SMALL, quantisation),
            )
        show(f"Weights in 8 bits, {self.card.name}", report.part_table(found, self.card))

    def compiled(self) -> None:
        """Evaluations with compiled blocks beside those with eager ones."""
        found = []
        for workload, speakers in ((parts.SMALL, 1), (parts.SMALL, 2), (parts.LARGE, 1)):
            size = parts.label(workload) + (", two speakers" if speakers > 1 else "")
            eager, blocks = (
                self.record(f"{parts.EVALUATION}, {size}{how}", partial(run, self.stage, workload, speakers))
                for how, run in (("", parts.evaluation), (", blocks compiled", compiled.evaluation))
            )
            found.append((size, eager, blocks))
        show("An evaluation with compiled blocks", report.compiled_table(found, CARDS.values()))
        for size, _, blocks in found:
            show(f"Blocks compiled, {size}, {self.card.name}", report.kind_table(blocks, self.card))

    def vae(self) -> None:
        """The VAE in float32, in bf16 and in tiles."""
        found = {}
        for what, options in (
            ("float32, diffusers' layers", {"is_lean": False}),
            ("float32", {}),
            ("float32, in tiles", {"in_tiles": True}),
            ("bf16", {"dtype": torch.bfloat16}),
        ):
            for name, run in ((parts.DECODE, parts.vae_decode), (parts.ENCODE, parts.vae_encode)):
                full = f"{name}, {parts.label(parts.SMALL)}, {what}"
                found[full] = self.record(
                    full, lambda run=run, options=options: run(self.stage, parts.SMALL, **options)
                )
        show(f"VAE, {self.card.name}", report.part_table(found, self.card))

    def modes(self) -> None:
        """Streamed blocks, and what several GPUs share: one GPU's part."""
        found = {}
        for quantisation in (None, "fp8"):
            mode = MemoryMode(quantisation, resident_parameters=0)
            name = f"{parts.EVALUATION}, {parts.label(parts.SMALL)}, {mode.name}"
            found[name] = self.record(
                name, lambda mode=mode: modes.streamed_evaluation(self.stage, parts.SMALL, mode).log
            )
        for gpus in (2, 4, 8):
            name = f"{parts.EVALUATION}, {parts.label(parts.SMALL)}, one of {gpus} GPUs"
            found[name] = self.record(name, lambda gpus=gpus: modes.split_evaluation(self.stage, parts.SMALL, gpus))
            name = f"{parts.DECODE}, {parts.label(parts.SMALL)}, one of {gpus} GPUs"
            found[name] = self.record(name, lambda gpus=gpus: modes.split_decode(self.stage, parts.SMALL, gpus))
        show(f"Modes, {self.card.name}", report.part_table(found, self.card))

    def host(self) -> None:
        """The CPU's memory at the start of a worker that streams text encoder and blocks."""
        rows = []
        for quantisation in (None, "fp8"):
            for stored in (torch.bfloat16, torch.float32):
                mode = MemoryMode(quantisation, resident_parameters=0, stream_text_encoder=True)
                begun = host.start(self.stage, mode, stored)
                files = str(stored).removeprefix("torch.")
                rows.append([mode.name, files, f"{begun.peak_bytes / 1e9:.1f}", f"{begun.kept_bytes / 1e9:.1f}"])
        show("The CPU's memory at a start", report.table(("mode", "files", "peak, GB", "kept, GB"), rows))

    def measured(self) -> None:
        """Estimates beside what was measured on an H200."""
        show("Measured and estimated", report.comparison_table(comparisons(self.stage)))

    def finish(self, file: Path | None) -> None:
        """Prints what waits and what mixes devices, and writes the file."""
        print("\n".join(["", *report.waits_and_mixtures(self.logs)]))
        if file is not None:
            file.write_text(json.dumps(self.as_json(), indent=1), encoding="utf-8")

    def as_json(self) -> dict[str, Any]:
        """Each part's work, memory and seconds by card."""
        return {
            name: {
                "kernels": len(log.operations),
                "flop": log.flop,
                "bytes": log.bytes,
                "peak_bytes": log.peak_bytes,
                "peak_place": log.peak_place,
                "seconds": {
                    key: {"ideal": log.seconds(card.ideal), "typical": log.seconds(card.typical)}
                    for key, card in CARDS.items()
                },
                "kinds": {
                    kind: vars(group)
                    for kind, group in grouped(
                        log.operations, lambda operation: operation.kind, self.card.ideal, self.card.typical
                    ).items()
                },
            }
            for name, log in self.logs.items()
        }


def show(title: str, content: str) -> None:
    """A table under its title."""
    print(f"\n### {title}\n{content}", flush=True)


PARTS: dict[str, Callable[[Program], None]] = {
    "budget": Program.budget,
    "evaluation": Program.evaluation,
    "compiled": Program.compiled,
    "quantised": Program.quantised,
    "nag": Program.nag,
    "vae": Program.vae,
    "modes": Program.modes,
    "host": Program.host,
    "measured": Program.measured,
}

#: The VAE in tiles takes two minutes; normalised attention guidance evaluates six times.
USUAL_PARTS = [part for part in PARTS if part not in ("nag", "vae")]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rehearsal", description="Rehearse on fake CUDA tensors."
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=USUAL_PARTS, help="tables; by default all but those of minutes"
    )
    parser.add_argument("--gpu", choices=CARDS, default="h100", help="the card of the tables that have one card")
    parser.add_argument("--json", type=Path, help="a file for each part's figures")
    parser.add_argument(
        "--write", action="store_true", help="only write the worker's table of seconds, rehearsed.json, and --tables"
    )
    parser.add_argument(
        "--tables", action="store_true", help="only write the tables of prices in the documents, from rehearsed.json"
    )
    options = parser.parse_args()
    if options.tables:
        prices.write()
        return
    if reason := missing():
        parser.exit(1, f"nothing can be rehearsed here: {reason}\n")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.write:
        logs = Logs(Stage(), lambda name: print(f"rehearsing {name}", file=sys.stderr, flush=True))
        rehearsed.FILE.write_text(table_text(logs), encoding="utf-8")
        prices.write()
        return
    program = Program(CARDS[options.gpu])
    for part in options.parts:
        PARTS[part](program)
    program.finish(options.json)


if __name__ == "__main__":
    main()

"""What first hours on GPUs have measured: the reports that `python -m tools.report merge` has put into
docs/measurements/first_hour/, and what they say beside the estimates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.first_hour_record import Report, load
from benchmarks.rehearsal.recorder import CHECKOUT
from benchmarks.rehearsal.report import table

FOLDER = CHECKOUT / "docs/measurements/first_hour"
MARK = " ✓"
NOTHING = "No report of `tools.first_hour` has been merged yet."


@dataclass(frozen=True)
class Measured:
    """A recipe on a card.

    Attributes:
        ratio: measured over estimated seconds of its job.
        gpu: name of the GPU.
        date: when.
    """

    ratio: float
    gpu: str
    date: str


@cache
def reports(folder: Path) -> tuple[Report, ...]:
    """All merged reports, the oldest first."""
    return tuple(sorted((load(file) for file in folder.glob("*.json")), key=lambda report: report.began))


def measured(card: str, recipe: str) -> Measured | None:
    """The newest measurement of a recipe on a card, of a job that the table had estimated; None without one."""
    found = None
    for report in reports(FOLDER):
        for job in report.jobs:
            is_it = report.machine.card == card and (job.group, job.recipe) == ("recipes", recipe)
            if is_it and job.ratio is not None and (job.estimate_from or "").startswith("table"):
                found = Measured(job.ratio, report.machine.gpu or card, report.began[:10])
    return found


def origin_lines() -> str:
    """Which figures of the tables of prices are measured."""
    found = sorted({f"{report.machine.gpu} on {report.began[:10]}" for report in reports(FOLDER)})
    if not found:
        return "**Every figure in the tables is an estimate, none was measured.**"
    return (
        f"**Figures with{MARK} are measured on: {'; '.join(found)}.** A job of some seconds was made there, and the "
        "minute is its estimate times measured over estimated seconds of that job. **All other figures are estimates.**"
    )


def hours_table() -> str:
    """A line for each merged report: what was measured, over what was estimated."""
    rows = list(_rows())
    if not rows:
        return NOTHING
    return table(("GPU", "measured on", "worker", "jobs", "measured over estimated seconds", "kernels"), rows)


def _rows() -> Iterator[list[str]]:
    for report in reports(FOLDER):
        done = sum(job.status == "done" for job in report.jobs)
        ratios = [f"{part.name} {part.ratio:.2f}" for part in report.parts if part.unit == "s"]
        kernels = next((step.figures["chosen"] for step in report.steps if "chosen" in step.figures), "")
        yield [
            report.machine.gpu or "",
            report.began[:10],
            report.machine.worker or report.version,
            f"{done} of {len(report.jobs)}",
            "; ".join(ratios),
            str(kernels),
        ]

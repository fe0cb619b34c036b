"""Brings what a first hour has measured into the documents.

    python -m tools.report merge outputs/first-hour/report.json

keeps the report's figures in docs/measurements/first_hour/, without videos, pictures and paths, and writes the tables
of README.md, docs/performance.md and docs/deploy.md anew: where they said "estimate", they say what was measured.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from benchmarks.first_hour_record import Report, load
from benchmarks.rehearsal import first_hours, prices
from infinitetalk.worker.engine.rehearsed import card_named

#: Settings without a path.
KEPT_SETTINGS = ("INFINITETALK_MODEL", "KERNELS", "DEFAULT_RECIPE", "GPUS_PER_JOB")


class UnfitReportError(Exception):
    """A report that says nothing about the published weights on a GPU; its text says why."""


def kept(report: Report) -> Report:
    """What the documents keep of a report.

    Raises:
        UnfitReportError: there is nothing to keep.
    """
    if not report.is_published:
        raise UnfitReportError(
            f"its videos were made by {report.machine.model or 'an unknown model'}: only those of the published "
            "weights say what a minute costs"
        )
    machine = report.machine
    if machine.card is None:
        raise UnfitReportError("its GPU is not known: make it again with --gpu")
    if machine.form == "machine" and machine.gpu not in card_named(machine.card).device_names:
        raise UnfitReportError(
            f"the table has no {machine.gpu}: its estimates were {machine.factor:.2f} times those of the "
            f"{machine.card}, of which it says nothing"
        )
    if machine.gpus > 1:
        raise UnfitReportError(f"{machine.gpus} GPUs made each video: the tables are of one. Set GPUS_PER_JOB=1")
    if not any(job.status == "done" for job in report.jobs):
        raise UnfitReportError("none of its jobs was done")
    found = report.model_copy(deep=True)
    found.media = []
    found.machine.settings = {name: value for name, value in found.machine.settings.items() if name in KEPT_SETTINGS}
    # Reasons name folders of that machine, and so do the weights.
    for step in found.steps:
        step.reason = None
        step.figures.pop("weights", None)
    for job in found.jobs:
        job.job_id, job.reason = None, None
        for video in job.videos:
            video.series, video.pictures, video.unmeasured = [], [], {}
    return found


def file_name(report: Report) -> str:
    """As h100-2026-12-01-1015.json."""
    words = f"{report.machine.card} {report.began}".lower().replace(":", "")
    return re.sub("[^a-z0-9]+", "-", words) + ".json"


def merge(file: Path, folder: Path) -> Path:
    """Keeps a report's figures in a folder; returns the new file.

    Raises:
        UnfitReportError: there is nothing to keep.
        OSError, pydantic.ValidationError: it is no report.
    """
    report = kept(load(file))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name(report)
    target.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return target


def main(arguments: Sequence[str]) -> int:
    """Merges reports; the exit status is 1 if one is unfit."""
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("merge", help="keep a report's figures, and write the documents' tables anew")
    command.add_argument("reports", nargs="+", type=Path, help="report.json of tools.first_hour")
    options = parser.parse_args(arguments)
    for file in options.reports:
        try:
            print(merge(file, first_hours.FOLDER))
        except (UnfitReportError, OSError, ValidationError) as error:
            print(f"error: {file}: {error}", file=sys.stderr)
            return 1
    first_hours.reports.cache_clear()
    prices.write()
    print(*prices.tables(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

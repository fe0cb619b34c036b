"""`python -m tests.golden FOLDER`: one line a case, and a last line with the counts; exit status 1 on any failure."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from tests.golden import flashtalk_cases, generation_cases, network_cases, picture_cases, sampling_cases, speech_cases
from tests.golden.folder import Case, Comparison, Outcome, compare, read_cases

RUNNERS: dict[int, Callable[[Case], Outcome]] = {
    1: network_cases.time_embedding,
    2: network_cases.rotary_embedding,
    3: speech_cases.speech,
    4: speech_cases.windows,
    5: network_cases.audio_projection,
    6: network_cases.forward,
    7: network_cases.forward,
    8: picture_cases.region_masks,
    9: picture_cases.sizes,
    10: sampling_cases.timesteps,
    11: sampling_cases.guidance,
    12: generation_cases.teacache,
    13: picture_cases.color,
    14: picture_cases.vae,
    15: generation_cases.generation,
    16: generation_cases.generation,
    17: flashtalk_cases.timesteps,
    18: flashtalk_cases.generation,
}


def run_case(case: Case) -> tuple[str, str]:
    """("passed", "failed" or "skipped", the line to print) of one case."""
    number = re.match(r"case(\d+)", case.name)
    if number is None or int(number[1]) not in RUNNERS:
        return "skipped", f"{case.name:26} skipped: no runner for cases of this name"
    try:
        with torch.no_grad():
            comparisons = compare(case, RUNNERS[int(number[1])](case))
    # A case that cannot run is a failure with a reason; the others still run.
    except Exception as error:
        return "failed", f"{case.name:26} NOT: {type(error).__name__}: {error}"
    failed = [comparison for comparison in comparisons if not comparison.passed]
    worst = max(failed or comparisons, key=_share_of_tolerance)
    line = (
        f"{case.name:26} {worst.max_error:9.2e}  {worst.tolerance!s:26} {'NOT' if failed else 'ok ':3}  {worst.tensor}"
    )
    if failed:
        line += f": {worst.problem}; {len(failed)} of {len(comparisons)} comparisons fail"
    return ("failed" if failed else "passed"), line


def _share_of_tolerance(comparison: Comparison) -> float:
    return comparison.max_error / comparison.tolerance.atol if comparison.tolerance.atol else comparison.max_error


def main(arguments: list[str] | None = None) -> int:
    """Run every case of the folder; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Compare with reference vectors.")
    parser.add_argument("folder", type=Path, help="a folder with index.json")
    folder = parser.parse_args(arguments).folder
    counts: Counter[str] = Counter()
    for case in read_cases(folder):
        result, line = run_case(case)
        counts[result] += 1
        print(line, flush=True)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

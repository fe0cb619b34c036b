"""The table of speed and memory against goals: `python -m benchmarks`, or `make bench`.

Every figure is a ratio of two things timed in turn in the same run. REFERENCE_DIR names a checkout of the public
reference implementation (MeiGen-AI/InfiniteTalk); without it, the rows that compare with it are UNMEASURED.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

import torch

from benchmarks.color import measure_color
from benchmarks.conditioning import measure_conditioning
from benchmarks.encoding import measure_encoding
from benchmarks.evaluation import EvaluationSize, measure_evaluation
from benchmarks.job import measure_streaming_job, measure_warm_job
from benchmarks.measure import Measurement, as_table, machine

PARTS = ("evaluation", "color", "conditioning", "encoding", "streaming", "warm")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against the goals.")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs behind a ratio")
    parser.add_argument("--dim", type=int, default=512, help="width of the transformer, a multiple of 128")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the table; by default all")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    # One thread, so that processor time equals the cost of the work.
    torch.set_num_threads(1)

    measures: dict[str, Callable[[], list[Measurement]]] = {
        "evaluation": lambda: measure_evaluation(EvaluationSize(dim=options.dim), options.repeats),
        "color": lambda: measure_color(options.repeats),
        "conditioning": measure_conditioning,
        "encoding": lambda: measure_encoding(options.repeats),
        "streaming": lambda: [measure_streaming_job()],
        "warm": lambda: [measure_warm_job(options.repeats)],
    }
    rows = []
    for part in options.only:
        # Hides the output of the reference and the SDK.
        with redirect_stdout(StringIO()):
            measured = measures[part]()
        for row in measured:
            print(" · ".join(row.cells()), file=sys.stderr)
        rows += measured
    print(f"{machine()}\n\n{as_table(row.cells() for row in rows)}")


if __name__ == "__main__":
    main()

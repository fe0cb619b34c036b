"""The table of what is fast and what is not yet: `python -m benchmarks`, or `make bench`.

Every figure is a ratio of two things timed in turn in this run. REFERENCE_DIR names a checkout of the public reference
implementation (MeiGen-AI/InfiniteTalk); without it the rows that compare with it are UNMEASURED.
"""

import argparse
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against the goals.")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is fair on a busy machine")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs behind a ratio")
    parser.add_argument("--dim", type=int, default=512, help="width of the transformer, a multiple of 128")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)

    parts: list[Callable[[], list[Measurement]]] = [
        lambda: measure_evaluation(EvaluationSize(dim=options.dim), options.repeats),
        lambda: measure_color(options.repeats),
        measure_conditioning,
        lambda: measure_encoding(options.repeats),
        lambda: [measure_streaming_job()],
        lambda: [measure_warm_job(options.repeats)],
    ]
    rows = []
    for part in parts:
        # The reference and the SDK print as they please.
        with redirect_stdout(StringIO()):
            rows += part()
    print(f"{machine()}\n\n{as_table(row.cells() for row in rows)}")


if __name__ == "__main__":
    main()

"""Time of one evaluation by operation, from torch's profiler: `python -m benchmarks.profiling`, or `make profile`."""

import argparse
import warnings

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.evaluation import EvaluationSize, halves, make_inputs, make_transformer
from benchmarks.measure import machine


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description="Profile one evaluation.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dim", type=int, default=512, help="width of the transformer, a multiple of 128")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--speakers", type=int, default=1, choices=(1, 2))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    size = EvaluationSize(dim=options.dim, num_layers=options.layers)
    transformer, given = make_transformer(size), make_inputs(size, options.speakers)
    regions = halves(size) if options.speakers == 2 else None
    transformer(**given, regions=regions)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        transformer(**given, regions=regions)
    print(f"{machine()}\n{size}, {options.speakers} speaker(s)\n")
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=55))


if __name__ == "__main__":
    main()

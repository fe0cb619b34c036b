"""`python -m tools.first_hour`: see --help and docs/first-hour.md."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError
from tqdm import tqdm

from benchmarks.first_hour.compare import ten_lines
from benchmarks.first_hour.endpoint import Follower, LostError, client_of
from benchmarks.first_hour.hour import Hour
from benchmarks.first_hour.machine import TITLES, OwnWorker, settings_told, steps_of, works_at_endpoint, works_of
from benchmarks.first_hour.page import FILE as PAGE
from benchmarks.first_hour_record import FILE, OPEN, Limits, Machine, Report, load
from benchmarks.measure import machine as machine_in_words
from benchmarks.rehearsal.prices import PRICES, clock
from infinitetalk import __version__
from infinitetalk.recipes import RECIPES
from infinitetalk.worker.engine.placement import gpu_of
from infinitetalk.worker.engine.rehearsed import likeness_of
from infinitetalk.worker.settings import Settings

WHOLE, PARTLY, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: all was done; something failed or was not done; the options are wrong; Ctrl-C."""

ABOUT = """\
Tells within an hour whether the worker can be trusted on your GPU, what it costs, and what to set.

  on the GPU machine:    python -m tools.first_hour --budget 5 --minutes 60
  at an endpoint:        python -m tools.first_hour --endpoint https://api.runpod.ai/v2/ID --gpu H100 \\
                             --budget 5 --minutes 60

On the machine it checks weights and settings, runs benchmarks.gpu and the trial of kernels, kills the worker once,
provokes a lack of memory, and then runs the jobs. At an endpoint it runs the jobs, and cancels one. The jobs are those
of examples/, with their own parameters and by each recipe that the worker has, the most telling first. Each video is
measured (docs/measures.md).
"""

COSTS = """\
What it costs: no more than --budget dollars and --minutes, whichever ends first. A job is not begun if its estimate is
more than what is left, and is cancelled when the limits are reached. At the table's speeds an H100 takes 8 minutes for
the recipes with few steps, half an hour with "quality".

What it needs: this repository and its requirements, with requirements-faces.txt; on the machine the worker's own
settings (CKPT_DIR, …; INFINITETALK_MODEL=published where weights are found on a volume or in a pack). An endpoint needs
S3 for its results, or --store inline.

It may be interrupted at any time: Ctrl-C (or SIGTERM) cancels the current job and writes the report of what is known.
The same command goes on where it was, also with greater limits. Exit status: 0 all done, 1 something failed or was not
done, 2 wrong options, 130 Ctrl-C.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the hour; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    limits = Limits(
        minutes=_asked(parser, options.minutes, "--minutes", "How many minutes may it take in all? "),
        dollars=_asked(parser, options.budget, "--budget", "How many dollars may it cost in all? "),
    )
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_interrupted_by_signals())
        if options.endpoint is None:
            own = stack.enter_context(OwnWorker(folder / "worker"))
            works, client, tend = works_of(own), own.client, own.tend
        else:
            key = options.key or os.environ.get("RUNPOD_API_KEY")
            if not key:
                parser.error("the endpoint's key is needed: --key, or RUNPOD_API_KEY in the environment")
            works, client, tend = works_at_endpoint(), client_of(options.endpoint, key), _nothing
            if options.store == "volume" and not client.is_local:
                parser.error("--store volume: videos on an endpoint's volume cannot be fetched; s3 or inline can")
        if unknown := set(options.without) - works.keys():
            parser.error(f"--without: there is no step {', '.join(sorted(unknown))}; there are {', '.join(works)}")
        machine = _machine(parser, options)
        report = _report(parser, folder, limits, machine, options.seconds)
        known = {step.name: step for step in report.steps if step.status == "done" or step.name not in options.without}
        report.steps = [known.get(step.name, step) for step in steps_of(works, options.without)]
        store = options.store or ("volume" if client.is_local else "s3")
        follower = Follower(client, options.patience_s, store, tend)
        with Bar(report) as bar:
            chosen = (options.groups, options.recipes)
            hour = Hour(report, folder, works, follower, options.endpoint is None, chosen, bar.show)
            status, how = _run(hour)
        hour.end(how)
    print("\n".join(ten_lines(report)))
    print(f"{folder / PAGE}, {folder / FILE}")
    return status


def _run(hour: Hour) -> tuple[int, str]:
    """Runs the hour; returns the exit status, and how it ended."""
    again = "the same command goes on from here"
    try:
        is_whole = hour.run()
    except LostError as error:
        return PARTLY, f"the endpoint was lost: {error}; {again}"
    except KeyboardInterrupt:
        return INTERRUPTED, f"interrupted; {again}"
    report = hour.report
    if is_whole and not any(job.status == "failed" for job in report.jobs):
        return WHOLE, "all was done"
    if any((step.name, step.status) == ("checks", "failed") for step in report.steps):
        wrong = "the weights or settings are wrong, so nothing else was begun"
        return PARTLY, f"{wrong}; mend them, or add --without checks: {again}"
    if hour.left_s() <= 0 or any(job.status in (*OPEN, "left out") for job in report.jobs):
        return PARTLY, "the limits left no room for the rest; the same command with greater ones goes on from here"
    return PARTLY, "all was tried, and something failed"


class Bar:
    """Shows how far the hour is, in one line inside a `with` block."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._bar = tqdm(total=100, bar_format="{percentage:3.0f}% |{bar:24}| {desc}", file=sys.stderr)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, text: str, pct: float) -> None:
        """Shows what is done now, and its per cent."""
        report = self._report
        statuses = [*(step.status for step in report.steps), *(job.status for job in report.jobs)]
        closed = sum(status not in OPEN for status in statuses)
        share = (closed + pct / 100) / max(len(statuses), 1)
        spent = f"{clock(report.spent.seconds)}, ${report.spent.usd:.2f}"
        self._bar.set_description_str(f"{spent} · {text[:60]} {pct:.0f} %", refresh=False)
        self._bar.update(min(100 * share, 100) - self._bar.n)
        self._bar.refresh()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.first_hour",
        description=ABOUT,
        epilog=COSTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    limits = parser.add_argument_group("limits, asked for where they are not given")
    limits.add_argument("--budget", type=float, metavar="DOLLARS", help="most dollars, in all runs together")
    limits.add_argument("--minutes", type=float, help="most minutes, in all runs together")
    where = parser.add_argument_group("where the videos are made; by default on this machine")
    where.add_argument("--endpoint", metavar="URL", help="an endpoint's address, up to and including its id")
    where.add_argument("--key", help="the endpoint's key; better in RUNPOD_API_KEY")
    where.add_argument("--gpu", choices=PRICES, help="the endpoint's GPU, for its price and the table's estimates")
    where.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="of each of the endpoint's workers (%(default)d)"
    )
    where.add_argument(
        "--price-per-s", type=float, metavar="DOLLARS", help="of a second of one GPU, if you know better"
    )
    where.add_argument("--store", choices=("s3", "volume", "inline"), help="where results go (s3; here volume)")
    what = parser.add_argument_group("what is done")
    what.add_argument(
        "--seconds", type=float, default=10.0, help="of video by which recipes are compared (%(default)g)"
    )
    what.add_argument("--groups", nargs="+", default=[], choices=("recipes", "as sent", "kinds"), help="of jobs (all)")
    what.add_argument("--recipes", nargs="+", default=[], choices=RECIPES, help="(all that the worker has)")
    what.add_argument("--without", nargs="+", default=[], metavar="STEP", help=f"steps, of {', '.join(TITLES)}")
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/first-hour"), help="of the report (%(default)s); goes on with it"
    )
    parser.add_argument(
        "--patience-s", type=float, default=60.0, help="for which an endpoint may be silent (%(default)g)"
    )
    return parser


def _asked(parser: argparse.ArgumentParser, given: float | None, option: str, question: str) -> float:
    """A limit, from the option or by a question.

    A limit that is negative or not finite, or that nobody can be asked for, ends the command. With 0 nothing is begun,
    and the report of what is known is written.
    """
    if given is None and not sys.stdin.isatty():
        parser.error(f"{option} is needed: nothing is begun without a limit")
    try:
        value = float(input(question)) if given is None else given
    except ValueError:
        parser.error(f"{option} must be a number")
    if not math.isfinite(value) or value < 0:
        parser.error(f"{option} must be a number from 0 on, and not {value:g}")
    return value


def _machine(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Machine:
    """Where the videos are made, and what a second of it costs."""
    if options.gpus < 1:
        parser.error("--gpus must be at least 1")
    if options.endpoint is None and (options.gpu is not None or options.gpus != 1):
        parser.error(
            "--gpu and --gpus are of an endpoint: here the machine says what it has; --price-per-s has its price"
        )
    if options.endpoint is not None:
        if options.price_per_s is None and options.gpu is None:
            parser.error(f"what does a second cost? Give --gpu (of {', '.join(PRICES)}) or --price-per-s")
        price, origin = _price(options.price_per_s, options.gpu, options.gpus)
        return Machine(
            form="endpoint",
            gpu=options.gpu,
            card=options.gpu,
            gpus=options.gpus,
            price_per_s=price,
            price_from=origin,
        )
    gpu = gpu_of(torch.device("cuda", 0)) if torch.cuda.is_available() else None
    if gpu is None:
        given = options.price_per_s
        price, origin = (0.0, "no GPU: nothing is counted") if given is None else (given, "--price-per-s")
        return Machine(
            form="machine", price_per_s=price, price_from=origin, about=machine_in_words(), settings=settings_told()
        )
    likeness = likeness_of(gpu)
    card = likeness.card.name
    if options.price_per_s is None and (card not in PRICES or gpu.name not in likeness.card.device_names):
        parser.error(f"no price is known of {gpu.name}: give --price-per-s")
    count = torch.cuda.device_count()
    price, origin = _price(options.price_per_s, card, count)
    return Machine(
        form="machine",
        gpu=gpu.name,
        card=card,
        factor=likeness.factor,
        gpus=_gpus_of_a_job(parser, count),
        price_per_s=price,
        price_from=origin,
        about=machine_in_words(),
        settings=settings_told(),
    )


def _price(given: float | None, card: str, count: int) -> tuple[float, str]:
    """What a second of so many GPUs costs, and where this is from."""
    price, origin = (PRICES[card], f"the table's price of {card}") if given is None else (given, "--price-per-s")
    return price * count, origin + (f", {count} GPUs" if count > 1 else "")


def _gpus_of_a_job(parser: argparse.ArgumentParser, count: int) -> int:
    """How many of this machine's GPUs make a video together."""
    try:
        return Settings().gpus_per_job or count
    except ValidationError as error:
        parser.error(f"the worker's settings in the environment are wrong: {error}")


def _report(parser: argparse.ArgumentParser, folder: Path, limits: Limits, machine: Machine, video_s: float) -> Report:
    """The report to go on with, or a new one."""
    file = folder / FILE
    if not file.exists():
        began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        return Report(began=began, version=__version__, limits=limits, machine=machine, video_s=video_s)
    try:
        report = load(file)
    except (OSError, ValidationError) as error:
        parser.error(f"{file} cannot be gone on with ({type(error).__name__}): name another --folder")
    if (report.machine.form, report.machine.gpu) != (machine.form, machine.gpu):
        parser.error(
            f"{file} is of {report.machine.gpu or 'no GPU'}, form {report.machine.form}: name another --folder"
        )
    report.limits = limits
    found = report.machine
    report.machine = machine.model_copy(update={"model": found.model, "worker": found.worker})
    print(f"going on with {file}", file=sys.stderr)
    return report


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """The end of a terminal or of the machine is like Ctrl-C: the job is cancelled, and the worker ended.

    Under nohup the end of the terminal stays ignored.
    """
    before = {end: signal.getsignal(end) for end in (signal.SIGTERM, signal.SIGHUP)}
    before = {end: handler for end, handler in before.items() if handler != signal.SIG_IGN}
    for end in before:
        signal.signal(end, signal.default_int_handler)
    try:
        yield
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def _nothing() -> None:
    """An endpoint of others needs no care."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

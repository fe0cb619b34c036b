"""`python -m infinitetalk.weights download|check|convert`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infinitetalk.errors import CheckpointError
from infinitetalk.family import INFINITETALK, REPOSITORIES
from infinitetalk.runtime.check import report
from infinitetalk.weights.convert import convert
from infinitetalk.weights.download import download
from infinitetalk.weights.locate import WEIGHTS_FOLDER, locate
from infinitetalk.weights.settings import WeightsSettings


def main(arguments: list[str]) -> int:
    """Runs one of the three commands; the exit status is 1 if it fails or a required part is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m infinitetalk.weights", description="Fetch, check, convert weights."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("download", help="fetch what is missing of the published checkpoints")
    command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(REPOSITORIES)}")
    command.add_argument("--folder", type=Path, default=Path(WEIGHTS_FOLDER), help="where folders go (%(default)s)")
    commands.add_parser("check", help="say what is there, what is missing, and which modes it serves")
    command = commands.add_parser("convert", help="write a folder that loads fastest")
    command.add_argument("folder", type=Path, help="empty or absent")
    command.add_argument("--fp8", action="store_true", help="halve the transformer: weights in fp8")
    options = parser.parse_args(arguments)
    if options.command == "download":
        for name in sorted(set(options.names) - REPOSITORIES.keys()):
            parser.error(f"there is no {name}; there are {', '.join(REPOSITORIES)}")
    try:
        return {"download": _download, "check": _check, "convert": _convert}[options.command](options)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _download(options: argparse.Namespace) -> int:
    for name in options.names or INFINITETALK.default_repositories:
        repository = REPOSITORIES[name]
        print(f"{repository.setting}={download(repository, options.folder).resolve()}")
    return 0


def _check(options: argparse.Namespace) -> int:
    text, complete = report(locate(WeightsSettings()))
    print(text)
    return 0 if complete else 1


def _convert(options: argparse.Namespace) -> int:
    converted = convert(locate(WeightsSettings()), options.folder, options.fp8, on_part=print)
    print(f"CKPT_DIR={converted.base.resolve()}")
    print(f"INFINITETALK_DIR={converted.adapter_single.parents[1].resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

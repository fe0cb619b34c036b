"""`python -m infinitetalk.weights download|check|convert`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infinitetalk.errors import CheckpointError
from infinitetalk.family import FAMILIES, INFINITETALK
from infinitetalk.recipes import DOWNLOADS
from infinitetalk.runtime.check import report
from infinitetalk.weights.convert import convert
from infinitetalk.weights.download import download
from infinitetalk.weights.hub_kernels import AT, HUB_KERNELS, fetch_kernel
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.locate import WEIGHTS_FOLDER, locate_all
from infinitetalk.weights.settings import WeightsSettings

#: What can be downloaded; of a kernel, its commit follows.
NAMES = (*DOWNLOADS, *(f"{name}{AT}COMMIT" for name in HUB_KERNELS))


def main(arguments: list[str]) -> int:
    """Runs one of the three commands; the exit status is 1 if it fails or a required part is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m infinitetalk.weights", description="Fetch, check, convert weights."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("download", help="fetch what is missing of the published checkpoints")
    command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    command.add_argument("--folder", type=Path, default=Path(WEIGHTS_FOLDER), help="where folders go (%(default)s)")
    commands.add_parser("check", help="say what is there, what is missing, and which modes it serves")
    command = commands.add_parser("convert", help="write a folder that loads fastest")
    command.add_argument("folder", type=Path, help="empty or absent")
    command.add_argument("--fp8", action="store_true", help="halve the transformer: weights in fp8")
    command.add_argument("--family", choices=FAMILIES, help="the model, if there are several")
    options = parser.parse_args(arguments)
    if options.command == "download":
        for name in options.names:
            if name.partition(AT)[0] not in HUB_KERNELS and name not in DOWNLOADS:
                parser.error(f"there is no {name}; there are {', '.join(NAMES)}")
    try:
        return {"download": _download, "check": _check, "convert": _convert}[options.command](options)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _download(options: argparse.Namespace) -> int:
    for name in options.names or INFINITETALK.default_repositories:
        if name.partition(AT)[0] in HUB_KERNELS:
            print(f"KERNELS_DIR={fetch_kernel(name, options.folder).resolve()}")
            continue
        for repository in DOWNLOADS[name]:
            print(f"{repository.setting}={download(repository, options.folder).resolve()}")
    return 0


def _check(options: argparse.Namespace) -> int:
    text, complete = report(locate_all(WeightsSettings()))
    print(text)
    return 0 if complete else 1


def _convert(options: argparse.Namespace) -> int:
    paths = _chosen(options.family)
    converted = convert(paths, options.folder, options.fp8, on_part=print)
    for kind in paths.adapters.keys() - converted.adapters.keys():
        print(f"adapter {kind}: not there, left out")
    repositories = converted.family.repositories
    print(f"{repositories[converted.family.base_repositories[0]].setting}={converted.base.resolve()}")
    if converted.family.adapter_repository is not None:
        folder = converted.adapters["single"].parents[1]
        print(f"{repositories[converted.family.adapter_repository].setting}={folder.resolve()}")
    return 0


def _chosen(family: str | None) -> CheckpointPaths:
    """The checkpoint to convert: the one of this family, or else the only one.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    checkpoints = locate_all(WeightsSettings()).checkpoints
    if family is None and len(checkpoints) > 1:
        raise CheckpointError(f"there are {' and '.join(checkpoints)}; choose one by --family")
    if family is not None and family not in checkpoints:
        raise CheckpointError(f"there is no {family}; there is {' and '.join(checkpoints)}")
    return checkpoints[family] if family is not None else next(iter(checkpoints.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

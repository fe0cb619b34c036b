"""`python -m infinitetalk.weights download|check|convert|pack`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from infinitetalk.errors import CheckpointError
from infinitetalk.family import FAMILIES, INFINITETALK
from infinitetalk.recipes import DOWNLOADS, RECIPES, Recipe
from infinitetalk.runtime.check import report
from infinitetalk.runtime.lora import lora_names
from infinitetalk.weights.convert import convert
from infinitetalk.weights.download import download
from infinitetalk.weights.hub_kernels import AT, HUB_KERNELS, fetch_kernel
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.locate import (
    WEIGHTS_FOLDER,
    Located,
    MissingWeightsError,
    find_packs,
    kernels_folders,
    locate,
    locate_all,
    settings_of_pack,
)
from infinitetalk.weights.manifest import CODE_FOLDERS, check_sizes, damage, read_manifest
from infinitetalk.weights.pack import make_pack
from infinitetalk.weights.push import push
from infinitetalk.weights.settings import WeightsSettings

#: What can be downloaded; of a kernel, its commit follows.
NAMES = (*DOWNLOADS, *(f"{name}{AT}COMMIT" for name in HUB_KERNELS))


def main(arguments: list[str]) -> int:
    """Runs one of the commands; the exit status is 1 if it fails or a required part is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m infinitetalk.weights", description="Fetch, check, convert, pack weights."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("download", help="fetch what is missing of the published checkpoints")
    command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    command.add_argument("--folder", type=Path, default=Path(WEIGHTS_FOLDER), help="where folders go (%(default)s)")
    command = commands.add_parser("check", help="say what is there, what is missing, and which modes it serves")
    command.add_argument("pack", type=Path, nargs="?", help="a pack, of which every byte is checked too")
    command = commands.add_parser("convert", help="write a folder that loads fastest")
    command.add_argument("folder", type=Path, help="empty or absent")
    command.add_argument("--fp8", action="store_true", help="halve the transformer: weights in fp8")
    command.add_argument("--family", choices=FAMILIES, help="the model, if there are several")
    command = commands.add_parser("pack", help="write one folder with all that recipes need, and upload it")
    command.add_argument("--out", type=Path, required=True, help="the folder, empty or absent; or a pack, to upload it")
    command.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="RECIPE", help=f"of {', '.join(RECIPES)}")
    command.add_argument("--quant", choices=("bf16", "fp8"), help="the transformers (bf16)")
    command.add_argument(
        "--findings",
        type=Path,
        help="kernel choices and compiled blocks (infinitetalk/kernels below VOLUME_DIR, if it is there; a worker "
        "writes them below its OUTPUT_DIR)",
    )
    command.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload it to this repository of the Hugging Face hub: a new one, or a pack, which is replaced",
    )
    options = parser.parse_args(arguments)
    if options.command == "download":
        for name in options.names:
            if name.partition(AT)[0] not in HUB_KERNELS and name not in DOWNLOADS:
                parser.error(f"there is no {name}; there are {', '.join(NAMES)}")
    try:
        commands_by_name = {"download": _download, "check": _check, "convert": _convert, "pack": _pack}
        return commands_by_name[options.command](options)
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
    if options.pack is None:
        settings = WeightsSettings()
        for pack in find_packs(settings):
            check_sizes(pack, read_manifest(pack))
            print(f"{describe(pack)}\n  every byte of it: python -m infinitetalk.weights check {pack}\n")
        text, complete = report(locate_all(settings))
        print(text)
        return 0 if complete else 1
    manifest = read_manifest(options.pack)
    print(f"{describe(options.pack)}\n")
    problems = damage(options.pack, manifest)
    for problem in problems:
        print(f"DAMAGED  {problem}")
    if problems:
        return 1
    text, complete = report(locate_all(settings_of_pack(options.pack), roots=(options.pack,)))
    print(text)
    return 0 if complete else 1


def describe(pack: Path) -> str:
    """A line about a pack, and one about the code in it."""
    manifest = read_manifest(pack)
    gigabytes = sum(file.bytes for file in manifest.files) / 1e9
    folders = {file.path.split("/", 1)[0] for file in manifest.files}
    code = [f"{name}/" for name in CODE_FOLDERS if name in folders]
    return (
        f"pack     {pack}: recipes {', '.join(manifest.recipes)}; {manifest.quant}; {len(manifest.files)} files, "
        f"{gigabytes:.2f} GB; by {manifest.made_by}"
    ) + (f"\n  code that a worker runs: {', '.join(code)}" if code else "")


def _pack(options: argparse.Namespace) -> int:
    if options.recipes is None:
        if options.push is None:
            raise CheckpointError("give --recipes, or a pack and --push")
        if options.quant is not None or options.findings is not None:
            raise CheckpointError("--quant and --findings are for a new pack: give --recipes too, or leave them out")
        read_manifest(options.out)
    else:
        settings = WeightsSettings()
        folder = options.findings or settings.volume_dir / "infinitetalk" / "kernels"
        if options.findings is not None and not folder.is_dir():
            raise CheckpointError(f"--findings names {folder}, which is not a folder")
        findings = folder if folder.is_dir() else None
        if findings is None:
            print(f"kernel choices and compiled blocks: {folder} is not there, left out")
        recipes = [RECIPES[name] for name in dict.fromkeys(options.recipes)]
        located = _located_for(recipes, settings)
        names = lora_names(next(iter(located.checkpoints.values())).loras)
        kernels = kernels_folders(settings)
        quant: Literal["bf16", "fp8"] = options.quant or "bf16"
        manifest = make_pack(located, recipes, names, options.out, quant, findings, kernels, on_part=print)
        for model, licence in manifest.licences.items():
            print(f"licence of {model}: {licence}")
    print(describe(options.out))
    if options.push is not None:
        print(push(options.out, options.push, on_part=print))
    return 0


def _located_for(recipes: list[Recipe], settings: WeightsSettings) -> Located:
    """As `locate_all`, for recipes: where no model is complete, the error is about the first one of theirs.

    Raises:
        CheckpointError: as `locate_all`.
    """
    try:
        return locate_all(settings)
    except MissingWeightsError:
        for recipe in recipes:
            locate(settings, recipe.family)
        raise


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

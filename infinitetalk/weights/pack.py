"""Packs everything that chosen recipes need into one folder, which a host can keep as one repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import infinitetalk
from infinitetalk.errors import CheckpointError
from infinitetalk.family import REPOSITORIES, Family
from infinitetalk.recipes import Recipe, missing
from infinitetalk.weights.convert import CONVERTED_FOLDERS, convert
from infinitetalk.weights.hub_kernels import HUB_KERNELS, HubKernel, place_of
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.locate import Located
from infinitetalk.weights.manifest import (
    MANIFEST_FILE,
    PACKED_FINDINGS,
    PACKED_FOLDERS,
    Manifest,
    PackedFile,
    files_below,
    sha256_of,
)

#: Licences of published models, by the name of their repository. What is not here is not known to this project.
LICENCES = {
    "Wan2.1-I2V-14B-480P": "Apache-2.0",
    "InfiniteTalk": "Apache-2.0",
    "chinese-wav2vec2-base": "MIT",
    "Kokoro-82M": "Apache-2.0",
}
#: Files of a folder of findings: kernel choices and compiled blocks.
FINDINGS_FILES = ("*.json", "*.compiled")
SPEECH_ENCODER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
#: Settings that a LoRA's strength can depend on, in its folder.
LORA_SETTINGS = "adapter_config.json"
#: Folder of what Python has made of a package's code, which it would run in place of the code.
BYTECODE = "__pycache__"


def make_pack(
    located: Located,
    recipes: Sequence[Recipe],
    loras: Sequence[str],
    folder: Path,
    quant: Literal["bf16", "fp8"] = "bf16",
    findings: Path | None = None,
    kernels: Sequence[Path] = (),
    on_part: Callable[[str], None] = lambda part: None,
) -> Manifest:
    """Writes a pack. LoRAs stay beside the transformer, which thus serves recipes with and without them.

    Args:
        located: where the weights are.
        recipes: the recipes that the pack must serve.
        loras: names of the LoRAs that are there, as jobs name them.
        folder: must be empty or absent.
        quant: in what the linear layers' weights of the transformers' blocks are stored.
        findings: folder of kernel choices and compiled blocks; None: none are packed.
        kernels: folders of kernels from the Hub; all that are there are packed.
        on_part: called with what is written next or left out.

    Raises:
        CheckpointError: weights of a recipe are missing or unfit, or the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"the folder {folder.name} is not empty; give another")
    shared = next(iter(located.checkpoints.values()))
    for recipe in recipes:
        if (problem := missing(recipe, located.absent, loras)) is not None:
            raise CheckpointError(problem)
    places = {kernel: place_of(kernels, kernel) for kernel in HUB_KERNELS.values()}
    found = {kernel: place for kernel, place in places.items() if place is not None}
    for kernel, place in found.items():
        on_part(f"kernel {kernel.name}")
        _copy(place, folder / PACKED_FOLDERS["KERNELS_DIR"] / kernel.name, ["**/*"])
    if findings is not None:
        _copy(findings, folder / PACKED_FINDINGS, FINDINGS_FILES)
    on_part("speech encoder")
    _copy(shared.wav2vec2, folder / PACKED_FOLDERS["WAV2VEC_DIR"], SPEECH_ENCODER_FILES)
    families = list({recipe.family.name: recipe.family for recipe in recipes}.values())
    for family in families:
        paths = located.checkpoints[family.name]
        converted = convert(paths, folder / _base_folder(family), quant == "fp8", on_part)
        for kind in paths.adapters.keys() - converted.adapters.keys():
            on_part(f"adapter {kind}: not there, left out")
    chosen = {lora.choose(loras) for recipe in recipes for lora in recipe.loras}
    for name in sorted(name for name in chosen if name is not None):
        on_part(f"LoRA {name}")
        source = next(each for each in shared.loras if (each / name).is_file())
        _copy_lora(source, name, folder / PACKED_FOLDERS["LORA_DIR"])
    if shared.kokoro is None:
        on_part("text to speech: not there, left out")
    else:
        on_part("text to speech")
        _copy(shared.kokoro, folder / PACKED_FOLDERS["KOKORO_DIR"], REPOSITORIES["kokoro"].patterns)
    on_part("SHA-256 of every file")
    manifest = Manifest(
        made_by=f"infinitetalk {infinitetalk.__version__}",
        recipes=tuple(recipe.name for recipe in recipes),
        quant=quant,
        licences=_licences(recipes, shared, found),
        files=tuple(_hashed(folder, families, on_part)),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def _base_folder(family: Family) -> str:
    return PACKED_FOLDERS[family.repositories[family.base_repositories[0]].setting]


def _copy(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copies the files of a folder that fit one of the patterns; nothing hidden, such as what was fetched in part, and
    no bytecode."""
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            path = file.relative_to(source)
            if not file.is_file() or any(name.startswith(".") or name == BYTECODE for name in path.parts):
                continue
            copy = target / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _copy_lora(source: Path, name: str, target: Path) -> None:
    _copy(source, target, (name, (Path(name).parent / LORA_SETTINGS).as_posix()))


def _hashed(folder: Path, families: Sequence[Family], on_part: Callable[[str], None]) -> Iterator[PackedFile]:
    """The pack's files in the order of use. Files of equal content, such as two models' text encoders, become one file
    with two names; a Hugging Face cache keeps them as one too."""
    order = [PACKED_FOLDERS["KERNELS_DIR"], PACKED_FINDINGS, PACKED_FOLDERS["WAV2VEC_DIR"]]
    for base in (_base_folder(family) for family in families):
        order += [base, *(f"{base}/{part}" for part in CONVERTED_FOLDERS)]
    order += [PACKED_FOLDERS["LORA_DIR"], PACKED_FOLDERS["KOKORO_DIR"]]

    def place(path: str) -> int:
        """Index of the deepest folder of the order that holds a file."""
        return order.index(max((folder for folder in order if path.startswith(f"{folder}/")), key=len))

    seen: dict[str, Path] = {}
    for path in sorted(files_below(folder), key=place):
        file = folder / path
        digest = sha256_of(file)
        if digest in seen and not share(file, seen[digest]):
            on_part(f"{path}: this volume has no hard links, so it stays beside its equal {seen[digest].name}")
        seen[digest] = file
        yield PackedFile(path=path, bytes=file.stat().st_size, sha256=digest)


def share(file: Path, equal: Path) -> bool:
    """Makes a file another name of an equal one. False if the volume does not have such links: it is as before."""
    link = file.with_name(f".{file.name}")
    try:
        link.hardlink_to(equal)
    except OSError:
        return False
    link.replace(file)
    return True


def _licences(recipes: Sequence[Recipe], shared: CheckpointPaths, kernels: Iterable[HubKernel]) -> dict[str, str]:
    repositories = [
        recipe.family.repositories[name] for recipe in recipes for name in recipe.family.default_repositories
    ]
    repositories += [lora.repository for recipe in recipes for lora in recipe.loras]
    if shared.kokoro is not None:
        repositories.append(REPOSITORIES["kokoro"])
    unknown = "not known to this project: see https://huggingface.co/"
    models = {each.repo_id: LICENCES.get(each.name, f"{unknown}{each.repo_id}") for each in repositories}
    return models | {kernel.repo_id: f"{unknown}kernels/{kernel.repo_id}" for kernel in kernels}

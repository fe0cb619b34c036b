"""Finds the weights: in the configured folders, a pack, the network volume, the Hugging Face cache on it, or the image.

A pack (`infinitetalk.weights.pack`) may be at any of the places; it comes before folders of single repositories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infinitetalk.errors import CheckpointError
from infinitetalk.family import FAMILIES, INFINITETALK, Family, how_to_get
from infinitetalk.weights.download import LORAS_FOLDER, cached_folder, cached_repositories
from infinitetalk.weights.hub_kernels import KERNELS_FOLDER
from infinitetalk.weights.layouts import CheckpointPaths, find_adapter
from infinitetalk.weights.manifest import PACKED_FINDINGS, PACKED_FOLDERS, check_sizes, is_pack, read_manifest
from infinitetalk.weights.settings import WeightsSettings

#: Folder of the weights in the checkout, the image and the network volume.
WEIGHTS_FOLDER = "weights"
CHECKOUT = Path(__file__).parents[2]


class MissingWeightsError(CheckpointError):
    """Weights of a family are neither set nor found.

    Attributes:
        family: the family.
        repositories: names of its repositories that are missing.
    """

    def __init__(self, family: Family, repositories: tuple[str, ...]) -> None:
        self.family, self.repositories = family, repositories
        wanted = {name: family.repositories[name] for name in repositories}
        super().__init__(
            how_to_get(family.model_name, {name: (each.name, each.setting) for name, each in wanted.items()})
        )


@dataclass(frozen=True)
class Located:
    """The checkpoints of a worker.

    Attributes:
        checkpoints: those that are complete, by their family's name.
        absent: for each other family, by its name: names of its repositories that are missing.
    """

    checkpoints: Mapping[str, CheckpointPaths]
    absent: Mapping[str, tuple[str, ...]]


def locate_all(settings: WeightsSettings) -> Located:
    """The checkpoint of every family whose weights are there.

    Raises:
        CheckpointError: there is none; a base model is set without the family's other weights being there; a configured
            folder does not exist.
    """
    checkpoints, errors = {}, []
    for family in FAMILIES.values():
        try:
            checkpoints[family.name] = locate(settings, family)
        except MissingWeightsError as error:
            if _is_set(settings, family):
                raise
            errors.append(error)
    if not checkpoints:
        # Of a family that is there in part, only the rest needs fetching.
        raise next((error for error in errors if not _lacks_base(error)), errors[0])
    return Located(checkpoints, {error.family.name: error.repositories for error in errors})


def _is_set(settings: WeightsSettings, family: Family) -> bool:
    return _set_folder(settings, family, family.base_repositories[0]) is not None


def _lacks_base(error: MissingWeightsError) -> bool:
    return not set(error.repositories).isdisjoint(error.family.base_repositories)


def locate(settings: WeightsSettings, family: Family = INFINITETALK) -> CheckpointPaths:
    """The parts of a family's checkpoint: each from its setting, else from the first place that has it.

    Places are packs, then `weights/NAME` on the network volume and in the image, and the Hugging Face cache on the
    volume.

    Raises:
        MissingWeightsError: parts that every job needs are not found.
        CheckpointError: a configured folder does not exist; a pack is damaged.
    """
    base_name, *others = family.default_repositories
    needed = {base_name: _find(settings, family, *family.base_repositories)}
    needed |= {name: _find(settings, family, name) for name in others}
    found = {name: folder for name, folder in needed.items() if folder is not None}
    if len(found) < len(needed):
        raise MissingWeightsError(family, tuple(name for name in needed if name not in found))
    adapters = None if family.adapter_repository is None else found[family.adapter_repository]
    # Both settings are about the published files of one family.
    takes_quantised, takes_file = "QUANT_DIR" in family.settings, "CKPT_DIR" in family.settings
    quantised = _given("QUANT_DIR", settings.quant_dir) if takes_quantised else None
    if quantised is None and adapters is not None and (adapters / "quant_models").is_dir():
        quantised = adapters / "quant_models"
    return CheckpointPaths(
        base=found[base_name],
        adapters={} if adapters is None else {kind: find_adapter(adapters, kind) for kind in family.adapters},
        wav2vec2=found["wav2vec2"],
        transformer=settings.transformer_file if takes_file else None,
        quantised=quantised,
        loras=_given("LORA_DIR", settings.lora_dir)
        or next(_in_packs(settings, PACKED_FOLDERS["LORA_DIR"]), None)
        or next(_folders(settings, LORAS_FOLDER), None),
        kokoro=_find(settings, family, "kokoro"),
        kernels=kernels_folder(settings),
        findings=next(_in_packs(settings, PACKED_FINDINGS), None),
        family=family,
    )


def kernels_folder(settings: WeightsSettings) -> Path | None:
    """The folder of kernels from the Hugging Face Hub; None if there is none.

    Raises:
        CheckpointError: the configured folder does not exist.
    """
    return (
        _given("KERNELS_DIR", settings.kernels_dir)
        or next(_in_packs(settings, PACKED_FOLDERS["KERNELS_DIR"]), None)
        or next(_folders(settings, KERNELS_FOLDER), None)
    )


def find_packs(settings: WeightsSettings) -> Iterator[Path]:
    """The packs: folders of `weights/` on the network volume, then in the image, then repositories in the Hugging Face
    cache on the volume; in one place by their names.

    Raises:
        CheckpointError: one lacks a file, or a file has another size than its manifest says.
    """
    for folder in _places_of_packs(settings):
        if is_pack(folder):
            check_sizes(folder, read_manifest(folder))
            yield folder


def settings_of_pack(pack: Path) -> WeightsSettings:
    """Settings that name the folders of one pack and no others."""
    folders = {setting.lower(): folder for setting, name in PACKED_FOLDERS.items() if (folder := pack / name).is_dir()}
    # Arguments count, environment variables do not.
    return WeightsSettings.model_validate(dict.fromkeys(WeightsSettings.model_fields) | folders | {"volume_dir": pack})


def _places_of_packs(settings: WeightsSettings) -> Iterator[Path]:
    for root in (settings.volume_dir, CHECKOUT):
        yield from sorted((root / WEIGHTS_FOLDER).glob("*"))
    cache = _cache(settings)
    for repo_id in cached_repositories(cache):
        if (folder := cached_folder(repo_id, cache)) is not None:
            yield folder


def _in_packs(settings: WeightsSettings, name: str) -> Iterator[Path]:
    return (folder for pack in find_packs(settings) if (folder := pack / name).is_dir())


def _cache(settings: WeightsSettings) -> Path:
    return settings.volume_dir / "huggingface-cache" / "hub"


def _find(settings: WeightsSettings, family: Family, *names: str) -> Path | None:
    """The folder of the first repository that is there; all of them have the same setting."""
    setting = family.repositories[names[0]].setting
    return _given(setting, _set_folder(settings, family, names[0])) or next(_places(settings, family, names), None)


def _set_folder(settings: WeightsSettings, family: Family, name: str) -> Path | None:
    folder: Path | None = getattr(settings, family.repositories[name].setting.lower())
    return folder


def _places(settings: WeightsSettings, family: Family, names: tuple[str, ...]) -> Iterator[Path]:
    yield from _in_packs(settings, PACKED_FOLDERS[family.repositories[names[0]].setting])
    for name in names:
        repository = family.repositories[name]
        yield from _folders(settings, repository.name)
        cached = cached_folder(repository.repo_id, _cache(settings))
        if cached is not None:
            yield cached


def _folders(settings: WeightsSettings, name: str) -> Iterator[Path]:
    for root in (settings.volume_dir, CHECKOUT):
        folder = root / WEIGHTS_FOLDER / name
        if folder.is_dir():
            yield folder


def _given(setting: str, folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{setting} names {folder}, which is not a folder")
    return folder

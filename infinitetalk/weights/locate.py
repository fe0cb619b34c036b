"""Finds the weights: in the configured folders, a pack, the network volume, the Hugging Face cache on it, or the image.

A pack (`infinitetalk.weights.pack`) may be at any of the places; it comes before folders of single repositories. A pack
is checked where it has a part that is looked for: others, damaged or of a newer format, stop no worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from infinitetalk.errors import CheckpointError
from infinitetalk.family import FAMILIES, INFINITETALK, Family, how_to_get
from infinitetalk.weights.download import LORAS_FOLDER, cached_folder, cached_repositories
from infinitetalk.weights.hub_kernels import KERNELS_FOLDER
from infinitetalk.weights.layouts import CheckpointPaths, find_adapter
from infinitetalk.weights.manifest import (
    PACKED_FINDINGS,
    PACKED_FOLDERS,
    DamagedPackError,
    check_sizes,
    code_damage,
    is_pack,
    read_manifest,
)
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


def locate_all(settings: WeightsSettings, roots: Sequence[Path] | None = None) -> Located:
    """The checkpoint of every family whose weights are there. A family that is not set, and found in a damaged pack, is
    left out beside another one, and the log says so.

    Args:
        roots: folders with `weights/`, in which to look for what is not set; None: the network volume and the image.

    Raises:
        CheckpointError: there is none; a base model is set without the family's other weights being there; a configured
            folder does not exist.
    """
    checkpoints, errors = {}, []
    damaged: dict[str, DamagedPackError] = {}
    for family in FAMILIES.values():
        try:
            checkpoints[family.name] = locate(settings, family, roots)
        except MissingWeightsError as error:
            if _is_set(settings, family):
                raise
            errors.append(error)
        except DamagedPackError as error:
            if _is_set(settings, family):
                raise
            damaged[family.name] = error
    if not checkpoints and damaged:
        raise next(iter(damaged.values()))
    if not checkpoints:
        # Of a family that is there in part, only the rest needs fetching.
        raise next((error for error in errors if not _lacks_base(error)), errors[0])
    for name, reason in damaged.items():
        _log_left_out(name, str(reason))
    absent = {error.family.name: error.repositories for error in errors}
    return Located(checkpoints, absent | {name: FAMILIES[name].default_repositories for name in damaged})


def _is_set(settings: WeightsSettings, family: Family) -> bool:
    return _set_folder(settings, family, family.base_repositories[0]) is not None


def _lacks_base(error: MissingWeightsError) -> bool:
    return not set(error.repositories).isdisjoint(error.family.base_repositories)


def locate(
    settings: WeightsSettings, family: Family = INFINITETALK, roots: Sequence[Path] | None = None
) -> CheckpointPaths:
    """The parts of a family's checkpoint: each from its setting, else from the first place that has it.

    Places are packs, then `weights/NAME` on the network volume and in the image, and the Hugging Face cache on the
    volume. LoRAs are taken from all places together; kernels from the Hub are no part of it (`kernels_folders`).

    Args:
        roots: as for `locate_all`.

    Raises:
        MissingWeightsError: parts that every job needs are not found.
        CheckpointError: a configured folder does not exist; a pack with a part that is needed is damaged.
    """
    roots = _usual_roots(settings) if roots is None else roots
    base_name, *others = family.default_repositories
    needed = {base_name: _find(settings, family, roots, *family.base_repositories)}
    needed |= {name: _find(settings, family, roots, name) for name in others}
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
        loras=_lora_folders(settings, roots),
        kokoro=_find(settings, family, roots, "kokoro"),
        findings=_findings_beside(found[base_name]),
        family=family,
    )


def kernels_folders(settings: WeightsSettings) -> tuple[Path, ...]:
    """The folders of kernels from the Hugging Face Hub; of a kernel that several have, the first one's counts.

    Kernels are code. Of a pack, they count if each of their files is as the manifest says and no other one is there;
    else the log says why they are left out.

    Raises:
        CheckpointError: the configured folder does not exist.
    """
    if (folder := _given("KERNELS_DIR", settings.kernels_dir)) is not None:
        return (folder,)
    roots, name = _usual_roots(settings), PACKED_FOLDERS["KERNELS_DIR"]
    packs = [pack for pack in find_packs(settings, roots) if (pack / name).is_dir() and _is_sound(pack, name)]
    return *(pack / name for pack in packs), *_folders(roots, KERNELS_FOLDER)


def find_packs(settings: WeightsSettings, roots: Sequence[Path] | None = None) -> Iterator[Path]:
    """The packs, unchecked: folders of `weights/` on the network volume, then in the image, then repositories in the
    Hugging Face cache on the volume; in one place by their names.

    Args:
        roots: as for `locate_all`.
    """
    for root in _usual_roots(settings) if roots is None else roots:
        yield from filter(is_pack, sorted((root / WEIGHTS_FOLDER).glob("*")))
    cache = _cache(settings)
    for repo_id in cached_repositories(cache):
        if (folder := cached_folder(repo_id, cache)) is not None and is_pack(folder):
            yield folder


def settings_of_pack(pack: Path) -> WeightsSettings:
    """Settings that name the folders of one pack and no others; to be used with the pack as the only root."""
    folders = {setting.lower(): folder for setting, name in PACKED_FOLDERS.items() if (folder := pack / name).is_dir()}
    # Arguments count, environment variables do not.
    return WeightsSettings.model_validate(dict.fromkeys(WeightsSettings.model_fields) | folders | {"volume_dir": pack})


def _usual_roots(settings: WeightsSettings) -> tuple[Path, ...]:
    return settings.volume_dir, CHECKOUT


def _in_packs(settings: WeightsSettings, roots: Sequence[Path], name: str) -> Iterator[Path]:
    """A folder of each pack that has it, once the pack's sizes are checked.

    Raises:
        CheckpointError: such a pack is damaged.
    """
    for pack in find_packs(settings, roots):
        if (pack / name).is_dir():
            check_sizes(pack, read_manifest(pack))
            yield pack / name


def _lora_folders(settings: WeightsSettings, roots: Sequence[Path]) -> tuple[Path, ...]:
    """The folders of LoRAs. Not every job needs one: those of a damaged pack are left out, and the log says so."""
    if (folder := _given("LORA_DIR", settings.lora_dir)) is not None:
        return (folder,)
    folders = []
    for pack in find_packs(settings, roots):
        if (folder := pack / PACKED_FOLDERS["LORA_DIR"]).is_dir():
            try:
                check_sizes(pack, read_manifest(pack))
            except DamagedPackError as error:
                _log_left_out(str(folder), str(error))
            else:
                folders.append(folder)
    return *folders, *_folders(roots, LORAS_FOLDER)


def _findings_beside(base: Path) -> Path | None:
    """The kernel choices and compiled blocks of the pack that holds a base model; None if there are none to be used."""
    pack = base.parent
    if not is_pack(pack) or not (pack / PACKED_FINDINGS).is_dir() or not _is_sound(pack, PACKED_FINDINGS):
        return None
    return pack / PACKED_FINDINGS


def _is_sound(pack: Path, name: str) -> bool:
    """Whether a pack's folder of code is what the manifest says; else the log has the reason."""
    try:
        problems = code_damage(pack, name)
    except DamagedPackError as error:
        problems = [str(error)]
    if problems:
        others = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        _log_left_out(str(pack / name), problems[0] + others)
    return not problems


def _log_left_out(what: str, reason: str) -> None:
    structlog.get_logger().warning("pack.left_out", details={"what": what, "reason": reason})


def _cache(settings: WeightsSettings) -> Path:
    return settings.volume_dir / "huggingface-cache" / "hub"


def _find(settings: WeightsSettings, family: Family, roots: Sequence[Path], *names: str) -> Path | None:
    """The folder of the first repository that is there; all of them have the same setting."""
    setting = family.repositories[names[0]].setting
    given = _given(setting, _set_folder(settings, family, names[0]))
    return given or next(_places(settings, family, roots, names), None)


def _set_folder(settings: WeightsSettings, family: Family, name: str) -> Path | None:
    folder: Path | None = getattr(settings, family.repositories[name].setting.lower())
    return folder


def _places(settings: WeightsSettings, family: Family, roots: Sequence[Path], names: tuple[str, ...]) -> Iterator[Path]:
    yield from _in_packs(settings, roots, PACKED_FOLDERS[family.repositories[names[0]].setting])
    for name in names:
        repository = family.repositories[name]
        yield from _folders(roots, repository.name)
        cached = cached_folder(repository.repo_id, _cache(settings))
        if cached is not None:
            yield cached


def _folders(roots: Sequence[Path], name: str) -> Iterator[Path]:
    for root in roots:
        folder = root / WEIGHTS_FOLDER / name
        if folder.is_dir():
            yield folder


def _given(setting: str, folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{setting} names {folder}, which is not a folder")
    return folder

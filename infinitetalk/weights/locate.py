"""Finds the weights: in the configured folders, the network volume, the Hugging Face cache on it, or the image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infinitetalk.errors import CheckpointError
from infinitetalk.family import INFINITETALK, Family
from infinitetalk.weights.download import cached_folder
from infinitetalk.weights.layouts import CheckpointPaths, find_adapter
from infinitetalk.weights.settings import WeightsSettings

#: Folder of the weights in the checkout, the image and the network volume.
WEIGHTS_FOLDER = "weights"
CHECKOUT = Path(__file__).parents[2]


def locate(settings: WeightsSettings, family: Family = INFINITETALK) -> CheckpointPaths:
    """The parts of a family's published checkpoint: each from its setting, else from the first place that has it.

    Places are `weights/NAME` on the network volume and in the image, and the Hugging Face cache on the volume.

    Raises:
        CheckpointError: a part that every job needs is not found; a configured folder does not exist.
    """
    base = _needed("CKPT_DIR", settings.ckpt_dir, _places(settings, family, "base-480", "base-720"))
    adapters = _needed("INFINITETALK_DIR", settings.infinitetalk_dir, _places(settings, family, "adapter"))
    quantised = _given("QUANT_DIR", settings.quant_dir)
    if quantised is None and (adapters / "quant_models").is_dir():
        quantised = adapters / "quant_models"
    return CheckpointPaths(
        base=base,
        adapter_single=find_adapter(adapters, "single"),
        adapter_multi=find_adapter(adapters, "multi"),
        wav2vec2=_needed("WAV2VEC_DIR", settings.wav2vec_dir, _places(settings, family, "wav2vec2")),
        transformer=settings.transformer_file,
        quantised=quantised,
        loras=_given("LORA_DIR", settings.lora_dir),
        kokoro=_given("KOKORO_DIR", settings.kokoro_dir) or next(_places(settings, family, "kokoro"), None),
        family=family,
    )


def _places(settings: WeightsSettings, family: Family, *names: str) -> Iterator[Path]:
    for name in names:
        repo_id = family.repositories[name].repo_id
        for root in (settings.volume_dir, CHECKOUT):
            folder = root / WEIGHTS_FOLDER / repo_id.rpartition("/")[2]
            if folder.is_dir():
                yield folder
        cached = cached_folder(repo_id, settings.volume_dir / "huggingface-cache" / "hub")
        if cached is not None:
            yield cached


def _given(setting: str, folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{setting} names {folder}, which is not a folder")
    return folder


def _needed(setting: str, folder: Path | None, places: Iterator[Path]) -> Path:
    found = _given(setting, folder) or next(places, None)
    if found is None:
        raise CheckpointError(
            f"{setting} is not set, and its weights are neither on the network volume nor in the image; "
            "fetch them by `python -m infinitetalk.weights download`"
        )
    return found

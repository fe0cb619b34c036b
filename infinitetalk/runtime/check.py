"""Reports which parts of a checkpoint are present or missing and which modes it supports, from file headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from infinitetalk.errors import CheckpointError
from infinitetalk.family import AdapterKind, Family
from infinitetalk.recipes import RECIPES, missing
from infinitetalk.runtime.lora import lora_names
from infinitetalk.runtime.memory import GIB, ModelSizes, Workload, candidate_modes, estimate_bytes, model_sizes
from infinitetalk.weights.files import open_file
from infinitetalk.weights.layouts import (
    CheckpointPaths,
    NetworkPart,
    image_encoder_part,
    text_encoder_part,
    tokenizer_folder,
    transformer_parts,
    vae_part,
)
from infinitetalk.weights.loading import Quantisation
from infinitetalk.weights.locate import Located
from infinitetalk.weights.networks import empty_transformer

QUANTISATIONS: tuple[Quantisation, ...] = ("int8", "fp8")


@dataclass(frozen=True)
class Finding:
    """One part of a checkpoint.

    Attributes:
        part: its name.
        needed: whether every video needs it.
        num_bytes: size of its tensors; None if it is missing or does not fit.
        problem: the error, or None.
    """

    part: str
    needed: bool
    num_bytes: int | None = None
    problem: str | None = None


def check_checkpoint(paths: CheckpointPaths) -> list[Finding]:
    """Checks every part of a checkpoint against its network."""
    findings = [
        *(
            _find(f"transformer, adapter {kind!r}", kind == "single", _transformer(paths, kind))
            for kind in paths.family.adapters
        ),
        _find("text encoder", True, lambda: _bytes(text_encoder_part(paths, None))),
        _find("tokenizer", True, lambda: _folder_bytes(tokenizer_folder(paths.base))),
        _find("image encoder", True, lambda: _bytes(image_encoder_part(paths.base))),
        _find("VAE", True, lambda: _bytes(vae_part(paths.base))),
        _find("speech encoder", True, lambda: _speech_encoder(paths.wav2vec2)),
    ]
    if paths.kokoro is not None:
        findings.append(_find("text to speech", False, lambda: _kokoro(paths)))
    for quantisation in QUANTISATIONS:
        for kind in paths.family.adapters:
            if paths.quantised_transformer(kind, quantisation) is not None:
                name = f"transformer in {quantisation}, adapter {kind!r}"
                findings.append(_find(name, False, _transformer(paths, kind, quantisation)))
        if paths.quantised_text_encoder(quantisation) is not None:
            findings.append(_quantised_text_encoder(paths, quantisation))
    return findings


def _find(part: str, needed: bool, measure: Callable[[], int]) -> Finding:
    try:
        return Finding(part, needed, num_bytes=measure())
    except CheckpointError as error:
        return Finding(part, needed, problem=str(error))


def _transformer(
    paths: CheckpointPaths, kind: AdapterKind, quantisation: Quantisation | None = None
) -> Callable[[], int]:
    def measure() -> int:
        base, adapter = transformer_parts(paths, kind, quantisation)
        empty_transformer(paths, base, adapter)
        return _bytes(base, adapter)

    return measure


def _quantised_text_encoder(paths: CheckpointPaths, quantisation: Quantisation) -> Finding:
    return _find(f"text encoder in {quantisation}", False, lambda: _bytes(text_encoder_part(paths, quantisation)))


def _speech_encoder(folder: Path) -> int:
    weights = folder / "model.safetensors"
    file = open_file(weights if weights.exists() else folder / "pytorch_model.bin")
    return sum(header.num_bytes for header in file.headers.values())


def _kokoro(paths: CheckpointPaths) -> int:
    assert paths.kokoro is not None
    if not list((paths.kokoro / "voices").glob("*.pt")):
        raise CheckpointError(f"the folder {paths.kokoro.name} has no voices/*.pt")
    file = open_file(paths.kokoro / "kokoro-v1_0.pth")
    return sum(header.num_bytes for header in file.headers.values())


def _bytes(*parts: NetworkPart) -> int:
    return sum(source.num_bytes for part in parts for source in part.sources.values())


def _folder_bytes(folder: Path) -> int:
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder.name}")
    return sum(file.stat().st_size for file in folder.iterdir())


def modes(sizes: ModelSizes, family: Family) -> Iterable[tuple[str, str, int]]:
    """(mode, video size, estimated bytes of GPU memory) for each mode and size."""
    for mode in candidate_modes(sizes):
        for name, size in family.sizes.items():
            workload = Workload(family.defaults.frame_num, *size.usual_resolution, family)
            yield mode.name, name, estimate_bytes(mode, sizes, workload)


def report(located: Located) -> tuple[str, bool]:
    """The findings as text, and whether every checkpoint that is there can generate videos."""
    reports = [report_of(paths) for paths in located.checkpoints.values()]
    # LoRAs are common to all.
    loras = lora_names(next(iter(located.checkpoints.values())).loras)
    lines = ["LoRAs: " + (", ".join(loras) or "none"), "", "Recipes:"]
    for recipe in RECIPES.values():
        problem = missing(recipe, located.absent, loras)
        lines.append(f"ok       {recipe.name}" if problem is None else f"missing  {problem}")
    return "\n\n".join([*(text for text, _ in reports), "\n".join(lines)]), all(complete for _, complete in reports)


def report_of(paths: CheckpointPaths) -> tuple[str, bool]:
    """The findings about one checkpoint as text, and whether it can generate videos."""
    findings = check_checkpoint(paths)
    lines = [f"{paths.family.model_name}:"]
    for finding in findings:
        if finding.num_bytes is not None:
            lines.append(f"ok       {finding.part}: {finding.num_bytes / GIB:.2f} GiB")
        else:
            lines.append(f"{'MISSING' if finding.needed else 'missing'}  {finding.part}: {finding.problem}")
    complete = all(finding.problem is None for finding in findings if finding.needed)
    if complete:
        lines += ["", "GPU memory by the estimate of docs/memory.md:"]
        for mode, size, num_bytes in modes(model_sizes(paths), paths.family):
            lines.append(f"  {num_bytes / GIB:5.1f} GiB  {size}  {mode}")
    return "\n".join(lines), complete

"""A folder of reference vectors: its index, its cases, and how near a result must come."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from tests.golden.formulas import formula_input, with_prefix


@dataclass(frozen=True)
class Tolerance:
    """An element passes if |got - want| <= atol + rtol * |want|; `outlier_fraction` of them need not."""

    atol: float
    rtol: float
    outlier_fraction: float = 0.0

    def __str__(self) -> str:
        outliers = f" but {self.outlier_fraction:g}" if self.outlier_fraction else ""
        return f"{self.atol:g}+{self.rtol:g}*|x|{outliers}"


@dataclass(frozen=True)
class Case:
    """One entry of the index. `key_prefix` is that of the folder's formula keys."""

    name: str
    entry: dict[str, Any]
    folder: Path
    key_prefix: str
    default_tolerance: dict[str, Any]

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """What the case's file holds."""
        return safetensors.numpy.load_file(self.folder / self.entry["file"]) if self.entry.get("file") else {}

    @property
    def inputs(self) -> dict[str, Any]:
        return self.entry.get("inputs", {})

    @property
    def runs(self) -> list[dict[str, Any]]:
        return self.entry["runs"]

    def meaning(self, tensor: str) -> str:
        """What the index says of a tensor."""
        return self.entry["tensors"][tensor]["meaning"]

    def manifest(self, field_name: str = "manifest") -> dict[str, Any]:
        """Names and shapes of the weights, and the configuration, of the network that this field names."""
        manifest: dict[str, Any] = json.loads((self.folder / self.entry[field_name]).read_text(encoding="utf-8"))
        return manifest

    def formula(self, description: dict[str, Any], **places: int) -> Tensor:
        """The input that {"key", "shape", "s", "m", "then"} describes; `<name>` in its key stands for a number."""
        key = description["key"]
        for name, value in places.items():
            key = key.replace(f"<{name}>", str(value))
        values = formula_input(
            with_prefix(key, self.key_prefix),
            description["shape"],
            description.get("s", 1.0),
            description.get("m", 0.0),
        )
        if "clip to [-1,1]" in description.get("then", ""):
            values = values.clip(-1.0, 1.0)
        return torch.from_numpy(values)

    def input(self, name: str) -> Tensor:
        """The input of this name."""
        return self.formula(self.inputs[name])

    def tolerance(self, tensor: str) -> Tolerance:
        """That of one tensor."""
        given = self.entry.get("tolerance", {})
        values = self.default_tolerance | given | given.get("tensors", {}).get(tensor, {})
        return Tolerance(values["atol"], values["rtol"], values.get("outlier_fraction", 0.0))


@dataclass
class Outcome:
    """What our modules give: tensors by the case's names, and facts, each as (what, got, want)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: list[tuple[str, Any, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """One tensor: the largest absolute error, and whether it is within tolerance."""

    tensor: str
    max_error: float
    tolerance: Tolerance
    passed: bool
    problem: str = ""


def read_cases(folder: Path) -> list[Case]:
    """The cases of a folder, in the order of its index."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    prefix, tolerance = index.get("key_prefix", ""), index["default_tolerance"]
    return [Case(name, entry, folder, prefix, tolerance) for name, entry in index["cases"].items()]


def compare(case: Case, outcome: Outcome) -> list[Comparison]:
    """Compare every tensor of the case's file, then every fact; a tensor that we lack is a failure."""
    comparisons = []
    for name, want in case.tensors.items():
        tolerance = case.tolerance(name)
        if name not in outcome.tensors:
            comparisons.append(Comparison(name, float("inf"), tolerance, False, "not computed"))
        else:
            comparisons.append(_compare_tensor(name, outcome.tensors[name], torch.from_numpy(want), tolerance))
    for what, got, want in outcome.facts:
        passed = got == want
        problem = "" if passed else f"{got} instead of {want}"
        comparisons.append(Comparison(what, 0.0 if passed else float("inf"), Tolerance(0.0, 0.0), passed, problem))
    return comparisons


def _compare_tensor(name: str, got: Tensor, want: Tensor, tolerance: Tolerance) -> Comparison:
    if got.shape != want.shape:
        problem = f"shape {list(got.shape)} instead of {list(want.shape)}"
        return Comparison(name, float("inf"), tolerance, False, problem)
    got, want = got.detach().cpu().double(), want.double()
    error = (got - want).abs()
    # Written so that NaN is a miss.
    missed = ~(error <= tolerance.atol + tolerance.rtol * want.abs())
    passed = missed.double().mean().item() <= tolerance.outlier_fraction
    return Comparison(
        name, error.max().item(), tolerance, passed, "" if passed else f"{int(missed.sum())} elements off"
    )

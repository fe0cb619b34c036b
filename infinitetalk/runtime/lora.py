"""Applies LoRAs, read by `lora_files`, to the transformer.

The sum of all deltas is added to an unquantised weight, and removed by reading the weight from its file again: this is
exact and needs no second copy of the model. Added to a quantised weight, a delta would be lost to rounding; there it is
computed beside the weight, as the product of two thin matrices.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.quantizers.gguf.utils import GGUFParameter
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchao.utils import TorchAOBaseTensor

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.fingerprint import contents_of
from infinitetalk.weights.lora_files import Delta, files_of, read_lora


@dataclass(frozen=True)
class ScaledLora:
    """A file and its scale.

    Attributes:
        content: a digest of the file, because a file may be replaced under the same name.
    """

    path: Path
    scale: float
    content: str = ""


class LoraStack:
    """The LoRAs on a transformer, which is changed in place."""

    def __init__(self, transformer: nn.Module, read_base: Callable[[str], Tensor]) -> None:
        """`read_base` returns a parameter, by its name, as it is without LoRAs."""
        self._transformer = transformer
        self._read_base = read_base
        self._applied: tuple[ScaledLora, ...] = ()
        self._fused: set[str] = set()
        self._hooks: list[RemovableHandle] = []

    @torch.no_grad()
    def apply(self, loras: Sequence[ScaledLora], device: torch.device) -> None:
        """Replaces the LoRAs on the transformer by these; does nothing if they are the same.

        An unquantised parameter becomes base + Σ scale · delta, summed in float32 and rounded once.

        Args:
            device: where deltas are computed, and where those of quantised weights stay.

        Raises:
            CheckpointError: a file does not fit; the transformer is unchanged. After any other exception, it has no
                LoRAs.
        """
        if tuple(loras) == self._applied:
            return
        parameters = dict(self._transformer.named_parameters())
        # GGUF's weights are bytes; shapes are those of the numbers that they represent.
        shapes = {name: _numbers_shape(parameter) for name, parameter in parameters.items()}
        changes: dict[str, list[tuple[float, Delta]]] = defaultdict(list)
        for lora in loras:
            for name, deltas in read_lora(lora.path, shapes).deltas.items():
                changes[name] += [(lora.scale, delta) for delta in deltas]
        self.remove()
        try:
            for name, scaled in changes.items():
                self._change(name, parameters[name], scaled, device)
        except BaseException:
            self.remove()
            raise
        self._applied = tuple(loras)

    @torch.no_grad()
    def remove(self) -> None:
        """Removes all LoRAs and restores the transformer's weights exactly."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for name in self._fused:
            self._transformer.get_parameter(name).data.copy_(self._read_base(name))
        self._fused.clear()
        self._applied = ()

    def _change(
        self, name: str, parameter: Tensor, scaled: Sequence[tuple[float, Delta]], device: torch.device
    ) -> None:
        if isinstance(parameter, TorchAOBaseTensor | GGUFParameter):
            self._run_beside(name, scaled, device)
            return
        total = parameter.data.to(device, torch.float32)
        for scale, delta in scaled:
            total = total + scale * delta.compute(device)
        self._fused.add(name)
        parameter.data.copy_(total)

    def _run_beside(self, name: str, scaled: Sequence[tuple[float, Delta]], device: torch.device) -> None:
        module = self._transformer.get_submodule(name.removesuffix(".weight"))
        terms: list[tuple[Tensor, ...]] = []
        dtype = module.bias.dtype if isinstance(module.bias, Tensor) else torch.bfloat16
        for scale, delta in scaled:
            if delta.is_low_rank:
                down, up = delta.factors(device)
                terms.append((down.to(dtype), (scale * up).to(dtype)))
            else:
                terms.append(((scale * delta.compute(device)).to(dtype),))

        def add_terms(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            for matrices in terms:
                hidden_states = args[0].to(dtype)
                for matrix in matrices:
                    hidden_states = F.linear(hidden_states, matrix)
                output = output + hidden_states.to(output.dtype)
            return output

        self._hooks.append(module.register_forward_hook(add_terms))


def _numbers_shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(parameter.quant_shape if isinstance(parameter, GGUFParameter) else parameter.shape)


def find_lora(folders: Sequence[Path], name: str) -> Path:
    """The file of a LoRA, in the first of the folders that has it.

    Raises:
        CheckpointError: there is none of this name.
    """
    if not folders:
        raise CheckpointError(f"there is no folder of LoRAs to take {name!r} from; set LORA_DIR")
    # Links are followed: the files of a Hugging Face cache are links to files without a suffix elsewhere.
    for folder in folders:
        path = Path(os.path.normpath(folder / name))
        if path.is_relative_to(os.path.normpath(folder)) and path.is_file():
            return path
    raise CheckpointError(f"there is no LoRA {name!r}; there are: {', '.join(lora_names(folders)) or 'none'}")


def find_loras(folders: Sequence[Path], wanted: Iterable[tuple[str, float]]) -> tuple[ScaledLora, ...]:
    """LoRAs by their names below the folders, with their scales.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    found = [(find_lora(folders, name), scale) for name, scale in wanted]
    return tuple(ScaledLora(path, scale, contents_of(files_of(path))) for path, scale in found)


def lora_names(folders: Sequence[Path]) -> list[str]:
    """The LoRAs below the folders, as jobs name them."""
    files = ((folder, file) for folder in folders for file in folder.rglob("*"))
    return sorted({str(file.relative_to(folder)) for folder, file in files if file.suffix.lower() == ".safetensors"})

"""LoRA files laid on the transformer: every tensor of a file finds its layer, or the file is refused.

diffusers' own loading drops what it does not know, deltas of norms among them (FusionX has them), so names are held
against the network here. Where a weight is plain numbers, the sum of all deltas is added to it, and taken back by
reading the weight from its file again: exact, and without a second copy of the model. Where it is quantised, adding
would round the delta away: there it runs beside the weight, as the product of two thin matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.quantizers.gguf.utils import GGUFParameter
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchao.utils import TorchAOBaseTensor

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.files import TensorFile, open_file
from infinitetalk.weights.names import transformer_module_name

#: What a file's names may begin with; the last one comes with dots turned to underscores (musubi, kohya).
_PREFIXES = ("diffusion_model.", "base_model.model.", "transformer.")
_UNDERSCORE_PREFIX = "lora_unet_"
#: Endings of names, and what each holds of a layer.
_ENDINGS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "alpha": "alpha",
    "diff": "weight",
    "diff_b": "bias",
}
#: Linear layers of the original transformer, whose names cannot be told from their form with underscores alone.
_OUTER_LAYERS = (
    "patch_embedding",
    "text_embedding.0",
    "text_embedding.2",
    "time_embedding.0",
    "time_embedding.2",
    "time_projection.1",
    "img_emb.proj.1",
    "img_emb.proj.3",
    "head.head",
)
_BLOCK_LAYERS = (
    *(f"{attention}.{layer}" for attention in ("self_attn", "cross_attn") for layer in "qkvo"),
    "cross_attn.k_img",
    "cross_attn.v_img",
    "ffn.0",
    "ffn.2",
    "norm3",
)


@dataclass(frozen=True)
class Lora:
    """A file and how strongly it is applied."""

    path: Path
    scale: float


@dataclass
class Delta:
    """What one file changes about one parameter: up · down · alpha / rank, or a whole difference.

    Attributes:
        shape: of the parameter.
        names: the file's tensor for each of "down", "up", "alpha", "weight", "bias" that it holds.
    """

    file: TensorFile
    shape: tuple[int, ...]
    names: dict[str, str] = field(default_factory=dict)

    @property
    def is_low_rank(self) -> bool:
        """Whether the delta is a product of two matrices."""
        return "down" in self.names

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """float32 matrices down (rank, in) and up (out, rank), with alpha / rank in the second."""
        down, up = (self._read(part, device).flatten(1) for part in ("down", "up"))
        if "alpha" in self.names:
            up = up * (self._read("alpha", device) / down.shape[0])
        return down, up

    def compute(self, device: torch.device) -> Tensor:
        """The difference, float32, of the parameter's shape.

        The input layer of a T2V model has 16 of the 36 channels of I2V's, the noise: its delta is zero for the others.
        """
        if self.is_low_rank:
            down, up = self.factors(device)
            difference = (up @ down).view(self._shape_in_file())
        else:
            (part,) = self.names
            difference = self._read(part, device)
        if difference.shape == self.shape:
            return difference
        padded = difference.new_zeros(self.shape)
        padded[:, : difference.shape[1]] = difference
        return padded

    def check(self) -> None:
        """Raises `CheckpointError` where the tensors do not fit the parameter or one another."""
        for part, other in (("down", "up"), ("up", "down"), ("alpha", "down")):
            if part in self.names and other not in self.names:
                raise CheckpointError(f"{self.file.path.name} holds {self.names[part]} without its other half")
        shape = self._shape_in_file()
        is_input_of_t2v = len(self.shape) == 5 and shape[:1] + shape[2:] == self.shape[:1] + self.shape[2:]
        if shape != self.shape and not (is_input_of_t2v and shape[1] < self.shape[1]):
            name = self.names.get("down") or next(iter(self.names.values()))
            raise CheckpointError(
                f"{self.file.path.name}: {name} is for a layer of the shape {list(shape)}; "
                f"this network's has {list(self.shape)}"
            )

    def _shape_in_file(self) -> tuple[int, ...]:
        headers = self.file.headers
        if not self.is_low_rank:
            (name,) = self.names.values()
            return headers[name].shape
        down, up = headers[self.names["down"]].shape, headers[self.names["up"]].shape
        if down[0] != up[1]:
            return ()
        return (up[0], *down[1:])

    def _read(self, part: str, device: torch.device) -> Tensor:
        return self.file.read(self.names[part]).to(device, torch.float32)


def read_lora(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Delta]]:
    """The deltas of a file, by the parameter of our transformer that each changes.

    A parameter may have two: a product and a whole difference.

    Args:
        shapes: of the transformer's parameters.

    Raises:
        CheckpointError: the file is missing or damaged, changes nothing, or holds a tensor that fits no layer.
    """
    file = open_file(path)
    layers = _underscore_names(shapes)
    deltas: dict[str, dict[bool, Delta]] = defaultdict(dict)
    for name in file.headers:
        module, part = _split(name, path)
        parameter = f"{_module_name(module, layers)}.{'bias' if part == 'bias' else 'weight'}"
        if parameter not in shapes:
            raise CheckpointError(f"{path.name} holds {name}, which matches no layer of this network")
        whole = part in ("weight", "bias")
        delta = deltas[parameter].setdefault(whole, Delta(file, shapes[parameter]))
        if part in delta.names:
            raise CheckpointError(f"{path.name} holds {delta.names[part]} and {name} for the same layer")
        delta.names[part] = name
    if not deltas:
        raise CheckpointError(f"{path.name} matches no layer of this network: it holds no tensor")
    found = {parameter: list(pair.values()) for parameter, pair in deltas.items()}
    for pair in found.values():
        for delta in pair:
            delta.check()
    return found


def _split(name: str, path: Path) -> tuple[str, str]:
    for ending, part in _ENDINGS.items():
        if name.endswith(f".{ending}"):
            return name.removesuffix(f".{ending}"), part
    raise CheckpointError(f"{path.name} holds {name}, which is no part of a LoRA that is known")


def _module_name(module: str, underscore_names: Mapping[str, str]) -> str:
    if module.startswith(_UNDERSCORE_PREFIX):
        flat = module.removeprefix(_UNDERSCORE_PREFIX)
        module = underscore_names.get(flat, flat)
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    return transformer_module_name(module)


def _underscore_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Layers by their names with underscores for dots, the original ones and diffusers'."""
    num_layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    layers = [f"blocks.{index}.{layer}" for index in range(num_layers) for layer in _BLOCK_LAYERS]
    layers += [*_OUTER_LAYERS, *(name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))]
    return {layer.replace(".", "_"): layer for layer in layers}


class LoraStack:
    """The LoRAs on a transformer, which is changed in place."""

    def __init__(self, transformer: nn.Module, read_base: Callable[[str], Tensor]) -> None:
        """`read_base` gives a parameter, by its name, as it is without LoRAs, in the dtype it runs in."""
        self._transformer = transformer
        self._read_base = read_base
        self._applied: tuple[Lora, ...] = ()
        self._fused: set[str] = set()
        self._hooks: list[RemovableHandle] = []

    @torch.no_grad()
    def apply(self, loras: Sequence[Lora], device: torch.device) -> None:
        """Makes these the LoRAs on the transformer, in place of those on it now; nothing to do where they are the same.

        A parameter of plain numbers becomes base + Σ scale · delta, summed in float32 and rounded once.

        Args:
            device: where deltas are computed, and where those of quantised weights stay.

        Raises:
            CheckpointError: a file does not fit; the transformer is then as it was. Whatever else ends this, it is then
                without LoRAs.
        """
        if tuple(loras) == self._applied:
            return
        parameters = dict(self._transformer.named_parameters())
        # GGUF's weights are bytes; their layers tell the shape of the numbers.
        shapes = {name: _numbers_shape(parameter) for name, parameter in parameters.items()}
        changes: dict[str, list[tuple[float, Delta]]] = defaultdict(list)
        for lora in loras:
            for name, deltas in read_lora(lora.path, shapes).items():
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
        """Makes the transformer what it is without LoRAs, exactly."""
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


def find_lora(folder: Path | None, name: str) -> Path:
    """The file of a LoRA below LORA_DIR.

    Raises:
        CheckpointError: there is none of this name.
    """
    if folder is None:
        raise CheckpointError(f"there is no folder of LoRAs to take {name!r} from; set LORA_DIR")
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        found = ", ".join(sorted(str(file.relative_to(root)) for file in root.rglob("*.safetensors"))) or "none"
        raise CheckpointError(f"there is no LoRA {name!r}; there are: {found}")
    return path

"""Reads LoRA files under all the naming schemes in use: which parameter each tensor changes, and how strongly.

diffusers' own loader drops unknown names, including deltas of norms (FusionX has them), so names are matched against
the network here. The scaling of a file may be outside its tensors: in its metadata, or in the `adapter_config.json`
that peft writes beside it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.files import SafetensorsFile, TensorFile, open_file, parse_json, read_json
from infinitetalk.weights.names import transformer_module_name

#: Prefixes of tensor names; several may follow one another: "base_model.model.diffusion_model.blocks …".
_PREFIXES = ("diffusion_model.", "base_model.model.", "model.", "transformer.", "pipe.dit.")
#: Prefixes of names with underscores for dots (musubi, kohya, VideoX-Fun, LyCORIS). A second "_" may follow.
_UNDERSCORE_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
#: One factor of a product: "lora_A.weight", "lora_A.NAME.weight", "lora_down.weight", "lora.down.weight",
#: "to_q_lora.down.weight", "lora_B.bias" …
_HALF = re.compile(
    r"(?P<module>.+)[._]lora(?:_linear_layer)?[._](?P<half>A|B|down|up)"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?P<leaf>\.weight|\.bias)?"
)
_HALVES = {("A", "weight"): "down", ("down", "weight"): "down", ("B", "weight"): "up", ("up", "weight"): "up"}
_HALVES |= {("B", "bias"): "up_bias", ("up", "bias"): "up_bias"}
#: Other endings, and the part of a layer that each changes: lightx2v's and ComfyUI's full differences, LyCORIS' norms.
_ENDINGS = {
    "alpha": "alpha",
    "diff": "weight",
    "diff_b": "bias",
    "diff_m": "modulation",
    "w_norm": "weight",
    "b_norm": "bias",
}
#: Parts of names that indicate another method than a product of two matrices → the method's name.
_OTHER_METHODS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoCon of three matrices",
    "oft_": "an OFT",
}
#: Fields of peft's LoraConfig that, if set, mean something other than the product of the matrices.
CONFIG_VARIANTS = {
    "use_dora": "a DoRA",
    "use_qalora": "a QALoRA",
    "use_bdlora": "a BD-LoRA",
    "alora_invocation_tokens": "an aLoRA",
    "arrow_config": "an Arrow router",
    "kasa_config": "a KaSA",
    "velora_config": "a VeLoRA",
    "monteclora_config": "a MonteCLoRA",
    "layer_replication": "a LoRA over replicated layers",
}
#: Prefixes of `init_lora_weights` values that also change the base model's weights, which the file does not hold.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: Metadata keys that hold peft's settings as JSON: diffusers', finetrainers'.
_CONFIG_KEYS = ("lora_adapter_metadata", "lora_config")
#: Metadata keys that each hold one setting. kohya's `ss_network_alpha` is not among them: its files hold alpha as
#: tensors, and a converter that multiplies alpha in leaves the key behind.
_PLAIN_KEYS = ("lora_alpha", "alpha", "use_rslora", "alpha_pattern", "use_dora")
MAX_PATTERNS = 2_000
"""Largest number of patterns in a file's settings: each is compared with each layer's name."""

MAX_EXPRESSIONS = 50
MAX_EXPRESSION_CHARACTERS = 200
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")
_REPEATED = re.compile(r"[*+?{]")
_REPEATS_GROUP = re.compile(r"\)[*+?{]")
#: Linear layers of the original transformer; the form with underscores alone does not determine their names.
OUTER_LAYERS = (
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
BLOCK_LAYERS = (
    *(f"{attention}.{layer}" for attention in ("self_attn", "cross_attn") for layer in "qkvo"),
    "cross_attn.k_img",
    "cross_attn.v_img",
    "ffn.0",
    "ffn.2",
    "norm3",
)


@dataclass(frozen=True)
class Delta:
    """The change that one file makes to one parameter: scaling · up · down, or scaling · a full difference.

    Attributes:
        shape: the parameter's shape.
        names: the file's tensors: down and up, or the difference alone.
        scaling: factor on the product or the difference.
    """

    file: TensorFile
    shape: tuple[int, ...]
    names: tuple[str, ...]
    scaling: float = 1.0

    @property
    def is_low_rank(self) -> bool:
        """Whether the delta is a product of two matrices."""
        return len(self.names) == 2

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """float32 matrices down (rank, in) and up (out, rank); the second includes the scaling."""
        down, up = (self._read(name, device).flatten(1) for name in self.names)
        return down, up * self.scaling

    def compute(self, device: torch.device) -> Tensor:
        """The difference, float32, in the parameter's shape.

        The input layer of a T2V model has only the first 16 of I2V's 36 channels (the noise): its delta is zero for the
        others.
        """
        if self.is_low_rank:
            down, up = self.factors(device)
            difference = (up @ down).view(self._shape_in_file())
        else:
            difference = self._read(self.names[0], device) * self.scaling
        if difference.shape == self.shape:
            return difference
        padded = difference.new_zeros(self.shape)
        padded[:, : difference.shape[1]] = difference
        return padded

    def check(self) -> None:
        """Raises `CheckpointError` if the tensors do not fit the parameter or each other."""
        shape = self._shape_in_file()
        is_input_of_t2v = len(self.shape) == 5 and shape[:1] + shape[2:] == self.shape[:1] + self.shape[2:]
        if shape != self.shape and not (is_input_of_t2v and shape[1] < self.shape[1]):
            raise CheckpointError(
                f"{self.file.path.name}: {self.names[0]} is for a layer of the shape {list(shape)}; "
                f"this network's has {list(self.shape)}"
            )

    def _shape_in_file(self) -> tuple[int, ...]:
        shapes = [self.file.headers[name].shape for name in self.names]
        if not self.is_low_rank:
            return shapes[0]
        down, up = shapes
        if len(down) < 2 or len(up) < 2 or down[0] != up[1]:
            return ()
        return (up[0], *down[1:])

    def _read(self, name: str, device: torch.device) -> Tensor:
        return self.file.read(name).to(device, torch.float32)


@dataclass(frozen=True)
class Scaling:
    """The scaling settings outside a file's tensors, with peft's meaning.

    Attributes:
        alpha, rank: for every layer; None if not given.
        alphas, ranks: for layers with names that end in a match of these regular expressions.
        rslora: whether alpha is divided by the square root of the rank instead of the rank.
    """

    alpha: float | None = None
    rank: int | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False

    def of(self, names: Sequence[str], rank: int, label: str) -> float | None:
        """The factor of a layer; None if the settings do not give it.

        Args:
            names: the layer's names in the file and in our network.
            rank: the rank of its matrices.
            label: the file's name in messages.

        Raises:
            CheckpointError: the rank differs from the settings, or they cannot be read.
        """
        try:
            alpha, said_rank = _match(self.alphas, names, self.alpha), _match(self.ranks, names, self.rank)
        except re.error as error:
            pattern = str(error.pattern)[:MAX_EXPRESSION_CHARACTERS]
            raise CheckpointError(f"{label}: the pattern {pattern!r} in its settings cannot be read") from error
        if said_rank is not None and said_rank != rank:
            raise CheckpointError(
                f"{label}: {names[0]} has the rank {rank}, and the file's settings say {said_rank:g}; save it again"
            )
        if alpha is None:
            if self.rslora:
                raise CheckpointError(f"{label} sets use_rslora but not lora_alpha; save it with both")
            return None
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _match(patterns: Mapping[str, float], names: Sequence[str], default: float | None) -> float | None:
    """The value of the first pattern that matches the end of a name, from a dot on or the whole, as in peft."""
    for name in names:
        parts = name.split(".")
        ends = {".".join(parts[start:]) for start in range(len(parts))}
        for pattern, value in patterns.items():
            if pattern in ends or (not _PLAIN.fullmatch(pattern) and re.match(rf"(.*\.)?({pattern})$", name)):
                return value
    return default


@dataclass(frozen=True)
class LoraFile:
    """The contents of a LoRA file.

    Attributes:
        deltas: by the parameter of our transformer that they change; one may have two, a product and a difference.
        warnings: settings that the file leaves open.
    """

    deltas: Mapping[str, Sequence[Delta]]
    warnings: tuple[str, ...] = ()


def read_lora(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> LoraFile:
    """Reads a file's deltas, from its header, its metadata and its alphas.

    Args:
        shapes: shapes of the transformer's parameters.

    Raises:
        CheckpointError: the file is missing or damaged, changes nothing, holds a tensor that fits no layer, or uses an
            unsupported method.
    """
    file = open_file(path)
    scaling = read_scaling(path, file.metadata if isinstance(file, SafetensorsFile) else {})
    underscore_names = _underscore_names(shapes)
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    for name in file.headers:
        module, part = _split(name, path)
        module = _strip(module, underscore_names)
        target = transformer_module_name(f"{module}.modulation" if part == "modulation" else module)
        # Parameters that are not a layer's weight or bias, such as a modulation, are named directly.
        part = "itself" if part in ("weight", "modulation") and target in shapes else part
        if _parameter(target, part) not in shapes:
            raise CheckpointError(f"{path.name} holds {name}, which matches no layer of this network")
        if part in layers[target]:
            raise CheckpointError(f"{path.name} holds {layers[target][part]} and {name} for the same layer")
        layers[target][part] = name
    if not layers:
        raise CheckpointError(f"{path.name} matches no layer of this network: it holds no tensor")
    deltas: dict[str, list[Delta]] = defaultdict(list)
    for target, names in layers.items():
        for part, delta in _deltas_of(file, target, names, scaling, shapes):
            delta.check()
            deltas[_parameter(target, part)].append(delta)
    says_alpha = scaling != Scaling() or any("alpha" in names for names in layers.values())
    is_peft = any(name.startswith("base_model.model.") for name in file.headers)
    warnings = [ALPHA_UNKNOWN.format(name=path.name)] if is_peft and not says_alpha else []
    return LoraFile(deltas, tuple(warnings))


ALPHA_UNKNOWN = (
    "LoRA {name}: its tensors have peft's names, and peft writes alpha into adapter_config.json, which is missing; it "
    'is applied as if alpha were equal to its rank. If not, name it "adapter_model.safetensors" beside that file, or '
    "multiply the scale"
)


def files_of(path: Path) -> list[Path]:
    """All files that define a LoRA."""
    config = _config_beside(path)
    return [path] if config is None else [path, config]


def _config_beside(path: Path) -> Path | None:
    config = path.with_name("adapter_config.json")
    return config if path.stem == "adapter_model" and config.is_file() else None


def _parameter(target: str, part: str) -> str:
    """The name of the parameter that a part changes."""
    if part == "itself":
        return target
    return f"{target}.bias" if part in ("bias", "up_bias") else f"{target}.weight"


def _deltas_of(
    file: TensorFile,
    target: str,
    names: Mapping[str, str],
    settings: Scaling,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[tuple[str, Delta]]:
    """The deltas of a layer, each with the part that it changes.

    Raises:
        CheckpointError: half of a product is missing, or its scaling cannot be determined.
    """
    for part, other in (("down", "up"), ("up", "down"), ("alpha", "down"), ("up_bias", "down")):
        if part in names and other not in names:
            raise CheckpointError(f"{file.path.name} holds {names[part]} without its other half")
    parts: dict[str, tuple[tuple[str, ...], float]] = {
        part: ((names[part],), 1.0) for part in ("weight", "bias", "itself") if part in names
    }
    if "down" in names:
        scaling = _scaling_of(file, target, names, settings)
        parts["down"] = (names["down"], names["up"]), scaling
        # peft scales the whole output of the second matrix, including its bias.
        if "up_bias" in names:
            parts["up_bias"] = (names["up_bias"],), scaling
    return [
        (part, Delta(file, shapes[_parameter(target, part)], tensors, scaling))
        for part, (tensors, scaling) in parts.items()
    ]


def _scaling_of(file: TensorFile, target: str, names: Mapping[str, str], settings: Scaling) -> float:
    label = file.path.name
    shape = file.headers[names["down"]].shape
    if not shape or not shape[0]:
        raise CheckpointError(f"{label}: {names['down']} has no rows")
    rank = shape[0]
    module, _ = _split(names["down"], file.path)
    said = settings.of([_strip(module, {}), target], rank, label)
    if "alpha" not in names:
        return 1.0 if said is None else said
    if math.prod(file.headers[names["alpha"]].shape) != 1:
        raise CheckpointError(f"{label}: {names['alpha']} is not a single number")
    alpha = _finite(file.read(names["alpha"]).float().item(), names["alpha"], label)
    if said is not None and not math.isclose(said, alpha / rank, rel_tol=1e-3):
        raise CheckpointError(
            f"{label}: {names['alpha']} is {alpha:g}, and the file's settings make it {said * rank:g}; save it with one"
        )
    return alpha / rank


def read_scaling(path: Path, metadata: Mapping[str, str]) -> Scaling:
    """Reads the scaling settings from a file's metadata or the settings beside it.

    Raises:
        CheckpointError: they cannot be read, contradict each other, or ask for an unsupported method.
    """
    label = path.name
    configs = [_json(metadata[key], key, label) for key in _CONFIG_KEYS if key in metadata]
    plain = {key: metadata[key] for key in _PLAIN_KEYS if key in metadata}
    if "alpha" in plain:
        plain.setdefault("lora_alpha", plain.pop("alpha"))
    if plain:
        configs.append({key: _plain_value(value) for key, value in plain.items()})
    if (beside := _config_beside(path)) is not None:
        configs.append(read_json(beside))
    found = [_scaling_from(config, label) for config in configs]
    # The rank is not compared: settings with a key each do not include it.
    if len({(scaling.alpha, scaling.rslora, *sorted(scaling.alphas.items())) for scaling in found}) > 1:
        raise CheckpointError(f"{label}: its settings contradict each other; save it with one lora_alpha")
    return found[0] if found else Scaling()


def _scaling_from(config: Any, label: str) -> Scaling:
    """The scaling in peft's settings; diffusers prefixes each with the network's name."""
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{label}: its settings are not a JSON object")
    if any(key.startswith("transformer.") for key in config):
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
    for name, method in CONFIG_VARIANTS.items():
        if config.get(name):
            raise CheckpointError(f"{label} is {method} ({name}), which is not served; merge it into a plain LoRA")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise CheckpointError(
            f"{label} was initialised by {init[:40]}, which changes the base model too; convert it to a plain LoRA"
        )
    alpha, rank = config.get("lora_alpha"), config.get("r")
    return Scaling(
        alpha=None if alpha is None else _finite(alpha, "lora_alpha", label),
        rank=None if rank is None else int(_finite(rank, "r", label)),
        alphas=_patterns(config, "alpha_pattern", label),
        ranks=_patterns(config, "rank_pattern", label),
        rslora=_flag(config.get("use_rslora"), "use_rslora", label),
    )


def _patterns(config: Mapping[str, Any], name: str, label: str) -> dict[str, float]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{label}: {name} of its settings is not a JSON object")
    expressions = [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
    if len(patterns) > MAX_PATTERNS or len(expressions) > MAX_EXPRESSIONS:
        raise CheckpointError(
            f"{label}: {name} of its settings has {len(patterns)} patterns, {len(expressions)} of them not plain "
            f"names; at most {MAX_PATTERNS} and {MAX_EXPRESSIONS} are read"
        )
    for pattern in expressions:
        # More repetitions, or repeated groups, could take for ever to match.
        repetitions = len(_REPEATED.findall(pattern))
        if len(pattern) > MAX_EXPRESSION_CHARACTERS or repetitions > 3 or _REPEATS_GROUP.search(pattern):
            raise CheckpointError(
                f"{label}: the pattern {pattern[:MAX_EXPRESSION_CHARACTERS]!r} in its settings is too complicated; "
                f"write the layers' names into {name}"
            )
    return {pattern: _finite(value, f"{name} {pattern}", label) for pattern, value in patterns.items()}


def _finite(value: Any, name: str, label: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CheckpointError(f"{label}: {name} is {str(value)[:40]!r}, which is not a finite number")
    return number


def _flag(value: Any, name: str, label: str) -> bool:
    if not isinstance(value, bool | None):
        raise CheckpointError(f"{label}: {name} is {str(value)[:40]!r}, which is neither true nor false")
    return bool(value)


def _json(text: str, name: str, label: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{label}: {name} of its metadata is not JSON") from error


def _plain_value(text: str) -> Any:
    """A setting with its own key: a number, a flag as JSON or Python writes it, an object; otherwise the text."""
    try:
        return parse_json({"True": "true", "False": "false"}.get(text, text))
    except ValueError:
        return text


def _split(name: str, path: Path) -> tuple[str, str]:
    """A tensor's name split into its layer's name in the file and the part of the layer."""
    for marker, method in _OTHER_METHODS.items():
        if marker in name:
            raise CheckpointError(
                f"{path.name} is {method} (it holds {name}), which is not served; convert it to a plain LoRA"
            )
    if (half := _HALF.fullmatch(name)) is not None:
        part = _HALVES.get((half["half"], (half["leaf"] or ".weight").removeprefix(".")))
        if part is not None:
            return half["module"], part
    module, _, ending = name.rpartition(".")
    if module and ending in _ENDINGS:
        return module, _ENDINGS[ending]
    raise CheckpointError(f"{path.name} holds {name}, which is not a known part of a LoRA")


def _strip(module: str, underscore_names: Mapping[str, str]) -> str:
    """A layer's name in a file, converted to its name in the original transformer or diffusers."""
    for prefix in _UNDERSCORE_PREFIXES:
        if module.startswith(prefix):
            flat = module.removeprefix(prefix).lstrip("_")
            module = underscore_names.get(flat, flat)
    while found := [prefix for prefix in _PREFIXES if module.startswith(prefix)]:
        module = module.removeprefix(found[0])
    # diffusers' older names: "attn1.processor.to_out_lora.down.weight".
    module = module.replace(".processor.", ".")
    return f"{module}.0" if module.endswith(".to_out") else module


def _underscore_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Layers (with the original names and diffusers') by their names with underscores for dots."""
    num_layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    layers = [f"blocks.{index}.{layer}" for index in range(num_layers) for layer in BLOCK_LAYERS]
    layers += [*OUTER_LAYERS, *(name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))]
    return {layer.replace(".", "_"): layer for layer in layers}

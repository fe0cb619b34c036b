"""The registry of kernels: a new kernel is one entry of `CANDIDATES`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn
from torchao.float8.inference import Float8MMConfig
from torchao.quantization import Float8Tensor, PerRow
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

from infinitetalk.errors import CheckpointError
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.kernels.hub import use_hub_attention
from infinitetalk.weights.hub_kernels import AT, HUB_KERNELS, Fetched, find_kernel
from infinitetalk.weights.loading import LEAST_MAGNITUDE, Quantisation
from infinitetalk.weights.names import is_adapter_name

#: The parts of the computation with a choice: the transformer's attention and products with its weights, the VAE, and
#: everything else that the transformer's blocks do.
Part = Literal["attention", "products", "vae", "blocks"]

#: Bounds on a kernel's error beyond the published kernel's (docs/performance.md says what they are relative to): for
#: kernels that only sum in another order, for scores of attention in 8 bits, for activations in 8 bits, for a VAE in
#: bfloat16.
ROUNDING_BOUND, EIGHT_BIT_SCORES_BOUND, EIGHT_BIT_PRODUCTS_BOUND, VAE_BOUND = 0.002, 0.02, 0.04, 0.02

#: Compilers of C and of C++ that torch's compiler looks for.
COMPILERS, CPP_COMPILERS = ("cc", "gcc", "clang"), ("g++", "clang++")
#: Graphs of a compiled block: one for each number of speakers, without and with normalised attention guidance, and some
#: where two sizes that usually differ are equal.
MOST_GRAPHS = 40


@dataclass(frozen=True)
class Kernels:
    """Names of the kernels in force, one for each part; the defaults are those of the published arithmetic."""

    attention: str = "native"
    products: str = "widened"
    vae: str = "vae_float32"
    blocks: str = "eager"

    def having(self, part: Part, name: str) -> Self:
        """These, with another kernel in one part."""
        return replace(self, **{part: name})

    def __str__(self) -> str:
        """The names that are not the published ones: "sage, vae_bf16"; empty if there are none."""
        published = type(self)()
        return ", ".join(
            getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != getattr(published, field.name)
        )


PUBLISHED = Kernels()


@dataclass(frozen=True)
class Setup:
    """What kernels of a job may not go with.

    Attributes:
        quantisation: form of the weights of the transformer's blocks; None: 16 bits.
        streams_blocks: whether some blocks are streamed.
        has_loras: whether LoRAs are applied.
        num_devices: number of devices that share each evaluation.
    """

    quantisation: Quantisation | None = None
    streams_blocks: bool = False
    has_loras: bool = False
    num_devices: int = 1

    @property
    def has_loras_beside_weights(self) -> bool:
        """Whether LoRAs are computed beside quantised weights, by hooks."""
        return self.has_loras and self.quantisation is not None


@dataclass(frozen=True)
class Candidate:
    """A kernel that can be tried.

    Attributes:
        name: unique; in the setting KERNELS, the log and results. That of a kernel from the Hub has its commit after
            an @, which the setting leaves out.
        part: what it computes.
        apply: puts it in force. It is given the transformer, with any other kernel of its part in force, or the VAE as
            it was loaded, in float32. It is a function of a module, since a child process receives it.
        bound: how much larger than the published kernel's its relative error may be; None: it is the published kernel.
        package: the module that it needs beside torch, if any.
        works_split: whether it can be used when several GPUs share the tokens.
        quantisation: the form of the weights that it is for; None: any.
        is_compiled: whether a compiler makes it at its first use. It then has more time in a trial, and goes neither
            with streamed blocks nor with hooks.
        quantises_activations: whether it quantises what weights are multiplied with, which takes more memory.
        absence: why it is not there, if it is a kernel from the Hub that is not.
    """

    name: str
    part: Part
    apply: Callable[[nn.Module], None]
    bound: float | None = None
    package: str | None = None
    works_split: bool = True
    quantisation: Quantisation | None = None
    is_compiled: bool = False
    quantises_activations: bool = False
    absence: str | None = None

    @property
    def is_published(self) -> bool:
        """Whether it is the published kernel of its part."""
        return self.bound is None

    def obstacle(self, setup: Setup) -> str | None:
        """Why it cannot be used with this; None: it can."""
        if self.quantisation not in (None, setup.quantisation):
            return f"it is for weights in {self.quantisation}"
        if not self.works_split and setup.num_devices > 1:
            return "it does not work where several GPUs share an evaluation"
        if self.is_compiled and setup.streams_blocks:
            return "streamed blocks cannot be compiled"
        if self.is_compiled and setup.has_loras_beside_weights:
            return "compiled blocks would ignore LoRAs beside quantised weights"
        return None

    @property
    def lack(self) -> str | None:
        """What it lacks here; None: nothing."""
        if self.package is not None and find_spec(self.package) is None:
            return f"the package {self.package} is missing"
        return self.absence

    @property
    def is_installed(self) -> bool:
        """Whether everything that it needs is there."""
        return self.lack is None


def use_attention_backend(backend: str, transformer: nn.Module) -> None:
    """Makes the transformer's self-attention and its attention to text and image use a kernel of diffusers' dispatcher.

    Audio attention and the reference attention map name torch's own kernel and are not affected.

    Raises:
        ImportError, RuntimeError, ValueError: the kernel needs a missing package.
    """
    assert isinstance(transformer, InfiniteTalkTransformer3DModel)
    # diffusers would also make it the default of every other network in this process.
    default, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        transformer.set_attention_backend(backend)
    finally:
        _AttentionBackendRegistry.set_active_backend(default)


def widen_weights(transformer: nn.Module) -> None:
    """Makes quantised weights be widened at each use, for products in 16 bits."""
    for weight in _fp8_weights(transformer):
        weight.act_quant_kwargs = None


def quantise_activations(transformer: nn.Module) -> None:
    """Makes products with weights in fp8 products of 8-bit numbers: activations are quantised before, with a scale for
    each token. Audio attention is left out."""
    for weight in _fp8_weights(transformer):
        weight.act_quant_kwargs = QuantizeTensorToFloat8Kwargs(granularity=PerRow(), hp_value_lb=LEAST_MAGNITUDE)
        weight.mm_config = Float8MMConfig(use_fast_accum=True)


def _fp8_weights(transformer: nn.Module) -> Iterator[Float8Tensor]:
    """The weights of a transformer's blocks that are in fp8, without audio attention's."""
    for name, parameter in transformer.named_parameters():
        if isinstance(parameter, Float8Tensor) and not is_adapter_name(name):
            yield parameter


def keep_vae(vae: nn.Module) -> None:
    """Leaves the VAE in float32."""


def narrow_vae(vae: nn.Module) -> None:
    """Makes the VAE compute in bfloat16."""
    vae.to(dtype=torch.bfloat16)


def run_as_written(transformer: nn.Module) -> None:
    """Runs the transformer's blocks operation by operation."""
    for block in _blocks(transformer):
        block._compiled_call_impl = None


def compile_blocks(transformer: nn.Module, backend: str | Callable[..., object] = "inductor") -> None:
    """Compiles the transformer's blocks at their next use: the operations between products and attention become few
    kernels. All blocks share their graphs, and sizes are variables in them, so that any size of video runs by the same
    graph; another number of speakers makes another one.

    Args:
        backend: torch's compiler, or what takes its place.

    Raises:
        RuntimeError: the compiler lacks a C or C++ compiler.
    """
    blocks = _blocks(transformer)
    if backend == "inductor":
        _check_compiler(next(blocks[0].parameters()).device)
    # What was compiled for other weights or kernels would count against torch's limit on graphs of one function.
    torch.compiler.reset()
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=True, recompile_limit=MOST_GRAPHS)


def _blocks(transformer: nn.Module) -> nn.ModuleList:
    assert isinstance(transformer, InfiniteTalkTransformer3DModel)
    return transformer.blocks


def _check_compiler(device: torch.device) -> None:
    """Triton builds its launcher by a C compiler, and kernels for a CPU are C++."""
    names = COMPILERS if device.type == "cuda" else CPP_COMPILERS
    if not any(shutil.which(name) for name in names):
        raise RuntimeError(f"compiled blocks need one of the compilers {', '.join(names)}")


def _attention(
    name: str, backend: str, bound: float | None, package: str | None = None, works_split: bool = True
) -> Candidate:
    return Candidate(name, "attention", partial(use_attention_backend, backend), bound, package, works_split)


def refuse_absent(transformer: nn.Module) -> None:
    """Puts nothing in force.

    Raises:
        ImportError: always.
    """
    raise ImportError("the kernel has not been fetched")


def _from_hub(name: str, bound: float, works_split: bool = True) -> Candidate:
    absence = find_kernel((), HUB_KERNELS[name])
    assert isinstance(absence, str)
    return Candidate(name, "attention", refuse_absent, bound, works_split=works_split, absence=absence)


#: Every kernel. The first of each part is the published one; of those from the Hub, none is there (`candidates_at`).
CANDIDATES: tuple[Candidate, ...] = (
    _attention("native", "native", None),
    _attention("cudnn", "_native_cudnn", ROUNDING_BOUND),
    _attention("flash_3", "_flash_3", ROUNDING_BOUND, "flash_attn_interface", works_split=False),
    _attention("sage", "sage", EIGHT_BIT_SCORES_BOUND, "sageattention"),
    _attention("flash_2", "flash", ROUNDING_BOUND, "flash_attn"),
    _from_hub("sage_hub", EIGHT_BIT_SCORES_BOUND),
    _from_hub("flash_3_hub", ROUNDING_BOUND, works_split=False),
    _attention("torch_flash", "_native_flash", ROUNDING_BOUND),
    Candidate("widened", "products", widen_weights),
    Candidate(
        "fp8_rows",
        "products",
        quantise_activations,
        EIGHT_BIT_PRODUCTS_BOUND,
        quantisation="fp8",
        quantises_activations=True,
    ),
    Candidate("vae_float32", "vae", keep_vae),
    Candidate("vae_bf16", "vae", narrow_vae, VAE_BOUND),
    Candidate("eager", "blocks", run_as_written),
    # Last, since compiling takes the longest.
    Candidate("compiled", "blocks", compile_blocks, ROUNDING_BOUND, works_split=False, is_compiled=True),
)


def candidates_at(folders: Sequence[Path]) -> tuple[Candidate, ...]:
    """Every kernel, with those from the Hub that have been fetched into these folders.

    Raises:
        CheckpointError: one is there at several commits.
    """
    return tuple(_fetched(each, folders) if each.name in HUB_KERNELS else each for each in CANDIDATES)


def _fetched(candidate: Candidate, folders: Sequence[Path]) -> Candidate:
    found = find_kernel(folders, HUB_KERNELS[candidate.name])
    if not isinstance(found, Fetched):
        return replace(candidate, absence=found)
    return replace(candidate, name=found.name, apply=partial(use_hub_attention, found), absence=None)


def suitable(kernels: Kernels, setup: Setup) -> tuple[Kernels, dict[str, str]]:
    """These kernels where they can be used, and the published one in any other part.

    Returns:
        The kernels, and the reason for each kernel that is left out.
    """
    reasons = {}
    for name in vars(kernels).values():
        candidate = candidate_named(name)
        if (obstacle := candidate.obstacle(setup)) is not None:
            kernels = kernels.having(candidate.part, getattr(PUBLISHED, candidate.part))
            reasons[name] = obstacle
    return kernels, reasons


def candidate_named(name: str, candidates: Sequence[Candidate] = CANDIDATES) -> Candidate:
    """The candidate of this name; one of them may leave out the commit of a kernel from the Hub.

    Raises:
        CheckpointError: there is none.
    """
    for candidate in candidates:
        if name in (candidate.name, candidate.name.partition(AT)[0]) or candidate.name == name.partition(AT)[0]:
            return candidate
    raise CheckpointError(f"there is no kernel {name!r}; there are {', '.join(each.name for each in candidates)}")


def kernels_named(names: Iterable[str], candidates: Sequence[Candidate] = CANDIDATES) -> Kernels:
    """The published kernels, with those of these names in their parts.

    Raises:
        CheckpointError: a name is unknown, or of a kernel that was not fetched, or two are of one part.
    """
    kernels = PUBLISHED
    parts: dict[Part, str] = {}
    for candidate in (candidate_named(name, candidates) for name in names):
        if candidate.absence is not None:
            raise CheckpointError(f"the kernel {candidate.name!r} is not there: {candidate.absence}")
        if candidate.part in parts:
            raise CheckpointError(
                f"the kernels {parts[candidate.part]!r} and {candidate.name!r} are both for the part {candidate.part}; "
                "name one"
            )
        parts[candidate.part] = candidate.name
        kernels = kernels.having(candidate.part, candidate.name)
    return kernels


def put_in_force(name: str, module: nn.Module, folders: Sequence[Path] = ()) -> None:
    """Puts a kernel of the registry in force on the transformer, or on the VAE as it was loaded.

    Args:
        folders: of the kernels that were fetched from the Hub.

    Raises:
        CheckpointError: it is unknown, or needs a missing package or another GPU.
    """
    candidate = candidate_named(name, candidates_at(folders))
    try:
        candidate.apply(module)
    except (ImportError, OSError, AttributeError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the kernel {name!r} cannot be used here; leave it out of KERNELS, or set KERNELS=published if a trial "
            "has chosen it"
        ) from error

"""The registry of kernels: a new kernel is one entry of `CANDIDATES`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from typing import Literal, Self

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn
from torchao.float8.inference import Float8MMConfig
from torchao.quantization import Float8Tensor, PerRow
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

from infinitetalk.errors import CheckpointError
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.loading import LEAST_MAGNITUDE, Quantisation
from infinitetalk.weights.names import is_adapter_name

#: The parts of the computation with a choice: the transformer's attention and products with its weights, and the VAE.
Part = Literal["attention", "products", "vae"]

#: Bounds on a kernel's error beyond the published kernel's (docs/performance.md says what they are relative to): for
#: kernels that only sum in another order, for scores of attention in 8 bits, for activations in 8 bits, for a VAE in
#: bfloat16.
ROUNDING_BOUND, EIGHT_BIT_SCORES_BOUND, EIGHT_BIT_PRODUCTS_BOUND, VAE_BOUND = 0.002, 0.02, 0.04, 0.02


@dataclass(frozen=True)
class Kernels:
    """Names of the kernels in force, one for each part; the defaults are those of the published arithmetic."""

    attention: str = "native"
    products: str = "widened"
    vae: str = "vae_float32"

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
class Candidate:
    """A kernel that can be tried.

    Attributes:
        name: unique; in the setting KERNELS, the log and results.
        part: what it computes.
        apply: puts it in force. It is given the transformer, with any other kernel of its part in force, or the VAE as
            it was loaded, in float32. It is a function of a module, since a child process receives it.
        bound: how much larger than the published kernel's its relative error may be; None: it is the published kernel.
        package: the module that it needs beside torch, if any.
        works_split: whether it can be used when several GPUs share the tokens.
        quantisation: the form of the weights that it is for; None: any.
    """

    name: str
    part: Part
    apply: Callable[[nn.Module], None]
    bound: float | None = None
    package: str | None = None
    works_split: bool = True
    quantisation: Quantisation | None = None

    @property
    def is_published(self) -> bool:
        """Whether it is the published kernel of its part."""
        return self.bound is None

    def suits(self, quantisation: Quantisation | None) -> bool:
        """Whether it is for weights of this form."""
        return self.quantisation in (None, quantisation)

    @property
    def is_installed(self) -> bool:
        """Whether the module that it needs is there."""
        return self.package is None or find_spec(self.package) is not None


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


def _attention(
    name: str, backend: str, bound: float | None, package: str | None = None, works_split: bool = True
) -> Candidate:
    return Candidate(name, "attention", partial(use_attention_backend, backend), bound, package, works_split)


#: Every kernel. The first of each part is the published one.
CANDIDATES: tuple[Candidate, ...] = (
    _attention("native", "native", None),
    _attention("cudnn", "_native_cudnn", ROUNDING_BOUND),
    _attention("flash_3", "_flash_3", ROUNDING_BOUND, "flash_attn_interface", works_split=False),
    _attention("sage", "sage", EIGHT_BIT_SCORES_BOUND, "sageattention"),
    _attention("flash_2", "flash", ROUNDING_BOUND, "flash_attn"),
    _attention("torch_flash", "_native_flash", ROUNDING_BOUND),
    Candidate("widened", "products", widen_weights),
    Candidate("fp8_rows", "products", quantise_activations, EIGHT_BIT_PRODUCTS_BOUND, quantisation="fp8"),
    Candidate("vae_float32", "vae", keep_vae),
    Candidate("vae_bf16", "vae", narrow_vae, VAE_BOUND),
)


def suitable(kernels: Kernels, quantisation: Quantisation | None) -> Kernels:
    """These kernels where they suit weights of this form, and the published one in any other part."""
    for name in vars(kernels).values():
        candidate = candidate_named(name)
        if not candidate.suits(quantisation):
            kernels = kernels.having(candidate.part, getattr(PUBLISHED, candidate.part))
    return kernels


def candidate_named(name: str, candidates: Sequence[Candidate] = CANDIDATES) -> Candidate:
    """The candidate of this name.

    Raises:
        CheckpointError: there is none.
    """
    for candidate in candidates:
        if candidate.name == name:
            return candidate
    raise CheckpointError(f"there is no kernel {name!r}; there are {', '.join(each.name for each in candidates)}")


def kernels_named(names: Iterable[str], candidates: Sequence[Candidate] = CANDIDATES) -> Kernels:
    """The published kernels, with those of these names in their parts.

    Raises:
        CheckpointError: a name is unknown, or two are of one part.
    """
    kernels = PUBLISHED
    parts: dict[Part, str] = {}
    for candidate in (candidate_named(name, candidates) for name in names):
        if candidate.part in parts:
            raise CheckpointError(
                f"the kernels {parts[candidate.part]!r} and {candidate.name!r} are both for the part {candidate.part}; "
                "name one"
            )
        parts[candidate.part] = candidate.name
        kernels = kernels.having(candidate.part, candidate.name)
    return kernels


def put_in_force(name: str, module: nn.Module) -> None:
    """Puts a kernel of the registry in force on the transformer, or on the VAE as it was loaded.

    Raises:
        CheckpointError: it is unknown, or needs a missing package or another GPU.
    """
    candidate = candidate_named(name)
    try:
        candidate.apply(module)
    except (ImportError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the kernel {name!r} cannot be used here; leave it out of KERNELS") from error

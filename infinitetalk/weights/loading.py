"""Loads files into a network: every tensor must have a place, and no parameter may be missing.

The network is created on the meta device, where it takes no memory, and each parameter goes from the file to the device
in its final dtype. There is never a full copy in float32, and never a second copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
from torch import Tensor, nn
from torchao.quantization import Float8Tensor, Int8Tensor, PerRow

from infinitetalk.errors import CheckpointError
from infinitetalk.network.quantised import quantise_linear
from infinitetalk.weights.sources import TensorSource

Quantisation = Literal["fp8", "int8"]

#: Number of tensors that are read ahead while one goes to the device, each by a thread of its own: a network file
#: system gives a single reader a fraction of what it can.
READERS = 16
#: Names listed in a message.
_NAMES_IN_MESSAGE = 3


def check_match(shapes: Mapping[str, tuple[int, ...]], sources: Mapping[str, TensorSource], label: str) -> None:
    """Checks that files hold exactly the tensors that a network needs.

    Args:
        shapes: shape of every parameter to load.
        sources: the tensors of the files, under the network's names.
        label: name of the files in messages, if no single file is at fault.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen; the message names file and tensor.
    """
    missing = [name for name in shapes if name not in sources]
    if missing:
        raise CheckpointError(f"{label} lacks {_tensors(missing)}; fetch it again, or check that it is the right model")
    for name, source in sources.items():
        if name not in shapes:
            left_over = [name for name in sources if name not in shapes]
            raise CheckpointError(
                f"{source.file.path.name} holds {_tensors([sources[name].name for name in left_over])}, "
                "for which the network has no place"
            )
        if source.shape != shapes[name]:
            raise CheckpointError(
                f"{source.file.path.name}: tensor {source.name} has the shape {list(source.shape)}; "
                f"the network needs {list(shapes[name])}"
            )


def _tensors(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_NAMES_IN_MESSAGE])
    more = len(names) - _NAMES_IN_MESSAGE
    return f"the tensor{'s' if len(names) > 1 else ''} {listed}" + (f" and {more} more" if more > 0 else "")


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def load_parameters(
    module: nn.Module,
    sources: Mapping[str, TensorSource],
    device: torch.device,
    dtype: torch.dtype,
    float32_modules: Iterable[str] = (),
    quantise: Quantisation | None = None,
    keep_quantised: bool = False,
    home: torch.device | None = None,
) -> None:
    """Sets parameters of `module` from files, in file order.

    Args:
        module: its parameters may be on the meta device.
        sources: for each parameter to set; `check_match` has checked them.
        device: where numbers are converted and quantised, one parameter at a time.
        dtype: the parameters' dtype.
        float32_modules: parts of names, as in diffusers' `_keep_in_fp32_modules`; such parameters become float32.
        quantise: quantisation of the linear layers' weights in the network's blocks.
        keep_quantised: whether linear layers' weights that are quantised in the file stay so.
        home: the parameters' device; None: `device`. What needs no conversion goes there at once.
    """
    home = device if home is None else home
    float32_parts = set(float32_modules)
    for name, source in _in_file_order(sources):
        owner, leaf = _owner(module, name)
        wide = bool(float32_parts.intersection(name.split(".")))
        linear_weight = isinstance(owner, nn.Linear) and leaf == "weight" and not wide
        if linear_weight and keep_quantised and source.quantisation is not None:
            tensor = source.load_quantised(home, dtype)
        else:
            wanted = torch.float32 if wide else dtype
            form = quantise if linear_weight and name.startswith("blocks.") else None
            is_ready = form is None and source.quantisation is None and source.stored_dtype == wanted
            tensor = source.load(home if is_ready else device, wanted)
            if form is not None:
                tensor = quantised(tensor, form)
            tensor = tensor.to(home)
        if isinstance(tensor, GGUFParameter):
            owner = _gguf_linear(module, name, dtype)
        if isinstance(tensor, Float8Tensor | Int8Tensor):
            assert isinstance(owner, nn.Linear)
            quantise_linear(owner, tensor)
        else:
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(owner, leaf, tensor if is_parameter else nn.Parameter(tensor, requires_grad=False))


def _in_file_order(sources: Mapping[str, TensorSource]) -> Iterator[tuple[str, TensorSource]]:
    """Names and sources in file order, each yielded once it is in the page cache, while the next ones are read."""
    order = {}
    for source in sources.values():
        if source.file.path not in order:
            order[source.file.path] = {name: index for index, name in enumerate(source.file.headers)}
    files = {path: index for index, path in enumerate(sorted(order))}
    items = sorted(
        sources.items(),
        key=lambda item: (files[item[1].file.path], order[item[1].file.path][item[1].name], item[1].rows or (0, 0)),
    )
    with ThreadPoolExecutor(READERS, thread_name_prefix="prefetch") as readers:
        reads = [readers.submit(source.prefetch) for _, source in items[:READERS]]
        for index, (name, source) in enumerate(items):
            reads[index].result()
            if index + READERS < len(items):
                reads.append(readers.submit(items[index + READERS][1].prefetch))
            yield name, source


#: Lower bound of a row's largest magnitude: a row of zeros would have the scale 0, and its numbers would be 0 / 0.
LEAST_MAGNITUDE = 1e-12


def quantised(weight: Tensor, quantisation: Quantisation) -> Float8Tensor | Int8Tensor:
    """A linear layer's weight (out, in) as a torchao tensor with a scale for each row.

    The largest error of an element is 1/16 of its magnitude for fp8 (e4m3: three bits of mantissa) and 1/254 of the
    largest magnitude in its row for int8.
    """
    if quantisation == "fp8":
        return Float8Tensor.from_hp(weight, granularity=PerRow(), hp_value_lb=LEAST_MAGNITUDE)
    return Int8Tensor.from_hp(weight, granularity=PerRow())


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _gguf_linear(module: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    """The linear layer that owns a parameter, replaced by diffusers' layer that computes with GGUF's blocks."""
    path = name.rpartition(".")[0]
    linear = module.get_submodule(path)
    if isinstance(linear, GGUFLinear):
        return linear
    assert isinstance(linear, nn.Linear)
    with torch.device("meta"):
        replacement = GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype)
    replacement.bias = linear.bias
    module.set_submodule(path, replacement)
    return replacement

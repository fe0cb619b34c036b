"""Writes down every operation that is dispatched while it is entered, and follows memory on the fake device."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils.flop_counter import flop_registry

from benchmarks.rehearsal.log import Kind, Log, Operation, Place, Wait
from benchmarks.rehearsal.rates import Arithmetic, Traffic
from benchmarks.rehearsal.storages import Storages

aten = torch.ops.aten
CHECKOUT = Path(__file__).parents[2]
#: CUDA's allocator gives memory in pieces of so many bytes.
ALLOCATION_BYTES = 512

#: Operations that start no kernel.
_NO_KERNEL = frozenset(
    {
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "_reshape_alias",
            "view_as_complex",
            "view_as_real",
            "real",
            "imag",
            "_conj",
        ),
        *("expand", "t", "transpose", "permute", "unsqueeze", "squeeze", "diagonal", "unfold", "as_strided", "alias"),
        *("slice", "select", "split", "split_with_sizes", "unbind", "chunk", "narrow", "detach", "lift_fresh"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_"),
        *("device", "is_pinned", "wait_tensor"),
        # The other GPU's `send`.
        "recv_",
    }
)
_LINEAR = frozenset({"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "_scaled_mm", "_int_mm"})
_COPIES = frozenset({"cat", "clone", "copy_", "constant_pad_nd", "stack", "pixel_shuffle"})
_ELEMENTWISE = frozenset(
    {
        *("add", "sub", "mul", "div", "neg", "reciprocal", "addcmul", "lerp", "where", "clamp", "clamp_min"),
        *("pow", "sqrt", "rsqrt", "exp", "exp2", "log2", "silu", "relu", "sigmoid", "tanh"),
        *("sum", "mean", "linalg_vector_norm"),
    }
)
#: What several GPUs exchange.
_EXCHANGES = frozenset({"all_to_all_single", "allgather_", "allreduce_", "send"})
#: Results whose size is known only when they have been computed.
_SIZE_FROM_DATA = frozenset({"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"})
_SINGLE_NUMBERS = (aten._local_scalar_dense.default, aten.is_nonzero.default)


class Recorder(TorchDispatchMode):
    """Logs operations on CUDA tensors, and the memory that is allocated while it is entered.

    A number that the program reads from a tensor is made up: True, 1, or 0.05.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.storages = Storages(ALLOCATION_BYTES)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and logs it."""
        kwargs = kwargs or {}
        if any(is_traceable_wrapper_subclass(tensor) for tensor in tensors_in((args, kwargs))):
            # torchao's tensors make several operations of it, which come here one by one.
            return NotImplemented
        name = func._overloadpacket.__name__
        if func in _SINGLE_NUMBERS:
            return self._number(func, args, kwargs)
        if func is aten._pin_memory.default:
            func, args, kwargs = aten.clone.default, args[:1], {}
        out = func(*args, **kwargs)
        if str(func).startswith("prim"):
            return out
        given, made = tensors_in((args, kwargs)), tensors_in(out)
        devices = {tensor.device.type for tensor in given + made} - {"meta"}
        if "cuda" in devices:
            place, library = places()
            self._note_waits(name, args, kwargs, devices, given, place)
            if name not in _NO_KERNEL:
                self.log.operations.append(operation(func, name, args, kwargs, out, place, library))
            self._follow(given, made, f"{name} {place}")
        return out

    def _number(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | int | float:
        tensor = args[0]
        if tensor.device.type == "cuda":
            place, _ = places()
            self.log.waits[Wait("number to the CPU", place.file, place.function)] += 1
        elif not isinstance(tensor, FakeTensor):
            return func(*args, **kwargs)
        try:
            # Numbers that were made in the CPU's memory are known even to fake tensors.
            return func(*args, **kwargs)
        except DataDependentOutputException:
            if tensor.dtype == torch.bool:
                return True
            return 0.05 if tensor.is_floating_point() else 1

    def _note_waits(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        devices: set[str],
        given: list[Tensor],
        place: Place,
    ) -> None:
        if name in ("_to_copy", "copy_"):
            if len(devices) > 1 and not kwargs.get("non_blocking", False):
                source = args[1] if name == "copy_" else args[0]
                target = "CPU" if source.device.type == "cuda" else "GPU"
                self.log.waits[Wait(f"tensor to the {target}", place.file, place.function)] += 1
            return
        if name in _SIZE_FROM_DATA:
            self.log.waits[Wait("size from the GPU", place.file, place.function)] += 1
        # A single number may come from the CPU's memory: it becomes an argument of the kernel.
        elsewhere = [tensor for tensor in given if tensor.device.type == "cpu" and tensor.dim() > 0]
        if elsewhere and any(tensor.device.type == "cuda" for tensor in given):
            self.log.mixed.append(f"{name} {place}")

    def _follow(self, given: list[Tensor], made: list[Tensor], what: str) -> None:
        known = {tensor.untyped_storage()._cdata for tensor in given if isinstance(tensor, FakeTensor)}
        for tensor in made:
            if tensor.device.type != "cuda" or not isinstance(tensor, FakeTensor):
                continue
            if self.storages.count(tensor.untyped_storage(), known):
                self.log.peak_bytes, self.log.peak_place = self.storages.peak_bytes, what


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in an operation's arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, dict):
        return tensors_in(list(value.values()))
    return []


def places() -> tuple[Place, Place]:
    """The project's line that asked for the operation, and the innermost line that is not torch's."""
    frame: FrameType | None = sys._getframe(1)
    own_folder = str(CHECKOUT / "infinitetalk")
    library: Place | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(own_folder):
            file = str(Path(code.co_filename).relative_to(CHECKOUT))
            own = Place(file, code.co_qualname, frame.f_lineno)
            return own, library or own
        _, is_library, file = code.co_filename.partition("/site-packages/")
        if library is None and is_library and not file.startswith("torch/"):
            library = Place(file, code.co_qualname, frame.f_lineno)
        frame = frame.f_back
    unknown = library or Place("?", "?", 0)
    return unknown, unknown


def footprint(tensor: Tensor) -> int:
    """Bytes that a kernel has to touch: those of dimensions without a stride once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = math.prod(size if stride else min(size, 1) for size, stride in sizes)
    return count * tensor.element_size()


def operation(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, place: Place, library: Place
) -> Operation:
    """What one call did."""
    given, made = tensors_in((args, kwargs)), tensors_in(out)
    return Operation(
        name=name,
        kind=kind_of(name, place),
        arithmetic=arithmetic_of(name, given),
        traffic=traffic_of(name, given, made),
        flop=flop_of(func._overloadpacket, name, args, kwargs, out),
        bytes=bytes_of(name, args, kwargs, given, made),
        place=place,
        library=library,
    )


def flop_of(packet: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    """Floating-point operations of a product, by torch's own counter where it has one."""
    if name == "_scaled_dot_product_cudnn_attention":
        query, key, value = args[:3]
        return 2.0 * math.prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3])
    if name == "_int_mm":
        return 2.0 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    return 0.0


def bytes_of(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor], made: list[Tensor]
) -> float:
    """Bytes read and written, or sent to other GPUs."""
    if name == "all_to_all_single":
        gpus = len(args[1])
        return footprint(args[0]) * (1 - 1 / gpus)
    if name in _EXCHANGES:
        return float(sum(footprint(tensor) for tensor in given))
    if name in ("fill_", "zero_"):
        return float(footprint(args[0]))
    read = sum(footprint(tensor) for tensor in given)
    if name == "copy_":
        return float(read)
    if name.endswith("_"):
        return float(read + footprint(args[0]))
    written = sum(footprint(tensor) for tensor in made if tensor.device.type == "cuda")
    # What is written to a given tensor is among the given ones too.
    return float(read + written - sum(footprint(tensor) for tensor in tensors_in(kwargs.get("out"))))


def arithmetic_of(name: str, given: list[Tensor]) -> Arithmetic:
    """How a product is computed, with torch's defaults: convolutions in float32 take TF32, linear layers do not."""
    if name in ("_scaled_mm", "_int_mm"):
        return "fp8"
    dtype = next((tensor.dtype for tensor in given if tensor.is_floating_point()), torch.float32)
    if dtype in (torch.bfloat16, torch.float16):
        return "attention" if "attention" in name else "bf16"
    return "tf32" if "convolution" in name else "float32"


def traffic_of(name: str, given: list[Tensor], made: list[Tensor]) -> Traffic:
    """How a kernel walks through memory; numbers and small vectors beside a large tensor do not count."""
    if name in _EXCHANGES:
        return "link"
    if "norm" in name or name in ("mean", "sum", "var_mean", "aminmax"):
        return "norm"
    if name in _LINEAR or "attention" in name or "convolution" in name:
        return "plain"
    largest = max((tensor.numel() for tensor in given + made), default=0)
    sizes = {tensor.element_size() for tensor in given + made if tensor.numel() == largest}
    if name in ("_to_copy", "copy_"):
        read, written = given[-1].element_size(), made[0].element_size()
        return "widening" if read < written else "plain"
    dtypes = {tensor.dtype for tensor in given + made if tensor.dim() > 0 and tensor.is_floating_point()}
    return "mixed" if len(dtypes) > 1 or len(sizes) > 1 else "plain"


def kind_of(name: str, place: Place) -> Kind:
    """What an operation is a part of."""
    if name in _EXCHANGES:
        return "exchange"
    if "attention" in name:
        return _kind_of_attention(place)
    if "convolution" in name:
        return "convolution"
    if place.function in ("rotate_pairs", "rotary_embedding"):
        return "rotary"
    # Colours are turned by small matrices, which bytes bound.
    if name in _LINEAR and not place.file.endswith("color.py"):
        return "linear"
    if name == "linalg_vector_norm" or name.rstrip("_") in _ELEMENTWISE or name in _LINEAR:
        return "elementwise"
    if "norm" in name:
        return "norms"
    if name == "gelu":
        return "gelu"
    if name == "_to_copy":
        return "casts"
    return "copies" if name in _COPIES else "others"


def _kind_of_attention(place: Place) -> Kind:
    if place.file.endswith("regions.py"):
        return "reference map"
    if place.file.endswith("audio_attention.py"):
        return "audio attention"
    if place.function.startswith("CrossAttnProcessor"):
        return "cross-attention"
    return "self-attention" if place.function.startswith("SelfAttnProcessor") else "other attention"

"""An evaluation with compiled blocks: what the compiler makes of a block of the true sizes, without computing it.

Torch's compiler lowers one block, on fake tensors of the CPU, as far as its list of kernels: which operations it fuses,
and how many bytes each kernel reads and writes after that, by its own count. Then compiling ends: no code is written.
Products and attention stay the libraries' kernels; attention is the one that a GPU has. What is outside blocks is not
compiled.
"""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import torch
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.scheduler import BaseSchedulerNode, ExternKernelSchedulerNode, NopKernelSchedulerNode, Scheduler

from benchmarks.rehearsal import parts
from benchmarks.rehearsal.kernels import attention_of_cuda
from benchmarks.rehearsal.log import Kind, Log, Operation, Place
from benchmarks.rehearsal.networks import evaluation_inputs, make_transformer
from benchmarks.rehearsal.rates import Arithmetic
from benchmarks.rehearsal.stage import Stage
from infinitetalk.family import INFINITETALK
from infinitetalk.runtime.memory import Workload

CPU = torch.device("cpu")
#: The operation that stands for the reference attention map, and the function in which its own operations are.
REFERENCE_MAP, REFERENCE_MAP_FUNCTION = "reference_attention_map", "_sliced_map"


class _LoweredError(BaseException):
    """Ends compiling once the kernels are known; torch would wrap an `Exception`."""

    def __init__(self, kernels: list[Operation]) -> None:
        super().__init__()
        self.kernels = kernels


def evaluation(stage: Stage, workload: Workload, speakers: int = 1) -> Log:
    """One evaluation of the published transformer with compiled blocks; its memory is not known."""
    outside = parts.evaluation(stage, workload, speakers, make_transformer(stage.mode, 0))
    block = block_kernels(stage, workload, speakers)
    return Log([*outside.operations, *block * INFINITETALK.model_sizes.num_blocks])


def block_kernels(stage: Stage, workload: Workload, speakers: int = 1) -> list[Operation]:
    """The kernels of one compiled block."""
    network = make_transformer(stage.mode, 1, CPU)
    given = evaluation_inputs(stage.mode, workload.height, workload.width, workload.num_frames, speakers, CPU)
    block, calls = network.blocks[0], []
    with block.register_forward_pre_hook(lambda _, arguments: calls.append(arguments)):
        stage.record(lambda: network(**given, return_dict=False))
    # The compiler does not look into it.
    eager = parts.evaluation(stage, workload, speakers, make_transformer(stage.mode, 1)) if speakers > 1 else Log()
    reference_map = [each for each in eager.operations if each.place.function == REFERENCE_MAP_FUNCTION]
    torch._dynamo.reset()
    try:
        with (
            stage.mode,
            torch.no_grad(),
            attention_of_cuda(stage.kernel),
            patch.object(Scheduler, "codegen", _stop),
            inductor_config.patch(force_disable_caches=True),
        ):
            torch.compile(block, fullgraph=True, dynamic=False)(*calls[0])
    except _LoweredError as lowered:
        kernels = [each for each in lowered.kernels if each.name != REFERENCE_MAP]
        return kernels + reference_map
    finally:
        torch._dynamo.reset()
    raise AssertionError("the block was compiled without a list of kernels")


def _stop(scheduler: Scheduler) -> None:
    raise _LoweredError([kernel for node in scheduler.nodes if (kernel := _kernel(node)) is not None])


def _kernel(node: BaseSchedulerNode) -> Operation | None:
    """What a node of the compiler's schedule does; None for one that starts no kernel."""
    if isinstance(node, NopKernelSchedulerNode):
        return None
    # The count of `GraphLowering.count_bytes`.
    num_bytes = float(node.get_read_write_buffers_sizes())
    if isinstance(node, ExternKernelSchedulerNode):
        return None if isinstance(node.node, ir.MultiOutput) else _library_kernel(node, num_bytes)
    origins = sorted({str(origin) for part in node.get_nodes() for origin in part.node.origins})
    place = Place("compiled", ", ".join(origins), 0)
    kind: Kind = "norms" if node.is_reduction() else "gelu" if "tanh" in origins else "elementwise"
    traffic = "norm" if node.is_reduction() else "plain"
    return Operation("fused", kind, "float32", traffic, 0.0, num_bytes, place, place)


def _library_kernel(node: ExternKernelSchedulerNode, num_bytes: float) -> Operation:
    """A product or an attention."""
    call: Any = node.node
    # "extern_kernels.addmm", "torch.ops.aten.….default"
    words = call.python_kernel_name.split(".")
    name = words[3] if words[:2] == ["torch", "ops"] else words[-1]
    shapes = [[int(size) for size in given.get_size()] for given in call.inputs]
    dtype, flop = call.inputs[0].get_dtype(), 0.0
    kind: Kind = "others"
    if "attention" in name and name != REFERENCE_MAP:
        query, key, value = shapes[:3]
        kind = _kind_of_attention(query, key)
        flop = 2.0 * math.prod(query[:3]) * key[2] * (query[3] + value[3])
    elif name in ("mm", "addmm"):
        kind = "linear"
        (rows, inner), (_, columns) = shapes[-2:]
        flop = 2.0 * rows * inner * columns
    is_half = dtype in (torch.bfloat16, torch.float16)
    arithmetic: Arithmetic = "float32" if not is_half else "attention" if "attention" in name else "bf16"
    place = Place("compiled", str(shapes), 0)
    return Operation(name, kind, arithmetic, "plain", flop, num_bytes, place, place)


def _kind_of_attention(query: list[int], key: list[int]) -> Kind:
    """By shapes (batch, heads, tokens, width): audio attention has a batch of latent frames."""
    if query[0] > 1:
        return "audio attention"
    return "self-attention" if query[2] == key[2] else "cross-attention"

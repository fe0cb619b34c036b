"""Seconds and memory of one evaluation of the transformer, as the worker runs it."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.networks import (
    Shape,
    evaluation_operations,
    evaluation_size,
    inputs,
    make_transformer,
    shape_of,
    working_dtype,
)
from benchmarks.gpu.rows import Figure, Group, Row, allocated_gib, device, memory_figure, release, seconds, timed
from infinitetalk.family import INFINITETALK
from infinitetalk.network.quantised import quantise_linear
from infinitetalk.network.teacache import TeaCache
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.lora import LoraStack, ScaledLora
from infinitetalk.runtime.memory import TOKEN_CHANNEL_BYTES
from infinitetalk.weights.loading import quantised

LORA_RANK = 32


@dataclass
class Evaluations:
    """The transformer, and the rate of a large matrix product.

    Attributes:
        rate: operations per second of a large product, once measured.
    """

    shape: Shape
    transformer: InfiniteTalkTransformer3DModel
    rate: float = float("nan")


def prepare(small: bool) -> Evaluations:
    """The 14B network."""
    return Evaluations(shape_of(small), make_transformer(shape_of(small)))


def rates(state: Evaluations) -> Iterator[Figure]:
    """The GPU's rates of products and copies, to which the other rows are compared."""
    side = state.shape.side
    left, right = (torch.randn(side, side, device=device(), dtype=working_dtype()) for _ in range(2))
    state.rate = 2 * side**3 / timed(lambda: left @ right, 10)
    yield Figure(f"product of {side}x{side} matrices, {working_dtype()}", state.rate / 1e12, "TFLOP/s")
    source = torch.empty(16 * side * side, dtype=torch.float32, device=device())
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / timed(lambda: target.copy_(source), 5)
    yield Figure("copy on the device, bytes read and written", rate / 1e12, "TB/s")
    if device().type == "cuda":
        narrow = [part.to(torch.float8_e4m3fn) for part in (left, right.T.contiguous())]
        scale = torch.ones(side, 1, device=device())
        product = partial(
            torch._scaled_mm, narrow[0], narrow[1].T, scale, scale.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        yield Figure(
            f"product of {side}x{side} matrices, fp8 by rows", 2 * side**3 / timed(product, 10) / 1e12, "TFLOP/s"
        )


def evaluation(
    state: Evaluations, what: str, size: tuple[int, int, int], speakers: int = 1, repeats: int = 2
) -> Iterator[Figure]:
    """Seconds of one evaluation, against the lower bound, and its memory."""
    given = inputs(size, working_dtype(), speakers)
    release()
    before = allocated_gib()
    took = timed(lambda: state.transformer(**given), repeats)
    tokens = evaluation_size(size).tokens
    floor = evaluation_operations(state.transformer, tokens) / state.rate
    name = f"one evaluation, {what}, {speakers} speaker{'s' if speakers > 1 else ''}"
    yield Figure(name, took, "s", f"{tokens:,} tokens; {took / floor:.3f} of its floor, {floor:.3f} s")
    dim = state.transformer.config.num_attention_heads * state.transformer.config.attention_head_dim
    estimate = tokens * dim * TOKEN_CHANNEL_BYTES / 2**30
    yield memory_figure(f"{name}: memory beside weights", before, f"estimated {estimate:.2f}")


def at_each_size(state: Evaluations) -> Iterator[Figure]:
    """One speaker, at each size; the largest is timed once."""
    for name, size in state.shape.sizes.items():
        yield from evaluation(state, name, size, repeats=1 if size[1] > 100 else 2)


def two_speakers(state: Evaluations) -> Iterator[Figure]:
    """With the reference attention map."""
    yield from evaluation(state, next(iter(state.shape.sizes)), state.shape.chunk, speakers=2)


def kernels(state: Evaluations) -> Iterator[Figure]:
    """An evaluation's time by kernel."""
    given = inputs(state.shape.chunk, working_dtype())
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        seconds(lambda: state.transformer(**given))
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    table = [
        [event.key[:160], event.count, round(event.self_device_time_total / 1e6, 5)]
        for event in events
        if event.self_device_time_total > 0 and event.device_type != torch.autograd.DeviceType.CPU
    ]
    total = sum(line[2] for line in table)
    yield Figure("kernels of one evaluation", total, "s", f"{sum(line[1] for line in table)} kernels", table[:60])


def attention_backends(state: Evaluations) -> Iterator[Figure]:
    """One evaluation with each available attention kernel of diffusers."""
    given = inputs(state.shape.chunk, working_dtype())
    for backend in ("_native_cudnn", "_native_flash", "_flash_3", "sage"):
        try:
            state.transformer.set_attention_backend(backend)
            took = timed(lambda: state.transformer(**given), 1)
        except (ImportError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0][:160]
            yield Figure(f"one evaluation, attention by {backend}", None, detail=reason)
            continue
        yield Figure(f"one evaluation, attention by {backend}", took)
    state.transformer.set_attention_backend("native")


def skipped(state: Evaluations) -> Iterator[Figure]:
    """An evaluation that TeaCache skips, and the memory of its residual."""
    given = inputs(state.shape.chunk, working_dtype())
    cache = TeaCache(INFINITETALK.sizes["infinitetalk-480"].teacache_polynomial, threshold=1e9)
    for _ in range(6):
        took = seconds(lambda: state.transformer(**given, cache=cache))
    yield Figure("an evaluation that TeaCache skips", took, "s", f"{cache.skipped} of 6 skipped")


def lora(state: Evaluations) -> Iterator[Figure]:
    """A LoRA of rank 32 for every linear layer of the blocks, read from a file and added."""
    tensors = {}
    for index, block in enumerate(state.transformer.blocks):
        dim, ffn_dim = block.ffn.net[2].weight.shape
        layers = {f"{part}.{layer}": (dim, dim) for part in ("self_attn", "cross_attn") for layer in "qkvo"}
        layers |= {"ffn.0": (ffn_dim, dim), "ffn.2": (dim, ffn_dim)}
        for layer, (rows, columns) in layers.items():
            name = f"diffusion_model.blocks.{index}.{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.full((LORA_RANK, columns), 1e-4, dtype=torch.bfloat16)
            tensors[f"{name}.lora_up.weight"] = torch.full((rows, LORA_RANK), 1e-4, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(tensors, path)
        stack = LoraStack(state.transformer, state.transformer.get_parameter)
        took = seconds(lambda: stack.apply((ScaledLora(path, 1.0),), device()))
    yield Figure("a LoRA of rank 32 laid on every block", took, "s", f"{len(tensors) // 2} layers")


def weight_only(state: Evaluations) -> Iterator[Figure]:
    """One evaluation with fp8 weights that are widened at each use. Must be the last row: the network stays in fp8."""
    given = inputs(state.shape.chunk, working_dtype())

    def quantise() -> None:
        for module in state.transformer.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                quantise_linear(module, quantised(module.weight.data, "fp8"))

    yield Figure("quantising the blocks' weights to fp8 on the device", seconds(quantise))
    release()
    weights = torch.cuda.memory_allocated() / 2**30 if device().type == "cuda" else None
    yield Figure("weights of the transformer in fp8", weights, "GiB")
    yield Figure("one evaluation, fp8 weights widened at each use", timed(lambda: state.transformer(**given), 2))


GROUP = Group(
    "evaluations",
    prepare,
    (
        Row("rates", rates),
        Row("sizes", at_each_size),
        Row("two speakers", two_speakers),
        Row("kernels", kernels),
        Row("attention backends", attention_backends),
        Row("TeaCache", skipped),
        Row("LoRA", lora),
        Row("fp8 weights", weight_only),
    ),
)

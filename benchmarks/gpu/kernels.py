"""Single kernels on the shapes of a block: seconds, and error against float32 on the same GPU."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.networks import Shape, evaluation_size, inputs, make_transformer, shape_of, working_dtype
from benchmarks.gpu.rows import Figure, Group, Row, device, relative_error, timed
from infinitetalk.network.audio_attention import rotate_pairs
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel, add_product, modulated_norm

HEADS, HEAD_DIM = 40, 128


@dataclass
class Kernels:
    """One block and the tokens of a chunk."""

    shape: Shape
    transformer: InfiniteTalkTransformer3DModel
    tokens: int


def prepare(small: bool) -> Kernels:
    """A network of one block."""
    shape = shape_of(small)
    return Kernels(shape, make_transformer(shape, num_layers=1), evaluation_size(shape.chunk).tokens)


def attention_error(found: Tensor, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The error of the first 256 queries against float32; tensors are (1, heads, tokens, head_dim)."""
    scores = query[:, :, :256].float() @ key.float().mT / math.sqrt(query.shape[-1])
    expected = scores.softmax(-1) @ value.float()
    return f"relative error {relative_error(found[:, :, :256], expected):.2e}"


def attention(state: Kernels) -> Iterator[Figure]:
    """Self-attention of a chunk with each kernel."""
    # Keys that resemble some queries more than others, as in a trained network.
    query, key, value = (
        torch.randn(1, HEADS, state.tokens, HEAD_DIM, device=device(), dtype=working_dtype()) for _ in range(3)
    )
    key = 0.5 * key + 0.5 * query.roll(17, dims=2)
    operations = 4 * state.tokens**2 * HEADS * HEAD_DIM
    candidates: dict[str, Callable[[], Tensor]] = {}

    def by(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    candidates["torch's choice"] = lambda: F.scaled_dot_product_attention(query, key, value)
    candidates["cuDNN"] = lambda: by(SDPBackend.CUDNN_ATTENTION)
    candidates["flash 2"] = lambda: by(SDPBackend.FLASH_ATTENTION)

    def sage() -> Tensor:
        from sageattention import sageattn

        return sageattn(query, key, value, tensor_layout="HND")

    def flash_4() -> Tensor:
        from flash_attn.cute import flash_attn_func

        # Its inputs and output are (1, tokens, heads, head_dim).
        return flash_attn_func(*(part.transpose(1, 2) for part in (query, key, value)))[0].transpose(1, 2)

    candidates["sage 1 (int8 scores, Triton)"] = sage
    candidates["flash 4"] = flash_4
    for name, run in candidates.items():
        try:
            took = timed(run, 3)
            detail = f"{operations / took / 1e12:.0f} TFLOP/s, {attention_error(run(), query, key, value)}"
            yield Figure(f"self-attention of {state.tokens:,} tokens, {name}", took, "s", detail)
        except Exception as error:  # Kernels are independent: any error is the kernel's result.
            reason = f"{type(error).__name__}: {str(error).strip()[:300]}"
            yield Figure(f"self-attention of {state.tokens:,} tokens, {name}", None, detail=reason)


def products(state: Kernels) -> Iterator[Figure]:
    """The feed-forward layer's first product, in bf16, and in fp8 with its activations quantised first."""
    weight = state.transformer.blocks[0].ffn.net[0].proj.weight
    hidden_states = torch.randn(state.tokens, weight.shape[1], device=device(), dtype=working_dtype())
    operations = 2 * state.tokens * weight.numel()
    took = timed(lambda: F.linear(hidden_states, weight), 5)
    yield Figure("ffn.0, bf16", took, "s", f"{operations / took / 1e12:.0f} TFLOP/s")
    if device().type != "cuda":
        return

    def quantise(tensor: Tensor) -> tuple[Tensor, Tensor]:
        scale = (tensor.abs().amax(dim=1, keepdim=True).float() / 448).clamp(min=1e-12)
        return (tensor.float() / scale).to(torch.float8_e4m3fn), scale

    narrow_weight, weight_scale = quantise(weight)
    fused = torch.compile(quantise)
    narrow, scale = fused(hidden_states)
    yield Figure("quantising its activations by rows, compiled", timed(lambda: fused(hidden_states), 5))

    def multiply() -> Tensor:
        return torch._scaled_mm(
            narrow, narrow_weight.T, scale, weight_scale.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    took = timed(multiply, 5)
    expected = hidden_states.float() @ weight.float().T
    detail = f"{operations / took / 1e12:.0f} TFLOP/s, relative error {relative_error(multiply(), expected):.2e}"
    yield Figure("ffn.0, fp8 by rows, quantised before", took, "s", detail)


def elementwise(state: Kernels) -> Iterator[Figure]:
    """Variants of a block's operations between its products; each runs 80 times in an evaluation."""
    dim = state.transformer.config.num_attention_heads * state.transformer.config.attention_head_dim
    hidden_states, factor = (torch.randn(1, state.tokens, dim, device=device(), dtype=working_dtype()) for _ in "ab")
    shift, scale = (torch.randn(1, 1, dim, device=device()) for _ in "ab")
    norm = torch.nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
    rotary_emb = torch.randn(1, state.tokens, 1, HEAD_DIM // 2, 2, device=device())
    heads = hidden_states.unflatten(2, (-1, HEAD_DIM))
    compiled = torch.compile

    def gate_in_mixed_dtypes() -> Tensor:
        return torch.addcmul(hidden_states, factor, scale, out=torch.empty_like(factor))

    def gate_in_float32() -> Tensor:
        return torch.addcmul(hidden_states.float(), factor.float(), scale).type_as(hidden_states)

    def norm_in_float32() -> Tensor:
        weight, bias = 1 + scale.flatten(), shift.flatten()
        return F.layer_norm(hidden_states.float(), (dim,), weight, bias, 1e-6).type_as(hidden_states)

    forms: dict[str, Callable[[], object]] = {
        "gate, in one dtype": lambda: add_product(hidden_states, factor, scale),
        "gate, mixed dtypes": gate_in_mixed_dtypes,
        "gate, in float32": gate_in_float32,
        "gate, compiled": partial(compiled(gate_in_float32)),
        "norm with modulation as its weights, in one dtype": lambda: modulated_norm(norm, hidden_states, shift, scale),
        "norm with modulation as its weights": norm_in_float32,
        "norm and modulation, compiled": partial(compiled(modulated_norm), norm, hidden_states, shift, scale),
        "rotary, complex": lambda: rotate_pairs(heads, rotary_emb),
        "rotary, compiled": partial(compiled(rotate_pairs), heads, rotary_emb),
    }
    for name, form in forms.items():
        took = timed(form, 10)
        yield Figure(f"{name}, {state.tokens:,} tokens", took * 1e3, "ms", f"of {hidden_states.nbytes / 1e6:.0f} MB")


def block_error(state: Kernels) -> Iterator[Figure]:
    """A block in the worker's dtype, against the same block in float32 without TF32: one and two speakers."""
    for speakers in (1, 2):
        given = inputs(state.shape.chunk, working_dtype(), speakers)
        narrow = state.transformer(**given).sample
        wide = make_transformer(state.shape, num_layers=1).float()
        for name, parameter in wide.named_parameters():
            parameter.data = state.transformer.get_parameter(name).data.float()
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        widened = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
        expected = wide(**widened).sample
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        difference = (narrow.float() - expected).abs()
        largest = expected.abs().max()
        detail = f"most {difference.max():.2e}, mean {difference.mean():.2e} of values up to {largest:.2f}"
        yield Figure(
            f"a network of one block, {working_dtype()} against float32, {speakers} speaker(s)",
            relative_error(narrow, expected),
            "relative error",
            detail,
        )


GROUP = Group(
    "kernels",
    prepare,
    (
        Row("attention", attention),
        Row("products", products),
        Row("elementwise", elementwise),
        Row("error", block_error),
    ),
)

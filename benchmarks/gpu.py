"""The published network's shape on a GPU, random weights: `python -m benchmarks.gpu`.

Seconds of one evaluation against the floor that follows from the machine's own measured matrix rate, for the attention
kernels that are there, with regional compilation, and with fp8 products; and the VAE's decoding of a chunk. A variant
that the machine does not have is UNMEASURED, with the reason. On a CPU it runs at a small size, to test itself.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from benchmarks.evaluation import EvaluationSize, make_inputs
from benchmarks.measure import NO_GPU, Goal, Measurement, as_table, machine, seconds_of
from infinitetalk.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.vae import decode_latents

#: 81 frames of the square bucket of each table.
BUCKETS = {"480": (80, 80), "720": (120, 120)}
LATENT_FRAMES = 21
#: Names of diffusers' attention dispatcher: PyTorch's choice, cuDNN, flash 2 and 3, sage.
BACKENDS = ("native", "_native_cudnn", "flash", "_flash_3", "sage")


@dataclass(frozen=True)
class Shape:
    """What is measured; the defaults are the published sizes.

    Attributes:
        config: of the transformer's constructor.
        buckets: latent (height, width) by name.
        latent_frames: of a chunk.
        product_side: of the square matrices whose product gives the matrix rate.
    """

    config: dict[str, int] = field(default_factory=dict)
    buckets: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(BUCKETS))
    latent_frames: int = LATENT_FRAMES
    product_side: int = 8192


SMALL = Shape(
    config={"num_attention_heads": 2, "num_layers": 2, "ffn_dim": 512, "added_kv_proj_dim": 256},
    buckets={"small": (8, 8)},
    latent_frames=3,
    product_side=256,
)


def timed(function: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Median seconds of a function, the device's queue included, after one call that is not counted."""

    def run() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    return statistics.median(seconds_of(run) for _ in range(repeats))


def matrix_rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a product of square matrices."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: left @ right, device)


def evaluation_operations(transformer: InfiniteTalkTransformer3DModel, tokens: int) -> int:
    """Operations of one evaluation that cannot be spared: products of the blocks' weights, self-attention.

    Weights that see text, picture and speech alone are left aside: they add under one part in a hundred.
    """
    elsewhere = ("attn2.to_k", "attn2.to_v", "attn2.add_k", "attn2.add_v", "kv_linear")
    products = sum(
        module.weight.numel()
        for name, module in transformer.blocks.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in elsewhere)
    )
    config = transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    return 2 * products * tokens + 4 * tokens**2 * dim * config.num_layers


def make_transformer(shape: Shape, device: torch.device, dtype: torch.dtype) -> InfiniteTalkTransformer3DModel:
    """Random weights on the device, in their running dtypes."""
    with torch.device(device):
        transformer = InfiniteTalkTransformer3DModel(**shape.config).eval()
    wide = tuple(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if not any(part in name for part in wide):
            parameter.data = parameter.data.to(dtype)
    return transformer


@dataclass
class Variants:
    """One bucket's evaluation in its variants.

    Attributes:
        rows: measured so far.
    """

    transformer: InfiniteTalkTransformer3DModel
    given: dict[str, Tensor]
    floor_s: float
    name: str
    device: torch.device
    rows: list[Measurement] = field(default_factory=list)

    def add(self, variant: str, goal: Goal, prepare: Callable[[], object]) -> None:
        """Measures the evaluation as it is after `prepare`; what the machine lacks is a row without a figure."""
        what = f"one evaluation, {self.name}, {variant}"
        try:
            prepare()
            with torch.no_grad():
                seconds = timed(lambda: self.transformer(**self.given), self.device)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            reason = str(error).strip().partition("\n")[0][:80]
            self.rows.append(Measurement(what, "the floor", goal, None, reason))
            return
        detail = f"{seconds:.3g} s / {self.floor_s:.3g} s"
        self.rows.append(Measurement(what, "the floor", goal, seconds / self.floor_s, detail))


def use_fp8(transformer: InfiniteTalkTransformer3DModel) -> None:
    """Products of the blocks' linear layers in fp8, scaled row by row, by torchao."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    if not torch.cuda.is_available():
        raise RuntimeError(NO_GPU)
    quantize_(transformer.blocks, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))


def variants_of(
    transformer: InfiniteTalkTransformer3DModel, name: str, shape: Shape, rate: float, device: torch.device
) -> Variants:
    """One bucket, nothing measured yet; `rate` in operations a second."""
    height, width = shape.buckets[name]
    size = EvaluationSize(latent_frames=shape.latent_frames, height=height, width=width)
    given = {
        key: value.to(device, torch.float32 if key == "timestep" else transformer.dtype)
        for key, value in make_inputs(size).items()
    }
    floor_s = evaluation_operations(transformer, size.tokens) / rate
    return Variants(transformer, given, floor_s, f"{name}, {size.tokens:,} tokens", device)


def measure_vae(shape: Shape, vae: AutoencoderKLWan, device: torch.device) -> list[Measurement]:
    """The decoding of one chunk of each bucket."""
    rows = []
    for name, (height, width) in shape.buckets.items():
        latents = torch.randn(1, 16, shape.latent_frames, height, width, device=device)
        seconds = timed(lambda latents=latents: decode_latents(vae, latents), device)
        rows.append(Measurement(f"decoding of a chunk, {name}", "3 s", Goal(3, unit=" s"), seconds, str(vae.dtype)))
    return rows


def measure(shape: Shape, vae: AutoencoderKLWan, device: torch.device, with_compile: bool) -> list[Measurement]:
    """All rows."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    transformer = make_transformer(shape, device, dtype)
    rate = matrix_rate(shape.product_side, device, dtype)
    rows = []
    for name in shape.buckets:
        variants = variants_of(transformer, name, shape, rate, device)
        for backend in BACKENDS:
            variants.add(backend, Goal(1.25), lambda backend=backend: transformer.set_attention_backend(backend))
        rows += variants.rows
    transformer.set_attention_backend("native")
    rows += measure_vae(shape, vae.to(device), device)
    # These stay: the last to be measured, on one bucket.
    changed = variants_of(transformer, next(iter(shape.buckets)), shape, rate, device)
    if with_compile:
        changed.add("blocks compiled", Goal(1.25), transformer.compile_repeated_blocks)
    changed.add("fp8 products", Goal(0.75), lambda: use_fp8(transformer))
    return rows + changed.rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure the published shape.")
    parser.add_argument("--compile", action="store_true", help="also with the blocks compiled, which takes minutes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    on_gpu = torch.cuda.is_available()
    device, shape = torch.device("cuda" if on_gpu else "cpu"), Shape() if on_gpu else SMALL
    vae = AutoencoderKLWan() if on_gpu else AutoencoderKLWan(base_dim=8, num_res_blocks=1)
    rows = measure(shape, vae, device, options.compile)
    if not on_gpu:
        print("No GPU here: a small network ran on the CPU, whose figures say nothing of a GPU.\n")
        rows = [replace(row, value=None, detail=NO_GPU if row.value is not None else row.detail) for row in rows]
    print(f"{machine()}\n\n{as_table(row.cells() for row in rows)}")


if __name__ == "__main__":
    main()

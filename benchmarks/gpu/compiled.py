"""One evaluation with compiled blocks, and with products in fp8, which are only faster when compiled."""

from collections.abc import Iterator

from benchmarks.gpu.evaluations import Evaluations
from benchmarks.gpu.networks import inputs, make_transformer, shape_of, working_dtype
from benchmarks.gpu.rows import Figure, Group, Row, allocated_gib, device, memory_figure, release, seconds, timed
from infinitetalk.runtime.kernels.registry import compile_blocks


def prepare(small: bool) -> Evaluations:
    """The 14B network; its blocks are compiled at the first call."""
    state = Evaluations(shape_of(small), make_transformer(shape_of(small)))
    compile_blocks(state.transformer)
    return state


def one_speaker(state: Evaluations) -> Iterator[Figure]:
    """bf16."""
    yield from compiled(state, "bf16", 1)


def fewer_frames(state: Evaluations) -> Iterator[Figure]:
    """The size of a few-step recipe: the same graph."""
    (_, _), (name, size), *_ = state.shape.sizes.items()
    given = inputs(size, working_dtype())
    yield Figure(f"compiling, {name}", seconds(lambda: state.transformer(**given)))
    yield Figure(f"one evaluation, blocks compiled, {name}", timed(lambda: state.transformer(**given), 2))


def two_speakers(state: Evaluations) -> Iterator[Figure]:
    """With the reference attention map."""
    yield from compiled(state, "bf16", 2)


def fp8(state: Evaluations) -> Iterator[Figure]:
    """Weights and activations in fp8, with a scale for each row."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    if device().type != "cuda":
        yield Figure("one evaluation, blocks compiled, fp8 products", None, detail="no GPU here")
        return
    quantize_(state.transformer.blocks, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    release()
    yield from compiled(state, "fp8 products", 1)


def compiled(state: Evaluations, what: str, speakers: int) -> Iterator[Figure]:
    """Seconds to compile, and seconds of an evaluation afterwards."""
    given = inputs(state.shape.chunk, working_dtype(), speakers)
    before = allocated_gib()
    name = f"blocks compiled, {what}, {speakers} speaker{'s' if speakers > 1 else ''}"
    yield Figure(f"compiling, {what}, {speakers} speaker(s)", seconds(lambda: state.transformer(**given)))
    yield Figure(f"one evaluation, {name}", timed(lambda: state.transformer(**given), 2))
    yield memory_figure(f"{name}: memory beside weights", before)


GROUP = Group(
    "compiled",
    prepare,
    (
        Row("one speaker", one_speaker),
        Row("fp8", fp8),
        Row("33 frames", fewer_frames),
        Row("two speakers", two_speakers),
    ),
)

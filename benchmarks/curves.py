"""A video's cost in seconds and memory by frames, tokens, speakers, steps: `python -m benchmarks.curves FILE`.

Everything is measured on a CPU at a small size: the shape of the curves counts, not their height. The plot shows each
curve's expected order, drawn through its last point. Memory is the process's peak minus its use before.
"""

import argparse
import ctypes
import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch

from benchmarks.conditioning import Clip
from benchmarks.evaluation import EvaluationSize, make_inputs, make_transformer
from benchmarks.measure import machine, peak_memory_bytes, processor_seconds_of
from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.generation.pipeline import InfiniteTalkPipeline
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models

SIZE = EvaluationSize(dim=256, num_layers=2, latent_frames=5, height=24, width=32)
HEIGHTS = (24, 48, 96, 144)
SPEAKERS = (1, 2, 3, 4)
STEPS = (1, 2, 4, 8)
FRAMES = (81, 513, 1017, 2025)
#: Factor on the published resolutions: 640×640 becomes 32×32.
FRAME_SCALE = 0.05


@dataclass(frozen=True)
class Curve:
    """The cost along one axis.

    Attributes:
        cause: name of the axis.
        values: values on the axis.
        seconds, megabytes: the cost at each value.
        seconds_order, megabytes_order: the expected growth, a name in `ORDERS`.
    """

    cause: str
    values: Sequence[int]
    seconds: Sequence[float]
    megabytes: Sequence[float]
    seconds_order: str
    megabytes_order: str


#: Expected orders by name, as functions of the cause relative to its last value.
ORDERS: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: share,
    "linear to quadratic": lambda share: (share + share**2) / 2,
    "constant plus linear": lambda share: (1 + share) / 2,
}


def cost(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one core for a function, and its peak memory in megabytes beyond the current use."""
    gc.collect()
    # Return memory that earlier calls have freed to the system; reused, it would hide this call's need.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    # This makes Linux reset the process's peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory_bytes()
    seconds = processor_seconds_of(function)
    return seconds, (peak_memory_bytes() - before) / 1e6


def curve(cause: str, values: Sequence[int], run: Callable[[int], Callable[[], object]], *orders: str) -> Curve:
    """Measures the function that `run` returns for each value, once after an uncounted call."""
    run(values[0])()
    costs = [cost(run(value)) for value in values]
    seconds_order, megabytes_order = orders
    return Curve(cause, values, [one for one, _ in costs], [two for _, two in costs], seconds_order, megabytes_order)


def evaluate(
    transformer: InfiniteTalkTransformer3DModel, height: int, speakers: int, times: int = 1
) -> Callable[[], object]:
    """Evaluations at a given height, with speakers in columns."""
    size = replace(SIZE, height=height)
    given = make_inputs(size, speakers)
    if speakers > 1:
        regions = torch.zeros(speakers + 1, size.height, size.width, dtype=torch.bool)
        for speaker, columns in enumerate(torch.arange(size.width).tensor_split(speakers)):
            regions[speaker, :, columns] = True
        given["regions"] = regions

    @torch.no_grad()
    def run() -> None:
        for _ in range(times):
            transformer(**given)

    return run


def stream(pipeline: InfiniteTalkPipeline, num_frames: int) -> Callable[[], object]:
    """A streaming job of `num_frames` frames that drops each chunk at once."""
    settings = GenerationSettings(
        max_frame_num=num_frames, num_inference_steps=1, text_guide_scale=1.0, audio_guide_scale=1.0
    )
    speech = SpeechEmbeddings.from_tensor(torch.zeros(num_frames, 12, 32))

    def run() -> None:
        for _ in pipeline(Clip(is_video=False), [speech], "A woman talks", settings):
            pass

    return run


def measure() -> list[Curve]:
    """All curves."""
    transformer = make_transformer(SIZE)
    networks = Models(ensure_tiny_model(), torch.device("cpu")).prepare(NetworkChoice(torch.float32))
    pipeline = InfiniteTalkPipeline(replace(networks, size_scale=FRAME_SCALE))
    tokens = [replace(SIZE, height=height).tokens for height in HEIGHTS]
    heights = dict(zip(tokens, HEIGHTS, strict=True))
    height = HEIGHTS[1]
    return [
        curve("frames of a video", FRAMES, lambda value: stream(pipeline, value), "linear", "constant"),
        curve(
            "tokens", tokens, lambda value: evaluate(transformer, heights[value], 1), "linear to quadratic", "linear"
        ),
        curve(
            "speakers", SPEAKERS, lambda value: evaluate(transformer, height, value), "constant plus linear", "constant"
        ),
        curve("steps", STEPS, lambda value: evaluate(transformer, height, 1, value), "linear", "constant"),
    ]


def draw(curves: Sequence[Curve], title: str, file: Path) -> None:
    """Draws one image with a column for each cause, seconds above, megabytes below."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(curves), figsize=(3.2 * len(curves), 5.6), layout="constrained")
    for column, one in enumerate(curves):
        rows = (
            (one.seconds, one.seconds_order, "seconds of one core"),
            (one.megabytes, one.megabytes_order, "MB at most"),
        )
        for row, (measured, order, unit) in enumerate(rows):
            axis = axes[row, column]
            axis.plot(one.values, measured, "o-", label="measured")
            expected = [measured[-1] * ORDERS[order](value / one.values[-1]) for value in one.values]
            axis.plot(one.values, expected, "--", color="grey", label=order)
            axis.set(xlabel=one.cause, ylabel=unit if column == 0 else "", ylim=(0, 1.15 * max(*measured, *expected)))
            axis.legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.savefig(file)


def main() -> None:
    """Draw the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description="Plot what a video costs.")
    parser.add_argument("file", type=Path, help="the image to write, .svg or .png")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    curves = measure()
    for one in curves:
        print(one.cause, list(one.values), [f"{s:.2f} s" for s in one.seconds], [f"{m:.0f} MB" for m in one.megabytes])
    draw(curves, machine(), options.file)


if __name__ == "__main__":
    main()

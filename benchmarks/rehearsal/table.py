"""Makes the worker's table of seconds (infinitetalk/worker/engine/rehearsed.json) from the rehearsal's logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict

import numpy as np

from benchmarks.rehearsal import parts
from benchmarks.rehearsal.log import Log
from benchmarks.rehearsal.networks import make_transformer
from benchmarks.rehearsal.rates import CARDS, STREAM_WAIT_S, Card, Rates
from benchmarks.rehearsal.stage import Stage
from infinitetalk.family import INFINITETALK
from infinitetalk.runtime.memory import Workload
from infinitetalk.worker.engine import rehearsed
from infinitetalk.worker.engine.rehearsed import FrameSeconds, TokenSeconds, VaeSeconds

#: Sizes through which the curve over tokens goes.
TOKEN_SIZES = (parts.SHORT, parts.SMALL, parts.LARGE)
#: The VAE's curves go through these sizes and numbers of latent frames. After two latent frames, whose convolutions
#: have fewer frames before them, each further one is the same work.
_PIXEL_SIZES = ((640, 640), (704, 1280))
_FEW, _MORE = 4, 6
#: Blocks of the network with weights in 8 bits: all are alike.
_BLOCKS = 2
SPEECH_S = 10


class Logs:
    """The parts of which the table is made, each rehearsed when it is first asked for."""

    def __init__(self, stage: Stage, note: Callable[[str], None] = lambda name: None) -> None:
        self.stage = stage
        self._note = note
        self._logs: dict[str, Log] = {}

    def _get(self, name: str, run: Callable[[], Log]) -> Log:
        if name not in self._logs:
            self._note(name)
            self._logs[name] = run()
        return self._logs[name]

    def evaluation(self, workload: Workload, speakers: int = 1) -> Log:
        """One evaluation."""
        name = f"{parts.EVALUATION}, {parts.label(workload)}, speakers: {speakers}"
        return self._get(name, lambda: parts.evaluation(self.stage, workload, speakers))

    def two_blocks(self, in_8_bits: bool) -> Log:
        """One evaluation of two blocks, with weights in 16 or 8 bits."""
        if in_8_bits:
            run = lambda: parts.weight_only_evaluation(self.stage, parts.SMALL, "fp8", _BLOCKS)  # noqa: E731
        else:
            run = lambda: parts.evaluation(  # noqa: E731
                self.stage, parts.SMALL, transformer=make_transformer(self.stage.mode, _BLOCKS)
            )
        return self._get(f"two blocks, {'8' if in_8_bits else '16'} bits", run)

    def vae(self, part: str, workload: Workload) -> Log:
        """A pass of the VAE, `parts.DECODE` or `parts.ENCODE`."""
        run = parts.vae_decode if part == parts.DECODE else parts.vae_encode
        return self._get(f"{part}, {parts.label(workload)}", lambda: run(self.stage, workload))

    def frames(self, workload: Workload) -> tuple[Log, Log]:
        """Colours of a chunk, and its way to the CPU."""
        label = parts.label(workload)
        return (
            self._get(f"{parts.COLOURS}, {label}", lambda: parts.colours(self.stage, workload)),
            self._get(f"{parts.FRAMES}, {label}", lambda: parts.frames_out(self.stage, workload)),
        )

    def encoder(self, part: str) -> Log:
        """One of `parts.JOB_PARTS`."""
        return self._get(part, lambda: parts.JOB_PARTS[part](self.stage))


def token_seconds(seconds: Iterable[tuple[int, float]]) -> TokenSeconds:
    """The curve a + b·n + c·n² through three points (n, seconds)."""
    tokens, values = np.array(list(seconds), dtype=np.float64).T
    scale = tokens.max()
    squared, single, fixed = np.polyfit(tokens / scale, values, 2)
    return TokenSeconds(
        fixed=float(fixed), per_token=float(single / scale), per_token_squared=float(squared / scale**2)
    )


def evaluation_curve(logs: Logs, rates: Rates, speakers: int) -> TokenSeconds:
    """Seconds of an evaluation, through `TOKEN_SIZES`."""
    return token_seconds((size.num_tokens, logs.evaluation(size, speakers).seconds(rates)) for size in TOKEN_SIZES)


def difference(one: TokenSeconds, other: TokenSeconds) -> TokenSeconds:
    """The first curve less the second."""
    return TokenSeconds(
        one.fixed - other.fixed,
        one.per_token - other.per_token,
        one.per_token_squared - other.per_token_squared,
    )


def frame_seconds(points: Iterable[tuple[int, float]], kernels: float, rates: Rates) -> FrameSeconds:
    """The line through two points (pixels, seconds of the GPU), and what the CPU takes to start the kernels."""
    (few, seconds_few), (many, seconds_many) = points
    slope = (seconds_many - seconds_few) / (many - few)
    return FrameSeconds(cpu=kernels * rates.dispatch_s, fixed=seconds_few - slope * few, per_pixel=slope)


def gpu_seconds(log: Log, rates: Rates) -> float:
    """A part's seconds as if the CPU started its kernels in no time."""
    return sum(operation.seconds(rates) for operation in log.operations)


def vae_curve(logs: Logs, part: str, rates: Rates) -> VaeSeconds:
    """Seconds of a pass of the VAE."""
    first, further = [], []
    for height, width in _PIXEL_SIZES:
        few, more = (logs.vae(part, latents(count, height, width)) for count in (_FEW, _MORE))
        step = (gpu_seconds(more, rates) - gpu_seconds(few, rates)) / (_MORE - _FEW)
        further.append((height * width, step))
        first.append((height * width, gpu_seconds(few, rates) - (_FEW - 1) * step))
        kernels = (len(more.operations) - len(few.operations)) / (_MORE - _FEW)
        kernels_of_first = len(few.operations) - (_FEW - 1) * kernels
    return VaeSeconds(
        first=frame_seconds(first, max(kernels_of_first, 0.0), rates), further=frame_seconds(further, kernels, rates)
    )


def latents(count: int, height: int, width: int) -> Workload:
    """A chunk of so many latent frames."""
    return Workload((count - 1) * INFINITETALK.vae_scale_factor_temporal + 1, height, width)


def colours_curve(logs: Logs, rates: Rates) -> FrameSeconds:
    """Seconds of a frame's colours and its way to the CPU."""
    points, kernels = [], 0.0
    for height, width in _PIXEL_SIZES:
        workload = Workload(parts.FEW_FRAMES, height, width)
        found = logs.frames(workload)
        points.append((height * width, sum(gpu_seconds(log, rates) for log in found) / workload.num_frames))
        kernels = sum(len(log.operations) for log in found) / workload.num_frames
    return frame_seconds(points, kernels, rates)


def table_row(logs: Logs, card: Card) -> rehearsed.Card:
    """A card's row at typical rates."""
    rates = card.typical
    one, two = (evaluation_curve(logs, rates, speakers) for speakers in (1, 2))
    widening = logs.two_blocks(True).seconds(rates) - logs.two_blocks(False).seconds(rates)
    return rehearsed.Card(
        name=card.name,
        device_names=card.device_names,
        capability=card.capability,
        multiprocessors=card.multiprocessors,
        evaluation=one,
        further_speaker=difference(two, one),
        widening=widening / _BLOCKS * INFINITETALK.model_sizes.num_blocks,
        host_bytes_per_s=card.host_bytes_per_s,
        link_bytes_per_s=rates.link,
        stream_wait=STREAM_WAIT_S,
        decode=vae_curve(logs, parts.DECODE, rates),
        encode=vae_curve(logs, parts.ENCODE, rates),
        colours=colours_curve(logs, rates),
        prompt=logs.encoder(parts.TEXT).seconds(rates),
        image=logs.encoder(parts.IMAGE).seconds(rates),
        speech=logs.encoder(parts.AUDIO).seconds(rates) / SPEECH_S,
    )


def table_text(logs: Logs) -> str:
    """The content of the worker's table: one row for each card."""
    rows = [asdict(table_row(logs, card)) for card in CARDS.values()]
    return json.dumps([rounded(row) for row in rows], indent=1) + "\n"


def rounded(value: object) -> object:
    """Numbers with six digits, so that the last bits of a sum change nothing."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value

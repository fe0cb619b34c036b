"""Breaks the worker on purpose, in five ways, and says what the measures of quality make of it.

python -m examples.tiny.breakages
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from examples.tiny.jobs import ExampleMaker, TalkerWorker
from examples.tiny.measure import best_lag, border_change, correlation, psnr_outside_mouths, read_openings
from infinitetalk import pipeline
from infinitetalk.chunks import ChunkPlan, plan_chunks
from infinitetalk.sampling import ChunkConditions
from infinitetalk.speech import VIDEO_FPS

SHIFT_FRAMES = 2
STREAMING_SECONDS = 10.0


@contextmanager
def shifted_audio() -> Iterator[None]:
    """Every frame hears what belongs two frames later."""
    window_rows = pipeline.window_rows

    def shifted(plan: ChunkPlan, num_rows: int) -> Tensor:
        return (window_rows(plan, num_rows) + SHIFT_FRAMES).clamp(max=num_rows - 1)

    with patch.object(pipeline, "window_rows", shifted):
        yield


@contextmanager
def swapped_speakers() -> Iterator[None]:
    """The speakers' voices change places."""
    with _changed_conditions(lambda conditions: replace(conditions, audio_windows=conditions.audio_windows.flip(0))):
        yield


@contextmanager
def ignored_masks() -> Iterator[None]:
    """Every speaker is everywhere."""

    def everywhere(conditions: ChunkConditions) -> ChunkConditions:
        assert conditions.regions is not None
        return replace(conditions, regions=torch.ones_like(conditions.regions))

    with _changed_conditions(everywhere):
        yield


@contextmanager
def dropped_motion_frames() -> Iterator[None]:
    """Every chunk begins from the portrait alone."""
    with _changed_conditions(
        lambda conditions: replace(conditions, motion_latents=conditions.condition[:, pipeline.MASK_CHANNELS :, :1])
    ):
        yield


@contextmanager
def _changed_conditions(change: Callable[[ChunkConditions], ChunkConditions]) -> Iterator[None]:
    sample_chunk = pipeline.sample_chunk

    def changed(transformer: Any, noise: Tensor, conditions: ChunkConditions, *more: Any) -> Any:
        return sample_chunk(transformer, noise, change(conditions), *more)

    with patch.object(pipeline, "sample_chunk", changed):
        yield


def one_speaker(worker: TalkerWorker, maker: ExampleMaker, numbers: Sequence[int]) -> str:
    """Correlation and lag."""
    found = []
    for number in numbers:
        example = maker.make(number)
        opening, rule = read_openings(worker.frames(example))[0, 1:], example.rules[0].opening[1:]
        found.append((correlation(opening, rule), best_lag(opening, rule)))
    return f"correlation {median(c for c, _ in found):.3f}, best lag {median(lag for _, lag in found):g}"


def two_speakers(worker: TalkerWorker, maker: ExampleMaker, numbers: Sequence[int]) -> str:
    """Own voice, the other's."""
    own, other = [], []
    for number in numbers:
        example = maker.make(number, num_people=2)
        openings = read_openings(worker.frames(example), 2)[:, 1:]
        rules = [rule.opening[1:] for rule in example.rules]
        own += [correlation(openings[0], rules[0]), correlation(openings[1], rules[1])]
        other += [correlation(openings[0], rules[1]), correlation(openings[1], rules[0])]
    return f"own voice {median(own):.3f}, the other's {median(other):.3f}"


def streaming(worker: TalkerWorker, maker: ExampleMaker, numbers: Sequence[int], **parameters: Any) -> str:
    """Borders, and the picture at the end."""
    borders, psnrs, colours = [], [], []
    for number in numbers:
        example = maker.make(200 + number, seconds=STREAMING_SECONDS)
        frames = worker.frames(example, **parameters)
        plans = plan_chunks([len(frames)], 81, len(frames), 9)
        borders.append(border_change(frames, [plan.start + plan.num_motion_frames for plan in plans[1:]]))
        psnrs.append(psnr_outside_mouths(frames[:1], frames[-VIDEO_FPS:]))
        means = frames.astype(np.float64).mean(axis=(1, 2))
        colours.append(float(np.abs(means[-VIDEO_FPS:].mean(axis=0) - means[0]).max()))
    return (
        f"border {median(borders):.2f}, last second against the portrait {median(psnrs):.1f} dB, "
        f"mean colour off by {median(colours):.2f}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=3)
    numbers = range(parser.parse_args().clips)
    with tempfile.TemporaryDirectory() as folder:
        worker, maker = TalkerWorker(Path(folder)), ExampleMaker(Path(folder))
        print("| broken | measured whole | measured broken |\n|---|---|---|", flush=True)
        for name, breakage, measure in (
            ("audio two frames early", shifted_audio, one_speaker),
            ("speakers swapped", swapped_speakers, two_speakers),
            ("masks ignored", ignored_masks, two_speakers),
            ("motion frames dropped", dropped_motion_frames, streaming),
        ):
            whole = measure(worker, maker, numbers)
            with breakage():
                print(f"| {name} | {whole} | {measure(worker, maker, numbers)} |", flush=True)
        whole = streaming(worker, maker, numbers)
        broken = streaming(worker, maker, numbers, color_correction_strength=0.0)
        print(f"| colour correction off | {whole} | {broken} |", flush=True)


if __name__ == "__main__":
    main()

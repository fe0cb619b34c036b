"""The cost of a video before it is made: evaluations of the network, and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infinitetalk.family import Family
from infinitetalk.generation.sampling import GenerationSettings, make_sampler
from infinitetalk.runtime.memory import Workload

ASSUMED_FLOP_PER_S = 400e12
"""The rate of a GPU until it has been measured, as assumed in docs/deploy.md."""


@dataclass(frozen=True)
class VideoCost:
    """The cost of a video.

    Attributes:
        width, height: size of the video in pixels.
        num_frames, num_chunks: length of the video.
        evaluations: number of network evaluations; TeaCache may save some.
        memory_mode: name of the memory mode.
        seconds: time of generating; None if nothing is known.
        is_measured: whether the time is based on this worker's own measurements.
    """

    width: int
    height: int
    num_frames: int
    num_chunks: int
    evaluations: int
    memory_mode: str
    seconds: float | None
    is_measured: bool


class Speed:
    """This worker's time for a floating-point operation of the network.

    Args:
        assumed_flop_per_s: the rate until it has been measured; None if there is nothing to assume.
    """

    def __init__(self, assumed_flop_per_s: float | None) -> None:
        self._seconds_per_flop = None if assumed_flop_per_s is None else 1 / assumed_flop_per_s
        self.is_measured = False

    def record(self, seconds: float, evaluations: int, workload: Workload) -> None:
        """Computes the speed from the time of a chunk."""
        self._seconds_per_flop = seconds / (max(evaluations, 1) * workload.family.evaluation_flop(workload.num_tokens))
        self.is_measured = True

    def seconds(self, evaluations: int, workload: Workload) -> float | None:
        """The time of a number of evaluations; None if the speed is unknown."""
        if self._seconds_per_flop is None:
            return None
        return self._seconds_per_flop * evaluations * workload.family.evaluation_flop(workload.num_tokens)


def video_cost(scenes: Sequence[GenerationSettings], workload: Workload, memory_mode: str, speed: Speed) -> VideoCost:
    """The cost of a video.

    Args:
        scenes: the settings of each scene.
        workload: the workload of a chunk.
        memory_mode: name of the job's memory mode.
        speed: this worker's speed.
    """
    num_chunks = [number_of_chunks(settings, workload.family) for settings in scenes]
    evaluations = sum(
        chunks * make_sampler(settings, workload.family).num_evaluations
        for chunks, settings in zip(num_chunks, scenes, strict=True)
    )
    return VideoCost(
        width=workload.width,
        height=workload.height,
        num_frames=sum(settings.max_frame_num for settings in scenes),
        num_chunks=sum(num_chunks),
        evaluations=evaluations,
        memory_mode=memory_mode,
        seconds=speed.seconds(evaluations, workload),
        is_measured=speed.is_measured,
    )


def number_of_chunks(settings: GenerationSettings, family: Family) -> int:
    """The number of chunks of a scene of `settings.max_frame_num` frames."""
    return settings.grid(family).num_chunks(settings.max_frame_num)

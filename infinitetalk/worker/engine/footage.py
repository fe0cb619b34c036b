"""Reads a source video's own frames for one chunk after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from infinitetalk.errors import MediaError
from infinitetalk.generation.chunks import ChunkPlan
from infinitetalk.media.decode import Picture, even_frames
from infinitetalk.media.sizes import resize_and_crop
from infinitetalk.worker.engine.scenes import FilmView, Scene, chunk_grid, view_of
from infinitetalk.worker.traffic.fetch import Media, naming
from schemas import SingleJob


def chunk_starts(job: SingleJob, scenes: Sequence[Scene]) -> list[int]:
    """The first frame of each chunk of a video, ascending."""
    return [scene.start + plan.start for scene in scenes for plan in chunk_grid(job).plans(scene.num_frames)]


class VideoReader(ABC):
    """Reads cond_video's frames in order, in a child process from the first frame that is asked for to the end of the
    `with` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # With an error the child is ended; without one, it has written all that was asked for.
        with naming("cond_video"):
            self._stack.__exit__(error_type, error, traceback)

    @cached_property
    def _frames(self) -> Iterator[np.ndarray]:
        return self._stack.enter_context(self._open())

    @abstractmethod
    def _open(self) -> AbstractContextManager[Iterator[np.ndarray]]:
        """Starts the child."""


class FootageReader(VideoReader):
    """Reads a source video's frames at 25 a second, or what is generated of them, in the size of the generated video.

    The chunks must be read in order, from any of them on. Each frame is decoded once: the reader goes on where the last
    chunk ended, and keeps the frames of a chunk that the next one needs too.

    Args:
        source: the video.
        film: the part of it that is generated; None: all of it.
        resolution: height and width of the generated video.
        starts: the first frame of each chunk, ascending.
        chunk_frames: number of frames of a chunk.
        should_stop: is asked for each frame, and while one is waited for.
    """

    def __init__(
        self,
        source: Media,
        film: FilmView | None,
        resolution: tuple[int, int],
        starts: Sequence[int],
        chunk_frames: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._source = source
        self._film = film
        self._resolution = resolution
        self._starts = starts
        self._chunk_frames = chunk_frames
        self._should_stop = should_stop
        super().__init__()
        self._first = 0
        self._last: np.ndarray | None = None
        self._kept: dict[int, Tensor] = {}

    def _open(self) -> AbstractContextManager[Iterator[np.ndarray]]:
        count = self._starts[-1] + self._chunk_frames - self._first
        return even_frames(self._source.path, self._first, count, self._should_stop)

    def chunk(self, scene: Scene, plan: ChunkPlan) -> Iterator[Tensor]:
        """All frames of a chunk of a scene: uint8 (3, height, width) each, the last one repeated where the video has
        ended.

        Raises:
            WorkerError: the source cannot be decoded.
            GenerationStopped: `should_stop` returned true.
        """
        begin = scene.start + plan.start
        later = self._starts[bisect_right(self._starts, begin) :]
        if self._last is None:
            self._first = begin
        for number in range(begin, begin + plan.num_frames):
            frame = self._kept.pop(number) if number in self._kept else self._read(number)
            if later and number >= later[0]:
                self._kept[number] = frame
            yield frame

    def _read(self, number: int) -> Tensor:
        """The next frame of the video, which is frame `number`."""
        with naming("cond_video"):
            self._last = next(self._frames, self._last)
            if self._last is None:
                raise MediaError("The video has no frame that can be decoded: export it again as H.264 MP4")
        picture = Picture(torch.from_numpy(self._last).permute(2, 0, 1))
        return resize_and_crop(view_of(picture, self._film, number).frame_at(0.0), *self._resolution)

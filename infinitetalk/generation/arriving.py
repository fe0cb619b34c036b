"""Decoded frames on their way from the thread that decodes a chunk to the one that finishes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from torch import Tensor

from infinitetalk.runtime.streams import Moment, moment


class DecodingEndedError(Exception):
    """A chunk's frames will not all come: the thread that decodes them has failed, and raises the reason."""


class ArrivingFrames:
    """A chunk's decoded frames, in groups in their order. One thread puts them in, another takes them out, once.

    Frames are float32 (1, 3, n, height, width) in [-1, 1].
    """

    def __init__(self) -> None:
        self._groups: SimpleQueue[tuple[Tensor, Moment] | bool] = SimpleQueue()

    def put(self, frames: Tensor) -> None:
        """Adds the next frames. What the device has been given to do so far makes them."""
        self._groups.put((frames, moment(frames.device)))

    def end(self, are_all: bool) -> None:
        """Says that no more frames come; `are_all`: these were all."""
        self._groups.put(are_all)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Says at the end of the inside that no more frames come; these were all unless it ends by an exception."""
        are_all = False
        try:
            yield
            are_all = True
        finally:
            self.end(are_all)

    def __iter__(self) -> Iterator[tuple[Tensor, Moment]]:
        """The groups, each with the point in the device's work from which on it is there; waits for the next one.

        Raises:
            DecodingEndedError: not all frames have come.
        """
        while not isinstance(group := self._groups.get(), bool):
            yield group
        if not group:
            raise DecodingEndedError

"""A job's video while it is made: a playlist beside the outputs that grows by a segment a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import uuid4

import numpy as np

from infinitetalk.media.hls import PLAYLIST_TYPE, SEGMENT_TYPE, SegmentWriter, playlist
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.stores.base import CHECK_S, ObjectStore


class EncodedPart(Protocol):
    """A chunk of the video as an encoded file."""

    @property
    def path(self) -> Path:
        """The file."""


class Preview:
    """No preview: what a job has that asks for none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def begin(self, waveform: np.ndarray) -> None:
        """Takes the sound of the whole video, float32 (samples,) at 16 kHz, before the first part."""

    def publish(self, parts: Sequence[EncodedPart], is_complete: bool = False) -> None:
        """Publishes the parts that are new.

        Args:
            parts: all that have been made.
            is_complete: whether no other one follows.

        Raises:
            EncodeError: a segment could not be written.
        """


class HlsPreview(Preview):
    """Publishes a video's chunks as they end; what it has published goes with a job that does not end well.

    Its files have names of their own: another worker may hold the same job, or may have finished it. What a lost worker
    has published goes once the job has ended without a video (`JobStates.close`).

    A store that does not take the preview costs no job: what is missing goes out with the next chunk.

    Args:
        objects: beside which the job's outputs go.
        name: of the job's files; the preview's lie in {name}.preview/.
        longest: the most video frames that a chunk has.
        folder: for the segments.
        on_address: told the playlist's field of `schemas.Progress` and its value, once it is there.
    """

    def __init__(
        self,
        objects: ObjectStore,
        name: str,
        longest: int,
        folder: Path,
        on_address: Callable[[str, str], None],
        logger: Any,
    ) -> None:
        self._objects = objects
        self._prefix = f"{preview_folder(name)}{uuid4().hex[:12]}"
        self._playlist = f"{self._prefix}-index.m3u8"
        self._writer: SegmentWriter | None = None
        self._longest = longest
        self._folder = folder
        self._on_address = on_address
        self._logger = logger
        self._lengths: list[int] = []
        self._addresses: list[str] = []

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._remove()

    def begin(self, waveform: np.ndarray) -> None:
        self._writer = SegmentWriter(waveform)

    def publish(self, parts: Sequence[EncodedPart], is_complete: bool = False) -> None:
        if not parts:
            return
        assert self._writer is not None
        for index in range(len(self._lengths), len(parts)):
            self._lengths.append(self._writer.write(parts[index].path, self._folder / segment_file(index)))
        try:
            for index in range(len(self._addresses), len(parts)):
                data = (self._folder / segment_file(index)).read_bytes()
                name = self._segment(index)
                address = self._put(name, data, SEGMENT_TYPE)
                # A presigned address holds for its object alone; else the playlist's neighbours are enough.
                self._addresses.append(address if "?" in address else name.rpartition("/")[2])
            text = playlist(self._addresses, self._lengths, self._longest, is_complete)
            address = self._put(self._playlist, text.encode(), PLAYLIST_TYPE)
        except WorkerError as error:
            self._logger.warning("preview.not_published", details={"message": error.message})
            return
        self._on_address(f"preview_{self._objects.address_kind}", address)

    def _put(self, name: str, data: bytes, content_type: str) -> str:
        """Stores a small object; returns its address."""
        with self._objects.within(CHECK_S):
            self._objects.put(name, data, content_type)
            return self._objects.url(name).text

    def _remove(self) -> None:
        # One more than is known of: it may be there although the store's answer was lost.
        names = [self._segment(index) for index in range(min(len(self._addresses) + 1, len(self._lengths)))]
        if not names:
            return
        try:
            self._objects.delete([self._playlist, *names])
        except WorkerError as error:
            self._logger.warning("preview.not_removed", details={"message": error.message})

    def _segment(self, index: int) -> str:
        return f"{self._prefix}-{segment_file(index)}"


def segment_file(index: int) -> str:
    """Name of a chunk's segment, counted from 0."""
    return f"segment-{index:05d}.ts"


def preview_folder(name: str) -> str:
    """Begins the names of a preview's objects."""
    return f"{name}.preview/"


def remove_lost_preview(objects: ObjectStore, name: str, logger: Any) -> None:
    """Removes what was published of a video that has not been made, by whichever worker.

    It stays in a store that a job names: the listing of such a store may be endless.

    Args:
        objects: of the job's outputs.
        name: of the job's files.
    """
    try:
        if objects.is_own and objects.head(f"{name}.mp4") is None:
            objects.delete(found.name for found in objects.list(preview_folder(name)))
    except WorkerError as error:
        logger.warning("preview.not_removed", details={"message": error.message})

"""A preview of a job's video: a playlist beside the outputs that grows by one segment per chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import uuid4

import numpy as np

from infinitetalk.media.hls import PLAYLIST_TYPE, SEGMENT_TYPE, SegmentWriter, playlist
from infinitetalk.media.provenance import Mark
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.stores.base import CHECK_S, ObjectStore


class EncodedPart(Protocol):
    """A chunk of the video as an encoded file."""

    @property
    def path(self) -> Path:
        """The file."""


class Preview:
    """The preview of a job that asks for none: publishes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def begin(self, waveform: np.ndarray, mark: Mark | None) -> None:
        """Takes the sound of the whole video, float32 (samples,) at 16 kHz, and its mark, if it has one; called before
        the first part."""

    def publish(self, parts: Sequence[EncodedPart], is_complete: bool = False) -> None:
        """Publishes the new parts.

        Args:
            parts: all parts made so far.
            is_complete: whether these are all parts of the video.

        Raises:
            EncodeError: a segment could not be written.
        """


class HlsPreview(Preview):
    """Publishes a video's chunks as they are made; removes them if the job fails.

    Its files have unique names: another worker may hold the same job or may have finished it. The files of a lost
    worker are removed when the job ends without a video (`JobStates.close`).

    A job does not fail because its store refuses the preview: missing segments are published with the next chunk.

    Args:
        objects: the store of the job's outputs.
        name: name of the job's files; the preview's files are in {name}.preview/.
        longest: largest number of video frames of a chunk.
        folder: folder for the segments.
        on_address: takes the playlist's field in `schemas.Progress` and its value once the playlist is stored.
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

    def begin(self, waveform: np.ndarray, mark: Mark | None) -> None:
        self._writer = SegmentWriter(waveform, mark)

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
                # A presigned address is valid for one object only; otherwise a relative name is enough.
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
        # One more than is known to be stored: the store may have taken it although its answer was lost.
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
    """Name of the segment of a chunk; chunks are counted from 0."""
    return f"segment-{index:05d}.ts"


def preview_folder(name: str) -> str:
    """The prefix of the names of a preview's objects."""
    return f"{name}.preview/"


def remove_lost_preview(objects: ObjectStore, name: str, logger: Any) -> None:
    """Removes all previews of a video that has not been made, whichever worker published them.

    They stay in a store that a job names: the listing of such a store may be endless.

    Args:
        objects: the store of the job's outputs.
        name: name of the job's files.
    """
    try:
        if objects.is_own and objects.head(f"{name}.mp4") is None:
            objects.delete(found.name for found in objects.list(preview_folder(name)))
    except WorkerError as error:
        logger.warning("preview.not_removed", details={"message": error.message})

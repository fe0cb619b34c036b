"""The interface of stores: `Store` takes a job's result, `ObjectStore` keeps objects under names."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.traffic.transport import OnBytes
from schemas import ErrorCode, OutputConfig, S3Config

VIDEO_TYPE = "video/mp4"
THUMBNAIL_TYPE = "image/jpeg"
METADATA_TYPE = "application/json"
ANY_TYPE = "application/octet-stream"

CHECK_S = 60.0
"""Time limit in seconds for a group of small requests to a store that a job names."""

BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class StoreRequest:
    """The values from which a job's store is opened.

    Attributes:
        output_config: the destination that the job asks for.
        s3_config: the job's own bucket, if it names one.
        settings: the worker's settings.
        num_inline: number of videos that share the space of the job's result.
        should_stop: is asked during requests to a store that the job names.
    """

    output_config: OutputConfig
    s3_config: S3Config | None
    settings: Settings
    num_inline: int
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class Artifacts:
    """The files that a task produces: the MP4, its thumbnail (JPEG), and its metadata, a JSON file that says how they
    were made.

    `request` is the fingerprint of the request. By it a worker recognises another worker's video of the same job.
    """

    video: Path
    thumbnail: Path
    metadata: Path
    request: str


@dataclass(frozen=True)
class Transfer:
    """Callbacks while a result is stored.

    Attributes:
        on_bytes: takes the number of bytes sent over the network.
        should_stop: is asked while the result is sent.
    """

    on_bytes: OnBytes
    should_stop: Callable[[], bool]


class SentBytes:
    """Counts and reports the bytes sent of a task's files; several threads may add at once."""

    def __init__(self, on_bytes: OnBytes, total: int) -> None:
        self._on_bytes = on_bytes
        self._total = total
        self._lock = threading.Lock()
        self._done = 0

    @property
    def done(self) -> int:
        """Number of bytes sent so far."""
        return self._done

    def add(self, num_bytes: int) -> None:
        """Adds to the number of bytes; a negative number takes back bytes that are sent again."""
        with self._lock:
            self._done += num_bytes
            self._on_bytes(self._done, self._total)


@dataclass(frozen=True)
class Upload:
    """The upload of a large file to a store.

    Attributes:
        path: the file.
        content_type: its media type.
        mark: a short text stored with the object, if the store keeps marks.
        sent: counts the bytes sent over the network.
        should_stop: is asked while the file is sent.
    """

    path: Path
    content_type: str
    mark: str
    sent: SentBytes
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class ObjectInfo:
    """A store's information about an object.

    Attributes:
        identity: changes when the object is replaced.
        num_bytes: its size.
        mark: the text that it was uploaded with; None if that is not known.
    """

    identity: str
    num_bytes: int
    mark: str | None


@dataclass(frozen=True)
class ListedObject:
    """An object in a listing.

    Attributes:
        name: its name below the store's prefix.
        age_s: seconds since it was stored, by the store's own clock.
    """

    name: str
    age_s: float


@dataclass(frozen=True)
class Address:
    """The address by which clients get an object.

    Attributes:
        text: a URL, or a path below the volume's root.
        num_bytes: the object's size as reported by the address; None if it reports none.
        warning: why the address may not serve the object; None if there is no reason for doubt.
    """

    text: str
    num_bytes: int | None = None
    warning: str | None = None


class ObjectStore(ABC):
    """Objects under names below a prefix.

    A name consists of components joined by "/". Objects are stored atomically, even if a process is killed.

    Each method except `at`, `within` and `forget_stop` raises `WorkerError` if the store refuses, is full or does not
    answer, and `GenerationStopped` if the job has to end and the store is one that the job names.

    Attributes:
        prefix: the prefix of all names.
        is_own: whether the place is the worker's own, not one that a job names. Only the worker's own place is listed:
            the listing of another one may be endless.
        is_remote: whether bytes go over a network, so that the number of bytes sent is reported to clients.
        keeps_marks: whether an object carries the mark that it was uploaded with.
        address_kind: the kind of address that `url` returns. The interface's fields for it end in this word.
    """

    prefix: str
    is_own: bool
    is_remote: bool
    keeps_marks: bool
    address_kind: Literal["url", "path"]

    @abstractmethod
    def at(self, prefix: str) -> Self:
        """The same place with another prefix."""

    @abstractmethod
    def check(self) -> None:
        """Checks, before the work begins, that the place takes and serves objects."""

    @abstractmethod
    def put(self, name: str, data: bytes, content_type: str = ANY_TYPE, is_new: bool = False) -> None:
        """Stores a small object and replaces an existing one; with `is_new`, an existing object stays."""

    @abstractmethod
    def uploading(self, name: str, upload: Upload) -> AbstractContextManager[Callable[[bool], bool]]:
        """Yields the function that stores a large object, `commit(is_new)`.

        With `is_new`, it returns False if an object of that name exists, and that object stays; it may be called again.
        All work that does not need the object's name is done when the context is entered. On exit, unfinished files
        are removed.
        """

    @abstractmethod
    def get(self, name: str, max_bytes: int) -> bytes | None:
        """An object's bytes; None if it does not exist or is larger than `max_bytes`."""

    @abstractmethod
    def head(self, name: str) -> ObjectInfo | None:
        """The store's information about an object; None if it does not exist."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Removes objects that may or may not exist; also works after a stop."""

    @abstractmethod
    def list(self, folder: str = "") -> Iterator[ListedObject]:
        """The objects with names that begin with `folder`, which is "" or ends in "/". Objects of the same folder are
        listed together. Only if `is_own`."""

    @abstractmethod
    def url(self, name: str) -> Address:
        """The address by which clients get an object; it has been tested if that is possible."""

    @abstractmethod
    def remove_unfinished(self, max_age_s: float) -> None:
        """Removes the unfinished uploads of lost workers that are older than `max_age_s`. Only if `is_own`."""

    def within(self, seconds: float = math.inf) -> AbstractContextManager[object]:
        """Limits the total time of all requests inside, if the place is one that a job names."""
        return nullcontext()

    def forget_stop(self) -> None:
        """Ignores stops from now on, since the job has its video or has ended."""
        return


class Store(ABC):
    """Stores a video and its accompanying files where its job wants them.

    Attributes:
        objects: the object store behind it, if any, which can also hold previews and the state of unfinished jobs.
        warnings: warnings about the place of the result.
    """

    objects: ObjectStore | None = None

    def __init__(self) -> None:
        self.warnings: list[str] = []

    @abstractmethod
    def check(self) -> None:
        """Checks, before the work begins, that the store will take the result.

        Raises:
            WorkerError: it will not.
        """

    def check_size(self, count_bytes: Callable[[], int]) -> None:
        """Checks that the store will take a video of at least `count_bytes()`; a store without a limit does not call
        it.

        Raises:
            WorkerError: it will not.
        """
        return

    def remember(self, name: str) -> None:
        """Remembers the video that exists under the job's name before the job begins.

        Raises:
            WorkerError: the store does not answer.
        """
        return

    def places(self, name: str, num_bytes: int) -> dict[str, Any] | None:
        """Newly signed addresses of the files stored under `name`; None if a file is missing or the video has another
        size. A store that cannot be read returns an empty dict.

        Raises:
            WorkerError: the store does not answer.
        """
        return {}

    def save(
        self,
        name: str,
        artifacts: Artifacts,
        on_bytes: OnBytes = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Stores the artifacts under `name`.

        Args:
            on_bytes: takes the number of bytes sent over the network.
            should_stop: is asked while files are sent; after a stop, unfinished files are removed.

        Returns:
            The fields of `schemas.Video` that say where the files are, and `bytes` if the stored video is that of
            another worker with the same job.

        Raises:
            WorkerError: the artifacts could not be stored.
            GenerationStopped: `should_stop` returned true.
        """
        return self._save(name, artifacts, Transfer(on_bytes, should_stop))

    @abstractmethod
    def _save(self, name: str, artifacts: Artifacts, transfer: Transfer) -> dict[str, Any]:
        """Implements `save`."""


def blocks_of(path: Path, should_stop: Callable[[], bool]) -> Iterator[bytes]:
    """A file's bytes, block by block.

    Raises:
        GenerationStopped: `should_stop` returned true.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            if should_stop():
                raise GenerationStopped
            yield block


def not_stored(message: str, retryable: bool = True) -> WorkerError:
    """The error of a result that a store did not take."""
    return WorkerError(ErrorCode.UPLOAD, f"the result could not be stored: {message}", retryable)

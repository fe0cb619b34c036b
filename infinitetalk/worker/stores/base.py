"""What a store is: the way of a video to where its job wants it, and the objects that a store may keep beside it."""

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
"""Seconds that a store which a job names may take for small requests together."""

BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class StoreRequest:
    """What is known when a job's store is opened.

    Attributes:
        output_config: where the job wants its result.
        s3_config: the job's own bucket, where it names one.
        settings: of the worker.
        num_inline: how many videos share the room of the job's result.
        should_stop: asked while a store that the job names is spoken to.
    """

    output_config: OutputConfig
    s3_config: S3Config | None
    settings: Settings
    num_inline: int
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class Artifacts:
    """The files that a task leaves: the MP4, its JPEG, and a JSON file that says how they were made.

    `request` is the fingerprint of what was asked for, by which a worker knows another worker's video of the same job.
    """

    video: Path
    thumbnail: Path
    metadata: Path
    request: str


@dataclass(frozen=True)
class Transfer:
    """Who follows a result on its way.

    Attributes:
        on_bytes: told what has been sent over the network.
        should_stop: asked while it is sent.
    """

    on_bytes: OnBytes
    should_stop: Callable[[], bool]


class SentBytes:
    """Counts the bytes of a task's files that have been sent, and reports them; several threads may add at once."""

    def __init__(self, on_bytes: OnBytes, total: int) -> None:
        self._on_bytes = on_bytes
        self._total = total
        self._lock = threading.Lock()
        self._done = 0

    @property
    def done(self) -> int:
        """Bytes so far."""
        return self._done

    def add(self, num_bytes: int) -> None:
        """More bytes, or fewer where a part is sent again."""
        with self._lock:
            self._done += num_bytes
            self._on_bytes(self._done, self._total)


@dataclass(frozen=True)
class Upload:
    """A large file on its way into a store.

    Attributes:
        path: the file.
        content_type: its media type.
        mark: a short text that the object carries, where the store keeps marks.
        sent: counts what goes over the network.
        should_stop: asked while it is sent.
    """

    path: Path
    content_type: str
    mark: str
    sent: SentBytes
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says of an object.

    Attributes:
        identity: differs where the object has been replaced.
        num_bytes: its size.
        mark: the text that it was uploaded with; None where that is not known.
    """

    identity: str
    num_bytes: int
    mark: str | None


@dataclass(frozen=True)
class ListedObject:
    """An object in a listing.

    Attributes:
        name: below the store's prefix.
        age_s: seconds since it was stored, by the store's own clock.
    """

    name: str
    age_s: float


@dataclass(frozen=True)
class Address:
    """Where clients get an object.

    Attributes:
        text: a URL, or a path below the volume's root.
        num_bytes: the object's size as the address tells it; None where it does not.
        warning: why the address may not serve the object; None where nothing speaks against it.
    """

    text: str
    num_bytes: int | None = None
    warning: str | None = None


class ObjectStore(ABC):
    """Objects under names below a prefix.

    A name is components joined by "/". An object is there whole or not at all, whoever is killed meanwhile.

    Each method but `at`, `within` and `forget_stop` raises `WorkerError` where the store refuses, is full or does not
    answer, and `GenerationStopped` where the job has to end and the store is one that the job names.

    Attributes:
        prefix: of all names.
        is_own: whether the place is the worker's own, not one that a job names. No other place is listed: its listing
            may be endless.
        is_remote: whether bytes go over a network, so that clients are told how many have been sent.
        keeps_marks: whether an object carries the mark that it was uploaded with.
        address_kind: what `url` returns. The fields of the interface that hold it end in this word.
    """

    prefix: str
    is_own: bool
    is_remote: bool
    keeps_marks: bool
    address_kind: Literal["url", "path"]

    @abstractmethod
    def at(self, prefix: str) -> Self:
        """The same place, with names below another prefix."""

    @abstractmethod
    def check(self) -> None:
        """Looks, before the work begins, whether the place takes objects and serves them."""

    @abstractmethod
    def put(self, name: str, data: bytes, content_type: str = ANY_TYPE, is_new: bool = False) -> None:
        """Stores a small object in place of the one of its name. Where `is_new`, an object that is there stays."""

    @abstractmethod
    def uploading(self, name: str, upload: Upload) -> AbstractContextManager[Callable[[bool], bool]]:
        """Stores a large object by the function that is yielded, `commit(is_new)`.

        It returns False where `is_new` and an object of the name is there already, which then stays; it may be called
        again. What can be done before the object gets its name is done when the context is entered. Nothing unfinished
        stays behind it.
        """

    @abstractmethod
    def get(self, name: str, max_bytes: int) -> bytes | None:
        """An object's bytes; None where there is none, or a larger one."""

    @abstractmethod
    def head(self, name: str) -> ObjectInfo | None:
        """What the store says of an object; None where there is none."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Removes objects, whether they are there or not; after a stop too."""

    @abstractmethod
    def list(self, folder: str = "") -> Iterator[ListedObject]:
        """The objects whose names begin with `folder`, "" or a text that ends in "/". Those of one folder are together.
        Only where `is_own`."""

    @abstractmethod
    def url(self, name: str) -> Address:
        """The address by which clients get an object, which has been tried where that is possible."""

    @abstractmethod
    def remove_unfinished(self, max_age_s: float) -> None:
        """Removes what lost workers have left of uploads that are older than that. Only where `is_own`."""

    def within(self, seconds: float = math.inf) -> AbstractContextManager[object]:
        """Lets all requests inside take so many seconds together, where the place is one that a job names."""
        return nullcontext()

    def forget_stop(self) -> None:
        """The job has its video, or has ended: what follows is not stopped any more."""
        return


class Store(ABC):
    """Takes a video and what belongs to it to where its job wants it.

    Attributes:
        objects: where the store keeps objects, so that previews and the state of unfinished jobs can lie there too.
        warnings: what may disappoint in where the result is.
    """

    objects: ObjectStore | None = None

    def __init__(self) -> None:
        self.warnings: list[str] = []

    @abstractmethod
    def check(self) -> None:
        """Looks, before the work begins, whether the store would take the result.

        Raises:
            WorkerError: it would not.
        """

    def check_size(self, count_bytes: Callable[[], int]) -> None:
        """Looks whether the store would take a video of at least `count_bytes()`; only a limited one needs to know.

        Raises:
            WorkerError: it would not.
        """
        return

    def remember(self, name: str) -> None:
        """Looks what is there under the job's name before it begins.

        Raises:
            WorkerError: the store does not answer.
        """
        return

    def places(self, name: str, num_bytes: int) -> dict[str, Any] | None:
        """The addresses of the files that were stored under `name`, signed anew; None where one is missing or the video
        has another size. A store that cannot be looked at has none to tell.

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
            on_bytes: told what has been sent over the network.
            should_stop: asked while it is sent; nothing half done stays behind.

        Returns:
            The fields of `schemas.Video` that say where the files are, and `bytes` where the video there is one of
            another worker that held the same job.

        Raises:
            WorkerError: they could not be stored.
            GenerationStopped: `should_stop` said so.
        """
        return self._save(name, artifacts, Transfer(on_bytes, should_stop))

    @abstractmethod
    def _save(self, name: str, artifacts: Artifacts, transfer: Transfer) -> dict[str, Any]:
        """As `save`."""


def blocks_of(path: Path, should_stop: Callable[[], bool]) -> Iterator[bytes]:
    """A file's bytes, block by block.

    Raises:
        GenerationStopped: `should_stop` said so.
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

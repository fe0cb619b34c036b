"""Objects as files of a volume: the network volume on Runpod, a folder elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self, TypeVar
from uuid import uuid4

from infinitetalk.worker.errors import FULL_DISK, WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.base import (
    ANY_TYPE,
    Address,
    ListedObject,
    ObjectInfo,
    ObjectStore,
    Store,
    StoreRequest,
    Upload,
    blocks_of,
    not_stored,
)
from infinitetalk.worker.stores.results import ObjectResults
from schemas import DEFAULT_PREFIX, ErrorCode

WORK_FOLDER = ".unfinished"
"""Name of the folder on a volume for unfinished files."""

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
TRIES = 50
"""Number of attempts to write a file when another worker removes its empty folder."""

T = TypeVar("T")


class VolumeObjects(ObjectStore):
    """Objects as files below `root`.

    An unfinished file has a unique name in a separate folder on the same volume. It gets its own name once it is
    complete.
    """

    is_own = True
    is_remote = False
    keeps_marks = False
    address_kind = "path"

    def __init__(self, root: Path, prefix: str) -> None:
        self.root = root.resolve()
        self.prefix = prefix
        self._folder = self.root / prefix
        self._work_folder = self.root / DEFAULT_PREFIX / WORK_FOLDER

    def at(self, prefix: str) -> Self:
        return type(self)(self.root, prefix)

    def check(self) -> None:
        self._check_place()
        with _volume_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._folder):
                pass

    def put(self, name: str, data: bytes, content_type: str = ANY_TYPE, is_new: bool = False) -> None:
        with _volume_errors(), self._written(name, [data]) as unfinished:
            self._place(unfinished, name, is_new)

    @contextmanager
    def uploading(self, name: str, upload: Upload) -> Iterator[Callable[[bool], bool]]:
        with _volume_errors(), self._written(name, blocks_of(upload.path, upload.should_stop)) as copy:
            yield lambda is_new: self._place(copy, name, is_new)

    def get(self, name: str, max_bytes: int) -> bytes | None:
        with _volume_errors():
            return read_regular(self._folder / name, max_bytes)

    def head(self, name: str) -> ObjectInfo | None:
        with _volume_errors():
            try:
                status = (self._folder / name).stat()
            except FileNotFoundError:
                return None
            identity = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
            return ObjectInfo(identity, status.st_size, None)

    def delete(self, names: Iterable[str]) -> None:
        self._check_place()
        with _volume_errors():
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
                remove_empty((self._folder / name).parent)

    def list(self, folder: str = "") -> Iterator[ListedObject]:
        self._check_place()
        with _volume_errors():
            if not (self._folder / folder).is_dir():
                return
            # The volume's own clock, which may differ from this machine's.
            with new_file(self._work_folder / f"clock-{uuid4().hex}", []) as file:
                now = file.stat().st_mtime
            for parent, _, files in os.walk(self._folder / folder):
                for file in (Path(parent) / name for name in sorted(files)):
                    # Another worker may have removed it in the meantime.
                    with suppress(FileNotFoundError):
                        age_s = now - file.lstat().st_mtime
                        yield ListedObject(file.relative_to(self._folder).as_posix(), age_s)

    def url(self, name: str) -> Address:
        return Address(f"{self.prefix}/{name}")

    def remove_unfinished(self, max_age_s: float) -> None:
        unfinished = self.at(self._work_folder.relative_to(self.root).as_posix())
        old = [found.name for found in unfinished.list() if found.age_s > max_age_s]
        unfinished.delete(name for name in old if is_unfinished(name))

    @contextmanager
    def _written(self, name: str, blocks: Iterable[bytes]) -> Iterator[Path]:
        """A complete file under a temporary name."""
        with new_file(self._work_folder / Path(name).name, blocks) as path:
            yield path

    def _place(self, unfinished: Path, name: str, is_new: bool) -> bool:
        """Gives a complete file its name; with `is_new`, returns False if the name is taken."""
        target = self._folder / name
        num_bytes = unfinished.stat().st_size

        def give_name() -> bool:
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_new:
                return _create(unfinished, target)
            unfinished.replace(target)
            return True

        if not _in_folder(give_name):
            return False
        if target.stat().st_size != num_bytes:
            raise OSError(errno.EIO, "the volume holds another size than was written")
        return True

    def _check_place(self) -> None:
        if not self._folder.resolve().is_relative_to(self.root):
            raise WorkerError(ErrorCode.INPUT_VALIDATION, "output_config.prefix leads out of the volume")


def open_volume(request: StoreRequest) -> Store:
    """The store of a job that sends its result to the volume.

    Raises:
        WorkerError: the worker has no network volume.
    """
    settings = request.settings
    if settings.output_dir.is_relative_to(settings.volume_dir) and not settings.volume_dir.is_dir():
        # A folder made there would vanish with the container, and the video with it.
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            'output_config.store "volume" needs a network volume, which this endpoint does not have; use "s3" '
            'or, for a short video, "inline"',
        )
    return ObjectResults(VolumeObjects(settings.output_dir, request.output_config.prefix))


def own_volume(settings: Settings) -> ObjectStore | None:
    """The worker's network volume; None if it has none."""
    return VolumeObjects(settings.output_dir, DEFAULT_PREFIX) if settings.volume_dir.is_dir() else None


@contextmanager
def new_file(folder: Path, blocks: Iterable[bytes]) -> Iterator[Path]:
    """A file with a unique name, completely on the disk. It is removed at the end unless it was renamed inside.

    Args:
        folder: the file's folder. It is created, and removed at the end if it is empty.

    Raises:
        OSError: the file could not be written.
    """
    path = folder / f".{uuid4().hex}.part"

    def open_new() -> int:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    try:
        with os.fdopen(_in_folder(open_new), "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.tell()
        if path.stat().st_size != num_bytes:
            raise OSError(errno.EIO, "the volume holds another size than was written")
        yield path
    finally:
        path.unlink(missing_ok=True)
        remove_empty(folder)


def is_unfinished(name: str) -> bool:
    """Whether an object's name was made by `new_file`."""
    stem, _, extension = name.rpartition("/")[2].rpartition(".")
    return extension == "part" and len(stem) == 33 and stem[0] == "." and set(stem[1:]) <= set("0123456789abcdef")


def remove_empty(folder: Path) -> None:
    """Removes a folder if it is empty, and then its parent, if the parent is one of the worker's own folders."""
    with suppress(OSError):
        folder.rmdir()
        if folder.parent.name.startswith("."):
            folder.parent.rmdir()


def read_regular(path: Path, max_bytes: int) -> bytes | None:
    """A file's bytes; None if it does not exist, is not a regular file, or is larger than `max_bytes`."""
    try:
        # Not a link, which could lead elsewhere, nor a pipe, which could block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = file.read(max_bytes + 1)
    return data if len(data) <= max_bytes else None


def _in_folder(work: Callable[[], T]) -> T:
    """Calls `work`, which makes a folder and puts a file into it; repeats it if another worker removes the empty folder
    in between."""
    for _ in range(TRIES - 1):
        # `Path.mkdir` raises FileExistsError if the folder is removed just after it was found.
        with suppress(FileNotFoundError, FileExistsError):
            return work()
    return work()


def _create(source: Path, target: Path) -> bool:
    """Gives a file its name unless the name is taken; returns whether it did."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # A file system without links: check, then write.
        if target.exists():
            return False
        source.replace(target)
    return True


@contextmanager
def _volume_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            message = "output_config.prefix and the job's id make a name that is too long for the volume"
            raise WorkerError(ErrorCode.INPUT_VALIDATION, message) from error
        reason = "is full" if error.errno in FULL_DISK else "cannot be written to"
        raise not_stored(f"the volume {reason}") from error

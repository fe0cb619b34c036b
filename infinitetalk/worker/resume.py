"""What a job has made so far, kept in the worker's own place, so that the same job goes on in another worker.

As each chunk ends, its encoded part, what the next chunk starts from and `state.json` are stored below
`infinitetalk/jobs/.resume/{name}/`, the last one last: it names the others by their SHA-256 and size, and counts only
whole. A finished job's result takes its place until the queue has it. What does not fit the job (its id, parameters,
inputs, model) or is older than RESUME_TTL_S is ignored, and what is older is removed.

Two workers may hold one job. Their files have names of their own, but for `state.json`, which names files of one of
them; each removes only what its own state names, and nothing that another state in its place names.

None of it is believed: `state.json` is signed, and nothing that it does not vouch for is opened. Where a worker has no
secret to sign with, it keeps state in its own place alone.

No error in here fails a job: without what is kept, it starts from its beginning.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, Field, ValidationError
from urllib3.exceptions import HTTPError

from infinitetalk.encode import check_parts, picture_bytes
from infinitetalk.errors import EncodeError
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.guard import CLEAN_S
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.storage import (
    S3Store,
    Store,
    VolumeStore,
    make_store,
    new_file,
    read_regular,
    remove_empty,
)
from schemas import DEFAULT_PREFIX, OutputConfig, SingleJob, Success

FOLDER = ".resume"
STATE_FILE = "state.json"
THUMBNAIL_FILE = "thumbnail.jpg"
FORMAT = 3
"""Of what is stored; another one is ignored."""

MAX_FILE_BYTES = 500 * MEGABYTE
MAX_STATE_BYTES = 10 * MEGABYTE
"""Beside a result, which may hold a video."""

AFTER_JOB_S = 30.0
"""Seconds that cleaning up after a job may keep the next one waiting; what remains is done beside it."""

_FILE_NAME = r"(?:thumbnail-[0-9a-f]{12}\.jpg|chunk-\d{5}-[0-9a-f]{12}\.safetensors|part-\d{5}-[0-9a-f]{12}\.mp4)"
_OUR_FILE = re.compile(rf"state\.json|\.[0-9a-f]{{32}}\.part|{_FILE_NAME}")
STORE_ERRORS = (OSError, BotoCoreError, ClientError, HTTPError)


@dataclass(frozen=True)
class Part:
    """One chunk as an encoded file."""

    path: Path
    num_frames: int
    evaluations: int
    evaluations_skipped: int
    is_flat: bool = False


@dataclass
class Rendering:
    """A video as far as it is made.

    Attributes:
        seed: of the noise.
        thumbnail: the first frame as JPEG.
        height, width: in pixels, 0 before the first chunk.
        parts: the chunks, in order.
        chunk_state: what the next chunk starts from, a `ChunkState` as bytes; None where it starts from nothing.
    """

    seed: int
    thumbnail: Path
    height: int = 0
    width: int = 0
    parts: list[Part] = field(default_factory=list)
    chunk_state: bytes | None = None

    @property
    def num_frames(self) -> int:
        """Video frames made."""
        return sum(part.num_frames for part in self.parts)

    @property
    def picture_bytes(self) -> int:
        """Bytes of the frames made, as they are encoded."""
        return sum(picture_bytes(part.path) for part in self.parts)

    @property
    def evaluations(self) -> int:
        """Network evaluations made."""
        return sum(part.evaluations for part in self.parts)

    @property
    def evaluations_skipped(self) -> int:
        """Network evaluations saved by TeaCache."""
        return sum(part.evaluations_skipped for part in self.parts)


class StoredFile(BaseModel):
    """A file as `state.json` names it."""

    name: str = Field(pattern=rf"^{_FILE_NAME}$")
    sha256: str
    num_bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class StoredPart(StoredFile):
    """A part as `state.json` names it."""

    num_frames: int
    evaluations: int
    evaluations_skipped: int
    is_flat: bool


class StoredRendering(BaseModel):
    """A rendering as `state.json` holds it."""

    fingerprint: str
    seed: int
    height: int
    width: int
    thumbnail: StoredFile
    parts: list[StoredPart]
    chunk_state: StoredFile | None

    @property
    def names(self) -> set[str]:
        """Of the files that it needs."""
        files = [self.thumbnail, *self.parts, *([] if self.chunk_state is None else [self.chunk_state])]
        return {file.name for file in files}


class StoredState(BaseModel):
    """What `state.json` says: either a rendering under way or a result.

    `name` is of the task's files, `request` of the job's id and parameters and the weights; `saved_at` counts seconds
    since 1970.
    """

    format: int
    name: str
    request: str
    saved_at: float
    rendering: StoredRendering | None = None
    result: Success | None = None


class SignedState(BaseModel):
    """`state.json`: a `StoredState` as text, and what vouches for it; nothing where the worker has no secret."""

    state: str
    signature: str


class Files(ABC):
    """A place that holds files in folders of one level.

    Attributes:
        is_own: whether the place is the worker's own, not one that a job names.
        unfinished: where else lost workers may have left files.
    """

    is_own = True
    unfinished: Files | None = None

    @abstractmethod
    def write(self, folder: str, name: str, data: bytes) -> None:
        """Puts a file, whole or not at all."""

    @abstractmethod
    def read(self, folder: str, name: str, max_bytes: int) -> bytes | None:
        """A file; None where there is none, or a larger one."""

    @abstractmethod
    def remove(self, folder: str, names: Iterable[str]) -> None:
        """Removes files, whether they are there or not."""

    @abstractmethod
    def folders(self) -> Iterator[tuple[str, dict[str, float], float]]:
        """Each folder with the times of writing of its files, and the time of asking: in seconds since 1970, by the
        place's own clock."""


class VolumeFiles(Files):
    """Files below a folder of a volume.

    Args:
        unfinished: where else lost workers may have left files.
    """

    def __init__(self, root: Path, unfinished: Files | None = None) -> None:
        self._root = root
        self.unfinished = unfinished

    def write(self, folder: str, name: str, data: bytes) -> None:
        with new_file(self._root / folder, [data]) as unfinished:
            unfinished.replace(self._root / folder / name)

    def read(self, folder: str, name: str, max_bytes: int) -> bytes | None:
        return read_regular(self._root / folder / name, max_bytes)

    def remove(self, folder: str, names: Iterable[str]) -> None:
        for name in names:
            (self._root / folder / name).unlink(missing_ok=True)
        remove_empty(self._root / folder)

    def folders(self) -> Iterator[tuple[str, dict[str, float], float]]:
        with new_file(self._root / f"clock-{uuid4().hex}", []) as file:
            now = file.stat().st_mtime
        for folder in self._root.glob("*/"):
            times = {}
            # What is gone meanwhile needs no sweeping.
            with suppress(FileNotFoundError):
                for file in folder.iterdir():
                    times[file.name] = file.stat().st_mtime
            yield folder.name, times, now


class BucketFiles(Files):
    """Objects below a prefix of a bucket."""

    def __init__(self, store: S3Store, prefix: str) -> None:
        self.is_own = store.is_own
        self._store = store
        self._prefix = prefix

    def write(self, folder: str, name: str, data: bytes) -> None:
        with self._store.guard.within(self._store.timeout_s):
            self._store.client.put_object(Bucket=self._store.bucket, Key=self._key(folder, name), Body=data)

    def read(self, folder: str, name: str, max_bytes: int) -> bytes | None:
        client = self._store.client
        with self._store.guard.within(self._store.timeout_s):
            try:
                found = client.get_object(Bucket=self._store.bucket, Key=self._key(folder, name))
                data: bytes = found["Body"].read(max_bytes + 1)
            except client.exceptions.NoSuchKey:
                return None
            except (BotoCoreError, HTTPError, OSError):
                self._store.guard.check()
                raise
            # What is not read would go on coming.
            found["Body"].close()
        return data if len(data) <= max_bytes else None

    def remove(self, folder: str, names: Iterable[str]) -> None:
        with self._store.guard.within(CLEAN_S):
            for name in names:
                self._store.client.delete_object(Bucket=self._store.bucket, Key=self._key(folder, name))

    def folders(self) -> Iterator[tuple[str, dict[str, float], float]]:
        # Keys come in order, so that a folder's are together.
        current, now = "", 0.0
        times: dict[str, float] = {}
        for page in self._pages("list_objects_v2", f"{self._prefix}/"):
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
            for entry in page.get("Contents", []):
                folder, _, name = entry["Key"].removeprefix(f"{self._prefix}/").partition("/")
                if folder != current:
                    if times:
                        yield current, times, now
                    current, times = folder, {}
                times[name] = entry["LastModified"].timestamp()
        if times:
            yield current, times, now

    def abort_uploads(self, max_age_s: float) -> None:
        """Ends the uploads of videos below the store's prefix that were begun longer ago: their workers are lost."""
        video = re.compile(re.escape(self._store.prefix) + r"/[A-Za-z0-9_-][A-Za-z0-9._-]*\.mp4")
        for page in self._pages("list_multipart_uploads", f"{self._store.prefix}/"):
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
            for upload in page.get("Uploads", []):
                if video.fullmatch(upload["Key"]) and upload["Initiated"].timestamp() < now - max_age_s:
                    self._store.client.abort_multipart_upload(
                        Bucket=self._store.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def _pages(self, operation: str, prefix: str) -> Any:
        assert self.is_own, "a listing of a job's own store may be endless"
        return self._store.client.get_paginator(operation).paginate(Bucket=self._store.bucket, Prefix=prefix)

    def _key(self, folder: str, name: str) -> str:
        return f"{self._prefix}/{folder}/{name}"


class TaskState:
    """What is kept of one task.

    Args:
        files: where; None: nowhere.
        name: of the task's files.
        request: fingerprint of its job's id and its parameters.
        ttl_s: seconds after which it is stale.
        secret: that it is signed with; None: unsigned.
        max_state_bytes: of `state.json`.
    """

    def __init__(
        self,
        files: Files | None,
        name: str,
        request: str,
        ttl_s: float,
        secret: bytes | None,
        max_state_bytes: int,
        logger: Any,
    ) -> None:
        self.files = files
        self.name = name
        self._request = request
        self._ttl_s = ttl_s
        self._secret = secret
        self._max_state_bytes = max_state_bytes
        self._logger = logger
        self._attempt = uuid4().hex[:12]
        self._written: bytes | None = None
        found = self._read_state()
        self.result = None if found is None else found.result
        self._rendering = None if found is None else found.rendering
        self._stored_parts: list[StoredPart] = []
        self._thumbnail: StoredFile | None = None
        self._names = set() if self._rendering is None else self._rendering.names

    def restore(self, fingerprint: str, folder: Path) -> Rendering | None:
        """The video as far as another worker made it, its files in `folder`; None where nothing fits."""
        stored = self._rendering
        if stored is None:
            return None
        if stored.fingerprint != fingerprint:
            self._logger.info("resume.ignored", details={"reason": "inputs, model or mode differ"})
            return None
        try:
            rendering = self._fetch(stored, folder)
        except (*STORE_ERRORS, EncodeError) as error:
            self._logger.warning("resume.ignored", details={"reason": type(error).__name__})
            return None
        if rendering is None:
            self._logger.warning("resume.ignored", details={"reason": "a file is missing or damaged"})
            return None
        self._stored_parts, self._thumbnail = list(stored.parts), stored.thumbnail
        return rendering

    def save_rendering(self, rendering: Rendering, fingerprint: str) -> bool:
        """Stores what has been made since the last call; returns whether another worker can go on from it."""
        if self.files is None:
            return False
        begin = time.monotonic()
        before = None if self._rendering is None else self._rendering.chunk_state
        num_parts = len(rendering.parts)
        try:
            thumbnail = self._store_new_files(rendering)
            chunk_state = rendering.chunk_state
            stored = StoredRendering(
                fingerprint=fingerprint,
                seed=rendering.seed,
                height=rendering.height,
                width=rendering.width,
                thumbnail=thumbnail,
                parts=self._stored_parts,
                chunk_state=None if chunk_state is None else self._store(chunk_state_file(num_parts), chunk_state),
            )
            self._write_state(stored)
            self._rendering = stored
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_stored", details={"reason": type(error).__name__})
            return False
        if before is not None and before.name in self._names:
            self._remove([before.name])
        lat_ms = round((time.monotonic() - begin) * 1000)
        self._logger.info("resume.stored", lat_ms=lat_ms, details={"chunks": num_parts})
        return True

    def save_result(self, result: Success) -> None:
        """Stores the result, in case that the queue does not get it."""
        if self.files is None:
            return
        try:
            self._write_state(self._rendering, result)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_stored", details={"reason": type(error).__name__})

    def discard(self) -> None:
        """Removes what this worker has kept of the task, and what it has gone on from; what another worker that holds
        the job goes on from stays."""
        if self.files is None:
            return
        try:
            data = self.files.read(self.name, STATE_FILE, self._max_state_bytes)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_removed", details={"reason": type(error).__name__})
            return
        names = set(self._names)
        if data is not None and data in (self._written, self._found):
            names.add(STATE_FILE)
        elif data is not None and (other := self._verified(data)) is not None and other.rendering is not None:
            names -= other.rendering.names
        self._remove(sorted(names))

    def remove_preview(self, store: S3Store | VolumeStore) -> None:
        """Removes what was published of the video, by whichever worker, where that has not been made."""
        try:
            store.remove_unfinished_preview(self.name)
        except WorkerError as error:
            self._logger.warning("preview.not_removed", details={"message": error.message})

    def sweep(self) -> None:
        """Removes what is stale of all tasks that are kept in the same place, the worker's own."""
        if self.files is None or not self.files.is_own:
            return
        deadline = time.monotonic() + AFTER_JOB_S
        try:
            for files in filter(None, (self.files, self.files.unfinished)):
                for folder, times, now in files.folders():
                    ours = {name: written_at for name, written_at in times.items() if _OUR_FILE.fullmatch(name)}
                    # Its newest file is as a rule its state: older ones are parts of a job that goes on.
                    if ours and max(ours.values()) < now - self._ttl_s:
                        files.remove(folder, ours)
                    if time.monotonic() > deadline:
                        return
            if isinstance(self.files, BucketFiles):
                self.files.abort_uploads(self._ttl_s)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_swept", details={"reason": type(error).__name__})

    def _remove(self, names: Sequence[str]) -> None:
        assert self.files is not None
        try:
            self.files.remove(self.name, names)
            self._names -= set(names)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_removed", details={"reason": type(error).__name__})

    def _read_state(self) -> StoredState | None:
        """What is there, if it is of this job and not stale."""
        self._found: bytes | None = None
        if self.files is None:
            return None
        try:
            data = self.files.read(self.name, STATE_FILE, self._max_state_bytes)
        except STORE_ERRORS as error:
            self._logger.warning("resume.ignored", details={"reason": type(error).__name__})
            return None
        if data is None:
            return None
        state = self._verified(data)
        if state is None:
            self._logger.warning("resume.ignored", details={"reason": "it is damaged, or not signed by this endpoint"})
            return None
        if (state.format, state.name, state.request) != (FORMAT, self.name, self._request):
            self._logger.info("resume.ignored", details={"reason": "the job, its parameters or the model differ"})
            return None
        if time.time() - state.saved_at > self._ttl_s:
            self._logger.info("resume.ignored", details={"reason": "stale"})
            return None
        self._found = data
        return state

    def _verified(self, data: bytes) -> StoredState | None:
        """What `state.json` says, if it is signed as this worker would."""
        try:
            signed = SignedState.model_validate_json(data)
            if not hmac.compare_digest(signed.signature.encode(), self._signature(signed.state).encode()):
                return None
            return StoredState.model_validate_json(signed.state)
        except ValidationError:
            return None

    def _signature(self, state: str) -> str:
        return "" if self._secret is None else hmac.new(self._secret, state.encode(), hashlib.sha256).hexdigest()

    def _write_state(self, rendering: StoredRendering | None, result: Success | None = None) -> None:
        assert self.files is not None
        state = StoredState(
            format=FORMAT,
            name=self.name,
            request=self._request,
            saved_at=time.time(),
            rendering=rendering,
            result=result,
        ).model_dump_json()
        data = SignedState(state=state, signature=self._signature(state)).model_dump_json().encode()
        self.files.write(self.name, STATE_FILE, data)
        self._written = data

    def _store_new_files(self, rendering: Rendering) -> StoredFile:
        """Stores the parts that are new, and the thumbnail, which is returned."""
        if self._thumbnail is None:
            self._thumbnail = self._store(THUMBNAIL_FILE, rendering.thumbnail.read_bytes())
        for part in rendering.parts[len(self._stored_parts) :]:
            stored = self._store(part_file(len(self._stored_parts)), part.path.read_bytes())
            self._stored_parts.append(
                StoredPart(
                    **stored.model_dump(),
                    num_frames=part.num_frames,
                    evaluations=part.evaluations,
                    evaluations_skipped=part.evaluations_skipped,
                    is_flat=part.is_flat,
                )
            )
        return self._thumbnail

    def _store(self, name: str, data: bytes) -> StoredFile:
        """Stores a file under a name that this worker alone gives."""
        assert self.files is not None
        stem, _, extension = name.rpartition(".")
        own_name = f"{stem}-{self._attempt}.{extension}"
        self._names.add(own_name)
        self.files.write(self.name, own_name, data)
        return StoredFile(name=own_name, sha256=_sha256(data), num_bytes=len(data))

    def _fetch(self, stored: StoredRendering, folder: Path) -> Rendering | None:
        """The rendering with its files in `folder`; None where one is missing or not what was stored.

        Raises:
            EncodeError: the parts cannot be joined.
        """
        chunk_state = None
        if stored.chunk_state is not None:
            chunk_state = self._read_checked(stored.chunk_state)
            if chunk_state is None:
                return None
        wanted: dict[str, StoredFile] = {THUMBNAIL_FILE: stored.thumbnail}
        wanted |= {part_file(index): part for index, part in enumerate(stored.parts)}
        for name, file in wanted.items():
            data = self._read_checked(file)
            if data is None:
                return None
            (folder / name).write_bytes(data)
        parts = [
            Part(folder / part_file(index), part.num_frames, part.evaluations, part.evaluations_skipped, part.is_flat)
            for index, part in enumerate(stored.parts)
        ]
        check_parts([(part.path, part.num_frames) for part in parts])
        thumbnail = folder / THUMBNAIL_FILE
        return Rendering(stored.seed, thumbnail, stored.height, stored.width, parts, chunk_state)

    def _read_checked(self, file: StoredFile) -> bytes | None:
        assert self.files is not None
        data = self.files.read(self.name, file.name, file.num_bytes)
        return data if data is not None and _sha256(data) == file.sha256 else None


class JobStates:
    """What is kept of the jobs in hand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, list[tuple[TaskState, Store]]] = {}

    def open(self, job_id: str, name: str, request: str, store: Store, logger: Any) -> TaskState:
        """What is kept of a task of a job.

        Args:
            name: of the task's files.
            request: fingerprint of the job's id, its parameters and the weights.
            store: where its result goes.
        """
        settings = self._settings
        secret = state_secret(settings)
        files = place_of_state(store, settings) if settings.resume else None
        max_bytes = MAX_STATE_BYTES + settings.max_result_bytes
        state = TaskState(files, name, request, settings.resume_ttl_s, secret, max_bytes, logger)
        self._open.setdefault(job_id, []).append((state, store))
        return state

    def close(self, job_id: str, keep: bool) -> None:
        """Ends with a job; all that is kept of it is removed, unless it is still of use."""
        opened = self._open.pop(job_id, [])
        if keep or not opened:
            return
        thread = threading.Thread(target=_clean_up, args=(opened,), name="clean-up", daemon=True)
        thread.start()
        thread.join(AFTER_JOB_S)


def _clean_up(opened: list[tuple[TaskState, Store]]) -> None:
    for state, store in opened:
        if isinstance(store, S3Store):
            store.guard.forget_stop()
        state.discard()
        if isinstance(store, S3Store | VolumeStore):
            state.remove_preview(store)
    # Items of a batch share their place as a rule.
    for state, _ in opened[:1]:
        state.sweep()


def place_of_state(store: Store, settings: Settings) -> Files | None:
    """Where state is kept: on the volume or in the bucket that the result goes to, where that is the worker's; else in
    the worker's own place, where it has any; else in the bucket that the job names, if it can be signed."""
    folder = f"{DEFAULT_PREFIX}/{FOLDER}"
    match store:
        case VolumeStore():
            return VolumeFiles(store.root / folder, VolumeFiles(store.work_folder))
        case S3Store() if store.is_own:
            return BucketFiles(store, folder)
    own_store = own_place(settings)
    if own_store is not None:
        return place_of_state(own_store, settings)
    if isinstance(store, S3Store) and state_secret(settings) is not None:
        return BucketFiles(store, f"{store.prefix}/{FOLDER}")
    return None


def state_secret(settings: Settings) -> bytes | None:
    """What kept state is signed with: RESUME_SECRET, else one made from the key of the worker's own store."""
    if settings.resume_secret is not None:
        return settings.resume_secret.get_secret_value().encode()
    if settings.s3_secret_key is None:
        return None
    return hmac.new(settings.s3_secret_key.get_secret_value().encode(), b"kept state", hashlib.sha256).digest()


def own_place(settings: Settings) -> Store | None:
    """The worker's network volume, else its bucket, as a store; None where it has neither."""
    if settings.volume_dir.is_dir():
        return make_store(OutputConfig(store="volume"), None, settings)
    try:
        return make_store(OutputConfig(store="s3"), None, settings)
    except WorkerError:
        return None


def chunk_state_file(num_chunks: int) -> str:
    """Name of what the chunk after this many starts from."""
    return f"chunk-{num_chunks:05d}.safetensors"


def part_file(index: int) -> str:
    """Name of the file of a chunk, counted from 0."""
    return f"part-{index:05d}.mp4"


def request_fingerprint(job_id: str, job: SingleJob, weights: str, versions: dict[str, str]) -> str:
    """Of all that is known of a task before its media are fetched: its job's id, parameters, weights, software."""
    return _sha256("\n".join([job_id, job.model_dump_json(), weights, *map(str, sorted(versions.items()))]).encode())


def seed_of(name: str) -> int:
    """A seed drawn from the name of a task, the same for all workers that try it."""
    return int.from_bytes(hashlib.sha256(f"seed of {name}".encode()).digest()[:4])


def rendering_fingerprint(request: str, media: Iterable[Path], numerics: str) -> str:
    """Of all that decides the frames: the request, the media's contents, and how the networks compute."""
    digest = hashlib.sha256(f"{request}\n{numerics}".encode())
    for path in media:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""What a job has made so far, kept beside its outputs, so that the same job goes on in another worker.

As each chunk ends, its encoded part, what the next chunk starts from and `state.json` are stored below
`{prefix}/.resume/{name}/`, the last one last: it names the others by their SHA-256, and counts only whole. A finished
job's result takes its place until the queue has it. What does not fit the job (its parameters, inputs, model) or is
older than RESUME_TTL_S is ignored, and what is older is removed.

No error in here fails a job: without what is kept, it starts from its beginning.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ValidationError

from infinitetalk.encode import picture_bytes
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.storage import S3Store, Store, VolumeStore, make_store
from schemas import OutputConfig, SingleJob

FOLDER = ".resume"
STATE_FILE = "state.json"
THUMBNAIL_FILE = "thumbnail.jpg"
FORMAT = 2
"""Of what is stored; another one is ignored."""

_OUR_FILE = re.compile(r"state\.json|thumbnail\.jpg|chunk-\d{5}\.safetensors|part-\d{5}\.mp4")
STORE_ERRORS = (OSError, BotoCoreError, ClientError)


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


class StoredPart(BaseModel):
    """A part as `state.json` names it."""

    sha256: str
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
    thumbnail_sha256: str
    parts: list[StoredPart]
    chunk_state_sha256: str | None


class StoredState(BaseModel):
    """`state.json`: either a rendering under way or a result.

    `request` is of the job's parameters and the weights; `saved_at` counts seconds since 1970.
    """

    format: int
    request: str
    saved_at: float
    rendering: StoredRendering | None = None
    result: dict[str, Any] | None = None


class Files(ABC):
    """Small files by name, in folders one level deep. Methods raise one of `STORE_ERRORS`."""

    @abstractmethod
    def write(self, folder: str, name: str, data: bytes) -> None:
        """Puts a file, whole or not at all."""

    @abstractmethod
    def read(self, folder: str, name: str) -> bytes | None:
        """A file; None where there is none."""

    @abstractmethod
    def remove(self, folder: str, names: Iterable[str]) -> None:
        """Removes files, whether they are there or not."""

    @abstractmethod
    def entries(self) -> Iterable[tuple[str, str, float]]:
        """Folder, name and time of writing, in seconds since 1970, of every file."""


class VolumeFiles(Files):
    """Files below a folder of a volume."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, folder: str, name: str, data: bytes) -> None:
        target = self._root / folder
        target.mkdir(parents=True, exist_ok=True)
        unfinished = target / f".{name}.{os.getpid()}.part"
        try:
            unfinished.write_bytes(data)
            unfinished.replace(target / name)
        finally:
            unfinished.unlink(missing_ok=True)

    def read(self, folder: str, name: str) -> bytes | None:
        try:
            return (self._root / folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, folder: str, names: Iterable[str]) -> None:
        for name in names:
            (self._root / folder / name).unlink(missing_ok=True)
        # A folder that is not empty, or not there, stays as it is.
        with suppress(OSError):
            (self._root / folder).rmdir()
            self._root.rmdir()

    def entries(self) -> Iterable[tuple[str, str, float]]:
        for file in self._root.glob("*/*"):
            with suppress(FileNotFoundError):
                yield file.parent.name, file.name, file.stat().st_mtime


class BucketFiles(Files):
    """Objects below a prefix of a bucket; `client` is boto3's."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def write(self, folder: str, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._key(folder, name), Body=data)

    def read(self, folder: str, name: str) -> bytes | None:
        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._key(folder, name))["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None

    def remove(self, folder: str, names: Iterable[str]) -> None:
        for name in names:
            self._client.delete_object(Bucket=self._bucket, Key=self._key(folder, name))

    def entries(self) -> Iterable[tuple[str, str, float]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
        for page in pages:
            for entry in page.get("Contents", []):
                folder, _, name = entry["Key"].removeprefix(f"{self._prefix}/").partition("/")
                yield folder, name, entry["LastModified"].timestamp()

    def _key(self, folder: str, name: str) -> str:
        return f"{self._prefix}/{folder}/{name}"


class TaskState:
    """What is kept of one task.

    Args:
        files: where; None: nowhere.
        name: of the task's files.
        request: fingerprint of its parameters.
        ttl_s: seconds after which it is stale.
    """

    def __init__(self, files: Files | None, name: str, request: str, ttl_s: float, logger: Any) -> None:
        self.files = files
        self._name = name
        self._request = request
        self._ttl_s = ttl_s
        self._logger = logger
        self._found = self._read_state()
        self._rendering = None if self._found is None else self._found.rendering
        self._stored_parts: list[StoredPart] = []
        self._thumbnail_sha256 = ""

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, where the task has ended already."""
        return None if self._found is None else self._found.result

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
        except STORE_ERRORS as error:
            self._logger.warning("resume.ignored", details={"reason": type(error).__name__})
            return None
        if rendering is None:
            self._logger.warning("resume.ignored", details={"reason": "a file is missing or damaged"})
            return None
        self._stored_parts, self._thumbnail_sha256 = list(stored.parts), stored.thumbnail_sha256
        return rendering

    def save_rendering(self, rendering: Rendering, fingerprint: str) -> bool:
        """Stores what has been made since the last call; returns whether another worker can go on from it."""
        if self.files is None:
            return False
        begin = time.monotonic()
        try:
            self._store_new_files(rendering)
            chunk_state = rendering.chunk_state
            if chunk_state is not None:
                self.files.write(self._name, chunk_state_file(len(rendering.parts)), chunk_state)
            stored = StoredRendering(
                fingerprint=fingerprint,
                seed=rendering.seed,
                height=rendering.height,
                width=rendering.width,
                thumbnail_sha256=self._thumbnail_sha256,
                parts=self._stored_parts,
                chunk_state_sha256=None if chunk_state is None else _sha256(chunk_state),
            )
            self._write_state(stored)
            self._rendering = stored
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_stored", details={"reason": type(error).__name__})
            return False
        self._remove(self.files, self._name, [chunk_state_file(len(rendering.parts) - 1)])
        lat_ms = round((time.monotonic() - begin) * 1000)
        self._logger.info("resume.stored", lat_ms=lat_ms, details={"chunks": len(rendering.parts)})
        return True

    def save_result(self, result: dict[str, Any]) -> None:
        """Stores the result, in case that the queue does not get it."""
        if self.files is None:
            return
        try:
            self._write_state(self._rendering, result)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_stored", details={"reason": type(error).__name__})

    def discard(self) -> None:
        """Removes all that is kept of the task."""
        if self.files is None:
            return
        num_parts = max(len(self._stored_parts), 0 if self._rendering is None else len(self._rendering.parts))
        names = [part_file(index) for index in range(num_parts)]
        names += [chunk_state_file(index) for index in range(num_parts + 1)]
        self._remove(self.files, self._name, [STATE_FILE, THUMBNAIL_FILE, *names])

    def sweep(self) -> None:
        """Removes what is stale of all tasks that are kept in the same place."""
        if self.files is None:
            return
        oldest = time.time() - self._ttl_s
        try:
            stale = [
                (folder, name)
                for folder, name, written_at in self.files.entries()
                if written_at < oldest and _OUR_FILE.fullmatch(name)
            ]
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_swept", details={"reason": type(error).__name__})
            return
        for folder, name in stale:
            self._remove(self.files, folder, [name])

    def _remove(self, files: Files, folder: str, names: Sequence[str]) -> None:
        try:
            files.remove(folder, names)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_removed", details={"reason": type(error).__name__})

    def _read_state(self) -> StoredState | None:
        """What is there, if it is of this job and not stale."""
        if self.files is None:
            return None
        try:
            data = self.files.read(self._name, STATE_FILE)
            state = None if data is None else StoredState.model_validate_json(data)
        except (*STORE_ERRORS, ValidationError) as error:
            self._logger.warning("resume.ignored", details={"reason": type(error).__name__})
            return None
        if state is None:
            return None
        if state.format != FORMAT or state.request != self._request:
            self._logger.info("resume.ignored", details={"reason": "the job's parameters or the model differ"})
            return None
        if time.time() - state.saved_at > self._ttl_s:
            self._logger.info("resume.ignored", details={"reason": "stale"})
            return None
        return state

    def _write_state(self, rendering: StoredRendering | None, result: dict[str, Any] | None = None) -> None:
        assert self.files is not None
        state = StoredState(
            format=FORMAT, request=self._request, saved_at=time.time(), rendering=rendering, result=result
        )
        self.files.write(self._name, STATE_FILE, state.model_dump_json().encode())

    def _store_new_files(self, rendering: Rendering) -> None:
        assert self.files is not None
        if not self._thumbnail_sha256:
            thumbnail = rendering.thumbnail.read_bytes()
            self.files.write(self._name, THUMBNAIL_FILE, thumbnail)
            self._thumbnail_sha256 = _sha256(thumbnail)
        for index in range(len(self._stored_parts), len(rendering.parts)):
            part = rendering.parts[index]
            data = part.path.read_bytes()
            self.files.write(self._name, part_file(index), data)
            self._stored_parts.append(
                StoredPart(
                    sha256=_sha256(data),
                    num_frames=part.num_frames,
                    evaluations=part.evaluations,
                    evaluations_skipped=part.evaluations_skipped,
                    is_flat=part.is_flat,
                )
            )

    def _fetch(self, stored: StoredRendering, folder: Path) -> Rendering | None:
        """The rendering with its files in `folder`; None where one is missing or not what was stored."""
        chunk_state = None
        if stored.chunk_state_sha256 is not None:
            chunk_state = self._read_checked(chunk_state_file(len(stored.parts)), stored.chunk_state_sha256)
            if chunk_state is None:
                return None
        wanted = {THUMBNAIL_FILE: stored.thumbnail_sha256}
        wanted |= {part_file(index): part.sha256 for index, part in enumerate(stored.parts)}
        for name, sha256 in wanted.items():
            data = self._read_checked(name, sha256)
            if data is None:
                return None
            (folder / name).write_bytes(data)
        parts = [
            Part(folder / part_file(index), part.num_frames, part.evaluations, part.evaluations_skipped, part.is_flat)
            for index, part in enumerate(stored.parts)
        ]
        thumbnail = folder / THUMBNAIL_FILE
        return Rendering(stored.seed, thumbnail, stored.height, stored.width, parts, chunk_state)

    def _read_checked(self, name: str, sha256: str) -> bytes | None:
        assert self.files is not None
        data = self.files.read(self._name, name)
        return data if data is not None and _sha256(data) == sha256 else None


class JobStates:
    """What is kept of the jobs in hand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, list[TaskState]] = {}

    def open(self, job_id: str, name: str, request: str, store: Store, logger: Any) -> TaskState:
        """What is kept of a task of a job.

        Args:
            name: of the task's files.
            request: fingerprint of its parameters and the weights.
            store: where its result goes.
        """
        settings = self._settings
        # A result whose address has expired is of no use.
        ttl_s = min(settings.resume_ttl_s, settings.s3_url_expiry_s)
        files = files_beside(store, settings) if settings.resume else None
        state = TaskState(files, name, request, ttl_s, logger)
        self._open.setdefault(job_id, []).append(state)
        return state

    def close(self, job_id: str, keep: bool) -> None:
        """Ends with a job; all that is kept of it is removed, unless it is still of use."""
        states = self._open.pop(job_id, [])
        if keep:
            return
        for state in states:
            state.discard()
        # Items of a batch share their place as a rule.
        for state in states[:1]:
            state.sweep()


def files_beside(store: Store, settings: Settings) -> Files | None:
    """The place beside a job's outputs; for outputs that go elsewhere the worker's own one, where it has any."""
    match store:
        case VolumeStore():
            return VolumeFiles(store.folder / FOLDER)
        case S3Store():
            return BucketFiles(store.client, store.bucket, f"{store.prefix}/{FOLDER}")
    own_store = own_place(settings)
    return None if own_store is None else files_beside(own_store, settings)


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


def request_fingerprint(job: SingleJob, weights: str, versions: dict[str, str]) -> str:
    """Of all that is known of a task before its media are fetched: parameters, weights, software."""
    return _sha256("\n".join([job.model_dump_json(), weights, *map(str, sorted(versions.items()))]).encode())


def rendering_fingerprint(request: str, media: Iterable[Path], numerics: str) -> str:
    """Of all that decides the frames: the request, the media's contents, and how the networks compute."""
    digest = hashlib.sha256(f"{request}\n{numerics}".encode())
    for path in media:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

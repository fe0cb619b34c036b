"""Saves the progress of unfinished jobs, so that another worker can continue them.

After each chunk, its encoded part, the state that the next chunk starts from, and `state.json` are stored below
`infinitetalk/jobs/.resume/{name}/`. `state.json` is written last. It references the other files by SHA-256 and size and
is ignored if any of them is missing or damaged. It also says what the workers have spent so far, for the result of the
last one. When a job is finished, its result is stored in `state.json` until the queue has it. State is ignored if it
does not fit the job (its id, parameters, inputs, weights) or is older than RESUME_TTL_S; older state is also removed.

Two workers may hold one job. All their files have unique names except `state.json`, which references the files of one
of them. A worker removes only its own files and those that it continued from, but never files that another worker's
`state.json` references.

Stored files are not trusted: `state.json` is signed, and only files that it references are opened. A worker that has no
secret to sign with saves state only in its own place.

No error in this module fails a job: without saved state, the job starts from its beginning.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from infinitetalk.errors import EncodeError
from infinitetalk.media.encode import check_parts, picture_bytes
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.job.bill import Spent
from infinitetalk.worker.job.preview import remove_lost_preview
from infinitetalk.worker.settings import MEGABYTE, Settings
from infinitetalk.worker.stores.base import ObjectStore, Store
from infinitetalk.worker.stores.registry import own_place
from schemas import DEFAULT_PREFIX, SingleJob, SpeechOptions, Success

FOLDER = ".resume"
STATE_FILE = "state.json"
THUMBNAIL_FILE = "thumbnail.jpg"
FORMAT = 5
"""Version of the stored format; other versions are ignored."""

MAX_FILE_BYTES = 500 * MEGABYTE
MAX_STATE_BYTES = 10 * MEGABYTE
"""Largest `state.json`, not counting the result in it, which may contain an inline video."""

CHANGES_NO_NUMBER = {"num_persistent_param_in_dit", "offload_model"}
"""Fields of a job that affect only where weights are kept, not the numbers of the video."""

ADDED_LATER: dict[str, tuple[Any, ...]] = {"script": (None,), "speech": (None, SpeechOptions())}
"""Fields that jobs did not always have, and the values with which a job keeps the fingerprint that it had without."""

AFTER_JOB_S = 30.0
"""Longest time in seconds that cleaning up after a job delays the next one; the rest is done beside the next job."""

_FILE_NAME = r"(?:thumbnail-[0-9a-f]{12}\.jpg|chunk-\d{5}-[0-9a-f]{12}\.safetensors|part-\d{5}-[0-9a-f]{12}\.mp4)"
_OUR_FILE = re.compile(rf"state\.json|\.[0-9a-f]{{32}}\.part|{_FILE_NAME}")
STORE_ERRORS = (OSError, WorkerError)


@dataclass(frozen=True)
class ChunkPart:
    """One chunk as an encoded file; `arithmetic` says how the worker that made it computed."""

    path: Path
    num_frames: int
    evaluations: int
    evaluations_skipped: int
    arithmetic: str
    is_flat: bool = False


@dataclass
class Rendering:
    """An unfinished or finished video.

    Attributes:
        seed: seed of the noise.
        thumbnail: the first frame as a JPEG file.
        height, width: size in pixels; 0 before the first chunk.
        parts: the chunks made so far, in order.
        chunk_state: the `ChunkState` that the next chunk starts from, as bytes; None if it starts from nothing.
    """

    seed: int
    thumbnail: Path
    height: int = 0
    width: int = 0
    parts: list[ChunkPart] = field(default_factory=list)
    chunk_state: bytes | None = None

    @property
    def num_frames(self) -> int:
        """Number of video frames made."""
        return sum(part.num_frames for part in self.parts)

    @property
    def picture_bytes(self) -> int:
        """Size of the encoded frames in bytes."""
        return sum(picture_bytes(part.path) for part in self.parts)

    @property
    def evaluations(self) -> int:
        """Number of network evaluations made."""
        return sum(part.evaluations for part in self.parts)

    @property
    def evaluations_skipped(self) -> int:
        """Number of network evaluations saved by TeaCache."""
        return sum(part.evaluations_skipped for part in self.parts)


class StoredFile(BaseModel):
    """A file's entry in `state.json`."""

    name: str = Field(pattern=rf"^{_FILE_NAME}$")
    sha256: str
    num_bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class StoredPart(StoredFile):
    """A part's entry in `state.json`."""

    num_frames: int
    evaluations: int
    evaluations_skipped: int
    arithmetic: str
    is_flat: bool


class StoredRendering(BaseModel):
    """A rendering's entry in `state.json`."""

    fingerprint: str
    seed: int
    height: int
    width: int
    thumbnail: StoredFile
    parts: list[StoredPart]
    chunk_state: StoredFile | None

    @property
    def names(self) -> set[str]:
        """Names of the files that it needs."""
        files = [self.thumbnail, *self.parts, *([] if self.chunk_state is None else [self.chunk_state])]
        return {file.name for file in files}

    @property
    def names_begun(self) -> set[str]:
        """Names of the files that its workers may have stored without a state that names them: a worker may end, or cut
        off a request that the store completes, between the files of the next chunk and their state."""
        next_files = (part_file(len(self.parts)), chunk_state_file(len(self.parts) + 1))
        return {name_of(file, attempt_of(name)) for name in self.names for file in next_files}


class StoredState(BaseModel):
    """The contents of `state.json`: an unfinished rendering or a result.

    `name` is the name of the task's files, `request` the fingerprint of the job's id, its parameters and the weights,
    `saved_at` the time in seconds since 1970, `spent` what all workers have spent on the video until then.
    """

    format: int
    name: str
    request: str
    saved_at: float
    spent: Spent
    rendering: StoredRendering | None = None
    result: Success | None = None


class SignedState(BaseModel):
    """`state.json`: a `StoredState` as text and its signature, which is empty if the worker has no secret."""

    state: str
    signature: str


class TaskState:
    """The saved state of one task.

    Attributes:
        result: the result of an earlier worker whose result did not reach the queue; None if there is none.
        spent: what earlier workers have spent on the task, as far as they could say.

    Args:
        place: the store that holds it; None: state is not saved.
        name: name of the task's files.
        request: fingerprint of the job's id, its parameters and the weights.
        ttl_s: seconds after which state is stale.
        secret: key of the signature; None: unsigned.
        max_state_bytes: largest size of `state.json`.
    """

    def __init__(
        self,
        place: ObjectStore | None,
        name: str,
        request: str,
        ttl_s: float,
        secret: bytes | None,
        max_state_bytes: int,
        logger: Any,
    ) -> None:
        self._place = place
        self.objects = None if place is None else folder_of_state(place)
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
        self.spent = Spent() if found is None else found.spent
        self._rendering = None if found is None else found.rendering
        self._stored_parts: list[StoredPart] = []
        self._thumbnail: StoredFile | None = None
        self._names = set() if self._rendering is None else self._rendering.names | self._rendering.names_begun

    def restore(self, fingerprint: str, folder: Path) -> Rendering | None:
        """The unfinished video of another worker, with its files in `folder`; None if no saved state fits."""
        stored = self._rendering
        if stored is None:
            return None
        if stored.fingerprint != fingerprint:
            self._logger.info("resume.ignored", details={"reason": "inputs or model differ"})
            return None
        try:
            rendering = self._fetch(stored, folder)
        except (*STORE_ERRORS, EncodeError) as error:
            self._logger.warning("resume.ignored", details={"reason": _reason(error)})
            return None
        if rendering is None:
            self._logger.warning("resume.ignored", details={"reason": "a file is missing or damaged"})
            return None
        self._stored_parts, self._thumbnail = list(stored.parts), stored.thumbnail
        return rendering

    def save_rendering(self, rendering: Rendering, fingerprint: str, spent: Spent) -> bool:
        """Stores the chunks made since the last call; returns whether another worker can continue from them.

        Args:
            spent: what all workers have spent on the task.
        """
        if self.objects is None:
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
            self._write_state(stored, spent)
            self._rendering = stored
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_stored", details={"reason": _reason(error)})
            return False
        if before is not None and before.name in self._names:
            self._remove([before.name])
        lat_ms = round((time.monotonic() - begin) * 1000)
        self._logger.info("resume.stored", lat_ms=lat_ms, details={"chunks": num_parts})
        return True

    def save_result(self, result: Success, spent: Spent) -> None:
        """Stores the result, in case the queue does not get it.

        Args:
            spent: what all workers have spent on the task.
        """
        if self.objects is None:
            return
        try:
            self._write_state(self._rendering, spent, result)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_stored", details={"reason": _reason(error)})

    def save_spent(self, spent: Spent) -> None:
        """Stores what an unfinished task has cost, so that the next worker's result counts it.

        Only in the worker's own place, because a place that the job names may be slow, and not over the state of
        another worker with the same job.

        Args:
            spent: what all workers have spent on the task.
        """
        if self._place is None or self.objects is None or not self._place.is_own:
            return
        try:
            data = self.objects.get(self._path(STATE_FILE), self._max_state_bytes)
            if data == (self._written or self._found):
                self._write_state(self._rendering, spent)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_stored", details={"reason": _reason(error)})

    def discard(self) -> None:
        """Removes the state that this worker saved or continued from, except the files that another worker with the
        same job needs."""
        if self.objects is None:
            return
        try:
            data = self.objects.get(self._path(STATE_FILE), self._max_state_bytes)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_removed", details={"reason": _reason(error)})
            return
        names = set(self._names)
        if data is not None and data in (self._written, self._found):
            names.add(STATE_FILE)
        elif data is not None and (other := self._verified(data)) is not None and other.rendering is not None:
            names -= other.rendering.names
        self._remove(sorted(names))

    def remove_preview(self, outputs: ObjectStore) -> None:
        """Removes all previews of the video, whichever worker published them, if the video has not been made."""
        remove_lost_preview(outputs, self.name, self._logger)

    def sweep(self) -> None:
        """Removes the stale state of all tasks in the same place, if it is the worker's own."""
        if self._place is None or self.objects is None or not self._place.is_own:
            return
        deadline = time.monotonic() + AFTER_JOB_S
        try:
            for _, found in groupby(self.objects.list(), key=lambda item: item.name.rpartition("/")[0]):
                ours = [item for item in found if _OUR_FILE.fullmatch(item.name.rpartition("/")[2])]
                # The newest file of a task decides: older ones may be parts of a job that still runs.
                if ours and min(item.age_s for item in ours) > self._ttl_s:
                    self.objects.delete(item.name for item in ours)
                if time.monotonic() > deadline:
                    return
            self._place.remove_unfinished(self._ttl_s)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_swept", details={"reason": _reason(error)})

    def _path(self, name: str) -> str:
        return f"{self.name}/{name}"

    def _remove(self, names: Sequence[str]) -> None:
        assert self.objects is not None
        try:
            self.objects.delete(map(self._path, names))
            self._names -= set(names)
        except STORE_ERRORS as error:
            self._logger.warning("resume.not_removed", details={"reason": _reason(error)})

    def _read_state(self) -> StoredState | None:
        """The stored state, if it belongs to this job and is not stale."""
        self._found: bytes | None = None
        if self.objects is None:
            return None
        try:
            data = self.objects.get(self._path(STATE_FILE), self._max_state_bytes)
        except STORE_ERRORS as error:
            self._logger.warning("resume.ignored", details={"reason": _reason(error)})
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
        """The contents of `state.json`, if its signature is valid."""
        try:
            signed = SignedState.model_validate_json(data)
            if not hmac.compare_digest(signed.signature.encode(), self._signature(signed.state).encode()):
                return None
            return StoredState.model_validate_json(signed.state)
        except ValidationError:
            return None

    def _signature(self, state: str) -> str:
        return "" if self._secret is None else hmac.new(self._secret, state.encode(), hashlib.sha256).hexdigest()

    def _write_state(self, rendering: StoredRendering | None, spent: Spent, result: Success | None = None) -> None:
        assert self.objects is not None
        state = StoredState(
            format=FORMAT,
            name=self.name,
            request=self._request,
            saved_at=time.time(),
            spent=spent,
            rendering=rendering,
            result=result,
        ).model_dump_json()
        data = SignedState(state=state, signature=self._signature(state)).model_dump_json().encode()
        self.objects.put(self._path(STATE_FILE), data)
        self._written = data

    def _store_new_files(self, rendering: Rendering) -> StoredFile:
        """Stores the new parts and the thumbnail; returns the thumbnail."""
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
                    arithmetic=part.arithmetic,
                    is_flat=part.is_flat,
                )
            )
        return self._thumbnail

    def _store(self, name: str, data: bytes) -> StoredFile:
        """Stores a file under a name that no other worker uses."""
        assert self.objects is not None
        own_name = name_of(name, self._attempt)
        self._names.add(own_name)
        self.objects.put(self._path(own_name), data)
        return StoredFile(name=own_name, sha256=_sha256(data), num_bytes=len(data))

    def _fetch(self, stored: StoredRendering, folder: Path) -> Rendering | None:
        """The rendering with its files in `folder`; None if a file is missing or was changed.

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
            ChunkPart(
                folder / part_file(index),
                part.num_frames,
                part.evaluations,
                part.evaluations_skipped,
                part.arithmetic,
                part.is_flat,
            )
            for index, part in enumerate(stored.parts)
        ]
        check_parts([(part.path, part.num_frames) for part in parts])
        thumbnail = folder / THUMBNAIL_FILE
        return Rendering(stored.seed, thumbnail, stored.height, stored.width, parts, chunk_state)

    def _read_checked(self, file: StoredFile) -> bytes | None:
        assert self.objects is not None
        data = self.objects.get(self._path(file.name), file.num_bytes)
        return data if data is not None and _sha256(data) == file.sha256 else None


class JobStates:
    """The saved states of the jobs that the worker holds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, list[tuple[TaskState, Store]]] = {}

    def open(self, job_id: str, name: str, request: str, store: Store, logger: Any) -> TaskState:
        """The saved state of a task of a job.

        Args:
            name: name of the task's files.
            request: fingerprint of the job's id, its parameters and the weights.
            store: takes the task's result.
        """
        settings = self._settings
        secret = state_secret(settings)
        place = place_of_state(store, settings) if settings.resume else None
        max_bytes = MAX_STATE_BYTES + settings.max_result_bytes
        state = TaskState(place, name, request, settings.resume_ttl_s, secret, max_bytes, logger)
        self._open.setdefault(job_id, []).append((state, store))
        return state

    def close(self, job_id: str, keep: bool) -> None:
        """Closes a job's states; removes them and its unfinished previews unless `keep`."""
        opened = self._open.pop(job_id, [])
        if keep or not opened:
            return
        thread = threading.Thread(target=_clean_up, args=(opened,), name="clean-up", daemon=True)
        thread.start()
        thread.join(AFTER_JOB_S)


def _clean_up(opened: list[tuple[TaskState, Store]]) -> None:
    for state, store in opened:
        if store.objects is not None:
            store.objects.forget_stop()
        state.discard()
        if store.objects is not None:
            state.remove_preview(store.objects)
    # The items of a batch usually share their place.
    for state, _ in opened[:1]:
        state.sweep()


def place_of_state(store: Store, settings: Settings) -> ObjectStore | None:
    """The place for saved state: the place of the result if that is the worker's own; else the worker's own place if it
    has one; else the place that the job names, if the state can be signed."""
    if store.objects is not None and store.objects.is_own:
        return store.objects
    own = own_place(settings)
    if own is not None:
        return own
    return store.objects if state_secret(settings) is not None else None


def folder_of_state(place: ObjectStore) -> ObjectStore:
    """The folder for state in a place. In the worker's own place it does not depend on the job's prefix, so that every
    worker finds it."""
    return place.at(f"{DEFAULT_PREFIX if place.is_own else place.prefix}/{FOLDER}")


def state_secret(settings: Settings) -> bytes | None:
    """The key that signs saved state: RESUME_SECRET, else a key derived from the secret of the worker's own store."""
    if settings.resume_secret is not None:
        return settings.resume_secret.get_secret_value().encode()
    if settings.s3_secret_key is None:
        return None
    return hmac.new(settings.s3_secret_key.get_secret_value().encode(), b"kept state", hashlib.sha256).digest()


def name_of(file: str, attempt: str) -> str:
    """Name that one attempt gives a file; no other attempt uses it."""
    stem, _, extension = file.rpartition(".")
    return f"{stem}-{attempt}.{extension}"


def attempt_of(name: str) -> str:
    """The attempt that gave a file its name, as `name_of`."""
    return name.rpartition(".")[0].rpartition("-")[2]


def chunk_state_file(num_chunks: int) -> str:
    """Name of the file with the state that follows the first `num_chunks` chunks."""
    return f"chunk-{num_chunks:05d}.safetensors"


def part_file(index: int) -> str:
    """Name of the file of a chunk; chunks are counted from 0."""
    return f"part-{index:05d}.mp4"


def request_fingerprint(job_id: str, job: SingleJob, weights: str, versions: dict[str, str]) -> str:
    """Fingerprint of everything known about a task before its media are fetched: the job's id, the parameters that
    change numbers, weights, software."""
    absent = {name for name, values in ADDED_LATER.items() if getattr(job, name) in values}
    parameters = job.model_dump_json(exclude=CHANGES_NO_NUMBER | absent)
    return _sha256("\n".join([job_id, parameters, weights, *map(str, sorted(versions.items()))]).encode())


def seed_of(name: str) -> int:
    """A seed derived from the name of a task, the same for all workers."""
    return int.from_bytes(hashlib.sha256(f"seed of {name}".encode()).digest()[:4])


def rendering_fingerprint(request: str, media: Iterable[Path]) -> str:
    """Fingerprint of everything that determines the video: the request and the media's contents.

    It does not include how a worker computes: another worker may continue after the existing chunks, and each part
    records how it was made.
    """
    digest = hashlib.sha256(request.encode())
    for path in media:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """The reason that a log gives for an error."""
    return error.message if isinstance(error, WorkerError) else type(error).__name__


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""Results as objects: the video, its thumbnail and its metadata, side by side in any object store.

Storing the video is the commit: from then on the job has its result, and the other files are made to fit the video.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from infinitetalk.worker.stores.base import (
    CHECK_S,
    METADATA_TYPE,
    THUMBNAIL_TYPE,
    VIDEO_TYPE,
    Artifacts,
    ObjectInfo,
    ObjectStore,
    SentBytes,
    Store,
    Transfer,
    Upload,
    not_stored,
)
from infinitetalk.worker.traffic import retry

MAX_METADATA_BYTES = 1_000_000
TRIES = 4
"""Number of attempts to store a video when another worker stores one at the same time."""


class Step(Enum):
    """The action for a finished video, which depends on the object in its place."""

    CREATE = "create"
    REPLACE = "replace"
    ADOPT = "adopt"


def next_step(found: ObjectInfo | None, before: ObjectInfo | None, request: str) -> Step:
    """The action for a finished video. Two workers may hold one job: the first stored video stays, since a client may
    already have its address.

    Args:
        found: the video that is in its place now; None if there is none. Its mark is the request that it answers, or
            None while that is not known, for instance because its metadata has not been stored yet.
        before: the video that was there when the job began.
        request: the request that the finished video answers.

    Raises:
        WorkerError: another job's video has been stored there in the meantime.
    """
    if found is None:
        return Step.CREATE
    if found.mark == request:
        return Step.ADOPT
    if before is not None and before.identity == found.identity:
        # An earlier job had the same id, as jobs of the command line do, or a worker was lost.
        return Step.REPLACE
    if found.mark is None:
        return Step.ADOPT
    raise not_stored("another worker has stored a video of another request under the job's id")


class ObjectResults(Store):
    """Keeps results as objects {name}.mp4, {name}.jpg and {name}.json."""

    objects: ObjectStore

    def __init__(self, objects: ObjectStore) -> None:
        super().__init__()
        self.objects = objects
        self._before: ObjectInfo | None = None

    def check(self) -> None:
        self.objects.check()

    def remember(self, name: str) -> None:
        with self.objects.within(CHECK_S):
            self._before = self._look(name)

    def places(self, name: str, num_bytes: int) -> dict[str, Any] | None:
        with self.objects.within(CHECK_S):
            found = self.objects.head(f"{name}.mp4")
            if found is None or found.num_bytes != num_bytes:
                return None
            if any(self.objects.head(f"{name}.{extension}") is None for extension in ("jpg", "json")):
                return None
            return self._addresses(name)[0]

    def _save(self, name: str, artifacts: Artifacts, transfer: Transfer) -> dict[str, Any]:
        beside = {"jpg": (artifacts.thumbnail, THUMBNAIL_TYPE), "json": (artifacts.metadata, METADATA_TYPE)}
        made = artifacts.video.stat().st_size
        sent = SentBytes(transfer.on_bytes, made + sum(path.stat().st_size for path, _ in beside.values()))
        upload = Upload(artifacts.video, VIDEO_TYPE, artifacts.request, sent, transfer.should_stop)
        with self.objects.within():
            with self.objects.uploading(f"{name}.mp4", upload) as commit:
                there, is_mine = self._commit(name, artifacts.request, made, commit)
                # The job has its video now and must not be stopped any more.
                self.objects.forget_stop()
            for extension, (path, content_type) in beside.items():
                data = _with_size(path, there, made) if extension == "json" else path.read_bytes()
                self._put_beside(f"{name}.{extension}", data, content_type, is_new=not is_mine)
                if self.objects.is_remote:
                    sent.add(len(data))
            places, served = self._addresses(name)
            if served != there:
                stands = self._settle(name, artifacts, there, made)
                # An address may lag behind the store.
                there = stands if served is None or stands != there else served
        return places | ({} if there == made else {"bytes": there})

    def _settle(self, name: str, artifacts: Artifacts, there: int, made: int) -> int:
        """Makes the metadata fit the video that stands, and returns its size. In a store that looks for a name and then
        writes, another worker's video can replace a new one.

        Raises:
            WorkerError: the video that stands answers another request.
        """
        for _ in range(TRIES):
            found = self._look(name)
            if found is None or found.num_bytes == there:
                break
            # It raises if this is another request's.
            next_step(found, None, artifacts.request)
            there = found.num_bytes
            self.objects.put(f"{name}.json", _with_size(artifacts.metadata, there, made), METADATA_TYPE)
        return there

    def _commit(self, name: str, request: str, made: int, commit: Callable[[bool], bool]) -> tuple[int, bool]:
        """Stores the video; returns the size of the stored video, and whether it is this worker's."""
        for attempt in range(TRIES):
            found = self._look(name)
            step = next_step(found, self._before, request)
            if step is Step.ADOPT:
                assert found is not None
                return found.num_bytes, False
            if step is Step.REPLACE and not self.objects.keeps_marks:
                # It describes the video that is being replaced.
                self.objects.delete([f"{name}.json"])
            if commit(step is Step.CREATE):
                return made, True
            # Another worker has stored a video first, or is about to.
            time.sleep(retry.FIRST_WAIT_S * attempt)
        raise not_stored("the store says that the video exists already, but does not show it")

    def _look(self, name: str) -> ObjectInfo | None:
        """The stored video, with the request that it answers as its mark."""
        found = self.objects.head(f"{name}.mp4")
        if found is None or self.objects.keeps_marks:
            return found
        return replace(found, mark=_request_in(self.objects.get(f"{name}.json", MAX_METADATA_BYTES)))

    def _put_beside(self, name: str, data: bytes, content_type: str, is_new: bool) -> None:
        self.objects.put(name, data, content_type, is_new)

    def _addresses(self, name: str) -> tuple[dict[str, Any], int | None]:
        """The addresses of a video's files, and the video's size if its address reports one."""
        kind = self.objects.address_kind
        fields = {f"metadata_{kind}": "json", f"thumbnail_{kind}": "jpg", kind: "mp4"}
        found = {field: self.objects.url(f"{name}.{extension}") for field, extension in fields.items()}
        for address in found.values():
            if address.warning is not None and address.warning not in self.warnings:
                self.warnings.append(address.warning)
        return {field: address.text for field, address in found.items()}, found[kind].num_bytes


def _request_in(metadata: bytes | None) -> str | None:
    """The request named in a video's metadata."""
    try:
        account = None if metadata is None else json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    request = account.get("request") if isinstance(account, dict) else None
    return request if isinstance(request, str) else None


def _with_size(metadata: Path, there: int, made: int) -> bytes:
    """A video's metadata with the size of the stored video, which may be another worker's."""
    data = metadata.read_bytes()
    if there == made:
        return data
    account = json.loads(data)
    account["video"]["bytes"] = there
    return json.dumps(account, indent=2, ensure_ascii=False).encode()

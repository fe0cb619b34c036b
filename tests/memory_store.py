"""A store that the worker does not have: objects in the memory of this process, as one would add it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

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
)
from infinitetalk.worker.stores.registry import StoreKind
from infinitetalk.worker.stores.results import ObjectResults
from schemas import DEFAULT_PREFIX


@dataclass(frozen=True)
class StoredObject:
    """An object: its bytes, its mark, and when it was stored."""

    data: bytes
    mark: str | None
    stored_at: float


class MemoryObjects(ObjectStore):
    """Objects in a dict."""

    is_own = True
    is_remote = False
    keeps_marks = True
    address_kind = "url"

    def __init__(self, shelf: dict[str, StoredObject], prefix: str) -> None:
        self._shelf = shelf
        self.prefix = prefix

    def at(self, prefix: str) -> Self:
        return type(self)(self._shelf, prefix)

    def check(self) -> None:
        """Memory takes everything."""

    def put(self, name: str, data: bytes, content_type: str = ANY_TYPE, is_new: bool = False) -> None:
        self._place(name, StoredObject(data, None, time.time()), is_new)

    @contextmanager
    def uploading(self, name: str, upload: Upload) -> Iterator[Callable[[bool], bool]]:
        data = b"".join(blocks_of(upload.path, upload.should_stop))
        yield lambda is_new: self._place(name, StoredObject(data, upload.mark, time.time()), is_new)

    def get(self, name: str, max_bytes: int) -> bytes | None:
        found = self._shelf.get(self._key(name))
        return None if found is None or len(found.data) > max_bytes else found.data

    def head(self, name: str) -> ObjectInfo | None:
        found = self._shelf.get(self._key(name))
        return None if found is None else ObjectInfo(str(found.stored_at), len(found.data), found.mark)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._shelf.pop(self._key(name), None)

    def list(self, folder: str = "") -> Iterator[ListedObject]:
        begin = self._key(folder)
        for key in sorted(key for key in self._shelf if key.startswith(begin)):
            yield ListedObject(key.removeprefix(f"{self.prefix}/"), time.time() - self._shelf[key].stored_at)

    def url(self, name: str) -> Address:
        return Address(f"https://memory.example/{self._key(name)}")

    def remove_unfinished(self, max_age_s: float) -> None:
        """Nothing is ever unfinished here."""

    def _place(self, name: str, stored: StoredObject, is_new: bool) -> bool:
        if not is_new:
            self._shelf[self._key(name)] = stored
        return self._shelf.setdefault(self._key(name), stored) is stored

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"


def memory_kind(shelf: dict[str, StoredObject]) -> StoreKind:
    """The line of the registry."""

    def open_memory(request: StoreRequest) -> Store:
        return ObjectResults(MemoryObjects(shelf, request.output_config.prefix))

    def own_memory(settings: Settings) -> ObjectStore | None:
        return MemoryObjects(shelf, DEFAULT_PREFIX)

    return StoreKind(open_memory, own_memory)

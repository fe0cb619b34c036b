"""The memory that fake tensors take: the bytes of storages that are alive."""

from __future__ import annotations

import math
import weakref
from collections.abc import Container

import torch


class Storages:
    """Counts storages from when they are told of until they are freed.

    Args:
        piece_bytes: memory is given in pieces of so many bytes.

    Attributes:
        held_bytes: in use now.
        peak_bytes: the most that was in use.
    """

    def __init__(self, piece_bytes: int = 1) -> None:
        self.held_bytes = self.peak_bytes = 0
        self._piece_bytes = piece_bytes
        self._live: dict[int, int] = {}

    def count(self, storage: torch.UntypedStorage, except_for: Container[int] = ()) -> bool:
        """Counts a storage, unless it is counted or its address is among those to leave out.

        Returns:
            Whether more is in use than ever before.
        """
        key = storage._cdata
        if key in self._live or key in except_for:
            return False
        self._live[key] = math.ceil(storage.nbytes() / self._piece_bytes) * self._piece_bytes
        self.held_bytes += self._live[key]
        weakref.finalize(storage, self._forget, key)
        is_peak = self.held_bytes > self.peak_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return is_peak

    def _forget(self, key: int) -> None:
        self.held_bytes -= self._live.pop(key, 0)

"""Reference frames that were encoded before: the same picture in the next job is not encoded again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

#: A picture of 640×640 with 81 frames takes 10 MB.
MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class ReferenceKey:
    """Everything that an encoded reference depends on, but for the networks' weights.

    Attributes:
        picture: hash of the picture as it is encoded, resized and cropped.
        height, width: of the picture.
        num_frames: of the chunk, whose other frames are grey.
        arithmetic: how the networks compute, and whose networks they are.
    """

    picture: str
    height: int
    width: int
    num_frames: int
    arithmetic: str


@dataclass(frozen=True)
class EncodedReference:
    """An encoded reference in the CPU's memory.

    Attributes:
        image_embeds: (1, image_tokens, image_dim).
        latents: (1, 16, t, h, w).
    """

    image_embeds: Tensor
    latents: Tensor

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return self.image_embeds.nbytes + self.latents.nbytes


def reference_key(picture: Tensor, num_frames: int, arithmetic: str) -> ReferenceKey:
    """The key of a resized picture, uint8 (3, height, width) on the CPU."""
    digest = hashlib.sha256(picture.numpy().tobytes()).hexdigest()
    _, height, width = picture.shape
    return ReferenceKey(digest, height, width, num_frames, arithmetic)


class EncodedReferences:
    """The encoded references that were used last, as many as fit into `max_bytes` of the CPU's memory.

    All of them must be of networks with the same weights, except where `ReferenceKey.arithmetic` tells them apart.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[ReferenceKey, EncodedReference] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: ReferenceKey) -> EncodedReference | None:
        """The reference of this key, which now counts as used; None if it is not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: ReferenceKey, reference: EncodedReference) -> None:
        """Keeps a reference, in place of those that were not used for longest where there is no room for all."""
        with self._lock:
            self._kept[key] = reference
            while sum(each.num_bytes for each in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

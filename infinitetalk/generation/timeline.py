"""What changes along a video: from a frame on, another prompt or another source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from infinitetalk.media.decode import Source

P = TypeVar("P")
"""A prompt: its text, or its embeddings."""


@dataclass(frozen=True)
class Change(Generic[P]):
    """What a chunk takes whose first frame is `start` or later, until the next change.

    Attributes:
        start: a frame of the video.
        prompt: describes the video from then on: its text, or its embeddings (1, text_len, text_dim).
        source: the image or video of the speakers.
        source_start: the frame of the video at which the source's time is 0, at most `start`.
    """

    start: int
    prompt: P
    source: Source
    source_start: int


def in_force(changes: Sequence[Change[P]], frame: int) -> Change[P]:
    """The last of some changes, in the order of their frames, that is not later than a frame; the first begins at 0."""
    return [change for change in changes if change.start <= frame][-1]

"""What changes along a video: prompts and pictures from their times on, speech that begins later, turns of speakers.

Times are seconds of the video. A list with one entry means the same as the entry alone and becomes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Discriminator, Field, StringConstraints

from schemas.base import Published, StrictModel, choice

LATEST_S = 3600.0
"""Latest time of an entry: the longest video's length."""

MOST_PROMPTS, MOST_PICTURES, MOST_TURNS = 32, 16, 100
"""Largest number of entries of a list."""

LONGEST_PROMPT = 5000
FRAME_S = 0.04
"""Seconds of a video frame, and the least between two entries."""

MediaText = Annotated[str, StringConstraints(min_length=1)]
PromptText = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_PROMPT)]
Time = Annotated[float, Field(ge=0, le=LATEST_S)]


class PromptFrom(StrictModel):
    """A prompt that is in force from a time on."""

    from_s: Time
    """Seconds from which it is in force; of the first entry 0."""

    prompt: PromptText
    """Description of the video from then on."""


class PictureFrom(StrictModel):
    """An image or a video of the speakers that is in force from a time on."""

    from_s: Time
    """Seconds from which it is in force; of the first entry 0. A video starts then."""

    media: MediaText
    """Image or video of the speakers, in the same forms as cond_video."""


class VoiceFrom(StrictModel):
    """A speaker's sound that begins later."""

    media: MediaText
    """Audio or a video with sound, in the same forms as cond_video."""

    from_s: Time = 0.0
    """Seconds at which it begins; the speaker is silent before."""


class Turn(StrictModel):
    """A stretch of the video in which a speaker's sound is heard."""

    speaker: Annotated[str, Field(pattern=r"^person[1-9]$")]
    """Who speaks: person1, person2, …"""

    from_s: Time
    """Seconds at which the turn begins. The speaker's sound goes on from where its last turn ended."""

    to_s: Annotated[float, Field(gt=0, le=LATEST_S)] | None = None
    """Seconds at which it ends. Null: when the next turn begins; of the last turn, with the speaker's sound."""


def check_times(entries: Sequence[Any]) -> Sequence[Any]:
    """Checks that entries come in the order of their times, the first at 0.

    Raises:
        ValueError: they do not, or two are in the same video frame.
    """
    times = [entry.from_s for entry in entries]
    if times[0] != 0:
        raise ValueError(f"must say what is in force from the start: its first entry needs from_s 0, not {times[0]:g}")
    for before, time in itertools.pairwise(times):
        if time == before:
            raise ValueError(f"has two entries with from_s {time:g}; give each its own time")
        if time < before:
            raise ValueError(f"must be in the order of time: from_s {time:g} comes after {before:g}")
        if time - before < FRAME_S - 1e-9:
            raise ValueError(f"needs {FRAME_S} s, a video frame, between entries: from_s {before:g} and {time:g}")
    return entries


def only_entry(entries: list[PromptFrom] | list[PictureFrom]) -> list[PromptFrom] | list[PictureFrom] | str:
    """The entries, or the prompt or the picture alone if there is only one."""
    if len(entries) > 1:
        return entries
    (entry,) = entries
    return entry.prompt if isinstance(entry, PromptFrom) else entry.media


def only_media(voice: VoiceFrom) -> VoiceFrom | str:
    """The voice, or its media alone if it begins at 0."""
    return voice if voice.from_s > 0 else voice.media


def list_or_text(value: Any) -> str:
    """The form of a value that may be a list."""
    return "<list>" if isinstance(value, list) else "<text>"


def object_or_text(value: Any) -> str:
    """The form of a value that may be an object."""
    return "<object>" if isinstance(value, dict | VoiceFrom) else "<text>"


FIRST_AT_0 = Published({"allOf": [{"prefixItems": [{"properties": {"from_s": {"const": 0}}}]}]})
"""What `check_times` checks, as far as JSON Schema can say it. Beside `items`, `prefixItems` would take its place."""

Alone = TypeVar("Alone")
Entries = TypeVar("Entries")

Changing = Annotated[
    Annotated[Alone, choice("text")]
    | Annotated[Entries, AfterValidator(check_times), AfterValidator(only_entry), FIRST_AT_0, choice("list")],
    Discriminator(list_or_text),
]
"""What is the same along the whole video, or a list of entries that are in force from their times on."""

Prompt = Changing[PromptText, Annotated[list[PromptFrom], Field(min_length=1, max_length=MOST_PROMPTS)]]
PictureMedia = Changing[MediaText, Annotated[list[PictureFrom], Field(min_length=1, max_length=MOST_PICTURES)]]

Voice = Annotated[
    Annotated[MediaText, choice("text")] | Annotated[VoiceFrom, AfterValidator(only_media), choice("object")],
    Discriminator(object_or_text),
]


@dataclass(frozen=True)
class BoundedTurn:
    """A turn of a script with its end.

    Attributes:
        speaker: who speaks.
        from_s, to_s: seconds of the video; None: until the speaker's sound ends.
    """

    speaker: str
    from_s: float
    to_s: float | None


def turns_of(script: Sequence[Turn]) -> list[BoundedTurn]:
    """A script's turns with their ends.

    Raises:
        ValueError: turns are not in the order of time, a turn ends before it begins, or a speaker's turns overlap.
    """
    bounded: list[BoundedTurn] = []
    ends: dict[str, float] = {}
    for index, turn in enumerate(script):
        following = script[index + 1] if index + 1 < len(script) else None
        if following is not None and following.from_s < turn.from_s:
            raise ValueError(
                f"must be in the order of time: script.{index + 1} begins at {following.from_s:g}, "
                f"before script.{index} at {turn.from_s:g}"
            )
        to_s = turn.to_s if turn.to_s is not None or following is None else following.from_s
        if to_s is not None and to_s <= turn.from_s:
            raise ValueError(
                f"needs turns that last: script.{index} begins at {turn.from_s:g} and ends at {to_s:g}; give it a "
                "to_s after its from_s"
            )
        if turn.from_s < ends.get(turn.speaker, 0.0):
            raise ValueError(
                f"needs one turn of a speaker at a time: script.{index} begins at {turn.from_s:g}, before the last "
                f"turn of {turn.speaker} ends at {ends[turn.speaker]:g}"
            )
        bounded.append(BoundedTurn(turn.speaker, turn.from_s, to_s))
        ends[turn.speaker] = float("inf") if to_s is None else to_s
    return bounded


def check_turns(script: list[Turn]) -> list[Turn]:
    """Checks that a script's turns can be taken.

    Raises:
        ValueError: as `turns_of`.
    """
    turns_of(script)
    return script


Script = Annotated[list[Turn], Field(min_length=1, max_length=MOST_TURNS), AfterValidator(check_turns)]

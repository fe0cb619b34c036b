"""Speakers who take turns by a script: in each turn, the speaker's own sound goes on from where its last turn ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SampleTurn:
    """A turn, in samples of the video's sound.

    Attributes:
        speaker: index of the speaker.
        start: first sample.
        end: the sample after the last; None: as long as the speaker's sound lasts.
    """

    speaker: int
    start: int
    end: int | None


@dataclass(frozen=True)
class HeardTurn:
    """A turn as it is heard.

    Attributes:
        turn: the turn.
        sound: samples of the speaker's own sound; shorter than the turn if the sound ends before.
    """

    turn: SampleTurn
    sound: slice

    @property
    def num_samples(self) -> int:
        """Number of samples that are heard."""
        return self.sound.stop - self.sound.start

    @property
    def end(self) -> int:
        """The sample of the video's sound after the last that is heard; 0 if none is."""
        return self.turn.start + self.num_samples if self.num_samples else 0


def take_turns(lengths: Sequence[int], turns: Sequence[SampleTurn]) -> list[HeardTurn]:
    """What is heard in each turn of speakers whose sounds have so many samples."""
    heard = [0] * len(lengths)
    taken = []
    for turn in turns:
        begin, length = heard[turn.speaker], lengths[turn.speaker]
        end = length if turn.end is None else min(begin + turn.end - turn.start, length)
        heard[turn.speaker] = end
        taken.append(HeardTurn(turn, slice(begin, end)))
    return taken


def arrange_turns(waveforms: Sequence[np.ndarray | None], turns: Sequence[SampleTurn]) -> list[np.ndarray]:
    """One track for each speaker, float32 (samples,), up to the last sound that is heard.

    `waveforms` holds one waveform (samples,) for each speaker, or None for a silent one.
    """
    taken = take_turns([0 if waveform is None else len(waveform) for waveform in waveforms], turns)
    tracks = [np.zeros(max(part.end for part in taken), dtype=np.float32) for _ in waveforms]
    for part in taken:
        waveform = waveforms[part.turn.speaker]
        if waveform is not None and part.num_samples:
            tracks[part.turn.speaker][part.turn.start : part.end] = waveform[part.sound]
    return tracks

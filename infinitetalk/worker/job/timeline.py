"""When the speakers of a job speak, and what of its lists and scripts the video does not use."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from infinitetalk.media.decode import MediaInfo, sound_seconds
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS, arrange_tracks
from infinitetalk.media.turns import HeardTurn, SampleTurn, arrange_turns, take_turns
from infinitetalk.worker.engine import Stretch
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.traffic.fetch import Media
from schemas import ErrorCode, PlannedStretch, SingleJob

SHORTEST_LOSS_S = 0.1
"""Sounds' lengths are known to within a packet; less than this counts as nothing."""

SHAPE_TOLERANCE = 0.02


def samples_of(seconds: float) -> int:
    """Samples of a time."""
    return round(seconds * SAMPLING_RATE)


def turns_in_samples(job: SingleJob) -> list[SampleTurn]:
    """The turns of a job's script."""
    return [
        SampleTurn(
            job.speakers.index(turn.speaker),
            samples_of(turn.from_s),
            None if turn.to_s is None else samples_of(turn.to_s),
        )
        for turn in job.turns
    ]


def arrange_voices(job: SingleJob, waveforms: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """One track for each speaker, float32 (samples,), as the job arranges their waveforms (samples,)."""
    if job.audio_type == "script":
        return arrange_turns(waveforms, turns_in_samples(job))
    delays = [samples_of(voice.from_s) if voice is not None else 0 for voice in job.voices.values()]
    return arrange_tracks(waveforms, job.audio_type, delays if job.audio_type == "para" else None)


def check_begins(job: SingleJob, latest_s: float) -> None:
    """Checks that somebody begins to speak before a time.

    Raises:
        WorkerError: nobody does.
    """
    begins = [turn.from_s for turn in job.turns] or [voice.from_s for voice in job.voices.values() if voice is not None]
    if begins and min(begins) >= latest_s:
        field = "script" if job.script is not None else "cond_audio"
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f"{field}: nobody speaks before {min(begins):g} s, and the video ends at {job.frame_limit / VIDEO_FPS:g} "
            's: lower from_s, or allow a longer video (mode "streaming", max_frame_num)',
        )


def end_of_voices(job: SingleJob, speech: Sequence[Media | None]) -> float:
    """Seconds of the video at which the last sound ends, if the video is long enough; accurate to a packet.

    Args:
        speech: each speaker's speech; None for a silent speaker.
    """
    if job.audio_type == "script":
        return max(part.end for part in heard_turns(job, speech)) / SAMPLING_RATE
    lengths = [sound_seconds(medium.path) if medium is not None else 0.0 for medium in speech]
    if job.audio_type == "add":
        return sum(lengths)
    return max(voice.from_s + length for voice, length in zip(job.voices.values(), lengths, strict=True) if voice)


def heard_turns(job: SingleJob, speech: Sequence[Media | None]) -> list[HeardTurn]:
    """What is heard in each turn of a job's script.

    Args:
        speech: each speaker's speech; None for a silent speaker.
    """
    lengths = [0 if medium is None else samples_of(sound_seconds(medium.path)) for medium in speech]
    return take_turns(lengths, turns_in_samples(job))


def script_losses(job: SingleJob, speech: Sequence[Media | None]) -> list[str]:
    """Warnings about turns that have too little sound, and about sound that no turn has.

    Args:
        speech: each speaker's speech; None for a silent speaker.
    """
    if job.script is None:
        return []
    warnings: list[str] = []
    heard = dict.fromkeys(range(len(speech)), 0)
    for index, part in enumerate(heard_turns(job, speech)):
        heard[part.turn.speaker] = part.sound.stop
        if part.turn.end is None:
            continue
        missing = (part.turn.end - part.turn.start - part.num_samples) / SAMPLING_RATE
        if missing >= SHORTEST_LOSS_S:
            speaker = job.speakers[part.turn.speaker]
            warnings.append(f"script.{index} is silent in its last {missing:.1f} s: the sound of {speaker} has ended")
    for (index, stop), medium in zip(heard.items(), speech, strict=True):
        left = 0.0 if medium is None else sound_seconds(medium.path) - stop / SAMPLING_RATE
        if left >= SHORTEST_LOSS_S:
            warnings.append(f"cond_audio.{job.speakers[index]}: its last {left:.1f} s are in no turn of the script")
    return warnings


def late_begins(job: SingleJob, num_frames: int) -> list[str]:
    """A warning for each voice and each turn that begins after a video of `num_frames` frames has ended."""
    seconds = num_frames / VIDEO_FPS
    begins = {f"cond_audio.{name}": voice.from_s for name, voice in job.voices.items() if voice is not None}
    begins |= {f"script.{index}": turn.from_s for index, turn in enumerate(job.turns)}
    return [
        f"{field} is not heard: it begins at {begin:g} s, and the video ends at {seconds:g} s"
        for field, begin in begins.items()
        if begin >= seconds
    ]


def unused_entries(job: SingleJob, stretches: Sequence[Stretch], num_frames: int) -> list[str]:
    """A warning for each prompt and each picture of a list that no chunk takes."""
    if not job.changes:
        return []
    used = {
        "prompt": {stretch.prompt for stretch in stretches},
        "cond_video": {stretch.picture for stretch in stretches},
    }
    warnings = []
    begins = {"prompt": [entry.from_s for entry in job.prompts], "cond_video": [entry.from_s for entry in job.pictures]}
    seconds = num_frames / VIDEO_FPS
    for field, times in begins.items():
        for index, (begin, end) in enumerate(itertools.pairwise([*times, seconds])):
            if index in used[field]:
                continue
            why = f"no chunk begins from then to {min(end, seconds):g} s; a dry run says when chunks begin"
            if begin >= seconds:
                why = f"the video ends at {seconds:g} s"
            warnings.append(f"{field}.{index}, from {begin:g} s on, has no effect: {why}")
    return warnings


def shape_warnings(field: str, info: MediaInfo, first: MediaInfo) -> list[str]:
    """A warning if a later image or video has another shape than the first one."""
    ratio = info.height * first.width / (info.width * first.height)
    if abs(ratio - 1) <= SHAPE_TOLERANCE:
        return []
    return [
        f"{field} is cropped to the shape of the first picture: it has {info.width}x{info.height} pixels, "
        f"the first {first.width}x{first.height}"
    ]


def told_stretches(job: SingleJob, stretches: Sequence[Stretch]) -> list[PlannedStretch] | None:
    """The stretches as a plan tells them; None if neither prompt nor picture changes."""
    if not job.changes:
        return None
    return [
        PlannedStretch(
            first_chunk=stretch.first_chunk + 1,
            last_chunk=stretch.first_chunk + stretch.num_chunks,
            from_s=stretch.start / VIDEO_FPS,
            prompt=stretch.prompt,
            cond_video=stretch.picture,
        )
        for stretch in stretches
    ]

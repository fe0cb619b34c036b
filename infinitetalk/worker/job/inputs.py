"""A job's inputs: its media as local files, and one track of speech for each speaker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infinitetalk.media.speech import (
    SAMPLING_RATE,
    SILENCE_LUFS,
    VIDEO_FPS,
    measure_loudness,
    normalise_loudness,
)
from infinitetalk.media.speech_gate import find_speech, only_speech, silence_between
from infinitetalk.worker.engine import Engine, chunk_grid
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.job.advice import NO_SPEECH, loudness_warnings
from infinitetalk.worker.job.timeline import (
    arrange_voices,
    check_begins,
    end_of_voices,
    script_losses,
    shape_warnings,
)
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.traffic.fetch import Media, OnBytes, Wanted, fetch_all, naming
from schemas import ErrorCode, SingleJob

MIN_SPEECH_FRAMES = 5
SPOKEN_CHARACTERS_PER_S = 15.0
"""A typical rate for English text."""


@dataclass(frozen=True)
class JobMedia:
    """A job's media as local files.

    Attributes:
        source: image or video of the speakers; if it changes, the first one.
        speech: each speaker's speech; None for a silent speaker.
        masks: each speaker's mask, if the job has masks.
        warnings: the losses of the media read so far.
        later_sources: the images and videos that take the source's place, in the job's order.
    """

    source: Media
    speech: list[Media | None]
    masks: list[Media] | None
    warnings: list[str] = field(default_factory=list)
    later_sources: list[Media] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The files, in a fixed order."""
        media = [self.source, *self.later_sources, *self.speech, *(self.masks or [])]
        return [medium.path for medium in media if medium is not None]


def download(
    job: SingleJob, folder: Path, settings: Settings, on_bytes: OnBytes, should_stop: Callable[[], bool]
) -> JobMedia:
    """Downloads all media of a job and checks their kinds.

    Raises:
        WorkerError: a medium cannot be fetched or decoded, is too large, or is of the wrong kind.
        GenerationStopped: `should_stop` returned true.
    """
    pictures = picture_fields(job)
    wanted = {field: Wanted(picture, ("image", "video")) for picture, field in pictures.items()}
    # The first is needed at once; a later one is read only when its time comes, since 16 can be large.
    first_field = pictures[job.pictures[0].media]
    wanted[first_field] = replace(wanted[first_field], is_read=True)
    speech, max_seconds = job.voices, usable_seconds(job)
    for speaker, voice in speech.items():
        if voice is not None:
            # A speaker who begins in the last frame or later is not heard.
            is_heard = voice.from_s < max_seconds - 1 / VIDEO_FPS
            sound_s = max_seconds - voice.from_s if is_heard else None
            wanted[f"cond_audio.{speaker}"] = Wanted(voice.media, ("audio",), sound_s=sound_s)
    for speaker, mask in (job.mask or {}).items():
        # In a film that is kept, a mask may move.
        wanted[f"mask.{speaker}"] = Wanted(mask, ("image", "video") if job.keeps_film else ("image",))
    media = fetch_all(wanted, folder, settings, on_bytes, should_stop)
    first, *later = [media[pictures[picture.media]] for picture in job.pictures]
    if job.strength < 1 and first.info.kind == "image":
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f"dub.strength {job.strength:g} needs a video as cond_video: an image has no motion to keep; leave it out, "
            "or send a video",
        )
    return JobMedia(
        source=first,
        speech=[media.get(f"cond_audio.{speaker}") for speaker in speech],
        masks=None if job.mask is None else [media[f"mask.{speaker}"] for speaker in job.mask],
        warnings=[f"{field}: {warning}" for field in pictures.values() for warning in media[field].info.warnings]
        + [
            warning
            for field in list(pictures.values())[1:]
            for warning in shape_warnings(field, media[field].info, first.info)
        ],
        later_sources=later,
    )


def picture_fields(job: SingleJob) -> dict[str, str]:
    """Each image or video that a job names, and the field that names it first."""
    if len(job.pictures) == 1:
        return {job.pictures[0].media: "cond_video"}
    fields: dict[str, str] = {}
    for index, picture in enumerate(job.pictures):
        fields.setdefault(picture.media, f"cond_video.{index}")
    return fields


@dataclass(frozen=True)
class Tracks:
    """One track for each speaker, float32 (samples,) at 16 kHz, all of the same length.

    Attributes:
        sound: what is heard.
        voices: what moves the mouths: the same, or with the speech gate, only the speech in it.
    """

    sound: list[np.ndarray]
    voices: list[np.ndarray]


@dataclass(frozen=True)
class NormalisedVoice:
    """The normalised sound of a speaker, float32 (samples,) at 16 kHz, and the part of it that moves the mouth, of the
    same length."""

    sound: np.ndarray
    spoken: np.ndarray


def make_tracks(job: SingleJob, media: JobMedia, engine: Engine, should_stop: Callable[[], bool]) -> Tracks:
    """One normalised track for each speaker, no longer than the video can use.

    Raises:
        WorkerError: the speech is too short or cannot be decoded, or its text cannot be spoken.
        CheckpointError: Kokoro cannot be loaded.
        GenerationStopped: `should_stop` returned true.
    """
    max_seconds = usable_seconds(job)
    if job.tts_audio is not None:
        with naming("tts_audio"), engine.reading_weights():
            speech = engine.synthesiser.speak(job.tts_audio.text, job.tts_audio.voices, max_seconds, should_stop)
        sound = [normalise_loudness(track) for track in speech]
        tracks = Tracks(sound, sound)
    else:
        check_begins(job, max_seconds - 1 / VIDEO_FPS)
        voices = make_voices(job, media, should_stop)
        media.warnings.extend(script_losses(job, media.speech))

        def arranged(waveforms: list[np.ndarray | None]) -> list[np.ndarray]:
            tracks = arrange_voices(job, waveforms)
            return [track[: round(max_seconds * SAMPLING_RATE)] for track in tracks]

        sound = arranged([None if voice is None else voice.sound for voice in voices])
        spoken = arranged([None if voice is None else voice.spoken for voice in voices]) if job.gates_speech else sound
        tracks = Tracks(sound, spoken)
    if len(tracks.sound[0]) * VIDEO_FPS < MIN_SPEECH_FRAMES * SAMPLING_RATE:
        field = "cond_audio" if job.tts_audio is None else "tts_audio"
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION, f"{field} is too short: at least {MIN_SPEECH_FRAMES / VIDEO_FPS:g} s"
        )
    return tracks


def speech_seconds(job: SingleJob, media: JobMedia, tracks: Sequence[np.ndarray]) -> float:
    """Length in seconds of all of a job's speech; the `tracks` of the sound hold only the part that the video can use.

    If audio is cut, the length is accurate to a packet; if a text is cut, it is estimated from the number of
    characters.
    """
    kept = len(tracks[0])
    if kept < round(usable_seconds(job) * SAMPLING_RATE):
        return kept / SAMPLING_RATE
    if job.tts_audio is not None:
        seconds = len(job.tts_audio.text) / SPOKEN_CHARACTERS_PER_S
    else:
        seconds = end_of_voices(job, media.speech)
    return max(kept / SAMPLING_RATE, seconds)


def usable_seconds(job: SingleJob) -> float:
    """Seconds of speech that a job's video can use: its own length, and the context of its last frames."""
    return chunk_grid(job).usable_rows(job.frame_limit) / VIDEO_FPS


def count_rows(tracks: Sequence[np.ndarray]) -> int:
    """Number of embedding rows of each track, one per video frame; all tracks have the same length."""
    return len(tracks[0]) * VIDEO_FPS // SAMPLING_RATE


def make_voices(job: SingleJob, media: JobMedia, should_stop: Callable[[], bool]) -> list[NormalisedVoice | None]:
    """The voice of each speaker; None for a silent speaker, and for one who begins in the last frame or later.

    Appends to `media.warnings`.

    Raises:
        GenerationStopped: `should_stop` returned true.
    """
    voices: list[NormalisedVoice | None] = []
    for speaker, medium in zip(job.speakers, media.speech, strict=True):
        if medium is None or medium.sound is None:
            voices.append(None)
            continue
        sound = medium.sound
        voice, warnings = make_voice(sound.waveform, job.gates_speech, should_stop)
        media.warnings.extend(f"cond_audio.{speaker}: {warning}" for warning in (*sound.warnings, *warnings))
        voices.append(voice)
    return voices


def make_voice(
    waveform: np.ndarray, is_gated: bool, should_stop: Callable[[], bool]
) -> tuple[NormalisedVoice, list[str]]:
    """The voice in a sound (samples,) of 16 kHz, and warnings about it.

    Args:
        is_gated: whether only speech moves the mouth and counts for the loudness.

    Raises:
        GenerationStopped: `should_stop` returned true.
    """
    loudness = measure_loudness(waveform)
    if not is_gated or loudness < -SILENCE_LUFS:
        sound = normalise_loudness(waveform, loudness)
        return NormalisedVoice(sound, sound), loudness_warnings(loudness)
    speech = find_speech(waveform, should_stop)
    if speech:
        loudness = measure_loudness(only_speech(waveform, speech))
    sound = normalise_loudness(waveform, loudness)
    warnings = loudness_warnings(loudness) if speech else [NO_SPEECH]
    return NormalisedVoice(sound, silence_between(sound, speech)), warnings

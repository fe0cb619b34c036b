"""A job's inputs: its media as local files, and one track of speech for each speaker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from infinitetalk.media.decode import read_sound, sound_seconds
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS, arrange_tracks, measure_loudness, normalise_loudness
from infinitetalk.worker.engine import Engine, chunk_grid
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.job.advice import loudness_warnings
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
        source: image or video of the speakers.
        speech: each speaker's speech; None for a silent speaker.
        masks: each speaker's mask, if the job has masks.
        warnings: the losses of the media read so far.
    """

    source: Media
    speech: list[Media | None]
    masks: list[Media] | None
    warnings: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The files, in a fixed order."""
        media = [self.source, *self.speech, *(self.masks or [])]
        return [medium.path for medium in media if medium is not None]


def download(
    job: SingleJob, folder: Path, settings: Settings, on_bytes: OnBytes, should_stop: Callable[[], bool]
) -> JobMedia:
    """Downloads all media of a job and checks their kinds.

    Raises:
        WorkerError: a medium cannot be fetched or decoded, is too large, or is of the wrong kind.
        GenerationStopped: `should_stop` returned true.
    """
    wanted = {"cond_video": Wanted(job.cond_video, ("image", "video"))}
    speech = job.cond_audio or {}
    for speaker, source in speech.items():
        if source is not None:
            wanted[f"cond_audio.{speaker}"] = Wanted(source, ("audio",))
    for speaker, source in (job.mask or {}).items():
        # In a film that is kept, a mask may move.
        wanted[f"mask.{speaker}"] = Wanted(source, ("image", "video") if job.keeps_film else ("image",))
    media = fetch_all(wanted, folder, settings, on_bytes, should_stop)
    return JobMedia(
        source=media["cond_video"],
        speech=[media.get(f"cond_audio.{speaker}") for speaker in speech],
        masks=None if job.mask is None else [media[f"mask.{speaker}"] for speaker in job.mask],
        warnings=[f"cond_video: {warning}" for warning in media["cond_video"].info.warnings],
    )


def make_tracks(job: SingleJob, media: JobMedia, engine: Engine, should_stop: Callable[[], bool]) -> list[np.ndarray]:
    """One normalised track for each speaker, float32 (samples,), no longer than the video can use.

    Raises:
        WorkerError: the speech is too short or cannot be decoded, or its text cannot be spoken.
        CheckpointError: Kokoro cannot be loaded.
        GenerationStopped: `should_stop` returned true.
    """
    max_seconds = usable_seconds(job)
    if job.tts_audio is not None:
        with naming("tts_audio"), engine.reading_weights():
            spoken = engine.synthesiser.speak(job.tts_audio.text, job.tts_audio.voices, max_seconds, should_stop)
        tracks = [normalise_loudness(track) for track in spoken]
    else:
        tracks = arrange_tracks(read_waveforms(job, media, max_seconds), job.audio_type)
        tracks = [track[: round(max_seconds * SAMPLING_RATE)] for track in tracks]
    if len(tracks[0]) * VIDEO_FPS < MIN_SPEECH_FRAMES * SAMPLING_RATE:
        field = "cond_audio" if job.tts_audio is None else "tts_audio"
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION, f"{field} is too short: at least {MIN_SPEECH_FRAMES / VIDEO_FPS:g} s"
        )
    return tracks


def speech_seconds(job: SingleJob, media: JobMedia, tracks: Sequence[np.ndarray]) -> float:
    """Length in seconds of all of a job's speech; `tracks` hold only the part that the video can use.

    If audio is cut, the length is accurate to a packet; if a text is cut, it is estimated from the number of
    characters.
    """
    kept = len(tracks[0])
    if kept < round(usable_seconds(job) * SAMPLING_RATE):
        return kept / SAMPLING_RATE
    if job.tts_audio is not None:
        seconds = len(job.tts_audio.text) / SPOKEN_CHARACTERS_PER_S
    else:
        lengths = [sound_seconds(medium.path) for medium in media.speech if medium is not None]
        seconds = max(lengths) if job.audio_type == "para" else sum(lengths)
    return max(kept / SAMPLING_RATE, seconds)


def usable_seconds(job: SingleJob) -> float:
    """Seconds of speech that a job's video can use: its own length, and the context of its last frames."""
    return chunk_grid(job).usable_rows(job.frame_limit) / VIDEO_FPS


def count_rows(tracks: Sequence[np.ndarray]) -> int:
    """Number of embedding rows of each track, one per video frame; all tracks have the same length."""
    return len(tracks[0]) * VIDEO_FPS // SAMPLING_RATE


def read_waveforms(job: SingleJob, media: JobMedia, max_seconds: float) -> list[np.ndarray | None]:
    """The normalised sound of each speaker, float32 (samples,); None for a silent speaker.

    Appends to `media.warnings`.

    Raises:
        WorkerError: a file cannot be decoded, or its samples are too large to compute with.
    """
    waveforms: list[np.ndarray | None] = []
    for speaker, medium in zip(job.speakers, media.speech, strict=True):
        if medium is None:
            waveforms.append(None)
            continue
        with naming(f"cond_audio.{speaker}"):
            sound = read_sound(medium.path, max_seconds)
        loudness = measure_loudness(sound.waveform)
        warnings = [*sound.warnings, *loudness_warnings(loudness)]
        media.warnings.extend(f"cond_audio.{speaker}: {warning}" for warning in warnings)
        waveforms.append(normalise_loudness(sound.waveform, loudness))
    return waveforms

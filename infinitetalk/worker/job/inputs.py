"""A job's inputs: its media as local files, and the speech of each speaker as a track."""

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
"""Typical of English text."""


@dataclass(frozen=True)
class JobMedia:
    """A job's media as local files.

    Attributes:
        source: picture or video of the speakers.
        speech: of each speaker; None for a silent one.
        masks: of each speaker, where the job has masks.
        warnings: what is lost of them, as far as they have been read.
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
    """All media of a job as local files, each known to be of a fit kind.

    Raises:
        WorkerError: one cannot be fetched or decoded, is too large, or of the wrong kind.
        GenerationStopped: `should_stop` said so.
    """
    wanted = {"cond_video": Wanted(job.cond_video, ("image", "video"))}
    speech = job.cond_audio or {}
    for speaker, source in speech.items():
        if source is not None:
            wanted[f"cond_audio.{speaker}"] = Wanted(source, ("audio",))
    for speaker, source in (job.mask or {}).items():
        wanted[f"mask.{speaker}"] = Wanted(source, ("image",))
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
        WorkerError: the speech is too short, cannot be decoded, or its text cannot be spoken.
        CheckpointError: Kokoro cannot be loaded.
        GenerationStopped: `should_stop` said so.
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
    """Seconds of all of a job's speech, of which `tracks` hold what the video can use.

    Of sounds that are cut, to within a packet; of a text that is, guessed from its characters.
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
    """Seconds of speech that a job's video can use: those it shows, and what its last frames hear."""
    return chunk_grid(job).usable_rows(job.frame_limit) / VIDEO_FPS


def count_rows(tracks: Sequence[np.ndarray]) -> int:
    """Rows of the embeddings that each of the tracks, all as long, will have: one a video frame."""
    return len(tracks[0]) * VIDEO_FPS // SAMPLING_RATE


def read_waveforms(job: SingleJob, media: JobMedia, max_seconds: float) -> list[np.ndarray | None]:
    """The normalised sound of each speaker, float32 (samples,); None for a silent one. Adds to the media's warnings.

    Raises:
        WorkerError: one cannot be decoded, or has samples too large to compute with.
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

"""The scenes of a video with their frames, speech and settings; each scene is generated separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from infinitetalk.dubbing.view import View, ViewedFilm
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.generation.chunks import ChunkGrid
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.media.decode import Picture, Source, detect_scenes, extract_frames
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.network.nag import AttentionGuidance
from infinitetalk.worker.traffic.fetch import Media, naming
from schemas import SingleJob


@dataclass(frozen=True)
class Scene:
    """A stretch of the video, in frames."""

    start: int
    num_frames: int


def plan_scenes(job: SingleJob, source: Media, num_rows: int, should_stop: Callable[[], bool]) -> list[Scene]:
    """The scenes of the video: the scenes of the source video if the job asks for them, else one.

    The last scene continues to the end of the speech. To find scenes, the video is decoded to the end of the speech.

    Args:
        num_rows: number of rows of the speech, one per video frame.

    Raises:
        WorkerError: the source cannot be decoded.
        GenerationStopped: `should_stop` returned true.
    """
    num_frames = min(job.frame_limit, num_rows)
    if not job.scene_seg or source.info.kind != "video":
        return [Scene(0, num_frames)]
    with naming("cond_video"):
        starts = detect_scenes(source.path, num_frames, should_stop)
    ends = [*starts[1:], num_frames]
    return [Scene(start, end - start) for start, end in zip(starts, ends, strict=True)]


def chunk_grid(job: SingleJob) -> ChunkGrid:
    """The division of the job's video into chunks."""
    return ChunkGrid(job.chunk_frame_num, job.motion_frame, job.crossfade_frame, job.family)


def generation_settings(job: SingleJob, seed: int, scene: Scene) -> GenerationSettings:
    """A job's parameters as the pipeline takes them, for one scene."""
    return GenerationSettings(
        size=job.size_table,
        resolution=job.resolution,
        frame_num=job.chunk_frame_num,
        max_frame_num=scene.num_frames,
        motion_frame=job.motion_frame,
        crossfade_frame=job.crossfade_frame,
        num_inference_steps=job.sample_steps,
        strength=job.strength,
        shift=job.shift,
        text_guide_scale=job.sample_text_guide_scale,
        audio_guide_scale=job.sample_audio_guide_scale,
        use_apg=job.use_apg,
        apg_momentum=job.apg_momentum,
        apg_norm_threshold=job.apg_norm_threshold,
        nag=None if job.nag is None else AttentionGuidance(job.nag.scale, job.nag.tau, job.nag.alpha),
        teacache_threshold=job.teacache_thresh if job.use_teacache else None,
        color_correction_strength=job.color_correction_strength,
        seed=seed,
    )


def open_source(source: Media, field: str, folder: Path, part: Scene, stride: int) -> Source:
    """The reference frames of a part of a source; their time is counted from the part's start.

    Args:
        source: image or video of the speakers.
        field: the job's field, for messages.
        folder: folder for the frames of a video.
        part: the frames of the source that are used, if it is a video.
        stride: distance of the reference frames.

    Raises:
        WorkerError: the source cannot be decoded.
    """
    if source.picture is not None:
        return source.picture
    with naming(field):
        if source.info.kind == "image":
            return Picture.open(source.path)
        frames = folder / f"frames-{field}-{part.start:06d}"
        frames.mkdir()
        return extract_frames(source.path, frames, stride, part.num_frames, part.start)


def first_frame(source: Media, folder: Path) -> np.ndarray:
    """The first frame of an image or video: uint8 (height, width, 3), RGB.

    Args:
        folder: folder for the frame of a video.

    Raises:
        WorkerError: the source cannot be decoded.
    """
    if source.picture is not None:
        pixels = source.picture.pixels
    else:
        with naming("cond_video"), TemporaryDirectory(prefix="first-frame-", dir=folder) as frames:
            pixels = extract_frames(source.path, Path(frames), 1, 1).frame_at(0)
    return pixels.permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class FilmView:
    """The part of a film that is generated.

    Attributes:
        view: the part.
        times: seconds at which the film's frames begin.
    """

    view: View
    times: Sequence[float]


def view_of(source: Source, film: FilmView | None, start: int) -> Source:
    """The part that is generated of frames that begin at frame `start` of the source, counted at 25 fps."""
    if film is None:
        return source
    return ViewedFilm(source, film.view, film.times, start / VIDEO_FPS)


def chunk_ends(job: SingleJob, scenes: Sequence[Scene]) -> list[int]:
    """For each chunk of a video, the number of frames that are shown until its end."""
    ends = []
    for scene in scenes:
        plans = chunk_grid(job).plans(scene.num_frames)
        held = [plan.num_held_frames for plan in plans[1:]] + [0]
        ends += [
            scene.start + plan.start + plan.num_motion_frames + plan.num_new_frames - num_held
            for plan, num_held in zip(plans, held, strict=True)
        ]
    return ends


def speech_of(embeddings: SpeechEmbeddings, scene: Scene, grid: ChunkGrid) -> SpeechEmbeddings:
    """The rows of a scene, and the following rows that are context of its last frames."""
    end = min(scene.start + grid.usable_rows(scene.num_frames), len(embeddings))
    if (scene.start, end) == (0, len(embeddings)):
        return embeddings
    return SpeechEmbeddings.from_tensor(embeddings.rows(torch.arange(scene.start, end)))

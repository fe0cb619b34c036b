"""A job's source as a film that is dubbed: what is generated of it, and its own frames around that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from infinitetalk.dubbing.clock import MOST_FRAMES_A_SECOND, FilmClock, even_times, frame_at, mean_rate, own_times
from infinitetalk.dubbing.composite import Region, face_mask, lay_over, soft_region
from infinitetalk.dubbing.motion import Motion
from infinitetalk.dubbing.view import View, Window, window_around
from infinitetalk.errors import GenerationStopped, MediaError
from infinitetalk.media.decode import film_frames, film_times, read_sound, sound_delay, white_in
from infinitetalk.media.face_tracks import FaceTrack, FaceTracker
from infinitetalk.media.faces import Face, overlap
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS
from infinitetalk.worker.engine import (
    Engine,
    FilmView,
    FilmWork,
    Scene,
    VideoReader,
    bounding_box,
    chunk_ends,
    face_detector,
    face_of,
)
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.traffic.fetch import Media, naming
from schemas import ErrorCode, SingleJob

MOST_KEPT_PIXELS = 4096 * 2304
"""Largest frame of a film that is kept: the largest that players of H.264 take."""

LEAST_GENERATED = 0.5
"""Share of a speaker's place that must lie in the part of the film that is generated."""

USUALLY_GENERATED = 0.95
"""Below this share, the job warns: a few pixels are lost to the rounding of sizes."""

SAME_PLACE = 0.5
"""Share of the union of the boxes of a face that was found and of the one that was followed."""


@dataclass(frozen=True)
class Frame:
    """The part of a film's first frame that is generated.

    Attributes:
        window: the part.
        height, width: of what is generated.
        regions: each speaker's region, bool (speakers, film's height, width).
        faces: each speaker's face; None where none was found in the region.
    """

    window: Window
    height: int
    width: int
    regions: Tensor
    faces: Sequence[Face | None]

    def places(self, keep: str) -> list[np.ndarray]:
        """Where what is generated of each speaker is shown, bool (height, width) of the film: in the region, or with
        `keep` "face", in the part of it that is the face."""
        masks = [region.numpy() for region in self.regions]
        if keep != "face":
            return masks
        shape = masks[0].shape
        return [
            mask if face is None else mask & face_mask(face, *shape)
            for mask, face in zip(masks, self.faces, strict=True)
        ]

    def generated_shares(self, keep: str) -> list[float]:
        """How much of each speaker's place lies in the part that is generated, 0 to 1; the rest stays the film's."""
        window = self.window
        left, top = round(window.x - window.width / 2), round(window.y - window.height / 2)
        right, bottom = round(window.x + window.width / 2), round(window.y + window.height / 2)
        return [float(place[top:bottom, left:right].sum() / max(place.sum(), 1)) for place in self.places(keep)]


def what_is_generated(job: SingleJob, frame: Frame, speaker: str, share: float) -> str:
    """A message that only a share of a speaker's place is generated, and what to change."""
    assert job.dub is not None
    lengths = np.array([bounding_box(region) for region in frame.regions]).T
    wide, high = lengths[2].max() - lengths[0].min(), lengths[3].max() - lengths[1].min()
    size = f'"{job.size_table}"' if job.resolution is None else f"{job.resolution[1]}x{job.resolution[0]}"
    shape = f"set a size of about the shape of the speakers' regions together, which are {wide}x{high}"
    ways = [shape] if job.resolution is None else [shape, "name a table of sizes"]
    ways += ["set dub.margin to a number"] if job.dub.margin is None else []
    return (
        f"size {size}: only {share:.0%} of the place of {speaker} lies in the part of cond_video that is generated, "
        f"{round(frame.window.width)}x{round(frame.window.height)} of its pixels; the rest stays the film's. Way out: "
        f"{', or '.join(ways)}"
    )


def seen_by_model(source: Media, frame: Frame | None) -> Media:
    """The source as the model sees it: its file, and the size of the part that is generated; None: all of it is."""
    if frame is None:
        return source
    return replace(source, info=replace(source.info, height=frame.height, width=frame.width))


def frame_speakers(
    job: SingleJob,
    source: Media,
    regions: Tensor,
    faces: Sequence[Face],
    engine: Engine,
    should_stop: Callable[[], bool],
) -> Frame:
    """Chooses the part of a film that is generated.

    Args:
        regions: each speaker's region, bool (speakers, height, width) of the source.
        faces: those in its first frame.

    Raises:
        WorkerError: the source is too large or too small, or less than half of a speaker's place would be generated.
        CheckpointError: the model could not be found.
        GenerationStopped: `should_stop` returned true.
    """
    assert job.dub is not None
    height, width = source.info.height, source.info.width
    if height * width > MOST_KEPT_PIXELS:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f"cond_video is {width}x{height}: with dub.keep at most {MOST_KEPT_PIXELS} pixels, e.g. 4096x2304; make it "
            'smaller, or set dub.keep "none"',
        )
    if min(height, width) < 2:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f"cond_video is {width}x{height}: with dub.keep at least 2x2, since H.264 needs even sides; send a larger "
            'picture, or set dub.keep "none"',
        )
    boxes = [bounding_box(region) for region in regions]
    lengths = np.array(boxes).T
    high, wide = lengths[3].max() - lengths[1].min(), lengths[2].max() - lengths[0].min()
    shape = (height, width) if job.dub.margin is None else (int(high), int(wide))
    bucket = engine.frame_size(job, *shape, should_stop)
    window = window_around(boxes, job.dub.margin, (height, width), bucket)
    frame = Frame(window, *bucket, regions, [face_of(region, faces) for region in regions])
    for speaker, share in zip(job.speakers, frame.generated_shares(job.dub.keep), strict=True):
        if share < LEAST_GENERATED:
            raise WorkerError(ErrorCode.INPUT_VALIDATION, what_is_generated(job, frame, speaker, share))
    return frame


def frame_warnings(job: SingleJob, frame: Frame, source: Media, masks: Sequence[Media] | None) -> list[str]:
    """Warnings about what a dubbed film will not be.

    Args:
        masks: each speaker's mask, if the job has masks.
    """
    assert job.dub is not None
    found = []
    height, width = source.info.height, source.info.width
    if height % 2 or width % 2:
        kept = f"{width // 2 * 2}x{height // 2 * 2}"
        found.append(f"cond_video: it has {width}x{height} pixels and H.264 needs even sides: the result has {kept}")
    for speaker, share in zip(job.speakers, frame.generated_shares(job.dub.keep), strict=True):
        if share < USUALLY_GENERATED:
            found.append(what_is_generated(job, frame, speaker, share))
    for index, (speaker, face) in enumerate(zip(job.speakers, frame.faces, strict=True)):
        moves = source.info.kind == "image" or (masks is not None and masks[index].info.kind == "video")
        parts = [] if moves else ["it stays where it is in the first frame"]
        parts += ["all of it is generated"] if job.dub.keep == "face" else []
        if face is None and parts:
            found.append(f"no face was found in the region of {speaker}: {', and '.join(parts)}")
    return found


@dataclass(frozen=True)
class Film:
    """The frames of a video that shows a film's own frames, or their times.

    Attributes:
        clock: which frames are shown when.
        ends: for each chunk, the number of generated frames until its end.
        source: the film.
        view: the part of it that is generated; None: nothing of it is kept.
        regions: where what is generated is shown.
        times: seconds at which the film's frames begin.
    """

    clock: FilmClock
    ends: Sequence[int]
    source: Media
    times: Sequence[float]
    view: View | None = None
    regions: Sequence[Region] = ()

    @property
    def part(self) -> FilmView | None:
        """The part of it that is generated; None: all of it."""
        return None if self.view is None else FilmView(self.view, self.times)

    def reader(self, chunk: int, should_stop: Callable[[], bool]) -> FilmReader:
        """Its own frames, from those of a chunk on."""
        first = self.clock.shown_during(0 if chunk == 0 else self.ends[chunk - 1], self.ends[chunk]).start
        return FilmReader(self, self.clock.film[first], should_stop)

    def frames(self, chunk: int, generated: np.ndarray, reader: FilmReader) -> Iterator[np.ndarray]:
        """The frames to show of a chunk, each uint8 (height, width, 3).

        Args:
            generated: uint8 (T, h, w, 3), the chunk's.

        Raises:
            WorkerError: the film cannot be decoded to its end.
            GenerationStopped: the reader's `should_stop` returned true.
        """
        first = 0 if chunk == 0 else self.ends[chunk - 1]
        for shown in self.clock.shown_during(first, self.ends[chunk]):
            if reader.should_stop():
                raise GenerationStopped
            pixels = generated[self.clock.generated[shown] - first]
            if self.view is None:
                yield pixels
                continue
            number = self.clock.film[shown]
            frame = reader.frame(number)
            lay_over(frame, pixels, self.view.placement(number), self.regions, number)
            yield frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


class FilmReader(VideoReader):
    """Reads a film's own frames in order.

    Args:
        film: the film; of a picture, every frame is the same.
        first: number of the first frame.
        should_stop: is asked for each frame, and while one is waited for.
    """

    def __init__(self, film: Film, first: int, should_stop: Callable[[], bool]) -> None:
        super().__init__()
        self.should_stop = should_stop
        self._film = film
        self._number = first - 1
        self._last = np.empty(0)

    def _open(self) -> AbstractContextManager[Iterator[np.ndarray]]:
        source, first = self._film.source, self._number + 1
        count = self._film.clock.film[-1] + 1 - first
        return film_frames(source.path, first, count, should_stop=self.should_stop)

    @cached_property
    def _picture(self) -> np.ndarray:
        picture = self._film.source.picture
        assert picture is not None
        return picture.pixels.permute(1, 2, 0).numpy()

    def frame(self, number: int) -> np.ndarray:
        """A copy of a frame, uint8 (height, width, 3); its number is not below the last one's.

        Raises:
            WorkerError: the film cannot be decoded.
            GenerationStopped: `should_stop` returned true.
        """
        with naming("cond_video"):
            if self._film.source.info.kind == "image":
                return self._picture.copy()
            while self._number < number:
                frame = next(self._frames, None)
                if frame is None:
                    raise MediaError("The video ends before its own description says: export it again as H.264 MP4")
                self._last, self._number = frame, self._number + 1
            return self._last.copy()


@dataclass(frozen=True)
class FilmFacts:
    """What decoding a film tells before anybody is followed in it.

    Attributes:
        times: seconds at which its frames begin; of a picture, 0 alone.
        ends: for each chunk, the number of generated frames until its end.
    """

    times: Sequence[float]
    ends: Sequence[int]


def film_facts(
    job: SingleJob,
    source: Media,
    frame: Frame | None,
    scenes: Sequence[Scene],
    warnings: list[str],
    should_stop: Callable[[], bool],
) -> FilmFacts | None:
    """Looks at the times of a film to dub; None if only the model's frames are shown, at 25 a second.

    Args:
        frame: the part that is generated; None: nothing of the film is kept.
        scenes: of the generated video.
        warnings: warnings for the client are added to this list.

    Raises:
        WorkerError: the film cannot be decoded, or has too many frames a second.
        GenerationStopped: `should_stop` returned true.
    """
    is_video = source.info.kind == "video"
    if frame is None and not (is_video and job.shows_film_times):
        return None
    ends = chunk_ends(job, scenes)
    length = ends[-1] / VIDEO_FPS
    with naming("cond_video"):
        times = film_times(source.path, length, MOST_FRAMES_A_SECOND, should_stop) if is_video else [0.0]
    if is_video and source.info.duration_s < length - 1 / VIDEO_FPS:
        warnings.append(
            f"cond_video: the film ends after {source.info.duration_s:.2f} s, the speech after {length:.2f} s: its "
            "last frame stays"
        )
    elif is_video and source.info.duration_s > length + 1 / VIDEO_FPS:
        warnings.append(f"cond_video: {source.info.duration_s:.2f} s are cut to {length:.2f} s, where the speech ends")
    return FilmFacts(times, ends)


def film_work(
    job: SingleJob, source: Media, frame: Frame | None, facts: FilmFacts | None, num_frames: int
) -> FilmWork | None:
    """What a film asks of the processor, for the estimate; None: nothing of it is kept, nor sampling starts from it.

    Args:
        frame: the part that is generated; None: nothing of the film is kept.
        facts: the film's; None if only the model's frames are shown.
        num_frames: number of generated frames.
    """
    if frame is None and job.strength == 1:
        return None
    has_faces = frame is not None and any(face is not None for face in frame.faces)
    return FilmWork(
        num_frames=num_frames if facts is None else len(film_clock(job, source, facts).film),
        num_followed=len(facts.times) if facts is not None and has_faces and source.info.kind == "video" else 0,
        pixels=source.info.height * source.info.width,
        is_kept=frame is not None,
    )


def film_clock(job: SingleJob, source: Media, facts: FilmFacts) -> FilmClock:
    """Which frames of a film are shown when."""
    num_frames = facts.ends[-1]
    if source.info.kind == "video" and job.shows_film_times:
        return own_times(facts.times, num_frames, facts.ends)
    return even_times(facts.times, num_frames)


def open_film(
    job: SingleJob,
    source: Media,
    masks: Sequence[Media] | None,
    frame: Frame | None,
    scenes: Sequence[Scene],
    warnings: list[str],
    should_stop: Callable[[], bool],
) -> Film | None:
    """Looks at a film to dub: its frames' times, and the movement of its speakers; None if only the model's frames are
    shown, at 25 a second.

    Args:
        masks: each speaker's mask, if the job has masks; a video says where the speaker is in each frame.
        frame: the part that is generated; None: nothing of the film is kept.
        scenes: of the generated video.
        warnings: warnings for the client are added to this list.

    Raises:
        WorkerError: the film cannot be decoded, or has too many frames a second.
        GenerationStopped: `should_stop` returned true.
    """
    facts = film_facts(job, source, frame, scenes, warnings, should_stop)
    if facts is None:
        return None
    is_video, times, ends = source.info.kind == "video", facts.times, facts.ends
    clock = film_clock(job, source, facts)
    if frame is None:
        return Film(clock, ends, source, times)
    motions = follow(source, frame, times, should_stop) if is_video else stay(frame, 1)
    if is_video:
        for index, (speaker, mask) in enumerate(zip(job.speakers, masks or [], strict=False)):
            if mask.info.kind == "video":
                with naming(f"mask.{speaker}"):
                    motions[index] = follow_mask(mask, times, should_stop)
    for speaker, motion in zip(job.speakers, motions, strict=True):
        if (hidden := float((motion.presence < 0.5).mean())) > 0:
            warnings.append(f"{speaker} was lost in {hidden:.0%} of the film's frames, which stay as they are")
    view = View(frame.window, frame.height, frame.width, motions)
    assert job.dub is not None
    regions = [
        soft_region(place, job.dub.feather, motion)
        for place, motion in zip(frame.places(job.dub.keep), motions, strict=True)
    ]
    return Film(clock, ends, source, times, view, regions)


def stay(frame: Frame, num_frames: int) -> list[Motion]:
    """Speakers who do not move."""
    motions = []
    for face, region in zip(frame.faces, frame.regions, strict=True):
        x_min, y_min, x_max, y_max = bounding_box(region) if face is None else face.box
        motions.append(Motion.still(((x_min + x_max) / 2, (y_min + y_max) / 2), num_frames))
    return motions


def follow(source: Media, frame: Frame, times: Sequence[float], should_stop: Callable[[], bool]) -> list[Motion]:
    """Follows the speakers' faces through a film; a speaker without a face stays in place.

    Raises:
        WorkerError: the film cannot be decoded.
        GenerationStopped: `should_stop` returned true.
    """
    still = stay(frame, len(times))
    if all(face is None for face in frame.faces):
        return still
    tracker = FaceTracker(face_detector(), search_every=None)
    with naming("cond_video"), film_frames(source.path, 0, len(times), should_stop=should_stop) as frames:
        for pixels in frames:
            tracker.add(pixels)
    fps = mean_rate(times)

    def motion_of(face: Face | None, otherwise: Motion) -> Motion:
        track = None if face is None else track_of(face, tracker.tracks)
        return otherwise if track is None else Motion.of_track(track, len(times), fps)

    return [motion_of(face, motion) for face, motion in zip(frame.faces, still, strict=True)]


def follow_mask(mask: Media, times: Sequence[float], should_stop: Callable[[], bool]) -> Motion:
    """A speaker's movement as a mask video shows it; what is transparent is not white.

    Args:
        times: seconds at which the film's frames begin; after the mask's end, its last frame holds.

    Raises:
        MediaError: it cannot be decoded, has too many frames a second, or its first frame is white nowhere.
        GenerationStopped: `should_stop` returned true.
    """
    mask_times = film_times(mask.path, times[-1] + 1 / VIDEO_FPS, MOST_FRAMES_A_SECOND, should_stop)
    wanted = [frame_at(mask_times, time) for time in times]

    def shown(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        number, white = -1, np.empty(0, bool)
        for other in wanted:
            while number < other:
                frame, number = next(frames), number + 1
                if number in (0, other):
                    white = white_in(frame)
                if number == 0 and not white.any():
                    raise MediaError(
                        "The first frame is white nowhere (transparent pixels do not count): paint the speaker's place "
                        "white in all frames"
                    )
            yield white

    with film_frames(mask.path, 0, wanted[-1] + 1, 0, should_stop) as frames:
        return Motion.of_masks(shown(frames))


def track_of(face: Face, tracks: Sequence[FaceTrack]) -> FaceTrack | None:
    """The track of a face of the first frame."""
    known = [track for track in tracks if 0 in track.faces and overlap(track.faces[0].box, face.box) > SAME_PLACE]
    return max(known, key=lambda track: overlap(track.faces[0].box, face.box), default=None)


def check_film_sound(job: SingleJob, source: Media) -> None:
    """Checks that a film whose sound the job mixes has sound.

    Raises:
        WorkerError: it has none.
    """
    if job.audio_mix is not None and not (source.info.kind == "video" and source.info.has_audio):
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION, "audio_mix.source needs a cond_video with sound: leave audio_mix out"
        )


def add_film_sound(job: SingleJob, source: Media, speech: np.ndarray, warnings: list[str]) -> np.ndarray:
    """The speech with the film's own sound under it, as the job asks; float32 (samples,) at 16 kHz, as long as the
    speech.

    Raises:
        WorkerError: the film has no sound, or it cannot be decoded.
    """
    check_film_sound(job, source)
    if job.audio_mix is None:
        return speech
    with naming("cond_video"):
        delay = round(sound_delay(source.path) * SAMPLING_RATE)
        sound = read_sound(source.path, (len(speech) - min(delay, 0)) / SAMPLING_RATE)
    warnings += [f"cond_video: {warning}" for warning in sound.warnings]
    mixed = speech.copy()
    heard = sound.waveform[max(-delay, 0) :][: max(len(mixed) - max(delay, 0), 0)]
    begin = max(delay, 0)
    mixed[begin : begin + len(heard)] += 10 ** (job.audio_mix.source / 20) * heard
    return mixed

"""All measures of one video, with the bounds that tell a good one from a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infinitetalk.media.decode import read_waveform
from tools.frames import read_frames
from tools.measures.mouths import FEWEST_FRAMES, Mouth, compare, opening_of
from tools.measures.pictures import border_ratio, colour_drift, flicker, identity, sharpness_drift
from tools.measures.watch import Watched, watch
from tools.talker.measure import read_openings


@dataclass(frozen=True)
class Bound:
    """What a figure of a good video reaches.

    Attributes:
        meaning: of the figure, in words.
        least, most: None if that side has no bound.
    """

    meaning: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a figure is within the bound."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.least is None:
            return f"≤ {self.most:g}" if self.most is not None else ""
        return f"≥ {self.least:g}" if self.most is None else f"{self.least:g} to {self.most:g}"


#: Figure → its bound. docs/measures.md has what real and broken videos score.
BOUNDS = {
    "seen": Bound("share of frames in which the face is found", least=0.9),
    "follows": Bound("the mouth against what the speech predicts: correlation", least=0.4),
    "lag": Bound("frames by which the mouth is late", least=-5, most=5),
    "correlation": Bound("the mouth against the speech's loudness: correlation"),
    "movement": Bound("how much the mouth moves, in distances of the eyes", least=0.01),
    "rest": Bound("movement of the mouth in pauses, over that in speech", most=0.7),
    "identity_least": Bound("likeness of the face to the first second: the least like second", least=0.8),
    "identity_last": Bound("likeness of the face to the first second: the last second", least=0.8),
    "colour_drift": Bound("colour of the last second against the first, levels of 255", most=6.0),
    "sharpness_drift": Bound("sharpness of the last second over the first", least=0.8, most=1.25),
    "borders": Bound("change at borders of chunks over change elsewhere", most=1.5),
    "flicker": Bound("brightness that goes to and fro, levels of 255", most=1.0),
}

NOT_FOR_DRAWINGS = "a drawn face: tools.talker.quality measures it"


@dataclass(frozen=True)
class Quality:
    """What was measured of a video.

    Attributes:
        figures: by the names of `BOUNDS`; of several faces the worst one's; None if it could not be measured.
        left_out: why figures are None, by name.
        mouths: each face's, from left to right.
        watched: what was seen.
    """

    figures: dict[str, float | None]
    left_out: dict[str, str]
    mouths: list[Mouth]
    watched: Watched

    @property
    def missed(self) -> list[str]:
        """Names of the figures that are beyond their bounds."""
        return [name for name, value in self.figures.items() if value is not None and not BOUNDS[name].holds(value)]


def measure(
    path: Path, voices: Sequence[np.ndarray | None] | None = None, borders: Sequence[int] = (), is_drawn: bool = False
) -> Quality:
    """Measures a video.

    Args:
        path: an MP4 or another video with 25 frames a second.
        voices: each speaker's speech, from left to right: float32 (samples,), 16 kHz; None for one who listens. By
            default there is one speaker, and the speech is the video's own sound.
        borders: the first frames of chunks but the first, by number.
        is_drawn: whether the faces are drawn as the tiny talker's are; their mouths are read from the pixels.

    Raises:
        FacesSetupError: the networks that find faces are not installed.
        MediaError: the video has no sound, and no voices are given.
        ValueError: the video has fewer than three frames.
    """
    heard = [read_waveform(path)] if voices is None else list(voices)
    watched = watch(path, 0 if is_drawn else len(heard))
    openings, left_out = _openings(path, watched, len(heard), is_drawn)
    mouths = [
        compare(opening, voice)
        for opening, voice in zip(openings, heard if openings else [], strict=True)
        if voice is not None
    ]
    figures: dict[str, float | None] = dict.fromkeys(BOUNDS)
    figures.update(_mouth_figures(mouths, left_out))
    if is_drawn:
        # Its opening is in pixels.
        figures["movement"], left_out["movement"] = None, NOT_FOR_DRAWINGS
    figures.update(_face_figures(watched, len(heard), left_out, is_drawn))
    figures["colour_drift"] = colour_drift(watched.colours)
    figures["sharpness_drift"] = sharpness_drift(watched.sharpness)
    figures["flicker"] = flicker(watched.small)
    inside = [border for border in borders if 0 < border < watched.num_frames]
    if inside:
        figures["borders"] = border_ratio(watched.change, inside)
    else:
        left_out["borders"] = "one chunk"
    return Quality(figures, left_out, mouths, watched)


def _openings(path: Path, watched: Watched, num_faces: int, is_drawn: bool) -> tuple[list[np.ndarray], dict[str, str]]:
    """Each face's opening over time; none, and why, if a face was not found."""
    if is_drawn:
        return list(read_openings(read_frames(path), num_faces)), {}
    if (found := len(watched.landmarks)) < num_faces:
        names = ("follows", "lag", "correlation", "movement", "rest")
        return [], dict.fromkeys(names, f"{found} of {num_faces} faces were found")
    return [opening_of(landmarks) for landmarks in watched.landmarks], {}


def _mouth_figures(mouths: Sequence[Mouth], left_out: dict[str, str]) -> dict[str, float | None]:
    """The worst mouth's figures; nothing if a face was not seen."""
    if "movement" in left_out or not mouths:
        return {}
    found: dict[str, float | None] = {
        "correlation": min(mouth.correlation for mouth in mouths),
        "movement": min(mouth.movement for mouth in mouths),
    }
    fits = [(mouth.follows, mouth.lag) for mouth in mouths if mouth.follows is not None and mouth.lag is not None]
    if fits:
        found |= {"follows": min(fit[0] for fit in fits), "lag": float(max((fit[1] for fit in fits), key=abs))}
    else:
        left_out |= dict.fromkeys(("follows", "lag"), f"fewer than {FEWEST_FRAMES} frames")
    rests = [mouth.rest for mouth in mouths if mouth.rest is not None]
    if rests:
        found["rest"] = max(rests)
    else:
        left_out["rest"] = "too few pauses in the speech, or no movement"
    return found


def _face_figures(
    watched: Watched, num_faces: int, left_out: dict[str, str], is_drawn: bool
) -> dict[str, float | None]:
    """How long the faces are seen, and how like themselves they stay."""
    names = ("identity_least", "identity_last")
    if is_drawn:
        left_out |= dict.fromkeys(("seen", *names), NOT_FOR_DRAWINGS)
        return {}
    shares = [float(np.isfinite(landmarks[:, 0, 0]).mean()) for landmarks in watched.landmarks]
    seen: dict[str, float | None] = {"seen": min(shares) if len(shares) == num_faces else 0.0}
    try:
        found = [identity(patches) for patches in watched.patches]
    except ValueError as error:
        left_out |= dict.fromkeys(names, str(error))
        return seen
    if not found:
        left_out |= dict.fromkeys(names, "no face was found")
        return seen
    return seen | dict(zip(names, map(min, zip(*found, strict=True)), strict=True))

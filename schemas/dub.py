"""How a film is dubbed: what stays of it, its frames, and its sound."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import StrictModel

WIDEST_FEATHER = 512
"""In pixels."""

LARGEST_MARGIN = 4
"""In sizes of the speakers' regions."""


class Dub(StrictModel):
    """Dubs cond_video: what is not a speaker's stays as it is."""

    strength: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How much is made anew: 1, all of it. Below 1, sampling starts from the film's own frames with the noise of a
    later step, so that its motion, camera and light stay, and makes only this share of the steps. For videos only."""

    keep: Literal["none", "face", "all"] = "face"
    """What stays of the film: "all", everything but the speakers' regions (bbox, mask, or the heads that are found).
    "face", also what is in these regions but not in the face. "none": nothing, the frames are generated whole."""

    feather: Annotated[float, Field(ge=0, le=WIDEST_FEATHER)] | None = None
    """Width of the soft edge within a region, in pixels of cond_video; null: an eighth of the region."""

    margin: Annotated[float, Field(ge=0, le=LARGEST_MARGIN)] | None = 0.5
    """What the model sees around the speakers' regions, on each side, as a share of their size: a small face in a large
    film gets the model's whole resolution. Null: the largest part of the frame that fits the model's shape."""


class Output(StrictModel):
    """The frames of the result."""

    fps: Literal["model", "source"] | None = None
    """"source": the frame times of cond_video. "model": 25 a second. Null: "source" where dub keeps something."""

    size: Literal["model", "source"] | None = None
    """"source": the size of cond_video, where dub keeps something. "model": the size that is generated. Null: as dub
    needs it."""


class AudioMix(StrictModel):
    """What is heard beside the speech."""

    source: Annotated[float, Field(ge=-60, le=12)]
    """Gain in dB of cond_video's own sound, which is mixed under the speech."""

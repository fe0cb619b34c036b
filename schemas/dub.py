"""How much of a film stays when it is dubbed: `Dub` is a field of a job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import StrictModel

WIDEST_FEATHER = 512
"""In pixels."""


class Dub(StrictModel):
    """Dubs cond_video: what is not a speaker's stays as it is."""

    strength: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How much is made anew: 1, all of it. Below 1, sampling starts from the film's own frames with the noise of a
    later step, so that its motion, camera and light stay, and makes only this share of the steps. For videos only."""

    keep: Literal["none", "face", "all"] = "none"
    """"face": the film is kept, but for the speakers' faces. "all": all of it is kept, but for the speakers' regions
    (bbox or mask). "none": nothing; the frames are generated whole."""

    feather: Annotated[float, Field(ge=0, le=WIDEST_FEATHER)] | None = None
    """Width in pixels of the source of the soft edge between what is generated and what is kept; null: an eighth of the
    region."""

    @model_validator(mode="after")
    def check_keep(self) -> Dub:
        """Checks that this version can keep what is asked.

        Raises:
            ValueError: it cannot.
        """
        if self.keep != "none":
            raise ValueError(f'takes keep "none" only; "{self.keep}" is not served yet')
        return self

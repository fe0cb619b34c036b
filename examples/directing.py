"""What the page's fields say of who is where, who speaks when, what changes and what stays of a film.

Which fields have an effect is said in one place, `effective`: the page shows these, and a job has no others.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN_SIZE, OWN_BOXES = "own", "boxes"
"""Values of `size` and `regions` on the page, beside those of a job."""

KEPT = ("face", "all")
"""Values of `dub.keep` with which something of a film is shown."""

NUMBER = r"\d+(?:\.\d*)?|\.\d+"
TIMED_LINE = re.compile(rf"({NUMBER})\s*s?\s*:\s*(.*)")
TURN_LINE = re.compile(rf"({NUMBER})\s*s?(?:\s*(?:-|–|to)\s*({NUMBER})\s*s?)?\s*:\s*(person[1-9])")

KINDS = {
    ".webp": "image",
    ".avif": "image",
    ".heic": "image",
    ".heif": "image",
    ".mkv": "video",
    ".m4v": "video",
}
"""What files are whose names not every machine knows."""

DECIDING = (
    "source",
    "voice1",
    "voice2",
    "text",
    "speaker2",
    "recipe",
    "regions",
    "audio_type",
    "later_pictures",
    "keep",
    "mix",
    "size",
    "mode",
    "sample_text_guide_scale",
    "nag",
)
"""The fields that decide which others have an effect."""


def kind_of(source: str | None) -> str | None:
    """Whether a file is an "image" or a "video", judged by its name; None: neither, or no file."""
    guessed = str(mimetypes.guess_type(source or "")[0]).partition("/")[0]
    kind = KINDS.get(Path(source or "").suffix.lower(), guessed)
    return kind if kind in ("image", "video") else None


def num_speakers(fields: Mapping[str, Any]) -> int:
    """Number of speakers of what is filled in; 0: there is no speech yet."""
    if fields["text"].strip():
        return 2 if fields["speaker2"] else 1
    return sum(bool(fields[name]) for name in ("voice1", "voice2"))


SET_BY_RECIPE = (
    "frame_num",
    "sample_steps",
    "sample_text_guide_scale",
    "sample_audio_guide_scale",
    "color_correction_strength",
    "use_teacache",
    "use_apg",
)
"""Fields that a recipe sets, so that the page's values have no effect beside one."""


def effective(fields: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each field that may lack an effect has one, by what is filled in.

    Args:
        fields: at least those of `DECIDING`.
    """
    is_film = kind_of(fields["source"]) == "video"
    has_text, has_recipe = bool(fields["text"].strip()), bool(fields["recipe"])
    keeps, streams = fields["keep"] in KEPT, fields["mode"] == "streaming"
    one_speaks, together = num_speakers(fields) == 1, fields["audio_type"] == "para"
    has_boxes = fields["regions"] == OWN_BOXES
    guides_text = fields["sample_text_guide_scale"] != 1
    return {
        # With something kept, its faces are found even if there is only one speaker.
        "regions": not one_speaks or keeps,
        "box1": has_boxes and (not one_speaks or keeps),
        "box2": has_boxes and not one_speaks,
        "audio_type": not has_text,
        "script": not has_text and fields["audio_type"] == "script",
        "begin1": not has_text and together,
        "begin2": not has_text and together and not one_speaks,
        "gate": not has_text,
        "later_times": bool(fields["later_pictures"]),
        "strength": is_film,
        "feather": keeps,
        "margin": keeps,
        "fps": is_film,
        "mix": is_film,
        "mix_db": is_film and fields["mix"],
        "scene_seg": is_film and not keeps and not fields["later_pictures"],
        "width": fields["size"] == OWN_SIZE,
        "height": fields["size"] == OWN_SIZE,
        "max_frame_num": streams,
        "motion_frame": streams and not has_recipe,
        # Some recipes make several chunks of a clip.
        "crossfade_frame": streams or has_recipe,
        "negative_prompt": has_recipe or guides_text or fields["nag"],
        "nag": has_recipe or not guides_text,
        "nag_scale": fields["nag"] and (has_recipe or not guides_text),
    } | dict.fromkeys(SET_BY_RECIPE, not has_recipe)


@dataclass(frozen=True)
class Line:
    """A line that begins with a time.

    Attributes:
        number: its number in the field, from 1.
        time: seconds.
        text: what follows the time.
    """

    number: int
    time: float
    text: str


def timed_lines(field: str, text: str) -> list[Line]:
    """The lines of a field, each "12.5 s: text"; blank lines do not count.

    Raises:
        ValueError: a line has no time or no text, or its time is not after the line's before.
    """
    found: list[Line] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()):
            continue
        match = TIMED_LINE.fullmatch(line)
        if match is None or not match[2]:
            raise ValueError(
                f"{field}, line {number}: {line!r} needs seconds, a colon and a text, e.g. 12.5 s: She laughs"
            )
        time, before = float(match[1]), found[-1].time if found else 0.0
        if time <= before:
            start = "" if found else ", from which the first one is in force"
            raise ValueError(f"{field}, line {number}: {time:g} s must come after {before:g} s{start}")
        found.append(Line(number, time, match[2]))
    return found


def turns(text: str) -> list[dict[str, Any]]:
    """The turns of a script, a line each: "4 s: person2", or "4 s to 6 s: person2"; blank lines do not count.

    Raises:
        ValueError: a line is no turn, or there is none.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()):
            continue
        match = TURN_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"script, line {number}: {line!r} is no turn: write 4 s: person2, or 4 s to 6 s: person2")
        turn = {"speaker": match[3], "from_s": float(match[1])}
        if match[2] is not None:
            turn["to_s"] = float(match[2])
        found.append(turn)
    if not found:
        raise ValueError('audio_type "script" needs turns: write a line for each, e.g. 0 s: person1')
    return found


def times_of(pictures: Sequence[str], text: str) -> list[float]:
    """The time of each later picture, typed as "8, 12.5".

    Raises:
        ValueError: one is no number, they do not rise, or there are more or fewer than pictures.
    """
    parts = [part for part in re.split(r"[\s,;]+", text.strip()) if part]
    for part in parts:
        if not re.fullmatch(NUMBER, part):
            raise ValueError(f"times of later pictures: {part!r} is no number of seconds")
    times = [float(part) for part in parts]
    if len(times) != len(pictures):
        raise ValueError(
            f"times of later pictures: there are {len(pictures)} pictures and {len(times)} times; give each its own"
        )
    for before, time in zip([0.0, *times], times, strict=False):
        if time <= before:
            raise ValueError(f"times of later pictures: {time:g} s must come after {before:g} s")
    return times


def number_or_null(field: str, text: str) -> float | None:
    """A number that is typed; None if the text is blank.

    Raises:
        ValueError: it is no number.
    """
    text = text.strip()
    if text and not re.fullmatch(NUMBER, text):
        raise ValueError(f"{field}: {text!r} is no number; leave it empty for null")
    return float(text) if text else None


def directed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a job's input that directs it, except what names media.

    Args:
        fields: those of the page, without those that have no effect.

    Raises:
        ValueError: a field cannot be read.
    """
    job: dict[str, Any] = {}
    prompts = timed_lines("prompt along the video", fields["later_prompts"])
    first = {"from_s": 0.0, "prompt": fields["prompt"]}
    later = [{"from_s": line.time, "prompt": line.text} for line in prompts]
    job["prompt"] = [first, *later] if later else fields["prompt"]
    if "audio_type" in fields:
        job["audio_type"] = fields["audio_type"]
    if "script" in fields:
        job["script"] = turns(fields["script"])
    if fields.get("gate"):
        job["speech"] = {"gate": "auto"}
    if fields.get("regions") == "faces" and num_speakers(fields) > 1 and fields["keep"] not in KEPT:
        job["regions"] = "faces"
    return job | _of_the_film(fields)


def _of_the_film(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a job says of the film: what stays of it, its frame times and its sound."""
    job: dict[str, Any] = {}
    strength = fields.get("strength", 1.0)
    if fields["keep"] in KEPT or strength != 1:
        job["dub"] = {"keep": fields["keep"]} | ({"strength": strength} if strength != 1 else {})
    if fields["keep"] in KEPT:
        job["dub"]["margin"] = number_or_null("dub.margin", fields["margin"])
        if (feather := number_or_null("dub.feather", fields["feather"])) is not None:
            job["dub"]["feather"] = feather
    if fields.get("fps"):
        job["output"] = {"fps": fields["fps"]}
    if fields.get("mix"):
        job["audio_mix"] = {"source": fields["mix_db"]}
    if fields.get("scene_seg"):
        job["scene_seg"] = True
    return job


def shows_film_times(job: Mapping[str, Any]) -> bool:
    """Whether a job's video has the frame times of its film, which no preview can have."""
    fps = job.get("output", {}).get("fps")
    return fps == "source" or (fps is None and job.get("dub", {}).get("keep") in KEPT)


def place_note(fields: Mapping[str, Any]) -> str:
    """What is to know about the places of the speakers."""
    if num_speakers(fields) == 1 and fields["keep"] not in KEPT:
        return (
            "One speaker has the whole picture. Places count with a second speaker, or where something of the film is "
            "kept (Film)."
        )
    if fields["regions"] == OWN_BOXES:
        return "Click two corners of each speaker's box in the picture, or type the boxes."
    if fields["keep"] in KEPT:
        return "Where something of the film is kept, its largest faces are the speakers'. Prices finds and draws them."
    return "Prices draws each speaker's place into the picture, before anything is made."


def speech_note(fields: Mapping[str, Any]) -> str:
    """What is to know about who speaks when."""
    if fields["text"].strip():
        return "A text has its turns in itself, and all of it is speech: nothing is to be set here."
    return ""


def film_note(fields: Mapping[str, Any]) -> str:
    """What is to know about what stays of the film."""
    if kind_of(fields["source"]) == "video":
        return ""
    return "With a video as the source there is more here: its motion, its frame times, its sound and its scenes."

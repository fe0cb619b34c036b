"""The speakers' places in the picture: boxes that are typed or clicked, and regions as the endpoint tells them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
from directing import OWN_BOXES, effective, kind_of, num_speakers
from PIL import Image, ImageDraw, ImageFont, ImageOps

Point = list[int]
Box = list[int]

COLOURS = ("#c2410c", "#1864ab")
"""Of person1 and person2: dark enough for white letters (WCAG 2.2, level AA)."""

LINES = 100
"""A drawn line is the picture's longer side over this; letters are five lines high."""

TOLD_BY = {
    "bbox": "your box",
    "mask": "your mask",
    "faces": "a face that was found",
    "halves": "side by side",
    "whole": "the whole picture",
}
"""How the endpoint knows a place."""


@dataclass(frozen=True, eq=False)
class Told:
    """The speakers' places as the endpoint told them, once: not equal to what it tells another time.

    Attributes:
        of: what they are true for, as `basis` gives it.
        speakers: each speaker's place, as a plan or a result has it.
    """

    of: tuple[Any, ...]
    speakers: Sequence[Mapping[str, Any]]


def basis(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides the speakers' places: with other values, places that were told are out of date."""
    boxes = own_boxes(fields)
    return fields["source"], num_speakers(fields), fields["regions"], fields["keep"], *boxes


def own_boxes(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The boxes of person1 and person2 that have an effect, as they are typed; "" for none."""
    counts = effective(fields)
    first, second = (fields[name] if counts[name] else "" for name in ("box1", "box2"))
    return first, second


def parse_box(text: str) -> Box | None:
    """Parses a box typed as "x_min, y_min, x_max, y_max"; None if the text is blank.

    Raises:
        ValueError: the text is not four whole numbers, each minimum below its maximum.
    """
    if not text.strip():
        return None
    try:
        x_min, y_min, x_max, y_max = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a box: give four whole numbers, x_min, y_min, x_max, y_max") from None
    if x_min >= x_max or y_min >= y_max:
        raise ValueError(f"{text!r} is not a box: x_min must be below x_max, and y_min below y_max")
    return [x_min, y_min, x_max, y_max]


def bbox(fields: Mapping[str, Any]) -> dict[str, Box]:
    """The boxes of a job; empty if its speakers' places are found otherwise.

    Raises:
        ValueError: a box is invalid, or a speaker has none.
    """
    if not effective(fields)["regions"] or fields["regions"] != OWN_BOXES:
        return {}
    found = {}
    for number, text in enumerate(own_boxes(fields)[: num_speakers(fields)], 1):
        box = parse_box(text)
        if box is None:
            raise ValueError(f"person{number} has no box: click two corners in the picture, or choose other places")
        found[f"person{number}"] = box
    return found


def click(corner: Point | None, first: str, second: str, point: Point) -> tuple[Point | None, str, str]:
    """Makes a box of two clicks on its corners: the first box is person1's, the next one person2's.

    Returns:
        The first corner of an incomplete box, or None, and both boxes.
    """
    if corner is None:
        return point, first, second
    (x_min, x_max), (y_min, y_max) = (sorted(pair) for pair in zip(corner, point, strict=True))
    box = f"{x_min}, {y_min}, {x_max}, {y_max}"
    return (None, box, second) if not first.strip() or second.strip() else (None, first, box)


@lru_cache(maxsize=4)
def still(source: str) -> Image.Image | None:
    """A picture, or a video's first frame, upright and with square pixels, as boxes count it; None if it cannot be
    read, which the endpoint says better."""
    try:
        if kind_of(source) == "image":
            with Image.open(source) as picture:
                return ImageOps.exif_transpose(picture).convert("RGB")
        if kind_of(source) == "video":
            return _first_frame(source)
    except (OSError, Image.DecompressionBombError, av.FFmpegError, StopIteration, IndexError):
        return None
    return None


def _first_frame(source: str) -> Image.Image:
    with av.open(source) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        ratio = stream.sample_aspect_ratio or 1
    picture = frame.to_image().rotate(frame.rotation, expand=True)
    if ratio != 1:
        wide = 1 / ratio if frame.rotation % 180 else ratio
        picture = picture.resize((max(1, int(picture.width * wide + 0.5)), picture.height))
    return picture


def preview(source: str | None, corner: Point | None, boxes: Sequence[Box | None]) -> Image.Image | None:
    """The picture or the film's first frame, with the boxes of person1 and person2, and the first corner of the next
    box; None if there is none to show."""
    plain = still(source) if source else None
    if plain is None:
        return None
    picture = plain.copy()
    draw = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // LINES)
    font = ImageFont.load_default(5 * line)
    for number, (box, colour) in enumerate(zip(boxes, COLOURS, strict=False), 1):
        if box is not None:
            draw.rectangle(box, outline=colour, width=line)
            # At the bottom, since the picture's own label covers its upper left corner.
            name, place = f"person{number}", (box[0] + 2 * line, box[3] - 2 * line)
            left, top, right, bottom = draw.textbbox(place, name, font=font, anchor="lb")
            draw.rectangle((left - line, top - line, right + line, bottom + line), fill=colour)
            draw.text(place, name, fill="white", font=font, anchor="lb")
    if corner is not None:
        draw.circle(corner, 2 * line, fill=COLOURS[0], outline="white")
    return picture


def drawn_boxes(fields: Mapping[str, Any], told: Told | None) -> list[Box | None]:
    """The boxes to draw: as the endpoint told them, if that is still true, else those that are typed."""
    if told is not None and told.of == basis(fields):
        return [list(place["box"]) for place in told.speakers if place["told_by"] != "whole"]
    boxes: list[Box | None] = []
    for text in own_boxes(fields):
        box = None
        # An incomplete box is not an error: the user may still be typing.
        with suppress(ValueError):
            box = parse_box(text)
        boxes.append(box)
    return boxes


def in_words(speakers: Sequence[Mapping[str, Any]]) -> str:
    """The speakers' places as HTML; "" for the only speaker in the whole picture."""
    told = [
        f"<li>{html.escape(place['speaker'])}: x {place['box'][0]} to {place['box'][2]}, y {place['box'][1]} to "
        f"{place['box'][3]} ({TOLD_BY[place['told_by']]})</li>"
        for place in speakers
        if place["told_by"] != "whole"
    ]
    return f'<div class="places"><b>Places of the speakers</b><ul>{"".join(told)}</ul></div>' if told else ""

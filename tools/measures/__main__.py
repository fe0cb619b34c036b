"""Measures talking videos: `python -m tools.measures VIDEO.mp4 …`; --table writes the table of docs/measures.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infinitetalk.errors import FacesSetupError
from infinitetalk.media.decode import read_waveform
from tools.generated import fill_tables
from tools.measures.quality import BOUNDS, Quality, measure
from tools.measures.table import rows, table

DOCUMENT = Path(__file__).parents[2] / "docs/measures.md"


def main(arguments: list[str]) -> int:
    """Prints the figures; the exit status is 1 if one is beyond its bound, 2 if nothing can be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.measures",
        description="How well mouths follow speech, and how faces and colours keep. Needs no GPU and no network: about "
        "20 ms of one core for a frame. docs/measures.md explains the figures.",
    )
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO", help="MP4s of 25 frames a second, with sound")
    parser.add_argument(
        "--voice", type=Path, action="append", help="speech of a speaker, from left to right, in place of the sound"
    )
    parser.add_argument("--borders", type=int, nargs="*", default=[], help="numbers of the first frames of chunks")
    parser.add_argument(
        "--table",
        type=Path,
        nargs=2,
        metavar=("VIDEO", "SOUND"),
        help="write the table, by a filmed person's video and the sound of another person",
    )
    options = parser.parse_args(arguments)
    if not options.videos and not options.table:
        parser.error("name a video")
    try:
        if options.table:
            return _write_table(*options.table)
        voices = None if options.voice is None else [read_waveform(path) for path in options.voice]
    except (FacesSetupError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    is_missed = False
    for video in options.videos:
        try:
            quality = measure(video, voices, options.borders)
        except (FacesSetupError, ValueError) as error:
            print(f"error: {video}: {error}", file=sys.stderr)
            return 2
        print(video, *lines(quality), sep="\n")
        is_missed = is_missed or bool(quality.missed)
    return 1 if is_missed else 0


def lines(quality: Quality) -> list[str]:
    """A video's figures in words, one a line."""
    told = []
    for name, bound in BOUNDS.items():
        value = quality.figures[name]
        found = f"– ({quality.left_out.get(name)})" if value is None else f"{value:.3f}"
        verdict = "MISSED" if name in quality.missed else ""
        told.append(f"  {name:16} {found:8} {bound!s:14} {verdict:7} {bound.meaning}")
    return told


def _write_table(video: Path, other: Path) -> int:
    found = []
    for row in rows(video, other):
        print(*row.cells(), "" if row.is_as_expected else "NOT AS EXPECTED", sep=" | ", flush=True)
        found.append(row)
    text = fill_tables(DOCUMENT.read_text(encoding="utf-8"), {"measures": lambda: table(found)})
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0 if all(row.is_as_expected for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The page's logic; app.py has its layout."""

from __future__ import annotations

import html
import mimetypes
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinitetalk_client import InfiniteTalkClient, JobError, plan_lines
from PIL import Image, ImageDraw
from requests import RequestException

COLOURS = ("#ff5722", "#2196f3")
CORNER_RADIUS = 4

Point = list[int]
Box = list[int]


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


def is_picture(source: str | None) -> bool:
    """Whether a file is an image, judged by its name."""
    return source is not None and str(mimetypes.guess_type(source)[0]).startswith("image/")


def preview(source: str | None, corner: Point | None, *boxes: str) -> Image.Image | None:
    """The image with the speakers' boxes and the first corner of the next box drawn on it; None for a video."""
    if not is_picture(source):
        return None
    picture = Image.open(str(source)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for number, (text, colour) in enumerate(zip(boxes, COLOURS, strict=True), 1):
        # An incomplete box is not an error: the user may still be typing.
        with suppress(ValueError):
            if box := parse_box(text):
                draw.rectangle(box, outline=colour, width=3)
                draw.text((box[0] + 6, box[1] + 4), f"person{number}", fill=colour)
    if corner is not None:
        draw.circle(corner, CORNER_RADIUS, fill=COLOURS[0])
    return picture


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


def job_input(client: InfiniteTalkClient, fields: dict[str, Any]) -> dict[str, Any]:
    """Converts the page's fields into a job's input; makes files readable for the endpoint.

    Raises:
        ValueError: the source or the speech is missing, or a box is invalid.
        JobError: the files are too large for a request, and no store for them is set.
    """
    if not fields["source"]:
        raise ValueError("choose an image or a video")
    boxes = [parse_box(fields["box1"]), parse_box(fields["box2"])]
    voices = [voice for voice in (fields["voice1"], fields["voice2"]) if voice]
    text = fields["text"].strip()
    if not voices and not text:
        raise ValueError("choose a voice, or type a text")
    source, *voices = client.media(fields["source"], *([] if text else voices))
    job: dict[str, Any] = {"prompt": fields["prompt"], "cond_video": source}
    if text:
        job["tts_audio"] = {"text": text, "human1_voice": fields["speaker1"]}
        if fields["speaker2"]:
            job["tts_audio"]["human2_voice"] = fields["speaker2"]
    else:
        job["cond_audio"] = {f"person{number}": voice for number, voice in enumerate(voices, 1)}
        job["audio_type"] = fields["audio_type"]
    if any(boxes):
        job["bbox"] = {f"person{number}": box for number, box in enumerate(boxes, 1) if box}
    same: tuple[str, ...] = ("size", "mode", "max_frame_num", "crossfade_frame", "base_seed")
    if fields["recipe"]:
        # The recipe sets the others.
        same += ("recipe",)
    else:
        same += ("frame_num", "motion_frame", "sample_steps", "sample_text_guide_scale", "sample_audio_guide_scale")
        same += ("color_correction_strength", "use_teacache", "use_apg")
    output_config = client.output_config | ({"preview": True} if fields["mode"] == "streaming" else {})
    return job | {name: fields[name] for name in same} | {"output_config": output_config}


def prices(client: InfiniteTalkClient, job: dict[str, Any], poll_s: float) -> str:
    """The cost of a job by each recipe of the endpoint, as HTML; makes no video.

    Raises:
        JobError: the endpoint refuses the job.
        RequestException: the endpoint does not answer.
    """
    plan = client.run(job | {"dry_run": True}, poll_s=poll_s)
    return "<br>".join(html.escape(line) for line in plan_lines(plan))


def curl(client: InfiniteTalkClient, payload: str) -> str:
    """The command that sends a payload; the key stays in the environment."""
    return (
        f'curl -X POST {client.url}/run \\\n  -H "Authorization: Bearer ${{RUNPOD_API_KEY:-local}}" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(payload)}"
    )


def bar(progress: dict[str, Any]) -> str:
    """Progress as a line of HTML."""
    left = f", {progress['eta_s']:.0f} s left" if progress.get("eta_s") else ""
    pct = progress["pct"]
    return f'<progress value="{pct}" max="100" style="width:100%"></progress> {progress["stage"]} {pct:.0f} %{left}'


def player(address: str) -> str:
    """A player of a growing playlist, as HTML; browsers that support HLS play it while the job runs.

    Chromium gives up on a growing playlist of fewer than three segments, so it is made to try again.
    """
    again = "setTimeout(() => { this.src = this.src }, 1000)"
    return f'<video src="{html.escape(address)}" onerror="{again}" controls autoplay style="width:100%"></video>'


@dataclass(frozen=True)
class Shown:
    """The page's state of a job.

    Attributes:
        status: a line of HTML.
        video: file of the finished video.
        job_id: the job's id while it may be cancelled, else None.
        preview: address of the playlist of the finished chunks.
    """

    status: str
    video: str | None = None
    job_id: str | None = None
    preview: str | None = None


def run(client: InfiniteTalkClient, job: dict[str, Any], poll_s: float) -> Iterator[Shown]:
    """Sends a job and yields its state until it ends."""
    try:
        job_id = client.submit(job)
        progress = client.watch(job_id, poll_s)
        while True:
            try:
                message = next(progress)
            except StopIteration as end:
                result = end.value
                break
            yield Shown(bar(message), job_id=job_id, preview=client.preview_address(message))
        folder = tempfile.mkdtemp(prefix="infinitetalk-page-")
        file = client.download(result, Path(folder) / "talk.mp4")
    except (JobError, RequestException) as error:
        yield Shown(f"<b>{html.escape(str(error))}</b>")
        return
    warnings = "".join(f"<br>{html.escape(warning)}" for warning in result["warnings"])
    yield Shown(f"{bar({'stage': 'completed', 'pct': 100})}{warnings}", video=str(file))

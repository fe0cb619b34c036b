"""The page's logic; app.py has its layout."""

from __future__ import annotations

import html
import json
import shlex
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from directing import OWN_SIZE, SET_BY_RECIPE, directed, effective, shows_film_times, times_of
from infinitetalk_client import RECIPES, InfiniteTalkClient, InfiniteTalkError, plan_lines
from places import bbox, in_words

SCHEMA = Path(__file__).parents[1] / "schemas/single_job.schema.json"

EMBEDDED = {
    "tiny-talker": "the embedded model. It animates drawn people at 128×128 pixels, to show and test the worker. It "
    "cannot animate photographs: for these the endpoint needs the weights of InfiniteTalk (docs/weights.md)",
    "tiny-random": "the embedded model with random weights. It makes noise, to test the worker",
}
"""What the models that come with the worker can do; whatever else an endpoint names is a published model."""

SMALL_JOB = {
    "prompt": "A drawn woman talks to the camera",
    "cond_video": "examples/media/drawn_portrait.png",
    "cond_audio": {"person1": "examples/media/speech.wav"},
    "output_config": {"store": "volume"},
    "dry_run": True,
}
"""A job that `make serve` only plans, to tell its model."""

USUAL_VOICES = ("am_adam", "af_heart")
"""Voices of Kokoro's to choose from as long as the endpoint's own are unknown; any other may be typed."""

SAMPLES_INDEX = "voices.json"
NO_SAMPLES = "There are no samples of voices here: <code>make voices</code> makes them."

PREVIEWS = Path(tempfile.gettempdir()) / "infinitetalk-page-previews"
GROWS_FROM = 3
"""Segments from which Chromium plays a playlist that grows; a shorter one it plays only as a complete one."""

PREVIEW_TIMEOUT_S = 5.0

SENT_AS_THEY_ARE = (
    "mode",
    "max_frame_num",
    "motion_frame",
    "crossfade_frame",
    *SET_BY_RECIPE,
    "base_seed",
)
"""Fields whose values on the page are a job's."""


def job_input(client: InfiniteTalkClient, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the page's fields into a job's input; makes files readable for the endpoint.

    Fields that have no effect, by what the others say, are left out.

    Raises:
        ValueError: the source or the speech is missing, or a field cannot be read.
        InfiniteTalkError: a file does not reach the endpoint: it is too large, say, and no store for it is set.
    """
    if not fields["source"]:
        raise ValueError("choose an image or a video")
    voices = [voice for voice in (fields["voice1"], fields["voice2"]) if voice]
    text = fields["text"].strip()
    if not voices and not text:
        raise ValueError("choose a voice, or type a text")
    counts = effective(fields)
    used = {name: value for name, value in fields.items() if counts.get(name, True)}
    pictures = fields["later_pictures"] or []
    times = times_of(pictures, used["later_times"]) if pictures else []
    job = directed(used) | _resolution(used)
    if boxes := bbox(fields):
        job["bbox"] = boxes
    source, *media = client.media(fields["source"], *pictures, *([] if text else voices))
    later = [{"from_s": time, "media": picture} for time, picture in zip(times, media, strict=False)]
    job["cond_video"] = [{"from_s": 0.0, "media": source}, *later] if later else source
    if text:
        job["tts_audio"] = {"text": text, "human1_voice": fields["speaker1"]}
        if fields["speaker2"]:
            job["tts_audio"]["human2_voice"] = fields["speaker2"]
    else:
        # As the speakers are counted: a voice in the second field alone is person1's.
        begins = [used.get(f"begin{number}") for number in range(1, len(voices) + 1)]
        job["cond_audio"] = {
            f"person{number}": {"media": voice, "from_s": begin} if begin else voice
            for number, (voice, begin) in enumerate(zip(media[len(later) :], begins, strict=True), 1)
        }
    if used.get("negative_prompt", "").strip():
        job["negative_prompt"] = fields["negative_prompt"]
    if used.get("nag"):
        job["nag"] = {"scale": fields["nag_scale"]}
    job |= {name: used[name] for name in SENT_AS_THEY_ARE if name in used}
    if fields["recipe"]:
        job["recipe"] = fields["recipe"]
    has_preview = fields["mode"] == "streaming" and not shows_film_times(job)
    return job | {"output_config": client.output_config | ({"preview": True} if has_preview else {})}


def _resolution(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `size` of a job.

    Raises:
        ValueError: a side of a resolution of one's own is missing.
    """
    if fields["size"] != OWN_SIZE:
        return {"size": fields["size"]}
    if not fields["width"] or not fields["height"]:
        raise ValueError("size: give width and height of your own resolution, multiples of 16")
    return {"size": {"width": fields["width"], "height": fields["height"]}}


def plan_of(client: InfiniteTalkClient, job: dict[str, Any], poll_s: float) -> dict[str, Any]:
    """The plan of a job; makes no video.

    Raises:
        InfiniteTalkError: the endpoint refuses the job or does not answer.
    """
    return client.run(job | {"dry_run": True}, poll_s=poll_s)


def prices(plan: dict[str, Any]) -> str:
    """What a plan's job costs, by each recipe of the endpoint, and the plan's warnings, as HTML."""
    told = [*plan_lines(plan), *plan["warnings"], "Seconds and dollars are estimated."]
    return "<br>".join(html.escape(line) for line in told) + in_words(plan["speakers"])


def recipe_choices(plan: dict[str, Any] | None, is_of_this_job: bool) -> list[tuple[str, str]]:
    """The recipes to choose from: what is shown, and its value.

    Args:
        plan: of a job at the endpoint; None: the endpoint was not asked.
        is_of_this_job: whether the plan is of the job on the page, so that its costs are shown.
    """
    if plan is None:
        return [("as set below", ""), *((name, name) for name in RECIPES)]
    costs = {cost["recipe"]: cost for cost in plan["recipes"]}
    own = _cost(plan) if is_of_this_job else ""
    choices = [(f"as set below{own}", "")]
    for name in RECIPES:
        if name not in costs:
            choices.append((f"{name}: not at this endpoint", name))
        else:
            choices.append((f"{name}{_cost(costs[name]) if is_of_this_job else ''}", name))
    return choices


def _cost(cost: dict[str, Any]) -> str:
    """Seconds and dollars of a plan or of a recipe in it, as they stand behind its name; evaluations if neither is
    known."""
    if "estimate_s" not in cost:
        return f": {cost['evaluations']} evaluations"
    dollars = f", ${cost['estimate_usd']:.2f}" if "estimate_usd" in cost else ""
    return f": about {cost['estimate_s']:.0f} s{dollars}, estimated"


def model_banner(plan: dict[str, Any]) -> str:
    """The model of a plan and what it can do, as HTML; an embedded model is shown as one."""
    name, recipes = plan["model"], ", ".join(cost["recipe"] for cost in plan["recipes"])
    by_recipes = f" Recipes: {html.escape(recipes)}." if recipes else ""
    told = EMBEDDED.get(name, "turns a picture or a video of people and speech into a video")
    kind = "embedded" if name in EMBEDDED else "published"
    return f'<div class="model {kind}" role="note">Model <b>{html.escape(name)}</b>: {told}.{by_recipes}</div>'


def voice_note(plan: dict[str, Any]) -> str:
    """What is to know about an endpoint's voices, as HTML."""
    if not plan["voices"]:
        return "This endpoint cannot speak a text: it has no weights of Kokoro."
    if plan["model"] in EMBEDDED:
        return "This endpoint speaks with random weights: its speech is as long as the text, but has no words."
    return ""


class EndpointModel:
    """The model of the page's endpoint: asked for once, for all who open the page.

    An endpoint on Runpod is not asked, because a worker would start for it; a plan of a job tells its model.
    """

    def __init__(self, client: InfiniteTalkClient, poll_s: float) -> None:
        self._client, self._poll_s = client, poll_s
        self._plan: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def ask(self) -> tuple[str, dict[str, Any] | None]:
        """The model as HTML, or why it is unknown; and the plan of a small job, None if there is none."""
        if not self._client.is_local:
            unasked = "Prices tells which model this endpoint has, and its recipes."
            return f'<div class="model" role="note">{unasked}</div>', None
        with self._lock:
            if self._plan is None:
                try:
                    self._plan = plan_of(self._client, SMALL_JOB, self._poll_s)
                except InfiniteTalkError as error:
                    unknown = f"The model is unknown: {html.escape(str(error))}."
                    return f'<div class="model" role="note">{unknown}</div>', None
            return model_banner(self._plan), self._plan


@dataclass(frozen=True)
class VoiceSamples:
    """Samples of voices, which `python -m tools.voice_samples` made on the machine of the page.

    Attributes:
        files: the sample of each voice.
        warnings: what is wrong with all of them.
    """

    files: Mapping[str, Path]
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> VoiceSamples:
        """The samples in a folder; none if it has no index."""
        try:
            index = json.loads((folder / SAMPLES_INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls({})
        files = {voice: folder / name for voice, name in index["samples"].items()}
        return cls(files, tuple(index["warnings"]))

    def of(self, voice: str) -> tuple[str | None, str]:
        """A voice's sample, and what is to know about it as HTML."""
        if not self.files:
            return None, NO_SAMPLES
        if voice not in self.files:
            return None, f"There is no sample of {html.escape(voice)}." if voice else ""
        return str(self.files[voice]), "<br>".join(f"The sample: {html.escape(line)}." for line in self.warnings)


@cache
def _schema() -> dict[str, Any]:
    return dict(json.loads(SCHEMA.read_text(encoding="utf-8")))


def help_of(field: str) -> str:
    """What a field of a job means, as the worker's interface describes it.

    Args:
        field: its name; of a field within another one, "dub.keep".

    Raises:
        KeyError: there is no such field.
    """
    node = _schema()
    for name in field.split("."):
        known = [form["properties"] for form in _forms(node) if name in form.get("properties", {})]
        if not known:
            raise KeyError(field)
        node = known[0][name]
    return " ".join(node["description"].split())


def _forms(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The forms that a value may have, each value of an object of any names included."""
    yield node
    if "$ref" in node:
        yield from _forms(_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    for inner in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _forms(inner)
    if isinstance(others := node.get("additionalProperties"), dict):
        yield from _forms(others)


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
    shown = f'<progress value="{pct}" max="100" aria-label="Progress" style="width:100%"></progress>'
    return f"{shown} {html.escape(progress['stage'])} {pct:.0f} %{left}"


def player(address: str) -> str:
    """A player of a playlist, as HTML; browsers that support HLS play it while the job runs.

    If it cannot be played yet, the player tries again.
    """
    again = "setTimeout(() => { this.src = this.src }, 1000)"
    source = html.escape(address)
    return f'<video src="{source}" onerror="{again}" controls autoplay aria-label="Preview" style="width:100%"></video>'


class ShortPreview:
    """What the player gets of a playlist that grows: while it is short, a copy that ends after the segments so far."""

    def __init__(self) -> None:
        PREVIEWS.mkdir(exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=PREVIEWS))
        self._grows = False

    def playable(self, address: str) -> str:
        """Address of the playlist to play now: a copy, served by the page, or `address` itself.

        Args:
            address: of the playlist that grows.
        """
        if self._grows:
            return address
        try:
            answer = requests.get(address, timeout=PREVIEW_TIMEOUT_S)
            answer.raise_for_status()
        except requests.RequestException:
            # The browser may reach what the page does not.
            return address
        lines = answer.text.splitlines()
        num_segments = sum(line.startswith("#EXTINF") for line in lines)
        self._grows = num_segments >= GROWS_FROM
        if self._grows or num_segments == 0:
            return address
        copy = self._folder / f"{num_segments}.m3u8"
        if not copy.exists():
            ended = [line if line.startswith("#") else urljoin(address, line) for line in lines]
            copy.write_text("\n".join([*ended, "#EXT-X-ENDLIST", ""]), encoding="utf-8")
        return f"/gradio_api/file={copy}"


@dataclass(frozen=True)
class Shown:
    """The page's state of a job.

    Attributes:
        status: a line of HTML.
        video: file of the finished video.
        job_id: the job's id, once it has one.
        preview: address of a playlist of the finished chunks.
        speakers: each speaker's place, once the job has ended well.
    """

    status: str
    video: str | None = None
    job_id: str | None = None
    preview: str | None = None
    speakers: Sequence[Mapping[str, Any]] = ()


class Tabs:
    """The job of each open tab, from the click that starts it, so that it can be cancelled before it has an id."""

    def __init__(self) -> None:
        self._jobs: dict[str, str | None] = {}
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, tab: str) -> None:
        """A job of this tab begins: it is prepared and then sent.

        Raises:
            ValueError: the tab has a job that has not ended.
        """
        with self._lock:
            if tab in self._jobs:
                raise ValueError("this tab has a job that has not ended: cancel it, or open another tab")
            self._jobs[tab] = None
            self._cancelled.discard(tab)

    def queued(self, tab: str, job_id: str) -> None:
        """The tab's job has an id."""
        with self._lock:
            self._jobs[tab] = job_id

    def cancel(self, tab: str) -> str | None:
        """Marks the tab's job as cancelled; returns its id, or None if it has none yet."""
        with self._lock:
            self._cancelled.add(tab)
            return self._jobs.get(tab)

    def is_cancelled(self, tab: str) -> bool:
        """Whether the job that has begun is marked as cancelled."""
        with self._lock:
            return tab in self._cancelled

    def end(self, tab: str) -> None:
        """Forgets the tab's job."""
        with self._lock:
            self._jobs.pop(tab, None)
            self._cancelled.discard(tab)


def run(client: InfiniteTalkClient, job: dict[str, Any], poll_s: float, tabs: Tabs, tab: str) -> Iterator[Shown]:
    """Sends the job of a tab, for which `tabs.begin` was called, and yields its state until it ends."""
    if tabs.is_cancelled(tab):
        yield Shown("<b>cancelled before it was sent</b>")
        return
    try:
        job_id = client.submit(job)
        tabs.queued(tab, job_id)
        if tabs.is_cancelled(tab):
            # The click came while the job was being sent.
            client.cancel(job_id)
    except InfiniteTalkError as error:
        yield Shown(f"<b>{html.escape(str(error))}</b>")
        return
    yield Shown(bar({"stage": "queued", "pct": 0}), job_id=job_id)
    yield from follow(client, job_id, poll_s)


def attach(client: InfiniteTalkClient, job_id: str, poll_s: float, tabs: Tabs, tab: str) -> Iterator[Shown]:
    """Yields the state of a job that was sent before, by this or another tab, until it ends."""
    tabs.queued(tab, job_id)
    yield Shown("asking the endpoint …", job_id=job_id)
    yield from follow(client, job_id, poll_s)


def follow(client: InfiniteTalkClient, job_id: str, poll_s: float) -> Iterator[Shown]:
    """Yields a job's state until it ends; if nobody looks any longer, the job goes on."""
    short = ShortPreview()
    try:
        progress = client.watch(job_id, poll_s)
        while True:
            try:
                message = next(progress)
            except StopIteration as end:
                result = end.value
                break
            address = client.preview_address(message)
            yield Shown(bar(message), job_id=job_id, preview=address and short.playable(address))
        folder = tempfile.mkdtemp(prefix="infinitetalk-page-")
        file = client.download(result, Path(folder) / "talk.mp4")
    except InfiniteTalkError as error:
        yield Shown(f"<b>{html.escape(str(error))}</b>", job_id=job_id)
        return
    done = bar({"stage": "completed", "pct": 100})
    places = in_words(result["speakers"])
    told = f"{done} by {html.escape(result['model'])}{places}{warning_list(result['warnings'])}"
    yield Shown(told, video=str(file), job_id=job_id, speakers=result["speakers"])


def warning_list(warnings: list[str]) -> str:
    """A result's warnings as HTML."""
    if not warnings:
        return ""
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    return f'<div class="warnings"><b>Warnings</b><ul>{items}</ul></div>'


def cancel(client: InfiniteTalkClient, tabs: Tabs, tab: str) -> None:
    """Cancels the job of a tab, whether it runs, waits or is only on its way to the endpoint.

    Raises:
        InfiniteTalkError: the endpoint does not answer.
    """
    job_id = tabs.cancel(tab)
    if job_id is not None:
        client.cancel(job_id)

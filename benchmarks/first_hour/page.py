"""report.html: one file that works offline. Every figure in it names the field of report.json that it shows."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.first_hour_record import Job, Report, Video
from benchmarks.rehearsal.prices import clock
from tools.measures.quality import BOUNDS

FILE = "report.html"

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2430;background:#f6f7f9;margin:0}
main{max-width:1120px;margin:0 auto;padding:28px 32px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:38px 0 10px}h3{font-size:15px;margin:0 0 6px}
p{margin:6px 0}.soft{color:#5b6675}
section.card,article{background:#fff;border:1px solid #dfe3e8;border-radius:10px;padding:16px 18px;margin:12px 0}
table{border-collapse:collapse;width:100%;background:#fff;border:1px solid #dfe3e8;border-radius:10px;overflow:hidden}
th,td{padding:7px 10px;text-align:left;border-top:1px solid #edf0f3;vertical-align:top;font-size:14px}
th{background:#eef1f5;font-weight:600;border-top:0}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:18px 0}
.tile{background:#fff;border:1px solid #dfe3e8;border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:22px;font-weight:650}.good{color:#12703c}.bad{color:#b3261e;font-weight:600}
.open{color:#8a5a00}.advice b{font-family:ui-monospace,monospace}
.pictures img{height:104px;border-radius:6px;margin-right:6px}
svg{display:block;max-width:100%}figure{margin:8px 0}figcaption{font-size:13px;color:#5b6675}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}code{font-size:13px}
"""

WORDS = {"done": "good", "failed": "bad", "left out": "soft", "stopped": "open", "lost": "open", "waiting": "open"}


class Page:
    """Writes a report's figures, each with the name of its field.

    Args:
        report: the report.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self._values: Any = report.model_dump(mode="json")

    def value(self, field: str) -> Any:
        """The value of a field of the JSON, as jobs.3.seconds."""
        found = self._values
        for name in field.split("."):
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found

    def figure(self, field: str, form: Callable[[Any], str] = str, absent: str = "–") -> str:
        """A figure of the report as HTML."""
        value = self.value(field)
        text = absent if value is None else form(value)
        return f'<data data-field="{field}" value="{html.escape(str(value))}">{html.escape(text)}</data>'

    def render(self) -> str:
        """The whole page."""
        parts = [self._head(), self._tiles(), self._advice(), self._recipes(), self._steps(), self._parts()]
        parts += [self._jobs(), self._videos(), self._media()]
        title = f"The first hour: {self.report.machine.gpu or 'no GPU'}"
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{STYLE}</style><main>{''.join(parts)}</main></html>\n"
        )

    def _head(self) -> str:
        machine = self.report.machine
        note = ""
        if not self.report.is_published:
            note = (
                "<p><b>The videos were made by an embedded model of drawn faces.</b> They show that the command works, "
                "and say nothing of the published weights or of a GPU.</p>"
            )
        about = f" {self.figure('machine.about')}." if machine.about else ""
        gpu = self.figure("machine.gpu") if machine.gpu else "No GPU"
        return (
            f"<h1>The first hour: {gpu}</h1><p class=soft>Began {self.figure('began')} UTC; version "
            f"{self.figure('version')}, worker {self.figure('machine.worker')}, model {self.figure('machine.model')}."
            f"{about} Ended: {self.figure('ended')}.</p>{note}"
        )

    def _tiles(self) -> str:
        report = self.report
        done = sum(job.status == "done" for job in report.jobs)
        failed = sum(job.status == "failed" for job in report.jobs)
        others = len(report.jobs) - done - failed
        return (
            '<div class="tiles">'
            f'<div class="tile"><b>{self.figure("spent.seconds", clock)}</b>of '
            f"{self.figure('limits.minutes', _number)} minutes</div>"
            f'<div class="tile"><b>{self.figure("spent.usd", _usd)}</b>of {self.figure("limits.dollars", _usd)} at '
            f"{self.figure('machine.price_per_s', _price)} a second ({self.figure('machine.price_from')})</div>"
            f'<div class="tile"><b>{_count("jobs", done)} of {_count("jobs", len(report.jobs))}</b>jobs done, '
            f"{_count('jobs', failed)} failed, {_count('jobs', others)} not run</div>"
            f'<div class="tile"><b>{_count("steps", sum(step.status == "done" for step in report.steps))} of '
            f"{_count('steps', len(report.steps))}</b>steps done</div></div>"
        )

    def _advice(self) -> str:
        if not self.report.advice:
            return ""
        rows = [
            (
                f"<b>{self.figure(f'advice.{index}.setting')}</b>",
                f"<b>{self.figure(f'advice.{index}.value')}</b>",
                self.figure(f"advice.{index}.reason"),
            )
            for index in range(len(self.report.advice))
        ]
        return f'<h2>What to set</h2><div class="advice">{_table(("setting", "value", "because"), rows)}</div>'

    def _recipes(self) -> str:
        if not self.report.recipes:
            return ""
        names = ("follows", "lag", "rest", "identity_least", "colour_drift", "sharpness_drift", "borders", "flicker")
        head = ["recipe", "a minute of video", "its cost", "measured / estimated", *names]
        rows = []
        for index, summary in enumerate(self.report.recipes):
            place = f"recipes.{index}"
            rows.append(
                [
                    f"<b>{self.figure(f'{place}.recipe')}</b>",
                    self.figure(f"{place}.minute_s", clock),
                    self.figure(f"{place}.minute_usd", _usd),
                    self.figure(f"{place}.ratio", _ratio),
                    *(self._quality(f"{place}.quality", name, name in summary.missed) for name in names),
                ]
            )
        rows.append(
            [
                "<span class=soft>bound</span>",
                "",
                "",
                "",
                *(f"<span class=soft>{BOUNDS[name]!s}</span>" for name in names),
            ]
        )
        return (
            "<h2>Recipes side by side</h2><p class=soft>The same picture and speech, "
            f"{self.figure('video_s', _number)} s, one speaker. A figure beyond its bound is red; docs/measures.md "
            f"explains them.</p>{self._bars()}{_table(head, rows, numbers=range(1, 12))}"
        )

    def _quality(self, place: str, name: str, is_missed: bool) -> str:
        if self.value(place).get(name) is None:
            return "–"
        shown = self.figure(f"{place}.{name}", _places(0 if name == "lag" else 2))
        return f'<span class="bad">{shown}</span>' if is_missed else shown

    def _bars(self) -> str:
        """Seconds of a minute by recipe, as bars."""
        most = max(summary.minute_s for summary in self.report.recipes)
        lines = []
        for index, summary in enumerate(self.report.recipes):
            y, width = 22 * index, 640 * summary.minute_s / most if most else 0
            lines.append(
                f'<text x="110" y="{y + 15}" text-anchor="end" font-size="13" '
                f'data-field="recipes.{index}.recipe">{html.escape(summary.recipe)}</text>'
                f'<rect x="118" y="{y + 3}" width="{max(width, 2):.0f}" height="16" rx="3" fill="#3d6fd6" '
                f'data-field="recipes.{index}.minute_s"/>'
                f'<text x="{124 + max(width, 2):.0f}" y="{y + 15}" font-size="13" fill="#5b6675" '
                f'data-field="recipes.{index}.minute_s">{clock(summary.minute_s)}</text>'
            )
        height = 22 * len(self.report.recipes) + 4
        return (
            f'<figure><svg viewBox="0 0 860 {height}" width="860" height="{height}">{"".join(lines)}</svg>'
            "<figcaption>Time for a minute of video</figcaption></figure>"
        )

    def _steps(self) -> str:
        rows = []
        for index, step in enumerate(self.report.steps):
            place = f"steps.{index}"
            found = [
                self._found(f"{place}.figures.{name}", name)
                for name, value in step.figures.items()
                if not isinstance(value, (list, dict)) or len(_short(value)) < 400
            ]
            rows.append(
                [
                    self.figure(f"{place}.title"),
                    self._status(place),
                    self.figure(f"{place}.seconds", _seconds),
                    "<br>".join(found),
                ]
            )
        return f"<h2>Steps</h2>{_table(('step', 'how it ended', 'time', 'found'), rows, numbers=[2])}"

    def _found(self, field: str, name: str) -> str:
        """A step's figure in words; names that end with _s are of seconds."""
        is_time = name.endswith("_s")
        label = name.removesuffix("_s").replace("_", " ")
        return f"{html.escape(label)}: {self.figure(field, _seconds if is_time else _short)}"

    def _status(self, place: str) -> str:
        word = WORDS.get(self.value(f"{place}.status"), "open")
        reason = self.value(f"{place}.reason")
        because = f'<br><span class="soft">{self.figure(f"{place}.reason")}</span>' if reason else ""
        return f'<span class="{word}">{self.figure(f"{place}.status")}</span>{because}'

    def _parts(self) -> str:
        if not self.report.parts:
            return ""
        rows = []
        for index, part in enumerate(self.report.parts):
            place = f"parts.{index}"
            form = _seconds if part.unit == "s" else _gib
            rows.append(
                [
                    self.figure(f"{place}.name"),
                    self.figure(f"{place}.estimated", form),
                    self.figure(f"{place}.measured", form),
                    self.figure(f"{place}.ratio", _ratio),
                ]
            )
        card = f" (table: {self.figure('machine.card')})" if self.report.machine.card else ""
        head = ("part", "estimated", "measured", "measured / estimated")
        return f"<h2>Estimated and measured{card}</h2>{_table(head, rows, numbers=[1, 2, 3])}"

    def _jobs(self) -> str:
        rows = []
        for index, job in enumerate(self.report.jobs):
            place = f"jobs.{index}"
            missed = [
                self.figure(f"{place}.videos.{number}.missed", ", ".join)
                for number, video in enumerate(job.videos)
                if video.missed
            ]
            rows.append(
                [
                    self.figure(f"{place}.name"),
                    self._status(place),
                    self.figure(f"{place}.estimate_s", _seconds),
                    self.figure(f"{place}.seconds", _seconds),
                    self.figure(f"{place}.usd", _usd),
                    self.figure(f"{place}.evaluations", _number),
                    self.figure(f"{place}.evaluation_s", _seconds),
                    self.figure(f"{place}.memory_mode"),
                    f'<span class="bad">{"; ".join(missed)}</span>' if missed else "",
                ]
            )
        head = (
            "job",
            "how it ended",
            "estimate",
            "time",
            "cost",
            "evaluations",
            "each",
            "memory mode",
            "beyond bounds",
        )
        return f"<h2>Jobs</h2>{_table(head, rows, numbers=[2, 3, 4, 5, 6])}"

    def _videos(self) -> str:
        found = [
            self._video(job, video, f"jobs.{index}.videos.{number}", f"jobs.{index}")
            for index, job in enumerate(self.report.jobs)
            for number, video in enumerate(job.videos)
        ]
        return f"<h2>Videos</h2>{''.join(found)}" if found else ""

    def _video(self, job: Job, video: Video, place: str, job_place: str) -> str:
        pictures = "".join(
            f'<img alt="{when} frame" data-field="{place}.pictures.{number}" src="data:image/jpeg;base64,{picture}">'
            for number, (when, picture) in enumerate(zip(("first", "middle", "last"), video.pictures, strict=False))
        )
        plots = "".join(self._plot(f"{place}.series.{number}") for number in range(len(video.series)))
        told = ", ".join(
            f"{name} {self._quality(f'{place}.quality', name, name in video.missed)}"
            for name, value in video.quality.items()
            if value is not None
        )
        missing = "; ".join(
            f"{html.escape(name)}: {self.figure(f'{place}.unmeasured.{name}')}" for name in video.unmeasured
        )
        item = f", {self.figure(f'{place}.item')}" if video.item else ""
        return (
            f"<article><h3>{self.figure(f'{job_place}.name')}{item}</h3>"
            f"<p class=soft>{self.figure(f'{place}.width')}×{self.figure(f'{place}.height')}, "
            f"{self.figure(f'{place}.duration_s', _seconds)}; file {self.figure(f'{place}.file')}</p>"
            f'<div class="pictures">{pictures}</div><p>{told}</p>{plots}'
            + (f'<p class="soft">Not measured: {missing}</p>' if missing else "")
            + "".join(
                f'<p class="soft">Warning: {self.figure(f"{job_place}.warnings.{number}")}</p>'
                for number in range(len(job.warnings))
            )
            + "</article>"
        )

    def _plot(self, place: str) -> str:
        """A mouth's opening above the speech's loudness, over time."""
        opening, loudness = self.value(f"{place}.opening"), self.value(f"{place}.loudness")
        lines = "".join(
            f'<polyline data-field="{place}.{name}" fill="none" stroke="{colour}" stroke-width="1.4" '
            f'points="{_points(series, 1040, 84)}"/>'
            for name, series, colour in (("loudness", loudness, "#d98b2b"), ("opening", opening, "#3d6fd6"))
        )
        return (
            f'<figure><svg viewBox="0 0 1040 90" width="1040" height="90">{lines}</svg><figcaption>'
            '<span style="color:#3d6fd6">opening of the mouth</span> and '
            '<span style="color:#d98b2b">loudness of its speech</span>, each from its least to its most</figcaption>'
            "</figure>"
        )

    def _media(self) -> str:
        rows = [
            [self.figure(f"media.{index}.{name}") for name in ("name", "content", "origin")]
            for index in range(len(self.report.media))
        ]
        if not rows:
            return ""
        return f"<h2>Media</h2>{_table(('file', 'what it is', 'origin and terms'), rows)}"


def write_page(report: Report, folder: Path) -> None:
    """Writes report.html; at any moment the file is whole."""
    scratch = folder / f".{FILE}.part"
    scratch.write_text(Page(report).render(), encoding="utf-8")
    scratch.replace(folder / FILE)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if index in right else ''}>{cell}</{tag}>" for index, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def _count(field: str, number: int) -> str:
    return f'<data data-field="{field}" data-count="{number}">{number}</data>'


def _points(series: Sequence[float], width: float, height: float) -> str:
    if not series:
        return ""
    least, most = min(series), max(series)
    spread = most - least or 1.0
    step = width / max(len(series) - 1, 1)
    return " ".join(
        f"{index * step:.1f},{height - (value - least) / spread * (height - 6):.1f}"
        for index, value in enumerate(series)
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def _places(number: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{number}f}"


def _seconds(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} s"


def _gib(value: float) -> str:
    return f"{value:.2f} GiB"


def _usd(value: float) -> str:
    return f"${value:.2f}" if value >= 0.1 or value == 0 else f"${value:.4f}"


def _price(value: float) -> str:
    return f"${value:.5f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _short(value: Any) -> str:
    """A step's figure: numbers with three digits, lists with commas."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {found}" for name, found in value.items()) or "none"
    return str(value)

"""What the hour's figures say together: recipes, estimates against measurements, and what to set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from benchmarks.first_hour_record import Advice, Job, Part, Report, Summary
from benchmarks.rehearsal.prices import ASSUMED_PRICES, PRICES, SIZES, clock, minute
from infinitetalk.recipes import RECIPES
from infinitetalk.worker.engine.rehearsed import Card, card_named

#: Tokens, and latent frames and pixels, of the figures of benchmarks.gpu.
LONG, SHORT, SQUARE = 33_600, 14_400, 75_600
LATENT_FRAMES, PIXELS = 21, 640 * 640

#: How much less than the best recipe's a recipe's `follows` may be.
LOSS = 0.1

#: The longest idle timeout that is advised, in seconds.
LONGEST_IDLE_S = 300


def estimates(card: Card) -> dict[str, float]:
    """What the worker's table says for figures of benchmarks.gpu, in seconds."""
    evaluation, further = card.evaluation, card.further_speaker
    return {
        "one evaluation, 640x640, 81 frames, 1 speaker": evaluation.seconds(LONG),
        "one evaluation, 640x640, 33 frames, 1 speaker": evaluation.seconds(SHORT),
        "one evaluation, 960x960, 81 frames, 1 speaker": evaluation.seconds(SQUARE),
        "one evaluation, 640x640, 81 frames, 2 speakers": evaluation.seconds(LONG) + further.seconds(LONG),
        "one evaluation, fp8 weights widened at each use": evaluation.seconds(LONG) + card.widening,
        "decoding of a chunk, float32 with TF32": card.decode.seconds(LATENT_FRAMES, PIXELS),
        "encoding of a reference for a chunk": card.encode.seconds(LATENT_FRAMES, PIXELS),
    }


def parts_of(report: Report) -> Iterator[Part]:
    """Each part that has an estimate and a measurement: of benchmarks.gpu, and of jobs."""
    card = None if report.machine.card is None else card_named(report.machine.card)
    figures = _benchmark_figures(report)
    if card is not None:
        for name, estimate in estimates(card).items():
            if (figure := figures.get(name)) and figure["value"]:
                yield _part(name, "s", estimate * report.machine.factor, figure["value"])
    for name, figure in figures.items():
        # The benchmark says its estimate in words.
        estimated = re.match(r"estimated ([\d.]+)", figure["detail"])
        if figure["unit"] == "GiB" and figure["value"] and estimated:
            yield _part(name, "GiB", float(estimated[1]), figure["value"])
    for job in report.jobs:
        if job.status == "done" and job.evaluation_estimate_s and job.evaluation_s:
            yield _part(f"an evaluation in {job.name}", "s", job.evaluation_estimate_s, job.evaluation_s)
        if job.status == "done" and job.estimate_s and job.seconds:
            yield _part(f"the job {job.name}", "s", job.estimate_s, job.seconds)


def _part(name: str, unit: Any, estimated: float, measured: float) -> Part:
    return Part(name=name, unit=unit, estimated=estimated, measured=measured, ratio=measured / estimated)


def _benchmark_figures(report: Report) -> dict[str, dict[str, Any]]:
    step = next((step for step in report.steps if step.name == "benchmarks"), None)
    found = [] if step is None else step.figures.get("figures", [])
    return {figure["name"]: figure for figure in found}


def summaries(report: Report) -> Iterator[Summary]:
    """Each recipe whose job of the group "recipes" is done, the cheapest first."""
    done = [job for job in report.jobs if job.group == "recipes" and job.status == "done" and job.videos]
    for job in sorted(done, key=lambda job: job.minute_s or 0.0):
        assert job.recipe is not None and job.minute_s is not None and job.minute_usd is not None
        yield Summary(
            recipe=job.recipe,
            minute_s=job.minute_s,
            minute_usd=job.minute_usd,
            ratio=job.ratio,
            table_minute_usd=_table_usd(report, job.recipe),
            quality=job.videos[0].quality,
            missed=job.videos[0].missed,
        )


def _table_usd(report: Report, recipe: str) -> float | None:
    """A minute of 640×640 by the documents; None without a card, or for an embedded model."""
    if report.machine.card not in PRICES or not report.is_published:
        return None
    return minute(RECIPES[recipe], SIZES["480"], report.machine.card).usd


def usual_ratio(report: Report) -> float | None:
    """The median of measured over estimated seconds of jobs; None without any."""
    ratios = [job.ratio for job in report.jobs if job.status == "done" and job.ratio]
    return median(ratios) if ratios else None


def advice_of(report: Report) -> Iterator[Advice]:
    """What to set, in words. Of an embedded model nothing is advised but what holds for every model."""
    yield from _kernels(report)
    yield from _recipe(report)
    yield from _card(report)
    yield from _idle(report)


def _kernels(report: Report) -> Iterator[Advice]:
    step = next((step for step in report.steps if step.name == "kernels" and step.status == "done"), None)
    if step is None:
        return
    chosen, tried = step.figures["chosen"], step.figures["tried"]
    bad = [line for line in tried if re.search(r": (crashed|hung|inexact)", line)]
    if chosen == "the published ones":
        reason = "no kernel that was tried is both as exact and faster"
        yield Advice(setting="KERNELS", value="published", reason=f"{reason}; this saves the trial at each new machine")
        return
    reason = f"the trial chose {chosen}; leave the setting out, and attach a network volume, which keeps what was found"
    if bad:
        reason += f". Not usable here: {'; '.join(bad)}"
    yield Advice(setting="KERNELS", value="auto", reason=reason)


def _recipe(report: Report) -> Iterator[Advice]:
    found = list(report.recipes)
    if not found:
        return
    scores = {summary.recipe: summary.quality.get("follows") for summary in found}
    best = max((score for score in scores.values() if score is not None), default=None)

    def is_good(summary: Summary) -> bool:
        score = scores[summary.recipe]
        return not summary.missed and (best is None or (score is not None and score >= best - LOSS))

    good = [summary for summary in found if is_good(summary)]
    if not good:
        missed = "; ".join(f"{summary.recipe}: {', '.join(summary.missed) or 'follows'}" for summary in found)
        yield Advice(setting="DEFAULT_RECIPE", value="look first", reason=f"no recipe is within all bounds ({missed})")
        return
    cheapest = min(good, key=lambda summary: summary.minute_usd or summary.minute_s)
    within = "within all bounds" + ("" if best is None else f" and within {LOSS:g} of the best in following speech")
    reason = (
        f"{len(good)} of {len(found)} measured recipes are {within}; this is the cheapest of them: "
        f"{clock(cheapest.minute_s)} and ${cheapest.minute_usd:.2f} for a minute. Look at the videos too"
    )
    if not report.is_published:
        reason += ". They are an embedded model's: this says nothing of the published weights"
    yield Advice(setting="DEFAULT_RECIPE", value=cheapest.recipe, reason=reason)


def _card(report: Report) -> Iterator[Advice]:
    ratio, card = usual_ratio(report), report.machine.card
    if ratio is None or card not in PRICES or not report.is_published or not report.recipes:
        return
    recipe = min(report.recipes, key=lambda summary: summary.minute_usd).recipe
    here = minute(RECIPES[recipe], SIZES["480"], card).usd * ratio
    others = {
        name: minute(RECIPES[recipe], SIZES["480"], name).usd
        for name in PRICES
        if name != card and name not in ASSUMED_PRICES
    }
    cheapest = min(others, key=lambda name: others[name])
    told = f"jobs took {ratio:.2f} times their estimates, so a minute of 640×640 by {recipe} costs ${here:.2f} here"
    if others[cheapest] < here:
        reason = f"{told}; the table has ${others[cheapest]:.2f} for the {cheapest}, unmeasured: try it next"
        yield Advice(setting="GPU", value=f"{card}, or {cheapest}", reason=reason)
    else:
        yield Advice(
            setting="GPU", value=card, reason=f"{told}; the next in the table is {cheapest}, ${others[cheapest]:.2f}"
        )


def _idle(report: Report) -> Iterator[Advice]:
    start_s = start_seconds(report)
    if start_s is None:
        return
    value = min(max(round(start_s), 5), LONGEST_IDLE_S)
    # An endpoint tells how long a job waited for its worker, and nothing of what the worker did then.
    is_known = report.machine.form == "machine"
    unknown = "" if is_known else ". The loading of the weights is not in this figure: set as much more as it takes"
    yield Advice(
        setting="idle timeout",
        value=f"{value} s",
        reason=f"a worker took {start_s:.0f} s to start (${start_s * report.machine.price_per_s:.3f}): waiting idle "
        f"for as long as a start takes never costs more than twice the best choice. 5 s if jobs are rare{unknown}",
    )


def start_seconds(report: Report) -> float | None:
    """How long a worker's start took: of our own, or the longest wait of a first job."""
    for step in report.steps:
        if step.status == "done" and isinstance(found := step.figures.get("start_s"), float):
            return found
    return None


def tell(report: Report) -> None:
    """Fills what follows from the jobs and steps into a report."""
    report.parts = list(parts_of(report))
    report.recipes = list(summaries(report))
    report.advice = list(advice_of(report))


def ten_lines(report: Report) -> list[str]:
    """The report in at most ten lines."""
    counts = {status: sum(job.status == status for job in report.jobs) for status in ("done", "failed")}
    others = len(report.jobs) - sum(counts.values())
    lines = [
        f"{report.machine.gpu or 'no GPU'}, {report.machine.model or 'model unknown'}: {report.ended}",
        f"{clock(report.spent.seconds)} of {report.limits.minutes:g} minutes, ${report.spent.usd:.2f} of "
        f"${report.limits.dollars:.2f}",
        f"{counts['done']} jobs done, {counts['failed']} failed, {others} not run",
    ]
    lines += [f"{step.title}: {step.status}{_because(step.reason)}" for step in report.steps if step.status == "failed"]
    lines += [f"{job.name}: failed{_because(job.reason)}" for job in report.jobs if job.status == "failed"][:2]
    lines += [_summary_line(summary) for summary in report.recipes]
    lines += [f"set {advice.setting}: {advice.value}" for advice in report.advice]
    return lines[:10]


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _summary_line(summary: Summary) -> str:
    figures: Mapping[str, float | None] = summary.quality
    told = [f"{name} {value:.2f}" for name in ("follows", "identity_least") if (value := figures.get(name)) is not None]
    missed = f"; beyond bounds: {', '.join(summary.missed)}" if summary.missed else ""
    cost = f"a minute in {clock(summary.minute_s)} for ${summary.minute_usd:.2f}"
    return f"{summary.recipe}: {cost}; {', '.join(told)}{missed}"


def evaluation_estimate(report: Report, job: Job, tokens: int, speakers: int) -> float | None:
    """Seconds of an evaluation by the table, the exchange of several GPUs aside; None without a card, for an embedded
    model, or with streamed blocks."""
    mode = job.memory_mode or ""
    if report.machine.card is None or not report.is_published or "streamed" in mode:
        return None
    card = card_named(report.machine.card)
    gpus = report.machine.gpus
    seconds = card.evaluation.seconds(tokens, gpus) + (speakers - 1) * card.further_speaker.seconds(tokens, gpus)
    return report.machine.factor * (seconds + (card.widening if mode.startswith(("int8", "fp8")) else 0.0))

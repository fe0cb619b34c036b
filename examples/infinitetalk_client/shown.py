"""A job in words: its progress in a line, its plan and prices."""

from __future__ import annotations

import sys
from typing import Any, Self

from tqdm import tqdm


class ProgressBar:
    """Shows a job's progress in one line inside a `with` block: stage, per cent, seconds left. The line then stays."""

    def __init__(self) -> None:
        self._bar = tqdm(total=100, bar_format="{desc} {percentage:3.0f}% |{bar:40}|", file=sys.stderr)

    def __call__(self, progress: dict[str, Any]) -> None:
        """Shows a progress message."""
        eta_s = progress.get("eta_s")
        left = f"{eta_s:.0f} s left" if eta_s else ""
        self._bar.set_description_str(f"{progress['stage']:<10} {left:>11}", refresh=False)
        self._bar.update(progress["pct"] - self._bar.n)
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Summary of a dry run: a line about the job, one for each change of prompt or picture, and one for each recipe
    that the worker could run it with."""
    name = f"{plan['item_id']}: " if "item_id" in plan else ""
    first = (
        f"{name}{plan['num_frames']} frames of {plan['width']}x{plan['height']}, {plan['duration_s']:g} s; "
        f"{plan['num_chunks']} chunks, {plan['evaluations']} evaluations by {plan['model']}{_price(plan)}"
    )
    changes = [stretch_line(stretch) for stretch in plan.get("timeline", [])]
    return [first, *changes, *(f"  recipe {recipe_line(cost)}" for cost in plan["recipes"])]


def stretch_line(stretch: dict[str, Any]) -> str:
    """Chunks that take the same prompt and picture, as a dry run gives them; all are counted from 1."""
    first, last = stretch["first_chunk"], stretch["last_chunk"]
    chunks = f"chunk {first}" if first == last else f"chunks {first} to {last}"
    return (
        f"  from {stretch['from_s']:g} s, {chunks}: prompt {stretch['prompt'] + 1}, picture {stretch['cond_video'] + 1}"
    )


def recipe_line(cost: dict[str, Any]) -> str:
    """A recipe's cost, as a dry run gives it: name, evaluations, seconds, dollars, and the fields to leave out."""
    left_out = f"; leave out {', '.join(cost['leave_out'])}" if cost["leave_out"] else ""
    return f"{cost['recipe']}: {cost['evaluations']} evaluations{_price(cost)}{left_out}"


def _price(cost: dict[str, Any]) -> str:
    seconds = f", about {cost['estimate_s']:.0f} s" if "estimate_s" in cost else ""
    return seconds + (f", ${cost['estimate_usd']:.2f}" if "estimate_usd" in cost else "")

"""Chooses the recipe of a job: the one that it names, else the worker's. Imports no network."""

from __future__ import annotations

from dataclasses import dataclass

from infinitetalk.recipes import QUALITY, RECIPES, Recipe
from infinitetalk.worker.errors import WorkerError
from schemas import ErrorCode, SingleJob


@dataclass(frozen=True)
class ChosenRecipe:
    """A job and the recipe by which it is made.

    Attributes:
        sent: the job as it was sent.
        job: the job with the recipe's values.
        warnings: warnings for the client.
    """

    sent: SingleJob
    job: SingleJob
    warnings: list[str]


def choose_recipe(job: SingleJob, default: Recipe | None) -> ChosenRecipe:
    """The recipe that a job names, else the worker's, else the published defaults.

    A job keeps its own values where the recipe allows it. A job that names a recipe must not contradict the recipe; if
    the recipe is the worker's, the recipe's fixed values win, and a job that it cannot serve is made by "quality".

    Args:
        default: the worker's recipe; None: it has none.

    Raises:
        WorkerError: the job names a recipe that is not for its speakers, or contradicts it.
    """
    if job.recipe is not None:
        recipe = RECIPES[job.recipe]
        check_named(job, recipe)
        return ChosenRecipe(job, job.by_recipe(recipe), [])
    if default is None:
        return ChosenRecipe(job, job, [])
    if not default.serves(len(job.speakers)):
        warning = f"recipe {default.name}, this worker's default, is for one speaker: recipe {QUALITY.name} was used"
        return ChosenRecipe(job, job.by_recipe(QUALITY), [warning])
    warnings = [
        f"{field} is {theirs!r} instead of {given!r}: recipe {default.name}, this worker's default, fixes it; "
        f'"recipe": "{QUALITY.name}" takes any value'
        for field, (given, theirs) in sorted(job.contradictions(default).items())
    ]
    return ChosenRecipe(job, job.by_recipe(default), warnings)


def check_named(job: SingleJob, recipe: Recipe) -> None:
    """Checks that a job may name a recipe.

    Raises:
        WorkerError: the recipe is not for the job's speakers, or the job contradicts it.
    """
    num_speakers = len(job.speakers)
    if not recipe.serves(num_speakers):
        able = ", ".join(other.name for other in RECIPES.values() if other.serves(num_speakers))
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f"recipe {recipe.name} is for one speaker, and the job has {num_speakers}; use one of {able}",
        )
    mistakes = [
        f"{field} {given!r} contradicts recipe {recipe.name}, which fixes it at {theirs!r}"
        for field, (given, theirs) in sorted(job.contradictions(recipe).items())
    ]
    if mistakes:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION, f"{'; '.join(mistakes)}; leave the field out, or use another recipe"
        )

"""How several GPUs divide the evaluations of a step: into teams that each make whole ones, then by their tokens."""

from __future__ import annotations

#: Guidance evaluates at most so many branches in a step.
MOST_EVALUATIONS = 3


def team_counts(size: int) -> list[int]:
    """The numbers of teams of equal size into which so many GPUs can be divided for a step."""
    return [teams for teams in range(1, MOST_EVALUATIONS + 1) if size % teams == 0]


def rounds_of(num_evaluations: int, size: int, shares_evaluations: bool = False) -> list[int]:
    """How many evaluations so many GPUs make at once, round by round, until all evaluations of a step are made.

    In each round every GPU works, in teams of equal size: so all ways take the same time but for what GPUs exchange,
    and the largest teams exchange the most. Three evaluations on two GPUs are two at once, one on each GPU, and then
    one by both.

    Args:
        shares_evaluations: whether all GPUs share each evaluation instead.
    """
    if shares_evaluations:
        return [1] * num_evaluations
    rounds: list[int] = []
    while (left := num_evaluations - sum(rounds)) > 0:
        rounds.append(max(teams for teams in team_counts(size) if teams <= left))
    return rounds

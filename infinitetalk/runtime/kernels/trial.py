"""Tries kernels in child processes, and says of each whether it may be used and how fast it is."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from infinitetalk.runtime.kernels.bench import Case
from infinitetalk.runtime.kernels.child import Begun, Failed, Finished, Measured, try_candidates
from infinitetalk.runtime.kernels.registry import PUBLISHED, Candidate, Kernels, Part

POLL_S = 0.1
#: A kernel must be at least this share faster than the published one: less is noise, and would change numbers for it.
LEAST_GAIN = 0.02

Verdict = Literal["published", "within", "inexact", "failed", "crashed", "hung"]


@dataclass(frozen=True)
class Limits:
    """Time limits in seconds.

    Attributes:
        total_s: of a trial; what it has not tried by then is left to the next start.
        candidate_s: of one candidate. A published kernel has none: every job needs it, and it waits for weights.
        compiled_s: of a candidate that has to be compiled; a block took 20 s on an H200's machine.
    """

    total_s: float = 240.0
    candidate_s: float = 40.0
    compiled_s: float = 150.0

    def of(self, candidate: Candidate) -> float:
        """Of this candidate."""
        if candidate.is_published:
            return math.inf
        return self.compiled_s if candidate.is_compiled else self.candidate_s


class Outcome(BaseModel):
    """What is known of a kernel on this machine.

    Attributes:
        name, part: of the candidate.
        verdict: "published"; "within" its bound, or "inexact"; "failed" by an exception; its process "crashed", or
            "hung" for the time that `Limits` allow it.
        seconds: of one call: of a block, or of a few frames through the VAE.
        error: against float32, relative to what the part adds.
        difference: from the published kernel's result at full size, relative to the same.
        bound: largest allowed `error` beyond the published kernel's.
        reason: what happened, if it could not compute.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    part: Part
    verdict: Verdict
    seconds: float | None = None
    error: float | None = None
    difference: float | None = None
    bound: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        """For the log: "sage: within, 52.5 ms, error 0.0102, 0.0095 from published"."""
        if self.seconds is None:
            return f"{self.name}: {self.verdict}" + (f" ({self.reason})" if self.reason else "")
        return (
            f"{self.name}: {self.verdict}, {self.seconds * 1e3:.4g} ms, error {self.error:.2g}, "
            f"{self.difference:.2g} from published"
        )

    @property
    def is_of_published_kernel(self) -> bool:
        """Whether it is about its part's published kernel."""
        return self.bound is None


def remaining_of(candidates: Iterable[Candidate], outcomes: Iterable[Outcome]) -> list[Candidate]:
    """The installed candidates to be compared with published ones of which nothing is known yet.

    Where the published kernel itself could not compute, the others of its part are left out.
    """
    known = {outcome.name for outcome in outcomes}
    without = {each.part for each in outcomes if each.is_of_published_kernel and each.verdict != "published"}
    return [
        candidate
        for candidate in candidates
        if not (candidate.is_published or candidate.name in known or candidate.part in without)
        and candidate.is_installed
    ]


def fastest(outcomes: Iterable[Outcome]) -> Kernels:
    """The fastest kernel of each part that is within its bound and clearly faster than the published one."""
    kernels = PUBLISHED
    best: dict[Part, float] = {}
    for outcome in outcomes:
        if outcome.verdict == "published" and outcome.seconds is not None:
            best[outcome.part] = outcome.seconds * (1 - LEAST_GAIN)
    for outcome in outcomes:
        if outcome.verdict == "within" and outcome.seconds is not None and outcome.seconds < best[outcome.part]:
            kernels, best[outcome.part] = kernels.having(outcome.part, outcome.name), outcome.seconds
    return kernels


def try_all(
    case: Case,
    candidates: Sequence[Candidate],
    known: Sequence[Outcome],
    limits: Limits,
    should_stop: Callable[[], bool],
) -> Generator[Outcome, None, None]:
    """Tries the candidates that remain, in child processes, and yields what is found of each as soon as it is.

    A process that a candidate crashes, or hangs, is replaced, and the next one goes on with the next candidate. Closing
    the iterator kills the process.

    Args:
        candidates: by part, each part's published kernel first.
        known: outcomes of an earlier trial.
        limits: at the end of `total_s`, the trial ends.
        should_stop: is asked ten times a second; the trial ends if it returns true.

    Raises:
        ChildProcessError: the process ended before it tried anything.
    """
    outcomes = list(known)
    deadline = time.monotonic() + limits.total_s

    def is_over() -> bool:
        return should_stop() or time.monotonic() > deadline

    while (remaining := remaining_of(candidates, outcomes)) and not is_over():
        parts = {candidate.part for candidate in remaining}
        wanted = [each for each in candidates if each in remaining or (each.is_published and each.part in parts)]
        num_known = len(outcomes)
        with Child(case, wanted) as child:
            for outcome in child.outcomes(limits, is_over):
                outcomes.append(outcome)
                yield outcome
        if len(outcomes) == num_known and not is_over():
            raise ChildProcessError("the process that tries kernels ended before the first one")


class Child:
    """One child process that tries candidates; leaving the context kills it."""

    def __init__(self, case: Case, candidates: Sequence[Candidate]) -> None:
        self._candidates = {candidate.name: candidate for candidate in candidates}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, case, list(candidates))
        self._process = context.Process(target=try_candidates, args=arguments, name="kernel-trial", daemon=True)
        self._process.start()
        theirs.close()
        self._published_error: dict[Part, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def outcomes(self, limits: Limits, is_over: Callable[[], bool]) -> Iterator[Outcome]:
        """What is found of each candidate, until the process has finished or ended, or hangs, or the trial is over."""
        current: Candidate | None = None
        begun_at = 0.0
        while not is_over():
            if current is not None and time.monotonic() > begun_at + limits.of(current):
                yield self._without_result(current, "hung", f"no result within {limits.of(current):g} s")
                return
            if not self._connection.poll(POLL_S):
                continue
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                self._process.join()
                if current is not None:
                    yield self._without_result(current, "crashed", f"exit code {self._process.exitcode}")
                return
            match message:
                case Begun(name):
                    current, begun_at = self._candidates[name], time.monotonic()
                case Measured(name):
                    current = None
                    yield self._judged(self._candidates[name], message)
                case Failed(name, reason):
                    current = None
                    yield self._without_result(self._candidates[name], "failed", reason)
                case Finished():
                    return

    def _without_result(self, candidate: Candidate, verdict: Verdict, reason: str) -> Outcome:
        return Outcome(name=candidate.name, part=candidate.part, verdict=verdict, bound=candidate.bound, reason=reason)

    def _judged(self, candidate: Candidate, measured: Measured) -> Outcome:
        verdict: Verdict = "published"
        if candidate.bound is None:
            self._published_error[candidate.part] = measured.error
        else:
            published_error = self._published_error[candidate.part]
            # Two results that are both so near to the exact one can differ by the sum.
            is_within = (
                measured.error <= published_error + candidate.bound
                and measured.difference <= 2 * published_error + candidate.bound
            )
            verdict = "within" if is_within else "inexact"
        return Outcome(
            name=candidate.name,
            part=candidate.part,
            verdict=verdict,
            seconds=measured.seconds,
            error=measured.error,
            difference=measured.difference,
            bound=candidate.bound,
        )

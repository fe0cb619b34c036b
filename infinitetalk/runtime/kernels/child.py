"""The child process that computes with kernels: one that crashes or hangs takes this process and not the worker."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import connection
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from infinitetalk.errors import DeviceError, NotFiniteError
from infinitetalk.runtime.device_errors import as_library_error
from infinitetalk.runtime.kernels.bench import BENCHES, Bench, Case
from infinitetalk.runtime.kernels.registry import Candidate
from infinitetalk.runtime.memory import release_cached_memory

#: Timed calls of a kernel, after one that is not.
REPEATS = 3
MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Begun:
    """The child begins with a candidate."""

    name: str


@dataclass(frozen=True)
class Measured:
    """A candidate has computed.

    Attributes:
        seconds: the shortest time of a call.
        error: against float32.
        difference: from the published kernel's result, at full size.
    """

    name: str
    seconds: float
    error: float
    difference: float


@dataclass(frozen=True)
class Failed:
    """A candidate has raised an exception."""

    name: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """The child has tried everything."""


def try_candidates(parent: Connection, case: Case, candidates: Sequence[Candidate]) -> None:
    """Main function of the child: sends `Begun`, then `Measured` or `Failed` for each candidate, and `Finished`.

    Args:
        candidates: by part; the first of each part is its published kernel, without which none of its part is tried.
    """
    # Ctrl-C goes to every process of a terminal; only the worker reacts to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _silence()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with torch.no_grad():
        for _, group in groupby(candidates, key=lambda candidate: candidate.part):
            _try_part(parent, case, list(group))
    parent.send(Finished())


def _try_part(parent: Connection, case: Case, candidates: Sequence[Candidate]) -> None:
    published = candidates[0]
    parent.send(Begun(published.name))
    try:
        bench = BENCHES[published.part](case)
        bench.use(published)
        expected = bench.compute()
        parent.send(_measured(bench, published, expected))
    # Whatever prevents the comparison is its result; kernels raise all kinds of errors.
    except Exception as error:
        _report(parent, published, error)
        return
    for candidate in candidates[1:]:
        parent.send(Begun(candidate.name))
        try:
            bench.use(candidate)
            parent.send(_measured(bench, candidate, expected))
        except Exception as error:
            _report(parent, candidate, error)
    del bench, expected
    release_cached_memory()


def _measured(bench: Bench, candidate: Candidate, expected: Tensor) -> Measured:
    found = bench.compute()
    difference, error = bench.difference(found, expected), bench.error()
    if not (math.isfinite(difference) and math.isfinite(error)):
        raise NotFiniteError("its results are not finite")
    del found
    return Measured(candidate.name, min(_timed(bench.compute)), error, difference)


def _timed(function: Callable[[], Tensor]) -> Iterator[float]:
    for _ in range(REPEATS):
        _synchronise()
        begin = time.perf_counter()
        function()
        _synchronise()
        yield time.perf_counter() - begin


def _report(parent: Connection, candidate: Candidate, error: Exception) -> None:
    told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:MAX_REASON_CHARACTERS]}"
    parent.send(Failed(candidate.name, told))
    # After some errors, every later call on the device fails: another process goes on.
    if isinstance(as_library_error(error), DeviceError):
        os._exit(1)
    release_cached_memory()


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _silence() -> None:
    """Drops what libraries print: the worker's log has one JSON object per line."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _end_with_parent() -> None:
    """Ends this process when the worker has ended, even by a signal that it could not handle."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)

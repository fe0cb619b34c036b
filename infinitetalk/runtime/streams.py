"""Work on a GPU beside other work, such as the end of one chunk beside the first steps of the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Moment:
    """A point in what a device has been given to do.

    Attributes:
        device: the device.
        event: on a GPU, takes place when everything before the moment is done; None on a CPU, where it is done already.
    """

    device: torch.device
    event: torch.cuda.Event | None


def moment(device: torch.device) -> Moment:
    """The end of what this thread has given the device to do so far."""
    if device.type != "cuda":
        return Moment(device, None)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return Moment(device, event)


@contextmanager
def beside(begin: Moment) -> Iterator[None]:
    """On a GPU, what is inside runs after the moment, but does not wait for what the device is given to do later.

    Memory that was allocated outside must be held until results of the inside have been copied to the CPU: the
    allocator does not know who else still uses it.
    """
    if begin.event is None:
        yield
        return
    stream = _second_stream(begin.device)
    stream.wait_event(begin.event)
    with torch.cuda.stream(stream):
        yield


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device, since the allocator keeps memory for each stream. Its small kernels go before large ones."""
    return torch.cuda.Stream(device, priority=-1)

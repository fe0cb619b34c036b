"""Runs a generator one item ahead: the next chunk is generated while the last one is encoded, stored and sent."""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, wait
from typing import TypeVar

T = TypeVar("T")


def run_ahead(
    generate: Callable[[Callable[[], bool]], Iterator[T]],
    thread: Executor,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[T]:
    """The items of `generate(should_stop)`, each made in another thread while the caller works on the one before.

    At most one item is made ahead. A caller that may leave before the end must close this iterator
    (`contextlib.closing`): the function given to `generate` then returns True, and `generate` has ended when closing
    returns.

    Args:
        generate: makes the iterator, which must stop when the function given to it returns True.
        thread: an executor of one thread, in which all items are made. It outlives this iterator: cuDNN plans its
            kernels anew in each new thread.
        should_stop: a further reason to stop.

    Raises:
        Exception: an exception of `generate`, raised in place of the item that it could not make.
    """
    abandoned = threading.Event()
    items = generate(lambda: abandoned.is_set() or should_stop())
    end = object()
    upcoming = thread.submit(next, items, end)
    try:
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
    finally:
        abandoned.set()
        wait([upcoming])

"""Runs a generator one item ahead: the next chunk is generated while the last one is encoded, stored and sent."""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run_ahead(
    generate: Callable[[Callable[[], bool]], Iterator[T]], should_stop: Callable[[], bool] = lambda: False
) -> Generator[T]:
    """The items of `generate(should_stop)`, each made in a second thread while the caller works on the one before.

    At most one item is made ahead. A caller that may leave before the end must close this iterator
    (`contextlib.closing`): the function given to `generate` then returns True, and `generate` has ended when closing
    returns.

    Args:
        generate: makes the iterator, which must stop when the function given to it returns True. Both run in the second
            thread, with everything that they call.
        should_stop: a further reason to stop.

    Raises:
        Exception: an exception of `generate`, raised in place of the item that it could not make.
    """
    abandoned = threading.Event()
    items = generate(lambda: abandoned.is_set() or should_stop())
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as executor:
        try:
            upcoming = executor.submit(next, items, end)
            while (item := upcoming.result()) is not end:
                upcoming = executor.submit(next, items, end)
                yield item  # type: ignore[misc]
        finally:
            abandoned.set()

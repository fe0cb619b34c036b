"""One step ahead: the next chunk is generated while the last one is encoded, stored and sent."""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run_ahead(
    generate: Callable[[Callable[[], bool]], Iterator[T]], should_stop: Callable[[], bool] = lambda: False
) -> Generator[T]:
    """The items of `generate(should_stop)`, each made in a second thread while the caller works on the one before.

    Never more than one item is made ahead. A caller that may leave before the end closes this iterator
    (`contextlib.closing`): `generate` is then told to stop by the function that it was given, and has ended when
    closing returns.

    Args:
        generate: makes the iterator, which asks the function that it is given whether to stop; both run in the second
            thread, as does whatever they call.
        should_stop: what else may say so.

    Raises:
        Exception: what `generate` raises, in the place of the item that it could not make.
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

"""Chunks made one ahead of their use."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from infinitetalk.errors import GenerationStopped
from infinitetalk.generation.ahead import run_ahead

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def thread() -> Iterator[Executor]:
    """The thread that makes the items of every test."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def count_up(should_stop: Callable[[], bool], made: list[int], num_items: int = 1000) -> Iterator[int]:
    for number in range(num_items):
        if should_stop():
            raise GenerationStopped
        made.append(number)
        yield number


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_items_come_in_order_and_end(thread: Executor) -> None:
    made: list[int] = []
    assert list(run_ahead(lambda stop: count_up(stop, made, 5), thread)) == [0, 1, 2, 3, 4]
    assert list(run_ahead(lambda stop: count_up(stop, made, 0), thread)) == []


def test_the_next_item_is_made_while_the_last_is_used_and_no_more_than_that(thread: Executor) -> None:
    made: list[int] = []
    items = run_ahead(lambda stop: count_up(stop, made), thread)
    assert next(items) == 0
    wait_until(lambda: made == [0, 1])
    time.sleep(0.1)
    assert made == [0, 1]
    assert next(items) == 1
    wait_until(lambda: made == [0, 1, 2])
    items.close()


def test_a_caller_that_leaves_stops_what_is_being_made(thread: Executor) -> None:
    begun, asked = threading.Event(), threading.Event()

    def generate(should_stop: Callable[[], bool]) -> Iterator[int]:
        yield 0
        begun.set()
        wait_until(should_stop)
        asked.set()
        raise GenerationStopped

    def use() -> None:
        for _ in run_ahead(generate, thread):
            assert begun.wait(PATIENCE_S)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        use()
    assert asked.is_set()


def test_all_videos_are_made_in_one_thread_in_which_a_gpus_plans_stay(thread: Executor) -> None:
    def generate(should_stop: Callable[[], bool]) -> Iterator[int]:
        yield threading.get_ident()
        yield threading.get_ident()

    threads = [*run_ahead(generate, thread), *run_ahead(generate, thread)]
    assert len(threads) == 4
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_what_goes_wrong_arrives_in_the_items_place(thread: Executor) -> None:
    def generate(should_stop: Callable[[], bool]) -> Iterator[int]:
        yield 0
        raise ValueError("broken")

    items = run_ahead(generate, thread)
    assert next(items) == 0
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_the_caller_can_still_stop_it(thread: Executor) -> None:
    stop = threading.Event()
    made: list[int] = []
    items = run_ahead(lambda should_stop: count_up(should_stop, made), thread, stop.is_set)
    next(items)
    wait_until(lambda: made == [0, 1])
    stop.set()
    assert next(items) == 1
    with pytest.raises(GenerationStopped):
        next(items)

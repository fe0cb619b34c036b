"""Ends the worker's process."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
from typing import NoReturn

is_ending = threading.Event()
"""Set once the worker ends for any reason: its child processes end with it."""

atexit.register(is_ending.set)


def end_process() -> NoReturn:
    """Ends the worker at once: an orderly exit would wait for threads that cannot be stopped."""
    is_ending.set()
    for process in multiprocessing.active_children():
        process.kill()
    sys.stderr.flush()
    os._exit(1)

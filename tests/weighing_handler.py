"""The worker, handler.py itself, which at SIGUSR1 writes what its memory holds into a file beside its volume.

Run in the place of handler.py.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

HELD_FILE = "held.json"


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`, in bytes but for the counts."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def held_memory() -> dict[str, int]:
    """What is in use, tensors among it, without what is free but kept for later use.

    Returns:
        `held_bytes`, of malloc; `held_objects`, of Python's small ones, which it keeps elsewhere.
    """
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallocInfo
    info = mallinfo2()
    return {"held_bytes": info.uordblks + info.hblkhd, "held_objects": sys.getallocatedblocks()}


def tell(_number: int, _frame: FrameType | None) -> None:
    """Writes the file, whole or not at all."""
    file = Path(os.environ["OUTPUT_DIR"]).with_name(HELD_FILE)
    scratch = file.with_suffix(".part")
    scratch.write_text(json.dumps(held_memory()))
    scratch.rename(file)


def main() -> None:
    """Runs handler.py."""
    # Imported here, since the SDK's ping process imports this file too.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import handler

    signal.signal(signal.SIGUSR1, tell)
    handler.main()


if __name__ == "__main__":
    main()

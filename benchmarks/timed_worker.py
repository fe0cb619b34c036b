"""`handler.py` that also records the times of sampling and the VAE; a script for `benchmarks.job`.

Each call adds a line with its name and seconds to the file that TIMES_FILE names. If EVALUATION_S is set, an evaluation
of the network is a wait of that many seconds.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMED = ("sample_chunk", "decode_latents", "decode_in_groups", "encode_frames")


def timed(function: Callable[..., Any], file: Path) -> Callable[..., Any]:
    """The function, with each call's time recorded."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        begin = time.perf_counter()
        result = function(*arguments, **keywords)
        with file.open("a") as lines:
            lines.write(f"{function.__name__} {time.perf_counter() - begin}\n")
        return result

    return run


def main() -> None:
    """Runs the worker."""
    # Replaces this folder, so that its modules cannot be imported without their package.
    sys.path[0] = str(Path(__file__).parents[1])
    import handler
    from benchmarks.waiting import replace_evaluations
    from infinitetalk.generation import pipeline

    for name in TIMED:
        setattr(pipeline, name, timed(getattr(pipeline, name), Path(os.environ["TIMES_FILE"])))
    if "EVALUATION_S" in os.environ:
        replace_evaluations(float(os.environ["EVALUATION_S"]))
    handler.main()


if __name__ == "__main__":
    main()

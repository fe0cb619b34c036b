"""The worker, handler.py itself, with faults that a job asks for by its prompt: what no input can bring about.

Run in the place of handler.py; a job whose prompt is none of `FAULTS` runs as ever.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infinitetalk.generation.pipeline import DecodedChunk
    from infinitetalk.worker.engine import Engine, VideoRequest


def fail_gpu() -> None:
    """As a kernel that has read where it must not."""
    import torch

    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def run_out_of_memory() -> None:
    """As an allocation on a full GPU."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB")


def hang() -> None:
    """As a kernel that never ends: nothing asks whether to stop."""
    time.sleep(3600)


def crash() -> None:
    """As a crash in native code."""
    os.abort()


FAULTS: dict[str, Callable[[], None]] = {
    "fault: GPU": fail_gpu,
    "fault: memory": run_out_of_memory,
    "fault: hang": hang,
    "fault: crash": crash,
}

NAN_RESULT = "fault: NaN in the result"


def with_faults(generate: Callable[..., Iterator[DecodedChunk]]) -> Callable[..., Iterator[DecodedChunk]]:
    """`Engine.generate` that fails after its first chunk, where the prompt says so."""

    def generate_or_fail(
        engine: Engine, request: VideoRequest, *arguments: Any, **options: Any
    ) -> Iterator[DecodedChunk]:
        for chunk in generate(engine, request, *arguments, **options):
            yield chunk
            FAULTS.get(request.job.prompt, lambda: None)()

    return generate_or_fail


def with_nan(as_json: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """`as_json` whose result cannot be sent, where the prompt says so."""

    def as_json_or_nan(result: Any) -> dict[str, Any]:
        output = as_json(result)
        if output.get("params", {}).get("prompt") == NAN_RESULT:
            output["evaluations"] = float("nan")
        return output

    return as_json_or_nan


def main() -> None:
    """Runs handler.py with the faults in place."""
    # Imported here, since the SDK's ping process imports this file too.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import handler
    from infinitetalk.worker.engine import Engine
    from infinitetalk.worker.job import run

    Engine.generate = with_faults(Engine.generate)  # type: ignore[method-assign]
    run.as_json = with_nan(run.as_json)
    handler.main()


if __name__ == "__main__":
    main()

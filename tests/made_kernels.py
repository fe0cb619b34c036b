"""Kernels that behave as kernels on a strange GPU may: one crashes, one hangs, one is wrong, one slow, one good."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from torch import Tensor, nn

from infinitetalk.network.transformer import SelfAttnProcessor
from infinitetalk.runtime.kernels.registry import Candidate

BOUND = 0.01
#: What the published kernel takes here at least, so that another one can be faster.
PUBLISHED_S, SLOW_S = 0.2, 0.5


class MadeProcessor(SelfAttnProcessor):
    """Self-attention with a behaviour."""

    def __init__(self, behaviour: str) -> None:
        super().__init__()
        self._behaviour = behaviour

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        attended, attention_map = super().__call__(*args, **kwargs)
        match self._behaviour:
            case "published":
                time.sleep(PUBLISHED_S)
            case "crashing":
                os.abort()
            case "hanging":
                time.sleep(3600)
            case "wrong":
                attended = attended * 1.5
            case "not finite":
                attended = attended / 0
            case "slow":
                time.sleep(SLOW_S)
            case "refusing":
                raise RuntimeError("no kernel image is available\nfor this device")
        return attended, attention_map


def behave(behaviour: str, transformer: nn.Module) -> None:
    """Gives the self-attention of every block a behaviour."""
    for block in transformer.blocks:
        block.attn1.set_processor(MadeProcessor(behaviour))


def made(behaviour: str, bound: float | None = BOUND, package: str | None = None) -> Candidate:
    """A kernel with a behaviour, by which it is named."""
    return Candidate(behaviour, "attention", partial(behave, behaviour), bound, package)


PUBLISHED = made("published", bound=None)
GOOD = made("good")
ABSENT = made("absent", package="no_such_package")
#: The good one comes after one that ends its process.
ALL = (
    PUBLISHED,
    made("wrong"),
    made("crashing"),
    ABSENT,
    made("refusing"),
    made("not finite"),
    made("slow"),
    GOOD,
    made("hanging"),
)

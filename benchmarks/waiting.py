"""Replaces evaluations with a wait, as if a GPU computed them."""

import time
from typing import Any

from torch import Tensor

from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel


def replace_evaluations(seconds: float) -> None:
    """Makes every transformer of this process wait for `seconds` and predict no motion."""

    def wait(self: InfiniteTalkTransformer3DModel, hidden_states: Tensor, **given: Any) -> tuple[Tensor]:
        time.sleep(seconds)
        return (hidden_states[:, : self.config.out_channels] * 0.0,)

    InfiniteTalkTransformer3DModel.forward = wait  # type: ignore[method-assign]

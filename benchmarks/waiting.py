"""Evaluations replaced by a wait, as if a GPU made them."""

import time
from typing import Any

from torch import Tensor

from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel


def replace_evaluations(seconds: float) -> None:
    """From now on in this process, the transformer waits this long and predicts no motion."""

    def wait(self: InfiniteTalkTransformer3DModel, hidden_states: Tensor, **given: Any) -> tuple[Tensor]:
        time.sleep(seconds)
        return (hidden_states[:, : self.config.out_channels] * 0.0,)

    InfiniteTalkTransformer3DModel.forward = wait  # type: ignore[method-assign]

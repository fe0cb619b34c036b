"""Checks that a network's results are finite numbers."""

import torch
from torch import Tensor

from infinitetalk.errors import NotFiniteError


def check_finite(numbers: Tensor, what: str) -> None:
    """Checks every number through the minimum and the maximum, with only one copy of one value from the device.

    Raises:
        NotFiniteError: a number is infinite or NaN; `what` names the numbers in the message.
    """
    smallest, largest = torch.aminmax(numbers)
    if not torch.isfinite(largest - smallest).item():
        raise NotFiniteError(f"{what} are no longer finite numbers")

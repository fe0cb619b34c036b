"""Numbers that a network makes are looked at before they are called a result."""

import torch
from torch import Tensor

from infinitetalk.errors import NotFiniteError


def check_finite(numbers: Tensor, what: str) -> None:
    """Looks at every number, by way of the smallest and the largest: one value travels from the device, once.

    Raises:
        NotFiniteError: one is infinite or not a number; `what` says in the message what they are.
    """
    smallest, largest = torch.aminmax(numbers)
    if not torch.isfinite(largest - smallest).item():
        raise NotFiniteError(f"{what} are no longer finite numbers")

"""Linear layers with weights in 8 bits that are widened at each use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization import Float8Tensor, Int8Tensor


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is one of torchao's 8-bit tensors with a scale for each row, or one for all.

    The weight is widened to the 16 bits in which it acts, and multiplied like any other, with the bias in the product.
    torchao's own way widens it through float32, three passes over it, and adds the bias in a pass over the result.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        assert isinstance(self.weight, Float8Tensor | Int8Tensor)
        # A compiler makes few kernels of torchao's way, and products of 8-bit numbers are torchao's alone.
        if torch.compiler.is_compiling() or self.weight.act_quant_kwargs is not None:
            return super().forward(input)
        return F.linear(input, widened(self.weight), self.bias)


def widened(weight: Float8Tensor | Int8Tensor) -> Tensor:
    """The numbers (out, in) that a weight stands for, rounded once to the dtype in which it acts.

    It takes one kernel for int8, and two for fp8, which torch multiplies with nothing else.
    """
    if isinstance(weight, Int8Tensor):
        numbers = torch.empty(weight.qdata.shape, dtype=weight.dtype, device=weight.qdata.device)
        return torch.mul(weight.qdata, weight.scale, out=numbers)
    # Each number of fp8 is one of bf16, float16 and float32, too.
    return weight.qdata.to(weight.dtype).mul_(weight.scale)


def quantise_linear(module: nn.Linear, weight: Float8Tensor | Int8Tensor) -> None:
    """Gives a linear layer a quantised weight."""
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.__class__ = QuantisedLinear

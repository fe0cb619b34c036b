"""The kernels that torch chooses on a GPU, for a rehearsal on a build for the CPU, which would choose others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

AttentionKernel = Literal["cudnn", "flash"]
"""What torch 2.13 takes in half precision without a mask: cuDNN's on compute capability 9 and 10, else flash 2."""

aten = torch.ops.aten
#: RMS norm is one kernel on CUDA; a build for the CPU makes seven operations of it.
_library = torch.library.Library("rehearsal", "DEF")
_library.define("rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor")
torch.library.register_fake("rehearsal::rms_norm", lambda x, weight, eps: torch.empty_like(x), lib=_library)

#: Widths of a head that the kernels take.
_CUDNN_WIDTH, _FLASH_WIDTH = 128, 256


@contextmanager
def kernels_of_cuda(attention: AttentionKernel) -> Iterator[None]:
    """Attention and RMS norm are CUDA's single kernels while this is entered."""
    rms_norm = _rms_norm_by(torch.nn.functional.rms_norm)
    with attention_of_cuda(attention), patch.object(torch.nn.functional, "rms_norm", rms_norm):
        yield


@contextmanager
def attention_of_cuda(attention: AttentionKernel) -> Iterator[None]:
    """Attention is CUDA's single kernel while this is entered."""
    published = torch.nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        return _attend(attention, published, query, key, value, *args, **options)

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
        yield


def _rms_norm_by(published: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        if weight is not None and weight.dtype != x.dtype:
            return published(x, shape, weight, eps)
        return torch.ops.rehearsal.rms_norm(x, weight, eps or torch.finfo(x.dtype).eps)

    return rms_norm


def _attend(
    kernel: AttentionKernel,
    published: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    width = query.shape[-1]
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if is_half and attn_mask is None and width == value.shape[-1] and width <= _FLASH_WIDTH:
        if kernel == "cudnn" and width <= _CUDNN_WIDTH:
            return aten._scaled_dot_product_cudnn_attention(
                query, key, value, None, False, 0.0, is_causal, False, scale=scale
            )[0]
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, False, scale=scale)[0]
    alignment = 8 if is_half else 4
    if width % alignment or value.shape[-1] % alignment:
        return published(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            hidden = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = hidden.masked_fill(attn_mask.logical_not(), float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, False, 0.0, is_causal, scale=scale
    )[0]

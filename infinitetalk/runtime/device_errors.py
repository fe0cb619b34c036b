"""Translates torch's GPU errors to errors of the library."""

from __future__ import annotations

import torch

from infinitetalk.errors import DeviceError, GpuMemoryError


def as_library_error(error: Exception) -> Exception:
    """The library's error for a GPU error of torch, with `error` as its cause; any other error unchanged."""
    told: Exception
    if _is_out_of_memory(error):
        told = GpuMemoryError(str(error))
    elif _is_device_failure(error):
        told = DeviceError(str(error))
    else:
        return error
    told.__cause__ = error
    return told


def _is_out_of_memory(error: Exception) -> bool:
    is_cuda = isinstance(error, torch.AcceleratorError) and "out of memory" in str(error)
    return is_cuda or isinstance(error, torch.OutOfMemoryError)


def _is_device_failure(error: Exception) -> bool:
    # Errors that torch itself raises are plain RuntimeErrors.
    is_cuda = isinstance(error, RuntimeError) and "CUDA error" in str(error)
    return is_cuda or isinstance(error, torch.AcceleratorError)

"""All errors of the library, with the facts that callers use to classify them. Imports nothing heavy.

Messages of errors that are `for_client` hold no path of the worker, no traceback and no credential.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Cause(Enum):
    """The kind of fault behind an error of the library."""

    INPUT = "input"
    """The caller's media, text or regions."""

    CODEC = "codec"
    """A decoder or encoder was killed or could not write."""

    WEIGHTS = "weights"
    """Files of a checkpoint, a LoRA or a voice."""

    MEMORY = "memory"
    """The memory of a GPU, or of the machine."""

    DEVICE = "device"
    """A GPU has failed for good."""

    GROUP = "group"
    """A process of the group that generates a video together."""


class LibraryError(Exception):
    """Base of the library's expected errors.

    Attributes:
        cause: the kind of fault.
        for_client: whether the message may be shown to the sender of the input.
        retryable: whether the same call may succeed when repeated; None if the cause alone decides.
    """

    cause: ClassVar[Cause]
    for_client: ClassVar[bool] = True
    retryable: bool | None = None


class GenerationStopped(Exception):
    """The caller asked to stop."""


class NotFiniteError(ArithmeticError):
    """Numbers of a network have become infinite or NaN. The message says which."""


class MediaError(LibraryError, ValueError):
    """A file is not a usable image, sound or video. The message says what is wrong and what to send instead."""

    cause = Cause.INPUT


class RegionError(LibraryError, ValueError):
    """A speaker's region cannot be used."""

    cause = Cause.INPUT


class SynthesisError(LibraryError, ValueError):
    """A text or voice cannot be spoken. The message says what to change."""

    cause = Cause.INPUT


class DecoderError(LibraryError, RuntimeError):
    """The decoder was killed by another process, usually for lack of memory, or the disk is full."""

    cause = Cause.CODEC


class EncodeError(LibraryError, RuntimeError):
    """A video, its sound or a thumbnail could not be written."""

    cause = Cause.CODEC


class CheckpointError(LibraryError, RuntimeError):
    """Weights cannot be loaded. The message names the file and, if one is at fault, the tensor."""

    cause = Cause.WEIGHTS


class SynthesisSetupError(CheckpointError):
    """Kokoro's weights or pronunciation packages are missing or broken. The message says what to install."""


class FacesSetupError(CheckpointError):
    """The networks that find faces are missing. The message says what to install."""


class DoesNotFitError(LibraryError, RuntimeError):
    """No memory mode fits the free memory, or the current mode did not fit. The message says what would fit.

    Args:
        fits_next_time: whether the same job is expected to fit when it is run again.
    """

    cause = Cause.MEMORY

    def __init__(self, message: str, fits_next_time: bool = False) -> None:
        super().__init__(message)
        self.retryable = fits_next_time


class GpuMemoryError(LibraryError, RuntimeError):
    """An allocation on a GPU failed. The message is torch's."""

    cause = Cause.MEMORY
    for_client = False


class DeviceError(LibraryError, RuntimeError):
    """A GPU has failed in a way that this process cannot recover from. The message is torch's."""

    cause = Cause.DEVICE
    for_client = False


class ParallelError(LibraryError, RuntimeError):
    """A process of the group has ended or does not answer; the whole group has to be started again."""

    cause = Cause.GROUP
    for_client = False

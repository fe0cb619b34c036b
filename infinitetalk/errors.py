"""Every error of the library, with the facts by which a caller tells them apart. Imports nothing heavy.

Messages of errors that are `for_client` hold no path of the worker, no traceback and no credential.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Cause(Enum):
    """What is at fault when the library fails."""

    INPUT = "input"
    """The media, text or regions that the caller passed."""

    CODEC = "codec"
    """A decoder or encoder that was killed or could not write."""

    WEIGHTS = "weights"
    """Files of a checkpoint, a LoRA or a voice."""

    MEMORY = "memory"
    """The memory of a GPU, or of the machine."""

    DEVICE = "device"
    """A GPU that has failed for good."""

    GROUP = "group"
    """A process of the group that makes a video together."""


class LibraryError(Exception):
    """An error that the library raises knowingly.

    Attributes:
        cause: what is at fault.
        for_client: whether the message may be shown to whoever sent the input.
        retryable: whether the same call may succeed when it is repeated; None where the cause alone decides.
    """

    cause: ClassVar[Cause]
    for_client: ClassVar[bool] = True
    retryable: bool | None = None


class GenerationStopped(Exception):
    """The caller asked to stop."""


class NotFiniteError(ArithmeticError):
    """A network's numbers have become infinite or undefined. The message says which."""


class MediaError(LibraryError, ValueError):
    """A file is no usable picture, sound or video. The message says what is wrong and what to send instead."""

    cause = Cause.INPUT


class RegionError(LibraryError, ValueError):
    """A speaker's region cannot be served."""

    cause = Cause.INPUT


class SynthesisError(LibraryError, ValueError):
    """A text or voice cannot be spoken. The message says what to change."""

    cause = Cause.INPUT


class DecoderError(LibraryError, RuntimeError):
    """The decoder was killed from outside, usually for lack of memory, or its disk is full."""

    cause = Cause.CODEC


class EncodeError(LibraryError, RuntimeError):
    """A video, its sound or a thumbnail could not be written."""

    cause = Cause.CODEC


class CheckpointError(LibraryError, RuntimeError):
    """Weights cannot be loaded. The message names the file and, where one is at fault, the tensor."""

    cause = Cause.WEIGHTS


class SynthesisSetupError(CheckpointError):
    """Kokoro's weights, or what its pronunciation needs, are missing or broken. The message says what to install."""


class DoesNotFitError(LibraryError, RuntimeError):
    """No memory mode fits the free memory, or the one in use did not fit. The message says what would.

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

"""The error codes: their meaning for clients, and the exceptions that lead to them."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from infinitetalk.errors import Cause, DeviceError, LibraryError, ParallelError
from schemas import ErrorCode, JobError, Stage


@dataclass(frozen=True)
class CodeFacts:
    """The meaning of a code.

    Attributes:
        message: what happened, used if nothing more precise is known.
        hint: what the client can do.
        retryable: whether the same job may succeed later.
    """

    message: str
    hint: str
    retryable: bool


CODES: dict[ErrorCode, CodeFacts] = {
    ErrorCode.INPUT_VALIDATION: CodeFacts(
        "the input cannot be served", "change the named field and send the job again", False
    ),
    ErrorCode.DOWNLOAD_FAILED: CodeFacts(
        "an input could not be fetched", "check that the address answers from the public internet", True
    ),
    ErrorCode.AUDIO_EMBEDDING: CodeFacts(
        "the speech could not be analysed", "check the audio; if it plays elsewhere, send the job again", True
    ),
    ErrorCode.PIPELINE_LOAD: CodeFacts(
        "the model could not be loaded", "the worker's operator has to check its weights and settings", False
    ),
    ErrorCode.OOM: CodeFacts(
        "the GPU has too little memory", "use size infinitetalk-480 or a smaller frame_num, or a larger GPU", False
    ),
    ErrorCode.FFMPEG: CodeFacts("the video could not be encoded", "send the job again", True),
    ErrorCode.GENERATION_RUNTIME: CodeFacts("the video could not be generated", "send the job again", True),
    ErrorCode.UPLOAD: CodeFacts("the result could not be stored", "check the store, then send the job again", True),
    ErrorCode.TIMEOUT: CodeFacts(
        "the job took longer than allowed", "allow more time, or use fewer steps or frames", True
    ),
}

STAGE_CODES: dict[Stage, ErrorCode] = {
    Stage.VALIDATION: ErrorCode.GENERATION_RUNTIME,
    Stage.DOWNLOAD: ErrorCode.GENERATION_RUNTIME,
    Stage.EMBEDDING: ErrorCode.AUDIO_EMBEDDING,
    Stage.LOAD: ErrorCode.PIPELINE_LOAD,
    Stage.SAMPLING: ErrorCode.GENERATION_RUNTIME,
    Stage.DECODE: ErrorCode.GENERATION_RUNTIME,
    Stage.MUX: ErrorCode.FFMPEG,
    Stage.UPLOAD: ErrorCode.UPLOAD,
    Stage.COMPLETED: ErrorCode.GENERATION_RUNTIME,
}
"""The code of an unexpected exception at each stage. Such an exception is never the client's mistake."""

CAUSE_CODES: dict[Cause, ErrorCode] = {
    Cause.INPUT: ErrorCode.INPUT_VALIDATION,
    Cause.CODEC: ErrorCode.FFMPEG,
    Cause.WEIGHTS: ErrorCode.PIPELINE_LOAD,
    Cause.MEMORY: ErrorCode.OOM,
    Cause.DEVICE: ErrorCode.GENERATION_RUNTIME,
    Cause.GROUP: ErrorCode.GENERATION_RUNTIME,
}
"""The code of an error of the library, at any stage."""

CAUSE_WORDS: dict[Cause, str] = {
    Cause.DEVICE: "the GPU failed, and this worker is being replaced; send the job again",
    Cause.GROUP: f"one of the worker's GPUs does not answer; {CODES[ErrorCode.GENERATION_RUNTIME].hint}",
}
"""Messages for the client that replace messages not meant for it."""

TELLS_OF_WORKER = (ErrorCode.PIPELINE_LOAD, ErrorCode.FFMPEG)
"""Codes that do not blame the client's input, address or store."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""Errors that mean that the machine itself has run out of a resource."""

OF_INPUT = (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.EFBIG)
"""Errors of a file system that an input's names or sizes may have caused."""

FAILED_DISK = (errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN)


class WorkerError(Exception):
    """A failure with a code. Clients read its message: it must not contain a path, host name, credential or traceback.

    Args:
        code: one of the interface's codes.
        message: what happened and what to change.
        retryable: whether the same job may succeed later; None: the code's default.
    """

    def __init__(self, code: ErrorCode, message: str, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = CODES[code].retryable if retryable is None else retryable


class MachineError(Exception):
    """The machine lacks something that every job needs, so that a job's own error does not count."""


def is_expected(error: BaseException) -> bool:
    """Whether an exception's own message is meant for the client."""
    return isinstance(error, WorkerError) or (isinstance(error, LibraryError) and error.for_client)


def is_device_error(error: BaseException) -> bool:
    """Whether the GPU has failed and cannot recover within this process."""
    return isinstance(error, DeviceError)


def is_machine_error(error: BaseException) -> bool:
    """Whether a job failed because of the machine: its temporary folder, its disk, its limits, a program or a library.

    Expected errors already name their cause and do not count, unless the machine has run out of a resource.
    """
    if isinstance(error, MachineError):
        return True
    causes = list(_causes(error))
    if any(isinstance(cause, OSError) and cause.errno in EXHAUSTED for cause in causes):
        return True
    if is_expected(error) or isinstance(error, ParallelError):
        return False
    return any(
        isinstance(cause, ImportError) or _is_of_the_system(cause) or "can't start new thread" in str(cause)
        for cause in causes
    )


def job_error(error: Exception, stage: Stage) -> JobError:
    """The client's error for an exception raised at a stage. An unexpected exception's own message is not shown."""
    told = _own_words(error, stage)
    if not is_machine_error(error) or (told.code in TELLS_OF_WORKER and told.retryable):
        return told
    code = ErrorCode.GENERATION_RUNTIME
    if is_disk_full(error):
        reason = "the worker's disk is full; send the job again, or use smaller inputs"
    else:
        reason = "this worker's machine has failed, and it is being replaced; send the job again"
    return JobError(code=code, message=f"{CODES[code].message}: {reason}", retryable=True, at_stage=stage)


def _own_words(error: Exception, stage: Stage) -> JobError:
    if isinstance(error, WorkerError):
        return JobError(code=error.code, message=error.message, retryable=error.retryable, at_stage=stage)
    code = _code_of(error, stage)
    facts = CODES[code]
    if code is ErrorCode.PIPELINE_LOAD and may_load_elsewhere(error):
        reason = "the worker's disk is full; send the job again" if is_disk_full(error) else "send the job again"
        return JobError(code=code, message=f"{facts.message}: {reason}", retryable=True, at_stage=stage)
    if not isinstance(error, LibraryError):
        return JobError(code=code, message=f"{facts.message}: {facts.hint}", retryable=facts.retryable, at_stage=stage)
    message = str(error) if error.for_client else f"{facts.message}: {CAUSE_WORDS.get(error.cause, facts.hint)}"
    retryable = facts.retryable if error.retryable is None else error.retryable
    return JobError(code=code, message=message, retryable=retryable, at_stage=stage)


def may_load_elsewhere(error: Exception) -> bool:
    """Whether the failure may be local to this worker: disk errors and unexpected exceptions, not invalid weights."""
    return not is_expected(error) or failed_to_read(error)


def load_error(error: Exception) -> Exception:
    """An error of loading a model, with its code for that stage, so that a job at another stage gets the same code."""
    if not may_load_elsewhere(error):
        return error
    told = job_error(error, Stage.LOAD)
    return WorkerError(told.code, told.message, told.retryable)


def failed_to_read(error: BaseException | None) -> bool:
    """Whether a disk or a network file system failed, even if a loader raised another error from it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FAILED_DISK:
            return True
        error = error.__cause__
    return False


def _code_of(error: Exception, stage: Stage) -> ErrorCode:
    if isinstance(error, LibraryError):
        return CAUSE_CODES[error.cause]
    return ErrorCode.OOM if isinstance(error, MemoryError) else STAGE_CODES[stage]


def is_disk_full(error: BaseException) -> bool:
    """Whether a job has filled the disk; there may be space again once the job has ended."""
    return any(isinstance(cause, OSError) and cause.errno in FULL_DISK for cause in _causes(error))


def _is_of_the_system(error: BaseException) -> bool:
    """Whether the operating system refused something that does not depend on the network or the input."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
        return False
    return error.errno is not None and error.errno > 0 and error.errno not in OF_INPUT


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""The error codes: what each means for a client, and which exception becomes which."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from infinitetalk.errors import Cause, DeviceError, LibraryError, ParallelError
from schemas import ErrorCode, JobError, Stage


@dataclass(frozen=True)
class CodeFacts:
    """What a code means.

    Attributes:
        message: what happened, where nothing more precise is known.
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
        "the GPU's memory does not suffice", "use size infinitetalk-480 or a smaller frame_num, or a larger GPU", False
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
"""The code of an exception that nobody expects. None is a client's mistake, wherever it comes up."""

CAUSE_CODES: dict[Cause, ErrorCode] = {
    Cause.INPUT: ErrorCode.INPUT_VALIDATION,
    Cause.CODEC: ErrorCode.FFMPEG,
    Cause.WEIGHTS: ErrorCode.PIPELINE_LOAD,
    Cause.MEMORY: ErrorCode.OOM,
    Cause.DEVICE: ErrorCode.GENERATION_RUNTIME,
    Cause.GROUP: ErrorCode.GENERATION_RUNTIME,
}
"""The code of an error of the library, whatever stage it comes up at."""

CAUSE_WORDS: dict[Cause, str] = {
    Cause.DEVICE: "the GPU failed, and this worker is being replaced; send the job again",
    Cause.GROUP: f"one of the worker's GPUs does not answer; {CODES[ErrorCode.GENERATION_RUNTIME].hint}",
}
"""What a client is told in the place of a message that is not for it."""

TELLS_OF_WORKER = (ErrorCode.PIPELINE_LOAD, ErrorCode.FFMPEG)
"""Codes that lay nothing at the client's door, its input, its address or its store."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""What the machine itself is short of, whatever was tried."""

OF_INPUT = (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.EFBIG)
"""What a file system says of names and sizes that an input may have brought along."""

FAILED_DISK = (errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN)


class WorkerError(Exception):
    """A failure with a code, whose message a client may read: no path, host name, credential or traceback in it.

    Args:
        code: one of the interface's codes.
        message: what happened and what to change.
        retryable: whether the same job may succeed later; None: as the code says.
    """

    def __init__(self, code: ErrorCode, message: str, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = CODES[code].retryable if retryable is None else retryable


class MachineError(Exception):
    """The machine lacks what every job needs, whatever a job's own error said."""


def is_expected(error: BaseException) -> bool:
    """Whether an exception's own message is meant for the client."""
    return isinstance(error, WorkerError) or (isinstance(error, LibraryError) and error.for_client)


def is_device_error(error: BaseException) -> bool:
    """Whether the GPU has failed in a way that it does not recover from within this process."""
    return isinstance(error, DeviceError)


def is_machine_error(error: BaseException) -> bool:
    """Whether the machine has failed under a job: its temporary folder, its disk, its limits, a program or a library.

    Errors that somebody expected have been looked at, and say themselves whose they are, unless something has run out.
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
    """What a client is told of an exception raised at a stage. Unexpected ones get their code's words only."""
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
    """Whether another worker may load what this one could not: weights that do not fit it cannot, but a disk that
    failed, or what nobody expects, may have been this worker's alone."""
    return not is_expected(error) or failed_to_read(error)


def load_error(error: Exception) -> Exception:
    """An error met while a model is loaded, with the code that it has there, at whatever stage a job is told of it."""
    if not may_load_elsewhere(error):
        return error
    told = job_error(error, Stage.LOAD)
    return WorkerError(told.code, told.message, told.retryable)


def failed_to_read(error: BaseException | None) -> bool:
    """Whether a disk or a network's file system failed, whatever a loader made of that."""
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
    """Whether a job has filled the disk; once it has ended, there may be room again."""
    return any(isinstance(cause, OSError) and cause.errno in FULL_DISK for cause in _causes(error))


def _is_of_the_system(error: BaseException) -> bool:
    """Whether the operating system refused something that has to do with no network and no input."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
        return False
    return error.errno is not None and error.errno > 0 and error.errno not in OF_INPUT


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

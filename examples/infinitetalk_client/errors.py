"""What the client raises: each error's text is a sentence for the person who waits for the video."""

from __future__ import annotations

import requests
from urllib3.exceptions import MaxRetryError


class InfiniteTalkError(Exception):
    """The base of all errors of this package."""


class EndpointError(InfiniteTalkError):
    """The endpoint refuses a request or does not answer.

    Attributes:
        status: the HTTP status; None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class JobError(InfiniteTalkError):
    """A job failed.

    Attributes:
        code: a code of the worker, such as E_OOM, or the endpoint's state of the job, such as CANCELLED.
        message: what happened and what to change.
        retryable: whether the same job may succeed if it is sent again.
    """

    def __init__(self, code: str, message: str, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retryable = code, message, retryable


class MediaError(InfiniteTalkError):
    """A file cannot be read, or cannot be brought to the endpoint."""


class FetchError(InfiniteTalkError):
    """The video of a finished job cannot be fetched or written.

    Attributes:
        place: the video's address, or its path on the endpoint's volume; None if it is in the result itself.
    """

    def __init__(self, message: str, place: str | None = None) -> None:
        super().__init__(message)
        self.place = place


def sentence(error: requests.RequestException, url: str, timeout_s: float) -> str:
    """What happened to a request, in words.

    Args:
        url: the address that is named.
        timeout_s: the request's time limit in seconds.
    """
    match error:
        case requests.exceptions.SSLError():
            return f"the certificate of {url} is not accepted: {_innermost(error)}"
        case requests.exceptions.ProxyError():
            return f"the proxy of this machine does not lead to {url}: check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        case requests.ReadTimeout():
            return f"{url} has not answered for {timeout_s:g} s"
        case requests.ConnectionError():
            return f"{url} does not answer"
        case requests.exceptions.ChunkedEncodingError() | requests.exceptions.ContentDecodingError():
            return f"the connection to {url} broke off"
    # Its text may have the whole address, which may be a signed one.
    return f"{url} cannot be asked: {type(error).__name__}"


def _innermost(error: BaseException) -> BaseException:
    """What a request failed for at first; the errors around it name the whole address, which may be a signed one."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, BaseException) else next(iter(error.args), None)
    return _innermost(inner) if isinstance(inner, BaseException) else error


def may_have_been_sent(error: requests.RequestException) -> bool:
    """Whether a request that is sent once may have reached its receiver: all but those that found no connection."""
    found_none = isinstance(error, requests.ConnectTimeout) or any(
        isinstance(reason, MaxRetryError) for reason in error.args
    )
    return not found_none

"""Content Credentials by the worker's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infinitetalk.errors import CredentialsError
from infinitetalk.worker.settings import Settings

if TYPE_CHECKING:
    from infinitetalk.media.credentials import ContentCredentials

PEM_BEGIN = "-----BEGIN"


def content_credentials(settings: Settings) -> ContentCredentials | None:
    """What signs the worker's files; None if no certificate is set.

    Raises:
        CredentialsError: certificate and key cannot sign, one of them is missing or unreadable, or the worker is set to
            mark nothing.
    """
    certificate, key = settings.c2pa_certificate, settings.c2pa_private_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise CredentialsError("C2PA_CERTIFICATE and C2PA_PRIVATE_KEY go together: set both or neither")
    if not settings.provenance:
        raise CredentialsError("PROVENANCE is false, but C2PA_CERTIFICATE is set: leave out one of them")
    from infinitetalk.media.credentials import ContentCredentials

    secret = _pem("C2PA_PRIVATE_KEY", key.get_secret_value())
    return ContentCredentials(_pem("C2PA_CERTIFICATE", certificate), secret)


def _pem(name: str, value: str) -> str:
    """PEM given by itself, where "\\n" may stand for the end of a line, or by the path of its file."""
    if value.lstrip().startswith(PEM_BEGIN):
        return value.replace("\\n", "\n")
    # Neither the value nor the system's error, which quotes it: the value may be a key that was pasted in part.
    try:
        return Path(value).read_text(encoding="ascii")
    except (OSError, ValueError):
        raise CredentialsError(f"{name} is neither PEM ({PEM_BEGIN} …) nor the path of a readable PEM file") from None

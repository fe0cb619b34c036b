"""Signed Content Credentials (C2PA) in finished files, by the operator's certificate.

A file says in them that a model made it, which one, and by which software; whoever changes the file breaks the
signature. The mark that is not signed, XMP, is `infinitetalk.media.provenance`.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import c2pa
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from PIL import Image

from infinitetalk.errors import CredentialsError, EncodeError
from infinitetalk.media.provenance import Mark

MediaType = Literal["video/mp4", "image/jpeg"]

ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""Curve of an elliptic key → C2PA's name of the signature."""

VALID_STATES = ("Valid", "Trusted")
"""What a reader says of a file whose signature and hashes are right. Trusted: it also knows who issued the certificate,
which depends on the reader's own list."""

SDK_SETTINGS = {
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
"""Nothing is fetched, files hold no picture of themselves, and this module itself reads back what it signed."""

TRIAL_MARK = Mark("InfiniteTalk worker", "trial", "trial")


@dataclass(frozen=True)
class ContentCredentials:
    """A certificate and its key, tried on a picture when this is made.

    Args:
        certificates: PEM of the certificate and of those that lead to its root, the certificate itself first.
        key: PEM of the certificate's key, without a password. It is never shown, nor part of an error.

    Attributes:
        signer: whom the certificate names.
        algorithm: of the signature, by C2PA's name.

    Raises:
        CredentialsError: they cannot sign. The message says why and what to change.
    """

    certificates: str
    key: str = field(repr=False)
    signer: str = field(init=False)
    algorithm: str = field(init=False)

    def __post_init__(self) -> None:
        certificate, key = _read_certificate(self.certificates), _read_key(self.key)
        _check_pair(certificate, key)
        object.__setattr__(self, "signer", _name(certificate))
        object.__setattr__(self, "algorithm", _algorithm(key))
        picture = BytesIO()
        Image.new("RGB", (8, 8)).save(picture, format="JPEG")
        picture.seek(0)
        try:
            self._sign(picture, BytesIO(), "image/jpeg", TRIAL_MARK)
        except (c2pa.C2paError, EncodeError) as error:
            raise CredentialsError(
                "the C2PA certificate cannot sign Content Credentials: it must be an end entity's, not self-signed, "
                f"with the key usage digitalSignature and an extended key usage such as emailProtection ({error})"
            ) from error

    def sign(self, file: Path, media_type: MediaType, mark: Mark) -> None:
        """Adds signed Content Credentials to a finished file and reads them back.

        Args:
            file: is replaced by its signed copy.
            media_type: of the file.
            mark: what is said of the file.

        Raises:
            EncodeError: the file could not be signed, or what is read back is not valid, as once the certificate has
                expired.
        """
        signed = file.with_name(f"{file.name}.signed")
        try:
            with file.open("rb") as source, signed.open("w+b") as target:
                self._sign(source, target, media_type, mark)
            signed.replace(file)
        except (c2pa.C2paError, OSError) as error:
            raise EncodeError("Content Credentials could not be written") from error
        finally:
            signed.unlink(missing_ok=True)

    def _sign(self, source: BinaryIO, target: BinaryIO, media_type: MediaType, mark: Mark) -> None:
        info = c2pa.C2paSignerInfo(self.algorithm, self.certificates.encode(), self.key.encode(), None)
        settings = c2pa.Settings.from_dict(SDK_SETTINGS)
        with c2pa.Context(settings) as context, c2pa.Signer.from_info(info) as signer:
            c2pa.Builder(json.dumps(manifest_of(mark)), context).sign(signer, media_type, source, target)
            target.seek(0)
            with c2pa.Reader(media_type, target, context=context) as reader:
                state, codes = reader.get_validation_state(), _failures(json.loads(reader.json()))
        if state not in VALID_STATES:
            raise EncodeError(f"Content Credentials are not valid as read back: {', '.join(codes)}")


def manifest_of(mark: Mark) -> dict[str, Any]:
    """What Content Credentials say of a file: a model made it, or a part of it, by this software."""
    software = {"name": mark.software, "version": mark.version}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": mark.source_type,
        "softwareAgent": software,
        "description": mark.sentence,
        "parameters": {"model": mark.model},
    }
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return {"claim_generator_info": [software], "assertions": [actions]}


def _failures(told: dict[str, Any]) -> list[str]:
    failures = told.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    return sorted({failure["code"] for failure in failures})


def _read_certificate(pem: str) -> x509.Certificate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            certificate = x509.load_pem_x509_certificates(pem.encode())[0]
    except ValueError as error:
        raise CredentialsError("C2PA_CERTIFICATE has no certificate in PEM (-----BEGIN CERTIFICATE-----)") from error
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        begin, end = certificate.not_valid_before_utc.date(), certificate.not_valid_after_utc.date()
        raise CredentialsError(
            f"the C2PA certificate of {_name(certificate)} is valid from {begin} to {end}, not today: set one that is"
        )
    return certificate


def _read_key(pem: str) -> PrivateKeyTypes:
    # Without the library's error, which might quote what it was given.
    try:
        return load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CredentialsError(
            "C2PA_PRIVATE_KEY is not a private key in PEM without a password (-----BEGIN PRIVATE KEY-----)"
        ) from None


def _check_pair(certificate: x509.Certificate, key: PrivateKeyTypes) -> None:
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise CredentialsError(
            f"C2PA_PRIVATE_KEY is not the key of the certificate of {_name(certificate)}, the first in C2PA_CERTIFICATE"
        )


def _algorithm(key: PrivateKeyTypes) -> str:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ALGORITHMS:
        return ALGORITHMS[key.curve.name]
    raise CredentialsError(
        "C2PA_PRIVATE_KEY is of a kind that C2PA does not know: use an elliptic key (P-256, P-384, P-521), Ed25519 or "
        "RSA"
    )


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()

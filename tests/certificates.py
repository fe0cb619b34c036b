"""Certificates as an operator has them, made anew: a root, and one that it issued for signing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
SIGNS = (True, False, False, False, False, False, False, False, False)
ISSUES = (False, False, False, False, False, True, True, False, False)


@dataclass(frozen=True)
class Pair:
    """A certificate with those that lead to its root, and its key, in PEM."""

    certificates: str
    key: str


def name_of(common_name: str) -> x509.Name:
    names = {NameOID.ORGANIZATION_NAME: "Example Studio", NameOID.COMMON_NAME: common_name}
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in names.items()])


def issued(key: PrivateKey, issuer_key: PrivateKey, common_name: str, is_root: bool, days_ago: int) -> x509.Certificate:
    """A certificate for thirty days, which began so many days ago."""
    begin = datetime.now(UTC) - timedelta(days=days_ago)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(common_name))
        .issuer_name(name_of("Root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=30))
        .add_extension(x509.BasicConstraints(is_root, None), critical=True)
        .add_extension(x509.KeyUsage(*(ISSUES if is_root else SIGNS)), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_root:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def make_pair(key: PrivateKey | None = None, days_ago: int = 1, is_self_signed: bool = False) -> Pair:
    """A new certificate and its key.

    Args:
        key: its key; None: an elliptic one.
        days_ago: when its thirty days began.
        is_self_signed: it is a root itself.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = issued(root_key, root_key, "Root", True, days_ago)
    if is_self_signed:
        chain = [root]
        key = root_key
    else:
        chain = [issued(key, root_key, "Signer", False, days_ago), root]
    pem = "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain)
    return Pair(pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())

"""A certificate for `localhost`, for servers and clients of the tests."""

import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Identity(NamedTuple):
    """PEM files."""

    certificate: Path
    key: Path


def self_signed(folder: Path) -> Identity:
    """Written into `folder`: a certificate for `localhost` that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    identity = Identity(folder / "chain.pem", folder / "key.pem")
    pem = serialization.Encoding.PEM
    identity.certificate.write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    identity.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return identity

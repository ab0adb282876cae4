"""Closes SeaweedFS's inner ports to everyone but SeaweedFS itself.

Its master, volume server, filer and admin server talk to each other over HTTP and gRPC, and ask for
no credentials; so does the gRPC port of its S3 server, which changes identities. Signing keys would
not close them, because the master signs for anyone who asks. Therefore each of these ports asks its
clients for a certificate and accepts a single one, which is made anew at each start. Its key is in
a file that the owner alone can read. The S3 port itself asks for credentials instead.

SeaweedFS's programs find the configuration in their working directory. For a container,

    python -m service.standalone.s3_security FOLDER ADDRESS weed server ...

writes it and then becomes the command.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from service.standalone.ports import LOOPBACK
from service.standalone.private_files import write_private

VALIDITY = timedelta(days=3650)
"""Longer than a server runs without a restart."""

CLOCK_SKEW = timedelta(days=1)
"""By how much the clock may be set back while the server runs."""

_CERTIFICATE, _KEY = "certificate.pem", "key.pem"

# The certificate is the only authority, so that no other one is accepted.
_CA = f'ca = "{_CERTIFICATE}"\n'
_PAIR = f'cert = "{_CERTIFICATE}"\nkey = "{_KEY}"\n'
_HTTP_PARTS = ("master", "volume", "filer", "admin", "client")
_GRPC_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client")
_CONFIGURATION = "".join(
    (
        *(f"[https.{part}]\nenabled = true\n{_CA}{_PAIR}" for part in _HTTP_PARTS),
        f"[grpc]\n{_CA}",
        *(f"[grpc.{part}]\n{_PAIR}" for part in _GRPC_PARTS),
    )
)


def write_security(folder: Path, address: str = LOOPBACK) -> None:
    """Write a new certificate for `address`, its key, and the configuration that names both."""
    certificate, key = _self_signed(address)
    write_private(folder / _CERTIFICATE, certificate)
    write_private(folder / _KEY, key)
    write_private(folder / "security.toml", _CONFIGURATION)


def _self_signed(address: str) -> tuple[str, str]:
    """A certificate and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eigenpress")])
    host = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(host, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), private.decode()


if __name__ == "__main__":
    _folder, _address, *_command = sys.argv[1:]
    write_security(Path(_folder), _address)
    os.chdir(_folder)
    os.execvp(_command[0], _command)  # noqa: S606

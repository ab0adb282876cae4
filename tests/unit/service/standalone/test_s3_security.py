"""The certificate with which SeaweedFS's parts know each other."""

from __future__ import annotations

import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from service.standalone import s3_security
from service.standalone.ports import LOOPBACK
from service.standalone.s3_security import CLOCK_SKEW, VALIDITY, write_security


def certificate_in(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes())


def test_all_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    write_security(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("certificate.pem", "key.pem", "security.toml"), 0o600)


def test_each_start_makes_a_certificate_that_outlives_it(tmp_path: Path) -> None:
    write_security(tmp_path)
    first = certificate_in(tmp_path)
    write_security(tmp_path)
    second = certificate_in(tmp_path)
    assert first.public_key() != second.public_key()
    now = datetime.now(UTC)
    assert second.not_valid_before_utc <= now - CLOCK_SKEW
    assert second.not_valid_after_utc > now + VALIDITY - timedelta(days=1)
    names = second.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address(LOOPBACK)]


def test_the_module_becomes_the_command_in_the_folder(tmp_path: Path) -> None:
    module = [sys.executable, "-m", s3_security.__name__, str(tmp_path), "127.0.0.9"]
    listed = subprocess.run([*module, "ls"], check=True, capture_output=True, text=True)
    assert listed.stdout.split() == ["certificate.pem", "key.pem", "security.toml"]

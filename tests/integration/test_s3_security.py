"""Nobody but SeaweedFS itself gets an answer from its inner ports, nor a stranger from S3."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import psutil
import pytest

from service.errors import StorageCredentialsInvalid
from service.standalone.ports import LOOPBACK
from service.standalone.s3_security import write_security
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from tests.fixtures.storage import s3_settings_for
from tests.fixtures.strangers import (
    assert_refuses_clients_with,
    assert_refuses_clients_without_tls,
    certificate_in,
    listening_ports,
    secure_channel,
    takes_calls,
)

STRANGERS_ORIGIN = "http://stranger.test"

INNER_PORTS = 9
"""Of master, volume server, filer and admin server, HTTP and gRPC, and the gRPC port of S3."""


@pytest.fixture
def inner_ports(local_s3: LocalS3) -> set[int]:
    """All ports on which the server's process listens, except that of S3."""
    assert local_s3.pid
    ports = listening_ports(local_s3.pid) - {int(local_s3.endpoint_url.rpartition(":")[2])}
    assert len(ports) == INNER_PORTS
    return ports


def test_a_client_with_the_certificate_reaches_every_port(
    local_s3: LocalS3, inner_ports: set[int]
) -> None:
    """So the ports below refuse their clients, and are not merely out of order."""
    ours = certificate_in(local_s3.security_folder)
    for port in inner_ports:
        assert takes_calls(secure_channel(ours, LOOPBACK, port, Path(ours[0]))), port


def test_no_port_answers_without_tls(inner_ports: set[int]) -> None:
    for port in inner_ports:
        assert_refuses_clients_without_tls(LOOPBACK, port)


@pytest.mark.parametrize("presents", ["nothing", "another certificate"])
def test_no_port_answers_a_client_without_the_certificate(
    local_s3: LocalS3, inner_ports: set[int], presents: str, tmp_path: Path
) -> None:
    write_security(tmp_path)
    presented = None if presents == "nothing" else certificate_in(tmp_path)
    trusted, _ = certificate_in(local_s3.security_folder)
    for port in inner_ports:
        assert_refuses_clients_with(presented, LOOPBACK, port, Path(trusted))


def test_the_key_and_the_sockets_are_for_their_owner_alone(local_s3: LocalS3) -> None:
    sockets = [
        Path(connection.laddr)
        for connection in psutil.Process(local_s3.pid).net_connections("unix")
        if connection.laddr.startswith("/")
    ]
    assert sockets
    for path in (*local_s3.security_folder.iterdir(), *sockets):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_s3_refuses_strangers(local_s3: LocalS3, tmp_path: Path) -> None:
    storage = ObjectStorage.from_settings(s3_settings_for(local_s3, tmp_path))
    storage.put_bytes("secret", b"x")
    url = f"{local_s3.endpoint_url}/{local_s3.bucket}"
    for path in ("", "/secret"):
        assert httpx.get(url + path, trust_env=False).status_code == 403
    assert httpx.put(f"{url}/secret", content=b"y", trust_env=False).status_code == 403
    settings = s3_settings_for(local_s3, tmp_path, s3_secret_access_key="wrong")
    with pytest.raises(StorageCredentialsInvalid):
        ObjectStorage.from_settings(settings).get_bytes("secret")
    assert storage.get_bytes("secret") == b"x"


def test_no_page_of_another_site_can_read_from_s3(local_s3: LocalS3, tmp_path: Path) -> None:
    storage = ObjectStorage.from_settings(s3_settings_for(local_s3, tmp_path))
    storage.put_bytes("shared", b"x")
    origin = {"Origin": STRANGERS_ORIGIN}
    url = storage.presign("shared", 60)
    answers = [
        httpx.get(url, headers=origin, trust_env=False),
        httpx.get(url.partition("?")[0], headers=origin, trust_env=False),
        httpx.options(
            url, headers=origin | {"Access-Control-Request-Method": "PUT"}, trust_env=False
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 403, 403]
    for answer in answers:
        assert "Access-Control-Allow-Origin" not in answer.headers

"""The local S3 server starts, keeps its data, refuses a second one, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import psutil
import pytest

from service.errors import StorageUnavailable
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from tests.fixtures.storage import s3_settings_for


def storage_of(server: LocalS3, tmp_path: Path) -> ObjectStorage:
    return ObjectStorage.from_settings(s3_settings_for(server, tmp_path))


def test_data_and_credentials_outlive_the_server(tmp_path: Path) -> None:
    with LocalS3(tmp_path) as server:
        keys = (server.access_key_id, server.secret_access_key)
        storage_of(server, tmp_path).put_bytes("kept", b"still here")
    with LocalS3(tmp_path) as server:
        assert (server.access_key_id, server.secret_access_key) == keys
        assert storage_of(server, tmp_path).get_bytes("kept") == b"still here"


def test_credentials_are_for_their_owner_alone(local_s3: LocalS3) -> None:
    path = local_s3.directory / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_bytes())["secret_access_key"] == local_s3.secret_access_key


def test_only_loopback_is_bound(local_s3: LocalS3) -> None:
    assert local_s3.pid
    listening = [
        connection.laddr
        for connection in psutil.Process(local_s3.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.ip for address in listening} == {LOOPBACK}


def test_the_port_can_be_chosen(tmp_path: Path) -> None:
    port = choose_port(0, "")
    with LocalS3(tmp_path, port=port) as server:
        assert server.endpoint_url == f"http://{LOOPBACK}:{port}"


def test_stopping_leaves_neither_process_nor_socket(tmp_path: Path) -> None:
    server = LocalS3(tmp_path)
    server.start()
    pid = server.pid
    assert pid
    port = server.endpoint_url.rpartition(":")[2]
    server.stop()
    assert not psutil.pid_exists(pid)
    assert server.pid is None
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))
    server.stop()  # a second time does nothing


def test_a_second_server_in_the_directory_is_refused(local_s3: LocalS3) -> None:
    with pytest.raises(StorageUnavailable, match="Another S3 server runs"):
        LocalS3(local_s3.directory).start()
    assert local_s3.pid


def test_an_orphan_in_the_directory_is_reported(tmp_path: Path) -> None:
    """As after `kill -9` of the process that started the server: its lock is gone, it is not."""
    with LocalS3(tmp_path) as orphan:
        (tmp_path / "server.lock").unlink()
        with pytest.raises(StorageUnavailable, match="did not start"):
            LocalS3(tmp_path).start()
        storage_of(orphan, tmp_path).check()


def test_a_killed_server_starts_again(tmp_path: Path) -> None:
    server = LocalS3(tmp_path)
    server.start()
    storage_of(server, tmp_path).put_bytes("kept", b"x")
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with server:
        assert storage_of(server, tmp_path).get_bytes("kept") == b"x"

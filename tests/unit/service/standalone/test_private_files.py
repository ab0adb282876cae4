"""The data folder and its secrets are their owner's alone, even if they existed before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from service.client.credentials import ADMIN_KEY_FILE
from service.errors import InvalidParameter
from service.standalone.private_files import private_folder, write_private
from service.standalone.ray_head import LocalRay
from service.standalone.serve import (
    CREDENTIALS_KEY_FILE,
    ENCRYPTION_KEY_FILE,
    SECRETS,
    Installation,
    ServeOptions,
    data_folder,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    private_folder(tmp_path / "a" / "b", ())
    assert mode(tmp_path / "a" / "b") == 0o700


@pytest.mark.parametrize("before", [0o755, 0o777, 0o2775])
def test_a_folder_that_existed_becomes_private(tmp_path: Path, before: int) -> None:
    folder = tmp_path / "data"
    for secret in SECRETS:
        path = folder / secret
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("swordfish")
        path.chmod(0o644)
    folder.chmod(before)
    data_folder(ServeOptions(data_dir=folder))
    assert mode(folder) == 0o700
    assert {mode(folder / secret) for secret in SECRETS} == {0o600}


def test_a_stricter_mode_stays(tmp_path: Path) -> None:
    write_private(tmp_path / "secret", "swordfish")
    (tmp_path / "secret").chmod(0o400)
    private_folder(tmp_path, ("secret",))
    assert mode(tmp_path / "secret") == 0o400


def test_another_user_s_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InvalidParameter, match="belongs to another user") as refused:
        private_folder(tmp_path, ())
    assert refused.value.param == "--data-dir"
    assert mode(tmp_path) == 0o755


def test_the_secrets_are_those_of_the_parts(tmp_path: Path) -> None:
    installation = Installation(ServeOptions(data_dir=tmp_path, port=0, dashboard_port=0))
    token = LocalRay(tmp_path / "ray").token_path
    names = (ADMIN_KEY_FILE, CREDENTIALS_KEY_FILE, ENCRYPTION_KEY_FILE)
    keys = {tmp_path / name for name in names}
    secrets = {tmp_path / secret for secret in SECRETS}
    assert secrets == {token, installation.credentials_path} | keys

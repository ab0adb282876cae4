"""`service.standalone.serve`: the environment of its parts and its messages to the user."""

from __future__ import annotations

import io
import socket
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr
from rich.console import Console

from service.encryption import Encryption, new_key
from service.errors import InvalidParameter
from service.settings import Settings
from service.standalone.serve import Installation, ServeOptions, environment, ready_block, serve


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options(tmp_path: Path, port: int = 0, allow: tuple[Path, ...] = ()) -> ServeOptions:
    return ServeOptions(data_dir=tmp_path / "data", port=port, allow=allow)


def test_its_parts_read_the_very_settings_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        s3_secret_access_key=SecretStr("secret"),
        allowed_roots=(tmp_path, Path("/data, with a comma")),
        api_port=0,
        poll_seconds=0.25,
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_everything_is_on_loopback_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIGENPRESS_API_HOST", "0.0.0.0")
    monkeypatch.setenv("EIGENPRESS_S3_PUBLIC_ENDPOINT_URL", "https://elsewhere")
    monkeypatch.setenv("EIGENPRESS_RAY_PUBLIC_ADDRESS", "https://elsewhere")
    settings = Installation(options(tmp_path)).settings
    assert settings.api_host == "127.0.0.1"
    for url in (
        settings.ray_address,
        settings.ray_public_address,
        settings.s3_endpoint_url,
        settings.s3_public_endpoint_url,
    ):
        assert str(url).startswith("http://127.0.0.1:")
    assert settings.s3_access_key_id is not None


def test_jobs_may_read_the_current_folder_unless_others_are_allowed(tmp_path: Path) -> None:
    assert Installation(options(tmp_path)).settings.allowed_roots == (Path.cwd(),)
    (tmp_path / "link").symlink_to("/usr")
    settings = Installation(options(tmp_path, allow=(tmp_path / "link", tmp_path))).settings
    assert settings.allowed_roots == (Path("/usr").resolve(), tmp_path.resolve())


def test_roots_that_are_configured_replace_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIGENPRESS_ALLOWED_ROOTS", '["/usr"]')
    settings = Installation(options(tmp_path, allow=(Path("/etc"),))).settings
    assert settings.allowed_roots == (Path("/usr"), Path("/etc"))


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidParameter, match="--port"):
            serve(options(tmp_path, port), console)
    assert not (tmp_path / "data" / "ray").exists()


def test_the_ready_block_says_where_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    installation = Installation(options(tmp_path))
    text = ready_block(installation).plain
    for place in (
        installation.api_url,
        f"{installation.api_url}/docs",
        installation.settings.ray_address,
        installation.settings.s3_endpoint_url,
        installation.credentials_path,
        tmp_path / "data" / "ray" / "token",
        tmp_path / "data",
    ):
        assert str(place) in text
    assert f"--url {installation.api_url}" in text


def test_the_key_for_secrets_is_made_once_and_kept_from_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = Installation(options(tmp_path))
    first = installation.settings
    path = tmp_path / "data" / "encryption-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text().strip()
    assert first.encryption_key == SecretStr(key)
    assert Encryption(first.encryption_key)
    assert Installation(options(tmp_path)).settings.encryption_key == first.encryption_key
    assert "EIGENPRESS_ENCRYPTION_KEY" in environment(first)
    monkeypatch.setenv("EIGENPRESS_ENCRYPTION_KEY", key)  # Ray would inherit it
    of_jobs = installation._ray._environment()
    assert of_jobs["EIGENPRESS_S3_SECRET_ACCESS_KEY"]
    assert key not in of_jobs.values()


def test_the_key_for_credentials_is_made_once_and_goes_to_jobs(tmp_path: Path) -> None:
    installation = Installation(options(tmp_path))
    path = tmp_path / "data" / "credentials-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text().strip()
    assert installation.settings.credentials_key == SecretStr(key)
    assert installation.settings.encryption_key != SecretStr(key)
    assert Installation(options(tmp_path)).settings.credentials_key == SecretStr(key)
    assert environment(installation.settings)["EIGENPRESS_CREDENTIALS_KEY"] == key
    assert installation._ray._environment()["EIGENPRESS_CREDENTIALS_KEY"] == key


def test_a_key_of_the_environment_comes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()
    monkeypatch.setenv("EIGENPRESS_ENCRYPTION_KEY", key)
    monkeypatch.setenv("EIGENPRESS_CREDENTIALS_KEY", key)
    settings = Installation(options(tmp_path)).settings
    assert settings.encryption_key == settings.credentials_key == SecretStr(key)
    for name in ("encryption-key", "credentials-key"):
        assert not (tmp_path / "data" / name).exists()

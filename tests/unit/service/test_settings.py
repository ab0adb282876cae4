"""The sources of settings, and the errors for invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import make_url

from service.settings import Settings
from service.standalone.serve import environment

URL = "postgresql://press@db:5432/eigenpress"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the environment names."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("EIGENPRESS_SECRETS_DIR", str(folder))
    return folder


def test_secrets_come_from_files(secrets: Path) -> None:
    (secrets / "eigenpress_database_url").write_text(f"{URL}\n")
    (secrets / "eigenpress_database_password").write_text("p@ss/word\n")
    (secrets / "eigenpress_s3_access_key_id").write_text("key")
    (secrets / "eigenpress_s3_secret_access_key").write_text("secret")
    settings = Settings()
    assert make_url(settings.database).password == "p@ss/word"
    assert settings.s3_access_key_id == SecretStr("key")
    assert settings.s3_secret_access_key == SecretStr("secret")
    assert "p@ss" not in repr(settings)


def test_the_environment_wins_over_files_and_those_over_the_configuration(
    secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named.toml").write_text('s3_bucket = "a"\ns3_region = "a"\nhub_endpoint = "a"\n')
    monkeypatch.setenv("EIGENPRESS_CONFIG", str(tmp_path / "named.toml"))
    (secrets / "eigenpress_s3_bucket").write_text("b")
    (secrets / "eigenpress_s3_region").write_text("b")
    monkeypatch.setenv("EIGENPRESS_S3_BUCKET", "c")
    settings = Settings()
    found = settings.s3_bucket, settings.s3_region, settings.hub_endpoint
    assert found == ("c", "b", "a")


def test_a_folder_of_secrets_that_is_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIGENPRESS_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="EIGENPRESS_SECRETS_DIR names"):
        Settings()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres://u@h/d", "should be sqlite:///PATH or postgresql://"),
        ("mysql://u@h/d", "should be sqlite:///PATH or postgresql://"),
        ("jobs.db", "should be sqlite:///PATH or postgresql://"),
        ("postgresql:/h/d", "should be sqlite:///PATH or postgresql://"),
        ("postgresql://u@h", "should end with the database's name"),
        ("postgresql://u@h:http/d", "Port could not be cast"),
    ],
)
def test_a_wrong_database_url_is_explained(url: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings(database_url=url)


@pytest.mark.parametrize("url", [URL, "postgresql+psycopg:///d?host=/run/x", "sqlite:////x.db"])
def test_a_database_url_without_a_password_is_taken_as_it_is(url: str) -> None:
    assert Settings(database_url=url).database == url


@pytest.mark.parametrize("url", [None, "postgresql://h/d", "postgresql://u:own@h/d"])
def test_a_password_needs_a_place(url: str | None) -> None:
    with pytest.raises(ValidationError, match="with a user and without a password") as caught:
        Settings(database_url=url, database_password=SecretStr("hidden"))
    assert "own" not in str(caught.value)


def test_child_processes_are_given_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(database_url=URL, database_password=SecretStr("p@ss"))
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_ended_jobs_are_kept_for_ever_unless_a_time_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().job_retention_seconds is None
    monkeypatch.setenv("EIGENPRESS_JOB_RETENTION_SECONDS", "604800")
    assert Settings().job_retention_seconds == 604_800


@pytest.mark.parametrize("wrong", ["0", "59", "-1", "nan", "inf", "1e9", "none", ""])
def test_a_wrong_retention_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them 0, which might as well mean for ever."""
    monkeypatch.setenv("EIGENPRESS_JOB_RETENTION_SECONDS", wrong)
    with pytest.raises(ValidationError, match="job_retention_seconds"):
        Settings()


@pytest.mark.parametrize("wrong", ["-1", "nan", "inf", "1e9"])
def test_a_wrong_retention_of_checkpoints_is_refused(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIGENPRESS_CHECKPOINT_RETENTION_SECONDS", wrong)
    with pytest.raises(ValidationError, match="checkpoint_retention_seconds"):
        Settings()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data", ("/data",)),
        ("/data:/models", ("/data", "/models")),
        ('["/data", "/with:colon"]', ("/data", "/with:colon")),
        ("[]", ()),
    ],
)
def test_allowed_roots_are_separated_as_in_path_or_are_json(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("EIGENPRESS_ALLOWED_ROOTS", value)
    assert Settings().allowed_roots == tuple(map(Path, expected))


def test_allowed_roots_that_are_almost_json_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_ALLOWED_ROOTS", '["/data"')
    with pytest.raises(ValidationError, match="allowed_roots"):
        Settings()


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("ALOWED_ROOTS", "ALLOWED_ROOTS"), ("MAX_ATTEMPT", "MAX_ATTEMPTS"), ("S3_BUKET", "S3_BUCKET")],
)
def test_a_misspelt_variable_is_an_error_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, misspelt: str, meant: str
) -> None:
    monkeypatch.setenv(f"EIGENPRESS_{misspelt}", "1")
    with pytest.raises(ValidationError, match=f"{misspelt} is no .* mean EIGENPRESS_{meant}?"):
        Settings()


@pytest.mark.parametrize("name", ["URL", "INPUTS", "SECRETS", "CPU_WORKERS", "WORKER_CPUS", "BIND"])
def test_other_variables_of_an_installation_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"EIGENPRESS_{name}", "1")
    Settings()


@pytest.mark.parametrize(
    "value", ["s3://models/public,s3://texts/", '["s3://models/public/", "s3://texts"]']
)
def test_allowed_s3_prefixes_end_with_a_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_ALLOWED_S3_PREFIXES", value)
    settings = Settings()
    assert settings.allowed_s3_prefixes == ("s3://models/public/", "s3://texts/")
    variable = environment(settings)["EIGENPRESS_ALLOWED_S3_PREFIXES"]
    monkeypatch.setenv("EIGENPRESS_ALLOWED_S3_PREFIXES", variable)
    assert Settings() == settings


@pytest.mark.parametrize("value", ["models", "s3://", "s3://models, s3://texts", "/models"])
def test_places_that_are_not_in_s3_are_an_error(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIGENPRESS_ALLOWED_S3_PREFIXES", value)
    with pytest.raises(ValidationError, match="each should be s3://BUCKET"):
        Settings()


def test_the_cache_may_be_bounded_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_CACHE_BYTES", "200GB")
    settings = Settings()
    assert settings.cache_bytes == 200 * 10**9
    assert environment(settings)["EIGENPRESS_CACHE_BYTES"] == str(200 * 10**9)
    monkeypatch.setenv("EIGENPRESS_CACHE_BYTES", "-1")
    with pytest.raises(ValidationError, match="cache_bytes"):
        Settings()


@pytest.mark.parametrize("value", ["10.0.0.0/8,fd12::/32", '["10.0.0.0/8", "fd12::/32"]'])
def test_networks_of_receivers(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_WEBHOOK_ALLOWED_NETWORKS", value)
    settings = Settings()
    assert [*map(str, settings.webhook_allowed_networks)] == ["10.0.0.0/8", "fd12::/32"]
    monkeypatch.setenv(
        "EIGENPRESS_WEBHOOK_ALLOWED_NETWORKS",
        environment(settings)["EIGENPRESS_WEBHOOK_ALLOWED_NETWORKS"],
    )
    assert Settings() == settings


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "internal", "10.0.0.0/33"])
def test_a_wrong_network_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_WEBHOOK_ALLOWED_NETWORKS", wrong)
    with pytest.raises(ValidationError, match="webhook_allowed_networks"):
        Settings()

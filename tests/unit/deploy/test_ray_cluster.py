"""deploy/ray-cluster.yaml is taken by Ray's cluster launcher and agrees with the product."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from service.settings import PREFIX, SECRETS_VARIABLE, Settings
from tests.fixtures.composition import ROOT, read_compose_file

TEXT = (ROOT / "deploy" / "ray-cluster.yaml").read_text()
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
*_, ENVIRONMENT = CLUSTER["setup_commands"]


def test_ray_takes_it() -> None:
    prepared = prepare_config(CLUSTER)
    validate_config(prepared)
    (node,) = prepared["available_node_types"].values()
    assert node["max_workers"] == len(CLUSTER["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(CLUSTER | {"head_start_commands": []}))


def test_machines_get_those_secrets_alone_that_compose_gives_to_the_head(tmp_path: Path) -> None:
    subprocess.run([ROOT / "deploy" / "secrets.sh", tmp_path], check=True)
    made = {each.name for each in tmp_path.iterdir()}
    excluded = set(CLUSTER["rsync_exclude"])
    assert excluded <= made
    head = read_compose_file({})["services"]["ray-head"]["secrets"]
    assert made - excluded == set(head)


def test_it_installs_this_version_as_pinned() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    _, install, _ = CLUSTER["setup_commands"]
    target = next(path for path, source in CLUSTER["file_mounts"].items() if source == "dist")
    assert f"{target}/eigenpress-{version}-py3-none-any.whl[worker]" in install
    assert "--constraint /opt/eigenpress/constraints.txt" in install
    assert CLUSTER["file_mounts"]["/opt/eigenpress/constraints.txt"] == "constraints.txt"


def test_what_ray_starts_with_has_our_settings(tmp_path: Path) -> None:
    script = f"{ENVIRONMENT}. /opt/eigenpress/environment; env"
    given = subprocess.run(
        ["bash", "-c", script.replace("/opt/eigenpress", str(tmp_path))],
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    environment = dict(line.split("=", 1) for line in given.splitlines())
    ours = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    assert ours.pop(SECRETS_VARIABLE) == f"{tmp_path}/secrets"
    Settings.model_validate(
        {name.removeprefix(PREFIX).lower(): value for name, value in ours.items()}
    )
    assert environment["PATH"].startswith(f"{tmp_path}/venv/bin:")
    assert environment["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/secrets/ray_auth_token"
    assert "OMP_NUM_THREADS" not in environment
    compose = read_compose_file({})["services"]["ray-worker"]["environment"]
    by_ray = {name: value for name, value in environment.items() if name.startswith("RAY_")}
    assert by_ray.keys() == {name for name in compose if name.startswith("RAY_")}


@pytest.mark.parametrize("service", ["ray-head", "ray-worker"])
def test_ray_is_started_as_by_compose(service: str) -> None:
    *_, command = CLUSTER[f"{service.removeprefix('ray-')}_start_ray_commands"]
    assert command.startswith(". /opt/eigenpress/environment; ")
    options = dict(re.findall(r"--([\w-]+)(?:=(\S+))?", command))
    compose = dict(re.findall(r"--([\w-]+)(?:=(\S+))?", " ".join(_command(service))))
    here = {"block", "address", "autoscaling-config", "object-spilling-directory"}
    assert {name: value for name, value in options.items() if name not in here} == {
        name: value for name, value in compose.items() if name not in here
    }


def _command(service: str) -> list[str]:
    command: list[str] = read_compose_file({})["services"][service]["command"]
    return command

"""The help states the defaults of the specification and of the settings, and no others."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from service.cli import job_options, server
from service.cli.defaults import default_of, with_default
from service.cli.main import app
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import ByteTarget
from service.settings import Settings

STATED = re.compile(r"\\\[default: (.*)\]$")

COMPUTED = {
    "submit": {"workers": "one per GPU, or per two CPUs"},
    "estimate": {"workers": "one per GPU, or per two CPUs"},
    "serve": {"num_cpus": "all", "num_gpus": "all"},
}
"""Defaults that depend on the machines: no field has them."""


class Inner(BaseModel):
    needed: int
    size: int = 7


class Other(BaseModel):
    name: str = "a"
    size: int = 7
    scale: float = 1.0


class Outer(BaseModel):
    inner: Inner | Other
    several: tuple[Inner, ...] = ()
    scale: float = 2.0


def stated(command: str) -> dict[str, str]:
    """What the help of each option of a command calls its default."""
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    found = {each.name: STATED.search(getattr(each, "help", None) or "") for each in parameters}
    return {name: match[1] for name, match in found.items() if match}


def test_submit_states_what_an_empty_specification_becomes(job_body: dict[str, Any]) -> None:
    data = {"source": "local", "path": "/texts"}
    spec = JobSpec.model_validate(
        {"model": job_body["model"], "calibration": {"data": data}, "targets": [{"keep": 0.5}]}
    )
    calibration, target = spec.calibration, spec.targets[0]
    assert stated("submit") == COMPUTED["submit"] | {
        "scope": getattr(target, "scope", None),
        "optimize": getattr(target, "optimize", None),
        "embedding_bits": str(ByteTarget(bytes=1).embedding_bits),
        "method": spec.method,
        "allocation": spec.allocation,
        "dtype": spec.dtype,
        "mixed_precision": spec.mixed_precision,
        "pattern": getattr(calibration.data, "pattern", None),
        "text_field": getattr(calibration.data, "text_field", None),
        "sequences": str(calibration.sequences),
        "sequence_length": str(calibration.sequence_length),
        "batch_size": str(calibration.batch_size),
        "priority": str(spec.priority),
    }
    assert stated("estimate") == stated("submit")


def test_the_servers_commands_state_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    port = {"port": str(settings.api_port)}
    assert stated("api") == port | {"host": settings.api_host}
    serve = stated("serve")
    assert Path(serve.pop("data_dir")).expanduser() == settings.data_dir
    assert serve == COMPUTED["serve"] | port


def test_no_default_of_a_field_is_written_down_a_second_time() -> None:
    text = inspect.getsource(job_options) + inspect.getsource(server)
    computed = {default for defaults in COMPUTED.values() for default in defaults.values()}
    assert set(re.findall(r"\[default: ([^\]]*)\]", text)) == computed


@pytest.mark.parametrize(
    ("path", "default"),
    [("scale", 2.0), ("inner.size", 7), ("inner.name", "a"), ("several.size", 7)],
)
def test_a_default_is_found_by_its_path(path: str, default: object) -> None:
    assert default_of(Outer, path) == default
    assert with_default("A size.", Outer, path) == rf"A size. \[default: {default}]"


@pytest.mark.parametrize("path", ["missing", "inner.missing", "scale.size", "inner.needed"])
def test_what_has_no_default_is_a_defect(path: str) -> None:
    with pytest.raises(LookupError, match=path):
        default_of(Outer, path)


def test_models_that_disagree_have_no_default() -> None:
    class Union(BaseModel):
        either: Outer | Other

    with pytest.raises(LookupError, match=r"either\.scale"):
        default_of(Union, "either.scale")

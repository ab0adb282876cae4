"""Jobs from files: YAML, JSON, and options in the place of their fields."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from service.domain.spec.job import JobSpec
from tests.fixtures.command_line import JOB, JOB_ID, Api, Eigenpress

YAML = """
name: from-yaml   # a comment
model: {source: local, path: /models/a}
calibration:
  data: &texts {source: local, path: /texts, pattern: "*.py"}
  sequences: 64
targets:
  - keep: 0.8
  - bytes_fraction: 25e-2
mixed_precision: no
evaluation:
  enabled: true
  datasets:
    - {name: prose, data: *texts}
labels: {team: ml, since: 2026-11-21, build: "7", answer: yes}
limits:
"""
READ: dict[str, Any] = {
    "name": "from-yaml",
    "model": {"source": "local", "path": "/models/a"},
    "calibration": {
        "data": {"source": "local", "path": "/texts", "pattern": "*.py"},
        "sequences": 64,
    },
    "targets": [{"keep": 0.8}, {"bytes_fraction": 0.25}],
    "mixed_precision": "no",
    "evaluation": {
        "enabled": True,
        "datasets": [
            {"name": "prose", "data": {"source": "local", "path": "/texts", "pattern": "*.py"}}
        ],
    },
    "labels": {"team": "ml", "since": "2026-11-21", "build": "7", "answer": "yes"},
    "limits": None,
}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(YAML)
    return file


def test_yaml_is_read_as_json_would_be(api: Api, eigenpress: Eigenpress, job_file: Path) -> None:
    assert eigenpress("submit", "-f", str(job_file)) == 0
    assert api.bodies == [READ]
    assert eigenpress.out == f"{JOB_ID}\n"
    JobSpec.model_validate_json(json.dumps(READ | {"limits": {}}))


@pytest.mark.parametrize("content", [YAML, json.dumps(READ)])
def test_either_may_come_from_standard_input(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    assert eigenpress("submit", "-f", "-") == 0
    assert api.bodies == [READ]


def test_json_keeps_its_tabs(api: Api, eigenpress: Eigenpress, tmp_path: Path) -> None:
    (tmp_path / "job").write_text('{\n\t"name":\t"x"\n}')
    assert eigenpress("submit", "-f", "job") == 0
    assert api.bodies == [{"name": "x"}]


def test_options_take_the_place_of_fields(api: Api, eigenpress: Eigenpress, job_file: Path) -> None:
    options = "--name typed --sequences 8 --pattern *.txt --keep 0.5 --label stage=trial"
    assert eigenpress("submit", "-f", str(job_file), *options.split(), "--run-limit", "60") == 0
    (body,) = api.bodies
    assert body == READ | {
        "name": "typed",
        "calibration": {
            "data": {"source": "local", "path": "/texts", "pattern": "*.txt"},
            "sequences": 8,
        },
        "targets": [{"keep": 0.5}],
        "labels": READ["labels"] | {"stage": "trial"},
        "limits": {"run_seconds": 60},
    }


def test_a_typed_place_replaces_the_whole_source(
    api: Api, eigenpress: Eigenpress, job_file: Path
) -> None:
    assert eigenpress("submit", "-f", str(job_file), "--data", "s3://texts/b", "--model", "/b") == 0
    (body,) = api.bodies
    assert body["calibration"] == {
        "data": {"source": "s3", "uri": "s3://texts/b"},
        "sequences": 64,
    }
    assert body["model"] == {"source": "local", "path": "/b"}


def test_a_refusal_names_the_field_and_the_file(
    api: Api, eigenpress: Eigenpress, job_file: Path
) -> None:
    problem = {"code": "invalid_parameter", "detail": "No.", "param": "targets.1.keep"}
    for command in ("submit", "estimate"):
        api.answers[f"POST /v1/{'jobs' if command == 'submit' else 'estimates'}"] = (422, problem)
        assert eigenpress(command, "-f", str(job_file)) == 1
        assert f"invalid_parameter, targets.1.keep in {job_file}" in eigenpress.err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"model: [", "neither JSON nor YAML"),
        (b"model: !!python/name:os.system", "neither JSON nor YAML"),
        (b"a: b: c", "line 1, column 5"),
        (b"- keep: 0.8", "not a JSON object, or a mapping of YAML"),
        (b"just words", "not a JSON object, or a mapping of YAML"),
        (b"", "not a JSON object, or a mapping of YAML"),
        (b"name: !!binary aGk=", "what JSON has no form for"),
        (b"name: !!timestamp 2026-11-21", "what JSON has no form for"),
        (b"name: !!float .nan", "what JSON has no form for"),
        (b"name: &a [*a]", "what JSON has no form for"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_what_is_no_job_is_explained(
    api: Api, eigenpress: Eigenpress, tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    assert eigenpress("submit", "-f", "job.yaml") == 2
    assert complaint in eigenpress.err
    assert "--file" in eigenpress.err
    assert api.bodies == []


def test_programs_get_the_job_or_the_estimate(
    api: Api, eigenpress: Eigenpress, job_file: Path
) -> None:
    assert eigenpress("submit", "-f", str(job_file), "--json") == 0
    assert json.loads(eigenpress.out) == JOB
    estimate = {"problems": [{"code": "x", "detail": "y", "param": None}], "tokens": 1}
    api.answers["POST /v1/estimates"] = (200, estimate)
    assert eigenpress("estimate", "-f", str(job_file), "--json") == 1
    assert json.loads(eigenpress.out) == estimate
    assert eigenpress("submit", "-f", str(job_file), "--watch", "--json") == 0
    (line,) = eigenpress.out.splitlines()
    assert json.loads(line)["state"] == "succeeded"

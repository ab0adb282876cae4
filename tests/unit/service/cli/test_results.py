"""The report and the artifacts of a job, at a terminal and for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from service.cli.connection import console
from service.cli.reports import view
from service.client.client import Client
from tests.fixtures.command_line import JOB_ID, Api, Eigenpress

REPORT: dict[str, Any] = {
    "job": {"id": JOB_ID, "name": "[b]first"},
    "model": {"architecture": "LlamaForCausalLM", "parameters": 1000, "dense_bytes": 2000},
    "dtype": "bfloat16",
    "method": "impact-kron",
    "calibration": {"tokens": 24_576, "documents": 30},
    "evaluation": {
        "dense": {
            "perplexity": {"held-out": {"perplexity": 10.29}},
            "accuracy": {"held-out": {"accuracy": 0.5}},
            "tasks": {"arc": {"problems": 5, "metrics": {"acc": {"value": 0.4}}}},
            "decode_tokens_per_second": 12.25,
        }
    },
    "targets": [
        {
            "name": "keep-0.8",
            "size": {
                "parameters": 840,
                "model_fraction": 0.84,
                "linear_fraction": 0.8,
                "bytes": 1680,
            },
            "perplexity": {"held-out": {"perplexity": None, "ratio": 1.084}},
            "accuracy": {"held-out": {"accuracy": 0.4875}},
            "tasks": {"arc": {"problems": 5, "metrics": {"acc": {"value": 0.2}}}},
            "decode_tokens_per_second": None,
        }
    ],
    "seconds": {"calibrate": 100.0, "solve": 25.0},
}


@pytest.fixture
def route(api: Api) -> str:
    route = f"GET /v1/jobs/{JOB_ID}/report"
    api.answers[route] = (200, REPORT)
    return route


def rows(out: str) -> dict[str, list[str]]:
    """The cells of each line that has some, by its label."""
    cells = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.split("\n")
    ]
    return {first: others for first, *others in filter(None, cells)}


@pytest.mark.usefixtures("route")
def test_the_report_compares_every_model(eigenpress: Eigenpress) -> None:
    assert eigenpress("report", JOB_ID) == 0
    found = rows(eigenpress.out)
    assert found["[b]first"] == ["LlamaForCausalLM, impact-kron, bfloat16"]
    assert found["parameters"] == ["1,000", "840"]
    assert found["of the compressible"] == ["100.0%", "80.0%"]
    assert found["weights"] == ["2 kB", "1.68 kB"]
    assert found["perplexity, held-out"] == ["10.290"]  # the other one overflows
    assert found["of the dense one's"] == ["1.084×"]
    assert found["accuracy, held-out"] == ["50.00%", "48.75%"]
    assert found["arc, acc"] == ["0.400", "0.200"]
    assert found["tokens per second"] == ["12.2"]
    assert "24,576 tokens; the job took 2 min 5 s" in eigenpress.out
    assert f"eigenpress download {JOB_ID}" in eigenpress.err


@pytest.mark.parametrize(
    "report", [{}, {"targets": None}, REPORT | {"evaluation": {"dense": None}}]
)
def test_what_a_report_lacks_is_left_out(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    console(sys.stdout).print(view(report))
    assert "None" not in capsys.readouterr().out


@pytest.mark.usefixtures("route")
def test_a_report_may_be_written_or_piped(eigenpress: Eigenpress) -> None:
    assert eigenpress("report", JOB_ID, "--json") == 0
    assert json.loads(eigenpress.out) == REPORT
    assert eigenpress("report", JOB_ID, "-o", "report.json") == 0
    assert eigenpress.out == "report.json\n"
    assert json.loads(Path("report.json").read_text()) == REPORT
    assert eigenpress("report", JOB_ID, "-o", "nowhere/report.json") == 1
    assert "No such file or directory: nowhere/report.json" in eigenpress.err


@pytest.mark.usefixtures("route")
def test_the_page_is_opened_or_written(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers[f"GET /v1/jobs/{JOB_ID}/report.html"] = (200, "<h1>first</h1>")
    opened: list[str] = []

    def open_url(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", open_url)
    assert eigenpress("report", JOB_ID, "--open") == 0
    assert eigenpress("report", JOB_ID, "-o", "report.html") == 0
    assert Path("report.html").read_text() == "<h1>first</h1>"
    (url,) = opened
    assert Path(unquote(urlsplit(url).path)).read_text() == "<h1>first</h1>"
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    assert eigenpress("report", JOB_ID, "--open", "-o", "report.html") == 0
    assert "No browser could be started; open report.html" in eigenpress.err


def test_no_report_yet(api: Api, eigenpress: Eigenpress, route: str) -> None:
    conflict = {"code": "job_conflict", "detail": "The job is running."}
    api.answers[route] = (409, conflict)
    assert eigenpress("report", JOB_ID) == 1
    assert eigenpress.err == "Error: The job is running. job_conflict"


def test_downloads_are_told_to_programs(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str, Path]] = []

    def download(_: Client, job_id: str, name: str, folder: Path, *_rest: object) -> Path:
        done.append((job_id, name, folder))
        return folder

    monkeypatch.setattr("service.cli.results.download_artifact", download)
    listing: dict[str, Any] = {
        "artifacts": [{"name": name, "files": []} for name in ("keep-0.8", "keep-0.6")]
    }
    api.answers[f"GET /v1/jobs/{JOB_ID}/artifacts"] = (200, listing)
    assert eigenpress("download", JOB_ID, "--json") == 0
    assert json.loads(eigenpress.out) == {
        "artifacts": [
            {"name": "keep-0.8", "folder": "keep-0.8"},
            {"name": "keep-0.6", "folder": "keep-0.6"},
        ]
    }
    assert [name for _, name, _ in done] == ["keep-0.8", "keep-0.6"]

"""The command line, against an HTTP server in place of the API."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from service.cli import server
from service.log_lines import UVICORN_LOG
from tests.fixtures.command_line import JOB, JOB_ID, Api, Eigenpress

COMMANDS = [
    "submit", "estimate", "jobs", "show", "watch", "events", "logs", "label", "priority", "cancel",
    "retry", "delete", "report", "download", "datasets", "webhooks", "keys", "tenants",
    "audit", "serve", "api", "dispatcher", "migrate", "expand",
]  # fmt: skip


def test_it_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "ray", "boto3", "sqlalchemy", "alembic", "fastapi",
             "uvicorn", "numpy", "pyarrow", "psutil", "filelock", "huggingface_hub"]  # fmt: skip
    code = f"import sys, service.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], *[[command, "-h"] for command in COMMANDS]])
def test_everything_has_its_help(eigenpress: Eigenpress, arguments: list[str]) -> None:
    assert eigenpress(*arguments) == 0
    assert "Usage: eigenpress" in eigenpress.out


def test_the_help_lists_every_command(eigenpress: Eigenpress) -> None:
    eigenpress("--help")
    assert all(f"│ {command} " in eigenpress.out for command in COMMANDS)


def test_the_help_tells_what_the_exit_status_means(eigenpress: Eigenpress) -> None:
    eigenpress("--help")
    told = " ".join(eigenpress.out.split())
    assert "0 for success, 1 for a failure, 2 for a wrong command line and 130 after Ctrl-C" in told


GROUPS = {
    "datasets": ("upload", "list"),
    "webhooks": ("create", "list", "test", "deliveries", "redeliver", "enable", "rotate"),
    "keys": ("create", "list", "revoke"),
    "tenants": ("create", "change", "list", "usage"),
}
"""Commands that have commands."""


def test_every_command_with_a_result_has_it_as_json(eigenpress: Eigenpress) -> None:
    of_groups = [(group, name) for group, names in GROUPS.items() for name in names]
    single = [(name,) for name in COMMANDS[: COMMANDS.index("serve")] if name not in GROUPS]
    for command in (*single, *of_groups):
        assert eigenpress(*command, "--help") == 0
        assert "--json" in eigenpress.out, command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_commands(shell: str) -> None:
    asked = {
        "bash": {"COMP_WORDS": "eigenpress ca", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "eigenpress ca"},
        "fish": {
            "_TYPER_COMPLETE_ARGS": "eigenpress ca",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    }[shell]
    environment = {**os.environ, **asked, "_EIGENPRESS_COMPLETE": f"complete_{shell}"}
    command = [sys.executable, "-m", "service.cli.main"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "cancel" in done.stdout, done.stderr
    assert "submit" not in done.stdout


def test_what_a_server_sends_is_shown_escaped(eigenpress: Eigenpress, api: Api) -> None:
    odd = "\x1b[2J\ud800"
    problem = {"code": "odd", "detail": f"nothing at {odd}", "param": odd}
    api.answers[f"GET /v1/jobs/{JOB_ID}"] = (422, problem)
    assert eigenpress("watch", JOB_ID) == 1
    assert eigenpress.err == r"Error: nothing at \x1b[2J\ud800 odd, \x1b[2J\ud800"
    api.answers["POST /v1/jobs"] = (201, JOB | {"id": odd})
    job = ("submit", "--model", ".", "--data", ".", "--keep", "0.8")
    assert eigenpress(*job) == 0
    assert eigenpress.out == "\\x1b[2J\\ud800\n"


def test_arguments_that_are_not_utf_8(eigenpress: Eigenpress, api: Api) -> None:
    api.answers["POST /v1/jobs"] = (422, {"code": "invalid_parameter", "detail": "model.path: no"})
    assert eigenpress("submit", "--model", "/m\udcff", "--data", ".", "--keep", "0.8") == 1
    assert api.bodies[0]["model"]["path"] == "/m\udcff"
    assert eigenpress("submit", "--file", "\udcff\x1b.json") == 2
    assert r"\udcff\x1b.json: No such file" in eigenpress.err
    assert eigenpress("cancel", "\udcff") == 1


def test_the_version_is_the_package_s(eigenpress: Eigenpress) -> None:
    assert eigenpress("--version") == 0
    assert eigenpress.out.strip() == version("eigenpress")


def test_submit_sends_the_job_and_prints_its_id_alone(api: Api, eigenpress: Eigenpress) -> None:
    job = "--model /m --data /d --keep 0.8 --keep 0.6 --pattern *.py --workers 2"
    assert eigenpress("submit", *job.split(), "--evaluate", "prose=/p") == 0
    assert eigenpress.out == f"{JOB_ID}\n"
    assert f"eigenpress watch {JOB_ID}" in eigenpress.err
    assert api.bodies == [
        {
            "model": {"source": "local", "path": "/m"},
            "calibration": {"data": {"source": "local", "path": "/d", "pattern": "*.py"}},
            "targets": [{"keep": 0.8}, {"keep": 0.6}],
            "evaluation": {
                "datasets": [{"name": "prose", "data": {"source": "local", "path": "/p"}}]
            },
            "workers": 2,
        }
    ]


def test_submit_says_how_urgent_and_how_long(api: Api, eigenpress: Eigenpress) -> None:
    job = "--model /m --data /d --keep 0.8 --priority -5 --queue-limit 60 --run-limit 3600"
    assert eigenpress("submit", *job.split()) == 0
    (body,) = api.bodies
    assert body["priority"] == -5
    assert body["limits"] == {"queue_seconds": 60, "run_seconds": 3600}


def test_submit_sends_a_file_as_it_is(api: Api, eigenpress: Eigenpress, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"anything": ["the server", "judges"]}')
    assert eigenpress("submit", "--file", "job.json") == 0
    assert api.bodies == [{"anything": ["the server", "judges"]}]


@pytest.mark.usefixtures("api")
def test_submit_may_watch(eigenpress: Eigenpress) -> None:
    assert eigenpress("submit", "--file", _job_file(), "--watch") == 0
    assert eigenpress.out.splitlines()[0] == JOB_ID
    assert "succeeded" in eigenpress.out


ESTIMATE: dict[str, Any] = {
    **dict.fromkeys(("model", "workers", "waits", "memory", "driver_memory", "seconds")),
    **{key: [] for key in ("targets", "problems", "unknown")},
    "tokens": 65_536,
}


def test_estimate_takes_the_job_of_submit_and_queues_nothing(
    api: Api, eigenpress: Eigenpress
) -> None:
    api.answers["POST /v1/estimates"] = (200, ESTIMATE)
    job = "--model /m --data /d --keep 0.8 --bytes 0.3 --precisions transformers --workers 2"
    assert eigenpress("estimate", *job.split()) == 0
    assert "Calibrates on 65,536 tokens." in eigenpress.out
    del api.answers["POST /v1/estimates"]
    assert eigenpress("submit", *job.split()) == 0
    estimated, submitted = api.bodies
    assert estimated == submitted


def test_the_status_of_an_estimate_tells_whether_the_job_would_be_refused(
    api: Api, eigenpress: Eigenpress
) -> None:
    problem = {"code": "data_not_found", "detail": "Nothing.", "param": "calibration.data"}
    api.answers["POST /v1/estimates"] = (200, ESTIMATE | {"problems": [problem]})
    assert eigenpress("estimate", "--file", _job_file()) == 1
    assert "data_not_found, calibration.data" in eigenpress.out
    assert eigenpress("estimate", "--keep", "0.8") == 2
    assert "--model: required" in eigenpress.err


def _job_file(content: str = "{}") -> str:
    Path("job.json").write_text(content)
    return "job.json"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "/d", "--keep", "0.8"], "--model: required, unless --file is given"),
        (["--model", "/m", "--keep", "0.8"], "--data: required, unless --file is given"),
        (["--model", "/m", "--data", "/d"], "--keep: required, unless --file is given"),
        (["--model", "/m", "--data", "/d", "--keep", "half"], "'half' is not a fraction such as"),
        (["--model", "/m", "--data", "/d", "--keep", "80"], "for 80 percent, type 0.8"),
        (["--model", "/m", "--data", "/d", "--keep", "62.5%"], "for 62.5 percent, type 0.625"),
        (["--model", "/m", "--data", "/d", "--keep", "1"], "'1' is not between 0 and 1"),
        (["--model", "/m", "--data", "/d", "--keep", ".8", "--name", "my model"], "as my-model"),
        (["--model", "/m", "--data", "/d", "--keep", "0.8", "--workers", "-1"], "--workers"),
        (["--bytes", "0.3", "--optimize", "speed"], "--optimize: does nothing without --keep"),
        (["--keep", "0.8", "--precisions", "vllm"], "--precisions: does nothing without --bytes"),
        (["--keep", "0.8", "--embedding-bits", "8"], "--embedding-bits: does nothing without"),
        (["--model", "org/m", "--data", "/d", "--keep", "0.8"], "of the hub is hub:org/m"),
        (["--model", "/m", "--data", "/d", "--keep", "0.8", "--method", "magic"], "--method"),
        (["--model", "hub:m@main"], "hub:org/name@<40 hex digits>"),
        (["--model", "/m", "--data", "ftp://d"], "s3://bucket/prefix"),
        (["--model", "/m", "--data", "/d", "--keep", ".8", "--evaluate", "/p"], "NAME=DATA"),
        (["--file", "nowhere.json"], "nowhere.json: No such file"),
        (["--file", "."], ".: Is a directory"),
        (["--file", "job.json", "--scope", "model"], "--scope: does nothing without --keep"),
        (["--file", "job.json", "--label", "Team=ml"], "--label: 'Team=ml' is not NAME=VALUE"),
        (["--file", "job.json", "--label", "team"], "such as team=ml"),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_explained(
    api: Api, eigenpress: Eigenpress, arguments: list[str], complaint: str
) -> None:
    _job_file()
    assert eigenpress("submit", *arguments) == 2
    assert complaint in eigenpress.err
    assert api.bodies == []


@pytest.mark.parametrize(("content", "complaint"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_a_file_that_is_no_job_is_explained(
    eigenpress: Eigenpress, content: str, complaint: str
) -> None:
    assert eigenpress("submit", "--file", _job_file(content)) == 2
    assert complaint in eigenpress.err


def test_a_refusal_says_what_and_where(api: Api, eigenpress: Eigenpress) -> None:
    problem = {"code": "model_not_found", "detail": "No model at [/m].", "param": "model.path"}
    api.answers["POST /v1/jobs"] = (422, problem)
    assert eigenpress("submit", "--file", _job_file()) == 1
    assert eigenpress.err == "Error: No model at [/m]. model_not_found, model.path in job.json"
    assert eigenpress("submit", "--model", "/m", "--data", "/d", "--keep", "0.8") == 1
    assert eigenpress.err == "Error: No model at [/m]. model_not_found, model.path"


def test_no_server_is_said_with_its_address(eigenpress: Eigenpress) -> None:
    assert eigenpress("jobs", "--url", "http://127.0.0.1:9") == 1
    assert "Error: no answer from http://127.0.0.1:9" in eigenpress.err
    assert eigenpress.err.endswith("eigenpress serve; or name another: --url, EIGENPRESS_URL")


def test_an_unknown_job_is_answered_with_where_to_find_others(
    api: Api, eigenpress: Eigenpress
) -> None:
    api.answers["GET /v1/jobs/job-1"] = (404, {"code": "job_not_found", "detail": "No job-1."})
    assert eigenpress("show", "job-1") == 1
    assert eigenpress.err == "Error: No job-1. job_not_found List the jobs: eigenpress jobs"


def test_jobs_are_listed(api: Api, eigenpress: Eigenpress) -> None:
    api.answers["GET /v1/jobs"] = (200, {"jobs": [JOB, JOB], "next_cursor": "more"})
    assert eigenpress("jobs", "--state", "succeeded", "--limit", "2") == 0
    assert eigenpress.out.count(JOB_ID) == 2
    assert "--limit" in eigenpress.err


def test_no_jobs_is_no_table(api: Api, eigenpress: Eigenpress) -> None:
    api.answers["GET /v1/jobs"] = (200, {"jobs": [], "next_cursor": None})
    assert eigenpress("jobs") == 0
    assert (eigenpress.out, eigenpress.err) == ("", "No jobs.")
    assert eigenpress("watch") == 1


@pytest.mark.parametrize(("state", "status"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_watch_ends_as_the_newest_job_does(
    api: Api, eigenpress: Eigenpress, state: str, status: int
) -> None:
    error = {"code": "solve_failed", "detail": "No finite solution.", "param": None}
    ended = {**JOB, "state": state, "error": error if state == "failed" else None}
    api.answers[f"GET /v1/jobs/{JOB_ID}"] = (200, ended)
    assert eigenpress("watch") == status
    assert f"{JOB_ID} {state} after 0 s" in eigenpress.out
    assert ("No finite solution." in eigenpress.out) == (state == "failed")


def test_ctrl_c_leaves_a_watched_job_alone(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.cli.rendering.follow", interrupt)
    assert eigenpress("watch", JOB_ID) == 130
    assert f"The job continues. Follow it again: eigenpress watch {JOB_ID}" in eigenpress.err
    assert api.bodies == []


def test_cancel_says_where_the_job_stands(api: Api, eigenpress: Eigenpress) -> None:
    assert eigenpress("cancel", JOB_ID) == 0
    assert f"{JOB_ID} cancelling" in eigenpress.out
    conflict = {"code": "job_conflict", "detail": "The job has ended.", "param": None}
    api.answers[f"POST /v1/jobs/{JOB_ID}/cancel"] = (409, conflict)
    assert eigenpress("cancel", JOB_ID) == 1
    assert eigenpress.err == "Error: The job has ended. job_conflict"


def test_retry_queues_a_job_and_may_watch_it(api: Api, eigenpress: Eigenpress) -> None:
    assert eigenpress("retry", JOB_ID) == 0
    assert f"{JOB_ID} queued" in eigenpress.out
    assert eigenpress("retry", JOB_ID, "--watch") == 0
    conflict = {"code": "job_conflict", "detail": f"Job {JOB_ID} is running."}
    api.answers[f"POST /v1/jobs/{JOB_ID}/retry"] = (409, conflict)
    assert eigenpress("retry", JOB_ID) == 1
    assert "is running" in eigenpress.err


def test_a_download_does_not_leave_the_current_folder(api: Api, eigenpress: Eigenpress) -> None:
    listing = {"artifacts": [{"name": "../elsewhere", "files": []}]}
    api.answers[f"GET /v1/jobs/{JOB_ID}/artifacts"] = (200, listing)
    assert eigenpress("download", JOB_ID) == 1
    assert "is not a valid name for an artifact" in eigenpress.err


@pytest.mark.parametrize("command", ["api", "dispatcher", "serve"])
def test_a_wrong_setting_is_named_as_users_write_it(
    eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("EIGENPRESS_API_PORT", "http")
    assert eigenpress(command) == 2
    assert "Error: EIGENPRESS_API_PORT: Input should be a valid integer" in eigenpress.err


def test_a_password_without_its_url_is_explained(
    eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIGENPRESS_DATABASE_PASSWORD", "hidden")
    assert eigenpress("api") == 2
    assert "Error: EIGENPRESS_DATABASE_PASSWORD needs an EIGENPRESS_DATABASE_URL" in eigenpress.err
    assert "hidden" not in eigenpress.err


def test_a_settings_file_that_is_not_there_is_named(
    eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIGENPRESS_CONFIG", "/nowhere.toml")
    assert eigenpress("api") == 1
    assert "EIGENPRESS_CONFIG names /nowhere.toml, which is not a file" in eigenpress.err


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["api", "--port", "1"], ["uvicorn", "--factory", "api.app:create_app", "--host",
                                  "127.0.0.1", "--port", "1", "--log-config",
                                  str(UVICORN_LOG)]),
        (["dispatcher"], ["service.dispatch.dispatcher"]),
        (["expand", ".", "out"], ["workers.artifact.expand", ".", "out"]),
        (["expand", ".", "a.gguf", "--gguf"], ["workers.artifact.gguf_file", ".", "a.gguf"]),
    ],
)  # fmt: skip
def test_a_component_takes_the_place_of_the_command(
    eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch, arguments: list[str], module: list[str]
) -> None:
    became: list[list[str]] = []

    def execv(_path: str, command: list[str]) -> None:
        became.append(command)
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execv)
    assert eigenpress(*arguments) == 0
    assert became == [[sys.executable, "-m", *module]]


def test_migrate_makes_the_database(
    eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EIGENPRESS_DATA_DIR", str(tmp_path / "data"))
    assert eigenpress("migrate") == 0
    assert eigenpress("migrate") == 0
    assert (tmp_path / "data" / "eigenpress.db").exists()


@pytest.mark.parametrize("command", ["serve", "api", "dispatcher", "migrate"])
def test_a_client_without_the_server_s_packages_says_how_to_get_them(
    eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(server, "find_spec", lambda _name: None)
    assert eigenpress(command) == 1
    assert "pip install 'eigenpress[server]'" in eigenpress.err

"""`service.cli.rendering` turns the API's JSON into text for people."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from rich.console import Console, RenderableType

from service.cli.rendering import (
    PrintableConsole,
    details,
    follow,
    job_view,
    jobs_table,
    outcome,
    transfer_bar,
)
from service.client.client import Client

JOB = "job-01kah7m0q8v5n2c4x6z9b3d1fg"
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def stamp(seconds_ago: int) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")


def job(state: str = "running", **changes: Any) -> dict[str, Any]:
    steps = [
        step("resolve", 1, 1, "models", 300, 290),
        step("calibrate", 48, 1280, "sequences", 60),
    ]
    return {
        "id": JOB,
        "name": None,
        "state": state,
        "attempt": 1,
        "created_at": stamp(7300),
        "started_at": stamp(300),
        "finished_at": None,
        "steps": steps,
        "available_at": None,
        "error": None,
        "last_error": None,
        "spec": {"targets": [{"keep": 0.8}, {"max_perplexity_increase": 0.05}]},
        **changes,
    }


def step(
    name: str, done: int, total: int, unit: str, began: int, ended: int | None = None
) -> dict[str, Any]:
    return {
        "step": name,
        "done": done,
        "total": total,
        "unit": unit,
        "started_at": stamp(began),
        "finished_at": None if ended is None else stamp(ended),
    }


LEFT: dict[str, Any] = {
    "steps": [job()["steps"][0], job()["steps"][1] | {"seconds_left": 1540.2}],
    "time_left": {
        "seconds": 1860.0,
        "to_come": [{"step": "solve", "seconds": 12.0}, {"step": "publish", "seconds": None}],
        "reason": None,
    },
}


def shown(renderable: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_job_shows_every_step_with_those_to_come() -> None:
    lines = shown(job_view(job(name="first", **LEFT), NOW)).splitlines()
    assert lines[0].split() == ["first", "running", "31", "min", "0", "s", "left"]
    assert [line.split()[0] for line in lines[1:]] == [
        "resolve", "calibrate", "solve", "allocate", "assemble", "prove", "evaluate", "publish",
    ]  # fmt: skip
    assert lines[1].split()[2:] == ["1/1", "models", "10", "s"]
    assert "48/1,280 sequences" in lines[2]
    assert lines[2].rstrip().endswith("1 min 0 s, 25 min 40 s left")
    assert lines[3].split()[-3:] == ["takes", "12", "s"]
    assert lines[-1].split()[-1] != "s"  # nobody knows


def test_a_server_that_says_nothing_of_the_time_left() -> None:
    lines = shown(job_view(job(name="first"), NOW)).splitlines()
    assert lines[0].split() == ["first", "running"]
    assert lines[2].rstrip().endswith("sequences  1 min 0 s")


def test_the_time_left_or_why_it_is_not_known_is_a_detail() -> None:
    spec = job()["spec"] | {"method": "svd"}
    assert "left       31 min 0 s" in shown(details(job(spec=spec, **LEFT), NOW))
    unknown: dict[str, Any] = {"seconds": None, "to_come": [], "reason": "The job waits."}
    assert "left       The job waits." in shown(details(job(spec=spec, time_left=unknown), NOW))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"key_id": "k3x9v0qd27sp", "key_name": "laptop"}, "by         laptop (key k3x9v0qd27sp)"),
        ({"key_id": "admin", "key_name": None}, "by         key admin"),
    ],
)
def test_the_key_that_submitted_it_is_a_detail(key: dict[str, Any], said: str) -> None:
    spec = job()["spec"] | {"method": "svd"}
    assert said in shown(details(job(spec=spec, submitted_by=key), NOW))
    for unknown in (job(spec=spec, submitted_by=None), job(spec=spec)):
        assert "\nby " not in shown(details(unknown, NOW))


def test_a_list_says_how_much_is_left() -> None:
    assert "calibrate 48/1,280 sequences, 31 min 0 s left" in shown(jobs_table([job(**LEFT)], NOW))


def test_in_a_log_the_beginning_of_a_step_says_how_much_is_left() -> None:
    console = Console(file=io.StringIO(), width=40)
    later = job(time_left=LEFT["time_left"] | {"seconds": 5.0})
    with console.capture() as capture:
        follow(scripted(job(**LEFT), later, job("cancelled", finished_at=stamp(0))), JOB, console)
    begun = [line for line in capture.get().splitlines() if "calibrate began" in line]
    assert begun == ["attempt 1: calibrate began, 31 min 0 s left"]


def test_a_second_attempt_is_said_to_be_one() -> None:
    assert "attempt 2" in shown(job_view(job(attempt=2, steps=[]), NOW))


PAUSED = job(
    "queued",
    steps=[],
    started_at=None,
    available_at=stamp(-10),
    last_error={"code": "worker_lost", "detail": "A worker [died].", "param": None},
)


def test_a_pause_between_two_attempts_says_how_long_and_why() -> None:
    lines = shown(job_view(PAUSED, NOW)).splitlines()
    assert lines[0].endswith("queued  attempt 2 begins in 10 s")
    assert lines[1].strip() == "The attempt before failed: A worker [died]."
    later = NOW + timedelta(seconds=11)
    assert "attempt 2 begins when its turn comes" in shown(job_view(PAUSED, later))
    assert "attempt 2 begins in 10 s" in shown(jobs_table([PAUSED], NOW))


def test_in_a_log_a_failed_attempt_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=40)
    again = job(attempt=2, steps=[], last_error=PAUSED["last_error"])
    with console.capture() as capture:
        follow(scripted(PAUSED, again, job("cancelled", finished_at=stamp(0))), JOB, console)
    assert capture.get().splitlines()[:3] == [
        f"{JOB} queued, attempt 1",
        "attempt 1 failed: A worker [died]. (worker_lost)",
        f"{JOB} running, attempt 2",
    ]


def test_the_table_has_a_line_per_job() -> None:
    failed = job("failed", error={"code": "model_invalid"}, finished_at=stamp(180), name="second")
    lines = shown(jobs_table([job(), failed], NOW)).splitlines()
    assert lines[0].split() == ["JOB", "NAME", "STATE", "PROGRESS", "TARGETS", "SUBMITTED", "TOOK"]
    assert " ".join(lines[1].split()) == (
        f"{JOB} running calibrate 48/1,280 sequences 0.8, +5% perplexity 2 h 1 min ago"
    )
    assert lines[2].split()[:4] == [JOB, "second", "failed", "model_invalid"]
    assert lines[2].rstrip().endswith("2 min 0 s")


def test_ids_and_states_are_whole_on_a_narrow_terminal() -> None:
    text = shown(jobs_table([job("cancelling")], NOW), width=80)
    assert JOB in text
    assert "cancelling" in text


def test_what_users_wrote_is_not_read_as_markup() -> None:
    error = {"code": "model_invalid", "detail": "[red]no[/nonsense]", "param": "model.path"}
    text = shown(outcome(job("failed", error=error, finished_at=stamp(0))))
    assert "[red]no[/nonsense]" in text
    assert "model_invalid, model.path" in text
    assert "failed after 5 min 0 s" in text


def scripted(*jobs: dict[str, Any]) -> Client:
    left = iter(jobs)
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json=next(left)))
    return Client("http://server", transport=answer)


LIFE = [
    job("queued", attempt=0, steps=[], started_at=None),
    job("running", steps=[step("resolve", 0, 1, "models", 300)]),
    job("running"),
    job("succeeded", finished_at=stamp(0)),
]


def test_in_a_log_a_job_is_a_line_for_each_change() -> None:
    console = Console(file=io.StringIO(), width=40)
    with console.capture() as capture:
        ended = follow(scripted(*LIFE), JOB, console)
    assert ended["state"] == "succeeded"
    assert capture.get().splitlines() == [
        f"{JOB} queued",
        f"{JOB} running, attempt 1",
        "attempt 1: resolve began",
        "attempt 1: resolve 1/1 models in 10 s",
        "attempt 1: calibrate began",
        f"{JOB} succeeded after 5 min 0 s",
    ]


def test_warnings_are_said_once() -> None:
    console = Console(file=io.StringIO(), width=120)
    warned = job(warnings=[{"type": "texts.short", "message": "Only 5 of 64 sequences."}])
    follow(scripted(warned, warned, job("cancelled", finished_at=stamp(0))), JOB, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("attempt 1: warning: Only 5 of 64 sequences.") == 1
    assert "Warning: Only 5 of 64 sequences." in shown(job_view(warned, NOW))


def test_at_a_terminal_a_job_is_bars_and_ends_with_its_outcome() -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    follow(scripted(*LIFE), JOB, console)
    assert "━" in output.getvalue()
    assert "succeeded\x1b[0m after 5 min 0 s" in output.getvalue()


def test_a_transfer_shows_its_bytes() -> None:
    output = io.StringIO()
    with transfer_bar(Console(file=output, width=120, force_terminal=True), "keep-0.8") as progress:
        progress(500_000, 2_000_000)
        progress(2_000_000, 2_000_000)
    assert "keep-0.8" in output.getvalue()
    assert "2.0/2.0 MB" in output.getvalue()


ODD = "\x1b]0;owned\x07\x1b[2J\x9b1A\udcff\0"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_commands_the_terminal(terminal: bool) -> None:
    error = {"code": ODD, "detail": f"no {ODD}", "param": ODD}
    odd = job("failed", id=f"job{ODD}", name=ODD, error=error, last_error=error)
    odd["steps"][0]["unit"] = ODD
    console = PrintableConsole(
        file=io.StringIO(), width=400, force_terminal=terminal, color_system=None
    )
    with console.capture() as capture:
        console.print(jobs_table([odd], NOW))
        console.print(job_view(odd, NOW))
        console.print(outcome(odd), soft_wrap=True)
        console.print(f"plain {ODD}")
    text = capture.get()
    assert text.count(r"\x1b]0;owned") == 11
    assert text.replace("\n", "").isprintable()


def test_colours_and_the_cursor_still_work() -> None:
    file = io.StringIO()
    console = PrintableConsole(file=file, force_terminal=True, color_system="standard", width=80)
    with transfer_bar(console, "weights") as progress:
        progress(1, 2)
    assert "\x1b[" in file.getvalue()
    assert r"\x1b" not in file.getvalue()

"""The benchmark of many jobs: times from a job's history, memory that grows, and the verdict."""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Any

import pytest
from rich.console import Console

from bench.jobs import Finished, Load, handovers, report, step_seconds
from bench.jobs_memory import HEAD, Sample, growths, role, with_head

MIB = 1 << 20


def finished(number: int, *, created: float, submitted: float, ended: float) -> Finished:
    return Finished(f"job-{number}", "succeeded", None, created, submitted, ended, {})


def sample(count: int, memory: dict[str, int], **changes: Any) -> Sample:
    values: dict[str, Any] = {
        **dict.fromkeys((field.name for field in fields(Sample)), 0),
        "finished": count,
        "memory": memory,
        "open_files": dict.fromkeys(memory, 9),
        "at_rest": False,
    }
    return Sample(**values | changes)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "-m", "uvicorn", "--factory", "api.app:create_app"], "API"),
        (["python", "-m", "service.dispatch.dispatcher"], "dispatcher"),
        (["/lib/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp/r/raylet/raylet"], "gcs_server"),
        (["python", "/lib/ray/dashboard/dashboard.py", "--port=1"], "dashboard"),
        (["ray-dashboard-JobHead-0 (python -c from multiprocessing.x)"], "dashboard's modules"),
        (["ray::DashboardAgent"], "agent"),
        (["python", "-m", "workers.attempt.driver", "job-1", "1"], "jobs"),
        (["ray::JobSupervisor"], "jobs"),
        (["ray::IDLE"], "jobs"),
    ],
)
def test_processes_are_known_by_their_command_lines(command: list[str], name: str) -> None:
    assert role(command) == name


def test_growth_is_fitted_from_a_job_on() -> None:
    warming_up = sample(10, {"API": 1 * MIB, "agent": 1 * MIB})
    later = [
        sample(count, {"API": 100 * MIB, "agent": 100 * MIB + count * MIB, "jobs": count * MIB})
        for count in (50, 60, 70, 80)
    ]

    grown = growths([warming_up, *later], since=50)

    assert set(grown) == {"API", "agent", HEAD}
    assert grown["API"].per_job == pytest.approx(0)
    assert grown["API"].flat
    assert grown["agent"].per_job == pytest.approx(MIB)
    assert grown["agent"].share == pytest.approx(30 / 150)
    assert not grown["agent"].flat


def test_ray_s_head_is_the_sum_of_its_parts() -> None:
    memory = {"gcs_server": 1, "raylet": 2, "agent": 4, "API": 8, "bucket": 16, "jobs": 32}
    assert with_head(memory) == memory | {HEAD: 7}


def test_a_free_place_counts_from_the_end_of_the_job_before() -> None:
    jobs = [
        finished(1, created=0, submitted=1, ended=10),
        finished(2, created=0, submitted=2, ended=30),
        finished(3, created=0, submitted=12, ended=20),  # in the place of 1
        finished(4, created=23, submitted=24, ended=40),  # in that of 3, three seconds later
    ]
    assert handovers(jobs, at_once=2) == [1, 2, 2, 1]


def test_steps_begin_when_the_workers_are_placed() -> None:
    def at(seconds: int) -> str:
        return f"2026-01-01T00:00:{seconds:02}+00:00"

    job = {
        "steps": [
            {"step": "resolve", "started_at": at(4), "finished_at": at(9)},
            {"step": "calibrate", "started_at": at(9), "finished_at": at(12)},
        ]
    }
    events = [
        {"type": "attempt.submitted", "at": at(1)},
        {"type": "workers.placed", "at": at(7)},
    ]

    steps = step_seconds(job, events)

    assert steps == {"driver": 3, "actors": 3, "resolve": 2, "calibrate": 3}


LOAD = Load(jobs=2, at_once=1, waiting=1)
BOTH = [
    finished(1, created=0, submitted=1, ended=10),
    finished(2, created=0, submitted=11, ended=20),
]
FLAT = [sample(count, {"API": 100 * MIB}) for count in (1, 2, 3)]
QUIET = sample(2, {"API": 100 * MIB}, at_rest=True)


def reported(jobs: list[Finished], samples: list[Sample]) -> tuple[list[str], str]:
    printed = io.StringIO()
    return report(Console(file=printed, width=150), LOAD, jobs, samples), printed.getvalue()


def test_jobs_that_succeed_in_flat_memory_are_as_they_should_be() -> None:
    problems, printed = reported(BOTH, [*FLAT, QUIET])

    assert problems == []
    assert "6.0 jobs per minute" in printed
    assert "memory is flat" in printed


def test_nothing_is_said_of_memory_after_few_samples() -> None:
    problems, printed = reported(BOTH, [*FLAT[:2], QUIET])

    assert problems == []
    assert "too few samples to judge the memory" in printed


@pytest.mark.parametrize(
    ("jobs", "samples", "problem"),
    [
        (BOTH[:1], [*FLAT, QUIET], "only 1 of 2 jobs have ended"),
        (
            [BOTH[0], Finished("job-2", "failed", {"code": "worker_lost"}, 0, 11, 20, {})],
            [*FLAT, QUIET],
            "job-2 failed: {'code': 'worker_lost'}",
        ),
        (
            BOTH,
            [sample(count, {"API": count * MIB}) for count in (1, 2, 3)] + [QUIET],
            "API grew by 200%",
        ),
        (
            BOTH,
            [sample(count, {"raylet": count * MIB}) for count in (1, 2, 3)] + [QUIET],
            "all of Ray's head grew by 200%",
        ),
        (
            BOTH,
            [*FLAT, sample(2, {"API": MIB}, at_rest=True, processes_of_jobs=3)],
            "left of the jobs: 3 processes",
        ),
        (
            BOTH,
            [*FLAT, sample(2, {"API": MIB}, at_rest=True, scratch=7)],
            "left of the jobs: 7 bytes of scratch files",
        ),
        ([], [], "only 0 of 2 jobs have ended"),
    ],
)
def test_what_is_wrong_is_named(jobs: list[Finished], samples: list[Sample], problem: str) -> None:
    problems, printed = reported(jobs, samples)

    assert problems == [problem]
    assert problem in printed

"""The scenarios at full size, each with its seeds; the document shows their figures."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from bench import demo_data
from service.cluster.ray_jobs import RayCluster
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.standalone.ports import choose_port
from service.standalone.ray_head import LocalRay
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from service.store.migrate import migrate
from tests.chaos.damage import damage_artifacts
from tests.chaos.faulty import run_faulty, short_pauses
from tests.chaos.installation import (
    QUICK,
    Installation,
    process_environment,
    running_installation,
    serving_api,
    tiny_spec,
)
from tests.chaos.kills import (
    Kill,
    Killed,
    Undisturbed,
    every_pair,
    left_over,
    random_moments,
    run_kills,
)
from tests.chaos.outages import RealJobs, run_outages
from tests.chaos.suspended import run_suspended
from tests.chaos.unwritable import (
    S3_KEYS,
    allow_writing,
    may_mount,
    mounted,
    run_full_bucket,
    run_full_scratch,
    run_read_only_bucket,
)
from tests.fixtures.claiming import assert_claimed_once
from tests.fixtures.damage import damage_checkpoints_of_a_job
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.rivals import publish_by_rivals
from tests.fixtures.storage import s3_settings_for
from tests.fixtures.waiting import wait_until

FAULT_SEEDS = range(1, 51)
FAULT_JOBS = 10
FAULTS_AT_ONCE = 4
KILLS_SEED = 4
RANDOM_KILLS = 20
LANES = 2
"""The number of parallel installations that share the kills; most of a job uses one core."""


class Outcome(TypedDict, total=False):
    """The results of a scenario; `figures` are numbers by label."""

    title: str
    seeds: str
    figures: dict[str, Any]
    rows: list[dict[str, Any]]
    problems: list[str]
    seconds: int
    machine: str
    date: str


def claimers(folder: Path) -> Outcome:  # noqa: ARG001
    """Claim jobs with one process per claimer."""
    figures: dict[str, Any] = {"claimers": 16, "jobs": 10_000}
    problems = []
    with PostgresServer() as server:
        migrate(server.url)
        try:
            claims = assert_claimed_once(server.url, jobs=10_000, processes=16, threads=1)
            figures["claims per second"] = round(claims.per_second)
        except AssertionError as error:
            problems.append(f"not claimed once each: {error}")
    return {"seeds": "-", "figures": figures, "problems": problems}


def publishers(folder: Path) -> Outcome:
    """Publish at once, in half of the rounds with one attempt, in the others with one for each."""
    figures: dict[str, Any] = {"publishers": 32, "artifacts": 100}
    problems = []
    with LocalS3(folder / "s3") as s3:
        storage = ObjectStorage.from_settings(s3_settings_for(s3, folder / "data"))
        try:
            done = publish_by_rivals(storage, folder / "folders", rounds=100, publishers=32)
            figures |= {"refused": done.refused, "whole reads meanwhile": done.reads}
        except AssertionError as error:
            problems.append(f"not exactly one winner in each round: {error}")
    return {"seeds": "-", "figures": figures, "problems": problems}


def faults(folder: Path) -> Outcome:
    """Inject faults, for every other seed on PostgreSQL, for the others on SQLite."""
    with PostgresServer() as server, LocalS3(folder / "s3") as s3:
        each = []
        for seed in FAULT_SEEDS:
            url = server.create_database(f"seed-{seed}") if seed % 2 else None
            changes = QUICK | {"database_url": url, "max_running_jobs": 4}
            each.append(s3_settings_for(s3, folder / f"seed-{seed}", **changes))
            migrate(each[-1].database)
        run = partial(run_faulty, jobs=FAULT_JOBS)
        with short_pauses(), ThreadPoolExecutor(FAULTS_AT_ONCE) as threads:
            all_done = list(threads.map(run, each, FAULT_SEEDS))
    return {
        "seeds": f"{FAULT_SEEDS[0]} to {FAULT_SEEDS[-1]}",
        "figures": {
            "jobs": sum(done.jobs for done in all_done),
            "attempts": sum(done.attempts for done in all_done),
            "of them died": sum(done.deaths for done in all_done),
            "calls": sum(done.calls for done in all_done),
            "faults": sum(done.faults for done in all_done),
            "whole artifacts read meanwhile": sum(done.reads for done in all_done),
        },
        "problems": [f"seed {done.seed}: {p}" for done in all_done for p in done.problems],
    }


def kills(folder: Path) -> Outcome:
    with ProcessPoolExecutor(LANES, multiprocessing.get_context("spawn")) as lanes:
        each = [lanes.submit(_lane, folder / f"lane-{lane}", lane) for lane in range(LANES)]
        results = [future.result() for future in each]
    rows = [asdict(row) for killed, _ in results for row in killed]
    order = [(kill.victim, kill.step) for kill in every_pair()]
    rows.sort(
        key=lambda row: (
            len(order) if row["at_random"] else order.index((row["victim"], row["step"]))
        )
    )
    return {
        "title": "A tiny model: every process in every step, then random moments.",
        "seeds": f"{KILLS_SEED} (random moments)",
        "figures": _kill_figures(rows),
        "rows": rows,
        "problems": [
            *(f"{row['victim']}, {row['step']}: {p}" for row in rows for p in row["problems"]),
            *(problem for _, problems in results for problem in problems),
        ],
    }


def _lane(folder: Path, lane: int) -> tuple[list[Killed], list[str]]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and stop all parts
    with running_installation(folder) as installation:
        undisturbed = Undisturbed(installation, tiny_spec(installation.inputs))
        moments = random_moments(KILLS_SEED, RANDOM_KILLS, undisturbed.seconds)
        mine = [*every_pair(), *moments][lane::LANES]
        return _killed(installation, undisturbed, mine), _left_over(installation)


def _killed(
    installation: Installation, undisturbed: Undisturbed, kills: Sequence[Kill]
) -> list[Killed]:
    """Run the kills and print each result at once, because they take long."""
    done = []
    for killed in run_kills(installation, undisturbed, kills):
        print(f"  {killed}", flush=True)
        done.append(killed)
    return done


def _left_over(installation: Installation) -> list[str]:
    """The problems in the bucket after the cleanup of all jobs."""
    store = installation.store
    wait_until(lambda: not store.claims.to_clean(), 60)
    return left_over(installation, [job.id for job in store.records.list_jobs(limit=1000)])


def _kill_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    settled = [row["settle_seconds"] for row in rows]
    return {
        "kills": len(rows),
        "jobs succeeded with the same bytes": sum(not row["problems"] for row in rows),
        "attempts at most": max(row["attempts"] for row in rows),
        "seconds to the base line at most": max(settled),
    }


def kills_smollm2(folder: Path) -> Outcome:
    """Five different kills on SmolLM2-135M-Instruct."""
    model = demo_data.model_file()
    with running_installation(folder, roots=(model.parent,)) as installation:
        undisturbed = Undisturbed(installation, smollm2_spec(installation.inputs, model))
        rows = [asdict(row) for row in _killed(installation, undisturbed, SMOLLM2_KILLS)]
        problems = _left_over(installation)
    return {
        "title": "SmolLM2-135M-Instruct.",
        "seeds": "-",
        "figures": {
            **_kill_figures(rows),
            "seconds for the undisturbed job": round(undisturbed.seconds),
        },
        "rows": rows,
        "problems": [p for row in rows for p in row["problems"]] + problems,
    }


SMOLLM2_KILLS = (
    Kill("driver", Step.CALIBRATE),
    Kill("worker", Step.SOLVE),
    Kill("s3", Step.PUBLISH),
    Kill("raylet", Step.EVALUATE),
    Kill("dispatcher", Step.ASSEMBLE),
)


def smollm2_spec(inputs: Path, model: Path) -> JobSpec:
    """A job with just enough tokens to run every step on a real model."""
    inputs.mkdir(exist_ok=True)
    demo_data.copy_standard_library(inputs / "stdlib")
    data = {"source": "local", "path": str(inputs / "stdlib"), "pattern": "**/*.py"}
    return JobSpec.model_validate(
        {
            "name": "smollm2",
            "model": {"source": "local", "path": str(model)},
            "calibration": {
                "data": data,
                "sequences": 16,
                "sequence_length": 64,
                "batch_size": 2,
            },
            "targets": [{"keep": 0.8}],
            "evaluation": {"sequences": 4, "decode_tokens": 0},
        }
    )


def postgres(folder: Path) -> Outcome:
    """Run 1,000 jobs with two dispatchers, 50 of them real, while PostgreSQL restarts."""
    inputs = folder / "inputs"
    spec = tiny_spec(inputs)
    with ExitStack() as running:
        server = running.enter_context(PostgresServer())
        s3 = running.enter_context(LocalS3(folder / "s3"))
        migrate(server.url)
        dashboard = choose_port(0, "")
        changes = QUICK | {
            "database_url": server.url,
            "ray_address": f"http://127.0.0.1:{dashboard}",
            "allowed_roots": (inputs,),
            "max_running_jobs": 2 * REAL_JOBS_AT_ONCE,
            "max_running_jobs_per_tenant": REAL_JOBS_AT_ONCE,
            "poll_seconds": 0.2,
        }
        settings = s3_settings_for(s3, folder / "data", **changes)
        ray = LocalRay(
            folder / "ray",
            num_cpus=REAL_JOBS_AT_ONCE,
            num_gpus=REAL_JOBS_AT_ONCE,
            dashboard_port=dashboard,
            env=process_environment(settings, folder / "tmp"),
        )
        running.enter_context(ray)
        cluster = running.enter_context(RayCluster(settings.ray_address, settings.driver_command))
        done = run_outages(
            server,
            settings,
            seed=POSTGRES_SEED,
            jobs=1_000 - REAL_JOBS,
            pauses=(5, 40),
            least_restarts=20,
            step_seconds=0.1,
            real=RealJobs(cluster, spec, REAL_JOBS),
        )
    return {
        "seeds": str(POSTGRES_SEED),
        "figures": {
            "jobs": done.jobs,
            "of them real": done.real_jobs,
            "restarts of PostgreSQL": done.restarts,
            "attempts": done.attempts,
        },
        "problems": done.problems,
    }


POSTGRES_SEED = 7
REAL_JOBS = 50
REAL_JOBS_AT_ONCE = 3


def suspension(folder: Path) -> Outcome:
    """Stop a real attempt beyond its lease, and continue it while the next one runs."""
    with running_installation(folder, cpus=4, gpus=2, max_running_jobs=2) as installation:
        undisturbed = Undisturbed(installation, tiny_spec(installation.inputs))
        all_done = [
            run_suspended(installation, undisturbed, step, whole=whole)
            for step in (Step.CALIBRATE, Step.EVALUATE, Step.PUBLISH)
            for whole in (False, True)
        ]
    return {
        "seeds": "-",
        "figures": {
            "attempts stopped and continued": len(all_done),
            "processes stopped": sum(done.processes for done in all_done),
            "rows written by stale attempts": sum(done.stale_rows for done in all_done),
            "objects of theirs that count": sum(done.stale_objects for done in all_done),
        },
        "problems": [f"{done.step}: {p}" for done in all_done for p in done.problems],
    }


def disks(folder: Path) -> Outcome:
    """Fill a worker's disk, then the bucket's; then deny write access to the bucket."""
    if not may_mount(folder / "mount"):
        problem = "skipped: this user may not mount a file system"
        return {"seeds": "-", "figures": {}, "problems": [problem]}
    with mounted(folder / "s3" / "data", BUCKET_BYTES), ExitStack() as running:
        with LocalS3(folder / "s3") as s3:
            allow_writing(s3)
        installation = running.enter_context(
            running_installation(folder, max_attempts=2, retry_timeout_seconds=20, **S3_KEYS)
        )
        undisturbed = Undisturbed(installation, tiny_spec(installation.inputs))
        all_done = [
            run_full_scratch(installation, undisturbed),
            run_full_bucket(installation, undisturbed),
            run_read_only_bucket(installation, undisturbed),
        ]
    return {
        "seeds": "-",
        "figures": {f"on the {done.where}": f"`{done.code}`" for done in all_done},
        "problems": [f"{done.where}: {p}" for done in all_done for p in done.problems],
    }


BUCKET_BYTES = 200 * 2**20


def damage(folder: Path) -> Outcome:
    """Check that `download` detects 500 damages to artifacts, and `resume` 500 to checkpoints."""
    with LocalS3(folder / "s3") as s3, serving_api(s3_settings_for(s3, folder / "data")) as api:
        artifacts = damage_artifacts(api.settings, api.url, folder, seed=1, count=500)
    with LocalS3(folder / "s3") as s3:
        (folder / "resume").mkdir()
        missed = damage_checkpoints_of_a_job(folder / "resume", s3, trials=500, seed=2)
    return {
        "seeds": "1, 2",
        "figures": {
            "damages to artifacts": artifacts.done,
            "noticed and named by `download`": artifacts.noticed,
            "damages to checkpoints": 500,
            "refused by name when resuming": 500 - len(missed),
        },
        "problems": artifacts.problems + missed,
    }

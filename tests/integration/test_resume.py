"""Attempts that resume killed ones publish the same bytes: real workers and a real bucket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from service.domain.job import Job
from service.domain.placement import PLACED
from service.domain.prediction import PREDICTED
from service.domain.states import JobState
from service.errors import StorageReadOnly, StorageUnavailable, VersionMismatch
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from tests.fixtures.damage import damage_checkpoints
from tests.fixtures.in_process import Killed, LocalInstallation, Moment, answer_for_ray
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from workers.actors import worker
from workers.actors.versions import own_versions
from workers.attempt import pipeline

STEPS = [
    Moment("resume", 1),
    Moment("calibrate", 7),
    Moment("calibrate", 16),
    Moment("statistics", 11),
    Moment("calibrate", 3),
    Moment("solve", 2),
    Moment("measure_block", 3),
    Moment("assemble", 1),
    Moment("begin_measuring", 1),
    Moment("measured", 1),
    Moment("decode_speed", 1),
    Moment("publish", 1),
    Moment("clean"),
]
"""When the attempts of one job are killed, one after the other."""

WORKERS, BLOCKS, GROUPS = 2, 4, 16
PASSES = WORKERS * (BLOCKS + 1 + BLOCKS)


def create(installation: LocalInstallation) -> Job:
    """A job for a model of four blocks."""
    folder = installation.inputs / "deep-llama"
    if not folder.exists():
        save_tiny_model(folder, tiny_llama_config(num_hidden_layers=BLOCKS))
    return installation.create(model={"source": "local", "path": str(folder)})


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, local_s3: LocalS3
) -> dict[tuple[str, str], str]:
    """The weights that the job of every test here publishes when nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        answer_for_ray(patch)
        installation = LocalInstallation(tmp_path_factory.mktemp("undisturbed"), local_s3, patch)
        job = create(installation)
        installation.attempt()
        assert installation.store.records.get(job.id).state is JobState.SUCCEEDED
        assert installation.events(job, "attempt.resumed") == []
        weights = installation.weights(job)
        installation.store.close()
        return weights


def test_a_job_killed_at_every_step_ends_with_the_same_bytes(
    local_installation: LocalInstallation, undisturbed: dict[tuple[str, str], str]
) -> None:
    job = create(local_installation)
    calls = [local_installation.attempt(end) for end in STEPS]
    assert local_installation.store.records.get(job.id).state is JobState.QUEUED
    calls.append(local_installation.attempt())
    assert local_installation.store.records.get(job.id).state is JobState.SUCCEEDED
    assert local_installation.weights(job) == undisturbed
    assert local_installation.events(job, "checkpoint.refused") == []
    # Every group was solved once, but for the one or two that were under way, and artifacts once.
    assert sum(made["solve"] for made in calls) <= GROUPS + 2
    assert sum(made["publish"] for made in calls) == 2 + 1  # once before it could be noted
    # Once the last two blocks were solved, no worker went back through them.
    assert all(made["calibrate"] <= WORKERS * (2 + 3) for made in calls[3:])


def test_each_attempt_says_what_it_takes_over(local_installation: LocalInstallation) -> None:
    job = create(local_installation)
    for end in (Moment("calibrate", 6), Moment("solve", 8), Moment("clean")):
        local_installation.attempt(end)
    local_installation.attempt()
    second, third = local_installation.events(job, "attempt.resumed")
    assert 6 <= second["groups"] <= 8
    assert second["passes"] >= PASSES - WORKERS * (2 + 3)
    assert (second["measurements"], second["artifacts"]) == (0, [])
    assert (third["passes"], third["groups"]) == (PASSES, GROUPS)
    assert third["measurements"] > 6
    assert third["artifacts"] == ["keep-0.7", "keep-0.5"]
    first, anew, again, last, known = local_installation.events(job, PREDICTED)
    assert first["resumed"] == anew["resumed"] == {}
    assert again["resumed"]["calibrate"] == second["passes"] / PASSES
    assert again["resumed"]["solve"] == second["groups"] / GROUPS
    done = dict.fromkeys(("calibrate", "solve", "publish"), 1.0)
    assert last["resumed"] == done
    assert known["resumed"] == {**done, "evaluate": 1.0}
    assert first["seconds"] == last["seconds"]


def test_steps_begin_where_they_were_left(
    local_installation: LocalInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        "workers.attempt.progress.Progress.write",
        lambda _self, step, done, total, _unit: told.append((step, done, total)),
    )
    create(local_installation)
    local_installation.attempt(Moment("solve", 8))
    told.clear()
    local_installation.attempt()
    passes = [done for step, done, total in told if (step, total) == ("calibrate", PASSES)]
    assert passes[0] >= PASSES - WORKERS * (2 + 3)
    assert passes[-1] == PASSES
    groups = [done for step, done, total in told if (step, total) == ("solve", GROUPS)]
    assert groups[0] >= GROUPS / 2
    assert groups[-1] == GROUPS


@pytest.mark.parametrize("last", [3, 12, 30, 50])
def test_killed_while_a_checkpoint_is_written(
    local_installation: LocalInstallation,
    undisturbed: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    last: int,
) -> None:
    put = ObjectStorage.put_bytes
    lock, left = threading.Lock(), [last]

    def put_so_often(self: ObjectStorage, key: str, data: bytes, **options: Any) -> bool:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        return put(self, key, data, **options)

    job = create(local_installation)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "put_bytes", put_so_often)
        local_installation.attempt()
    assert local_installation.store.records.get(job.id).state is JobState.QUEUED
    local_installation.attempt()
    assert local_installation.weights(job) == undisturbed
    assert local_installation.events(job, "checkpoint.refused") == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("code", lambda patch: patch.setattr(pipeline, "code_digest", lambda _: "other")),
        ("libraries", lambda patch: patch.setattr(pipeline, "library_versions", dict)),
    ],
)
def test_what_another_computation_has_left_is_refused_by_name(
    local_installation: LocalInstallation,
    undisturbed: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    job = create(local_installation)
    local_installation.attempt(Moment("assemble"))
    before = local_installation.checkpoints(job)
    change(monkeypatch)
    local_installation.attempt()
    (refused,) = local_installation.events(job, "checkpoint.refused")
    assert f": {name} has changed since" in refused["reason"]
    assert all(key.startswith(refused["key"]) for key in before)
    assert not set(before) & set(local_installation.checkpoints(job))
    assert local_installation.events(job, "attempt.resumed") == []
    assert local_installation.weights(job) == undisturbed


def test_what_another_computation_has_published_is_published_anew(
    local_installation: LocalInstallation,
    undisturbed: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = create(local_installation)
    local_installation.attempt(Moment("clean"))
    before = local_installation.store.records.artifacts(job.id)
    assert len(before) == 2
    monkeypatch.setattr(pipeline, "code_digest", lambda _: "other")
    calls = local_installation.attempt()
    assert calls["publish"] == 2
    assert {
        artifact.prefix for artifact in local_installation.store.records.artifacts(job.id)
    }.isdisjoint(artifact.prefix for artifact in before)
    assert local_installation.weights(job) == undisturbed


def test_what_is_refused_need_not_be_removed(
    local_installation: LocalInstallation,
    undisturbed: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise StorageReadOnly

    job = create(local_installation)
    local_installation.attempt(Moment("assemble"))
    monkeypatch.setattr(pipeline, "code_digest", lambda _: "other")
    monkeypatch.setattr(ObjectStorage, "delete", refuse)
    local_installation.attempt()
    assert local_installation.store.records.get(job.id).state is JobState.SUCCEEDED
    assert local_installation.weights(job) == undisturbed


@pytest.mark.parametrize("kind", ["calibration/0", "solved/00003", "journal", "parts"])
def test_a_damaged_checkpoint_is_refused_and_redone(
    local_installation: LocalInstallation, undisturbed: dict[tuple[str, str], str], kind: str
) -> None:
    job = create(local_installation)
    local_installation.attempt(Moment("solve", 12) if kind[0] == "c" else Moment("assemble"))
    found = [key for key in local_installation.checkpoints(job) if f"/{kind}" in key]
    # Of the states of a sweep the last one is read, if it is intact.
    damaged = [key for key in found if "00000.saf" in key] if kind[0] == "c" else found[:1]
    storage = ObjectStorage.from_settings(local_installation.settings)
    for key in damaged:
        data = bytearray(storage.get_bytes(key))
        data[len(data) // 2] ^= 1
        storage.put_bytes(key, bytes(data))
    local_installation.attempt()
    refused = local_installation.events(job, "checkpoint.refused")
    assert refused
    assert {each["key"] for each in refused} <= set(damaged)
    assert "sha256" in refused[0]["reason"]
    assert local_installation.weights(job) == undisturbed


def test_a_bucket_that_takes_no_checkpoints_costs_the_resumption_and_not_the_job(
    local_installation: LocalInstallation,
    undisturbed: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = ObjectStorage.put_bytes

    def refuse(self: ObjectStorage, key: str, data: bytes, **options: Any) -> bool:
        if "/checkpoints/" in key:
            raise StorageUnavailable("the bucket is away")
        return put(self, key, data, **options)

    job = create(local_installation)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "put_bytes", refuse)
        local_installation.attempt()
    assert local_installation.weights(job) == undisturbed
    skipped = local_installation.events(job, "checkpoint.skipped")
    assert {each["worker"] for each in skipped} == {0, 1}
    assert {each["reason"] for each in skipped} == {"the bucket is away"}
    assert local_installation.checkpoints(job) == []


def test_every_damage_to_a_checkpoint_is_found(
    local_installation: LocalInstallation, undisturbed: dict[tuple[str, str], str]
) -> None:
    job = create(local_installation)
    local_installation.attempt(Moment("publish"))
    assert damage_checkpoints(local_installation, job, trials=30, seed=1) == []
    local_installation.attempt()
    assert local_installation.weights(job) == undisturbed


def test_what_dead_attempts_left_on_a_machine_is_swept_and_nothing_else(
    local_installation: LocalInstallation,
) -> None:
    scratch = local_installation.settings.scratch_dir
    other = create(local_installation)
    assert local_installation.store.claims.claim() is not None
    job = create(local_installation)
    local_installation.attempt(Moment("release"))
    for name in (f"{job.id}-1", f"{job.id}-1-partial", f"{other.id}-1"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    local_installation.attempt()
    assert [left.name for left in scratch.iterdir()] == [f"{other.id}-1"]


def test_the_report_is_the_one_that_was_published(local_installation: LocalInstallation) -> None:
    job = create(local_installation)
    local_installation.attempt()
    storage = ObjectStorage.from_settings(local_installation.settings)
    report = local_installation.store.records.report(job.id)
    artifacts = local_installation.store.records.artifacts(job.id)
    assert len(artifacts) == 2
    for artifact in artifacts:
        assert json.loads(storage.get_bytes(f"{artifact.prefix}report.json")) == report


def test_a_worker_of_another_version_does_no_work(
    local_installation: LocalInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = own_versions() | {"code": "b" * 64, "torch": "1.0"}
    monkeypatch.setattr(worker, "own_versions", lambda: other)
    job = create(local_installation)
    with pytest.raises(VersionMismatch, match=r"worker 0 on .* has code bbb.*Ray's head node"):
        local_installation.attempt(Moment("sweep_scratch"))
    (placed,) = local_installation.events(job, PLACED)
    assert [each["versions"] for each in placed["workers"]] == [other] * WORKERS

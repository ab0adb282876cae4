"""Jobs that have a history, and one that has made an artifact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry
from service.domain.manifest import Manifest, manifest_key
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.errors import WorkerLost
from service.store.store import Store
from tests.fixtures.jobs import at_once
from tests.unit.api.conftest import OfflineStorage
from tests.unit.service.report.test_view import a_report

WEIGHTS = FileEntry("model.safetensors", 1_200_000, "ab" * 32)
FOLDER = "1-00c0ffee/"
LOST = WorkerLost("Worker 1 of node-2 died.")

Succeeded = Callable[..., str]


@pytest.fixture
def succeeded(store: Store, storage: OfflineStorage, job_body: dict[str, Any]) -> Succeeded:
    """Makes a job with one artifact, whose report has its name, and returns its id."""

    def make(
        report: dict[str, Any] | None = None,
        files: tuple[FileEntry, ...] = (WEIGHTS,),
        **fields: Any,
    ) -> str:
        job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body | fields)).id
        store.claims.claim()
        publish(store, storage, job_id, files)
        store.attempts.succeed(job_id, 1, report or a_report(name="keep-0.8"))
        return job_id

    return make


def publish(
    store: Store,
    storage: OfflineStorage,
    job_id: str,
    files: tuple[FileEntry, ...] = (WEIGHTS,),
    attempt: int = 1,
) -> None:
    """Publish an artifact of these files, which only the manifest has."""
    key = manifest_key(job_id, "keep-0.8")
    storage.objects[key] = Manifest.of(list(files), FOLDER).to_json()
    prefix = f"jobs/{job_id}/artifacts/keep-0.8/{FOLDER}"
    store.attempts.published(job_id, attempt, 0, Artifact("keep-0.8", prefix, files))


@pytest.fixture
def second_attempt(store: Store, job_body: dict[str, Any]) -> str:
    """The id of a job whose first attempt lost a worker, and whose second one runs."""
    attempts = store.attempts
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    store.claims.claim()
    attempts.progress(job_id, 1, Step.RESOLVE, 1, 1, "models")
    attempts.progress(job_id, 1, Step.CALIBRATE, 48, 128, "sequences")
    attempts.fail(job_id, 1, LOST.failure(), at_once(3))
    store.claims.claim()
    attempts.record(job_id, 2, "attempt.resumed", "Continues after 48 sequences.", {"done": 48})
    attempts.progress(job_id, 2, Step.RESOLVE, 1, 1, "models")
    attempts.progress(job_id, 2, Step.CALIBRATE, 64, 128, "sequences")
    return job_id

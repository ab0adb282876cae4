"""Jobs survive outages of Ray and of the bucket: real Ray, real S3, the real dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.domain.job import DEFAULT_TENANT
from service.domain.states import JobState, Step
from service.standalone.ports import choose_port
from service.standalone.s3_server import LocalS3
from tests.fixtures.installation import Installation, ended
from tests.fixtures.waiting import wait_until


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """One of the test's own, whose parts it stops."""
    with LocalS3(tmp_path / "s3", port=choose_port(0, "test")) as s3:
        made = Installation(tmp_path, s3)
        yield made
        made.store.close()


def test_jobs_wait_for_ray_and_fail_by_name_without_a_bucket(installation: Installation) -> None:
    waiting = installation.store.users(DEFAULT_TENANT).create(installation.spec(workers=2))
    with installation.dispatching():
        wait_until(lambda: installation.store.records.get(waiting.id).state is JobState.QUEUED)
        assert installation.store.records.get(waiting.id).attempt == 0
        with installation.ray(num_cpus=2, num_gpus=2):
            holds_two_gpus(installation, waiting.id)
            fails_when_the_bucket_goes_away(installation)


def holds_two_gpus(installation: Installation, job_id: str) -> None:
    done = installation.wait_for(installation.store.records.get(job_id), ended)
    assert done.state is JobState.SUCCEEDED, done.failure
    events = installation.store.records.events(job_id)
    (placed,) = [event for event in events if event.type == "workers.placed"]
    held = [worker["gpu_ids"] for worker in placed.data["workers"]]
    assert sorted(held) == [["0"], ["1"]]
    assert sorted(w["cuda_visible_devices"] for w in placed.data["workers"]) == ["0", "1"]
    assert f"jobs/{job_id}/artifacts/keep-0.7/manifest.json" in installation.objects_of(done)


def fails_when_the_bucket_goes_away(installation: Installation) -> None:
    job = installation.store.users(DEFAULT_TENANT).create(installation.spec())
    installation.wait_for(job, lambda job: any(s.step is Step.CALIBRATE for s in job.steps))
    installation.s3.stop()
    failed = installation.wait_for(job, ended)
    assert failed.state is JobState.FAILED
    assert failed.failure is not None
    assert failed.failure.code == "storage_unavailable"
    assert failed.failure.retryable
    assert installation.store.records.artifacts(job.id) == ()
    assert installation.store.records.report(job.id) is None
    installation.s3.start()
    wait_until(lambda: not installation.store.claims.to_clean())
    # A retry by its user would resume from what is left.
    assert all(f"jobs/{job.id}/checkpoints/" in key for key in installation.objects_of(job))
    assert list(installation.settings.scratch_dir.glob("*/*")) == []

"""Jobs while parts of the installation are away: real Ray, real S3, the real dispatcher."""

from __future__ import annotations

import psutil

from service.domain.job import Job
from service.domain.states import JobState, Step
from tests.fixtures.installation import Installation, ended
from tests.fixtures.waiting import wait_until


def test_a_job_waits_for_ray_and_two_workers_hold_two_gpus(installation: Installation) -> None:
    job = installation.store.users.create(installation.spec(workers=2))
    with installation.dispatching():
        wait_until(lambda: installation.store.users.get(job.id).state is JobState.QUEUED)
        assert installation.store.users.get(job.id).attempt == 0
        with installation.ray(num_cpus=2, num_gpus=2):
            done = installation.wait_for(job, ended)
    assert done.state is JobState.SUCCEEDED, done.failure
    (placed,) = [e for e in installation.store.users.events(job.id) if e.type == "workers.placed"]
    held = [worker["gpu_ids"] for worker in placed.data["workers"]]
    assert sorted(held) == [["0"], ["1"]]
    assert sorted(w["cuda_visible_devices"] for w in placed.data["workers"]) == ["0", "1"]
    assert f"jobs/{job.id}/artifacts/keep-0.7/manifest.json" in installation.objects_of(job)


def test_storage_that_stays_away_when_publishing_fails_the_job_by_name(
    installation: Installation,
) -> None:
    job = installation.store.users.create(installation.spec())
    with installation.ray(num_cpus=2), installation.dispatching():
        installation.wait_for(job, lambda job: any(s.step is Step.CALIBRATE for s in job.steps))
        installation.s3.stop()
        failed = installation.wait_for(job, ended)
        assert failed.state is JobState.FAILED
        assert failed.failure is not None
        assert failed.failure.code == "storage_unavailable"
        assert failed.failure.retryable
        assert installation.store.users.artifacts(job.id) == ()
        assert installation.store.users.report(job.id) is None
        installation.s3.start()
        wait_until(lambda: not installation.store.claims.to_clean())
    # A retry by its user would resume from what is left.
    assert all(f"jobs/{job.id}/checkpoints/" in key for key in installation.objects_of(job))
    assert list(installation.settings.scratch_dir.glob("*/*")) == []


def test_a_job_is_cancelled_within_seconds_while_it_calibrates(installation: Installation) -> None:
    data = {"source": "local", "path": str(installation.inputs / "texts")}
    calibration = {"data": data, "sequences": 256, "sequence_length": 32, "batch_size": 1}
    job = installation.store.users.create(installation.spec(calibration=calibration))
    with installation.ray(num_cpus=2), installation.dispatching():
        installation.wait_for(job, lambda job: any(s.step is Step.CALIBRATE for s in job.steps))
        installation.store.users.cancel(job.id)
        wait_until(
            lambda: installation.store.users.get(job.id).state is JobState.CANCELLED, seconds=20
        )
        wait_until(lambda: not drivers_and_actors(job), seconds=20)
        wait_until(lambda: not installation.store.claims.to_clean())
    assert installation.objects_of(job) == []


def drivers_and_actors(job: Job) -> list[str]:
    """The command lines of the processes that work for the job on this machine."""
    return [
        " ".join(process.info["cmdline"] or ())
        for process in psutil.process_iter(["cmdline"])
        if any(job.id in word for word in process.info["cmdline"] or ())
    ]

"""Jobs while parts of the installation are away: real Ray, real S3, the real dispatcher."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.cluster import RayCluster
from service.dispatcher import Dispatcher
from service.jobs import Job
from service.local_ray import LocalRay
from service.local_s3 import LocalS3
from service.ports import choose_port
from service.settings import Settings
from service.spec import JobSpec
from service.states import TERMINAL, JobState, Step
from service.stopping import StopRequest
from service.storage import ObjectStorage
from service.store import Store
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.waiting import wait_until

JOB_SECONDS = 240.0


class Installation:
    """The parts of an installation, each of which a test may start and stop."""

    def __init__(self, folder: Path, s3: LocalS3) -> None:
        self.s3 = s3
        self.inputs = folder / "inputs"
        self._folder = folder
        self.ray_port = choose_port(0, "test")
        values: dict[str, Any] = {
            "data_dir": folder / "data",
            "ray_address": f"http://127.0.0.1:{self.ray_port}",
            "s3_endpoint_url": s3.endpoint_url,
            "s3_access_key_id": s3.access_key_id,
            "s3_secret_access_key": s3.secret_access_key,
            "allowed_roots": (self.inputs,),
            "max_attempts": 1,
            "poll_seconds": 0.1,
        }
        self.settings = Settings(**values)
        self.settings.data_dir.mkdir(parents=True)
        self.store = Store(self.settings.database)
        self.store.migrate()

    def spec(self, **changes: Any) -> JobSpec:
        """A job on a tiny Llama, long enough to stop something while it calibrates."""
        self.inputs.mkdir(exist_ok=True)
        model, texts = self.inputs / "llama", self.inputs / "texts"
        if not model.exists():
            save_tiny_model(model, tiny_llama_config())
            texts.mkdir()
            for number in range(30):
                (texts / f"{number}.txt").write_text(f"The number is {number}.\n" * 40)
        body = {
            "model": {"source": "local", "path": str(model)},
            "calibration": {
                "data": {"source": "local", "path": str(texts)},
                "sequences": 16,
                "sequence_length": 32,
                "batch_size": 2,
            },
            "targets": [{"keep": 0.7}],
            "evaluation": {"sequences": 4, "decode_tokens": 0},
        }
        return JobSpec.model_validate(body | changes)

    @contextmanager
    def dispatching(self) -> Iterator[None]:
        stop = StopRequest()
        storage = ObjectStorage.from_settings(self.settings)
        with RayCluster(self.settings.ray_address, self.settings.driver_command) as cluster:
            dispatcher = Dispatcher(self.store, cluster, storage, self.settings)
            thread = threading.Thread(target=dispatcher.run, args=(stop,))
            thread.start()
            try:
                yield
            finally:
                stop.make(signal.SIGTERM)
                thread.join()

    def ray(self, **resources: int) -> LocalRay:
        environment = {
            f"EIGENPRESS_{name.upper()}": value
            for name, value in {
                "data_dir": str(self.settings.data_dir),
                "s3_endpoint_url": self.s3.endpoint_url,
                "s3_access_key_id": self.s3.access_key_id,
                "s3_secret_access_key": self.s3.secret_access_key,
                "allowed_roots": f'["{self.inputs}"]',
                "max_attempts": "1",
            }.items()
        }
        return LocalRay(
            self._folder / "ray", dashboard_port=self.ray_port, env=environment, **resources
        )

    def wait_for(self, job: Job, condition: Callable[[Job], object]) -> Job:
        wait_until(lambda: condition(self.store.get(job.id)), JOB_SECONDS)
        return self.store.get(job.id)

    def objects_of(self, job: Job) -> list[str]:
        storage = ObjectStorage.from_settings(self.settings)
        return [found.key for found in storage.list_objects(f"jobs/{job.id}/")]


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with LocalS3(tmp_path / "s3", port=choose_port(0, "test")) as s3:
        made = Installation(tmp_path, s3)
        yield made
        made.store.close()


def ended(job: Job) -> bool:
    return job.state in TERMINAL


def test_a_job_waits_for_ray_and_two_workers_hold_two_gpus(installation: Installation) -> None:
    job = installation.store.create(installation.spec(workers=2))
    with installation.dispatching():
        wait_until(lambda: installation.store.get(job.id).state is JobState.QUEUED)
        assert installation.store.get(job.id).attempt == 0
        with installation.ray(num_cpus=2, num_gpus=2):
            done = installation.wait_for(job, ended)
    assert done.state is JobState.SUCCEEDED, done.failure
    (placed,) = [e for e in installation.store.events(job.id) if e.type == "workers.placed"]
    held = [worker["gpu_ids"] for worker in placed.data["workers"]]
    assert sorted(held) == [["0"], ["1"]]
    assert sorted(w["cuda_visible_devices"] for w in placed.data["workers"]) == ["0", "1"]
    assert f"jobs/{job.id}/artifacts/keep-0.7/manifest.json" in installation.objects_of(job)


def test_storage_that_is_gone_when_publishing_fails_the_job_by_name(
    installation: Installation,
) -> None:
    job = installation.store.create(installation.spec())
    with installation.ray(num_cpus=2), installation.dispatching():
        installation.wait_for(job, lambda job: any(s.step is Step.CALIBRATE for s in job.steps))
        installation.s3.stop()
        failed = installation.wait_for(job, ended)
        assert failed.state is JobState.FAILED
        assert failed.failure is not None
        assert failed.failure.code == "storage_unavailable"
        assert failed.failure.retryable
        assert installation.store.artifacts(job.id) == ()
        assert installation.store.report(job.id) is None
        installation.s3.start()
        wait_until(lambda: not installation.store.uncleaned())
    assert installation.objects_of(job) == []
    assert list(installation.settings.scratch_dir.glob("*/*")) == []

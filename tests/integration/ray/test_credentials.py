"""A tenant's credentials reach the workers on a real Ray, and nothing that Ray or we write."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service.cluster.ray_jobs import authorization
from service.credentials import seal
from service.domain.credentials import S3Keys
from service.domain.job import Job
from service.domain.states import JobState
from service.domain.tenant import Limits, Places
from service.errors import ObjectMissing
from service.logs.kept import read_index
from service.standalone.ray_head import LocalRay
from service.storage.s3 import ObjectStorage
from tests.fixtures.installation import Installation, ended
from tests.fixtures.storage import grant
from tests.fixtures.waiting import wait_until

RECORDS = (
    "/api/v0/actors?detail=true&limit=10000",
    "/api/v0/tasks?detail=true&limit=10000",
    "/api/v0/workers?detail=true&limit=10000",
    "/api/v0/placement_groups?detail=true",
    "/api/v0/runtime_envs?detail=true",
    "/api/jobs/",
    "/logical/actors",
)
"""What Ray's dashboard shows."""

RIGHT = "canaryrightsecret"


@pytest.fixture
def tenant(running_installation: Installation) -> str:
    name = f"team-{secrets.token_hex(4)}"
    running_installation.store.tenants.create(name, Limits(), Places())
    return name


@pytest.fixture
def bucket(running_installation: Installation, tenant: str) -> str:
    """A bucket with a model and texts, which an identity of the tenant may read."""
    installation = running_installation
    installation.spec()
    storage = ObjectStorage.from_settings(installation.settings, tenant)
    storage.create_bucket()
    for path in installation.inputs.rglob("*"):
        if path.is_file():
            storage.put_file(str(path.relative_to(installation.inputs)), path)
    grant(installation.s3, f"{tenant}-key", RIGHT, "Read,List", bucket=tenant)
    return tenant


def run(installation: Installation, tenant: str, bucket: str, secret: str) -> Job:
    """A job on the bucket that has ended, with this secret access key of the tenant's."""
    keys = S3Keys(
        tenant,
        "mine",
        (f"s3://{bucket}/",),
        SecretStr(f"{tenant}-key"),
        SecretStr(secret),
    )
    installation.store.credentials.put(keys, seal(keys, installation.settings))
    spec = installation.spec(model={"source": "s3", "uri": f"s3://{bucket}/llama"}, workers=2)
    data = {"source": "s3", "uri": f"s3://{bucket}/texts"}
    calibration = {"data": data, "sequences": 16, "sequence_length": 32, "batch_size": 2}
    spec = type(spec).model_validate(spec.model_dump() | {"calibration": calibration})
    job = installation.store.users(tenant).create(spec)
    return installation.wait_for(job, ended)


def test_a_job_reads_with_them_and_nothing_that_is_written_has_them(
    running_installation: Installation, local_ray: LocalRay, tenant: str, bucket: str
) -> None:
    installation = running_installation
    job = run(installation, tenant, bucket, RIGHT)
    assert job.state is JobState.SUCCEEDED, job.failure
    found = {path: text for path, text in records(local_ray) if RIGHT.encode() in text}
    assert found == {}
    actors = dict(records(local_ray))[RECORDS[0]]
    assert f"{job.id}-1/worker-0".encode() in actors

    storage = ObjectStorage.from_settings(installation.settings)
    wait_until(lambda: read_index(storage, job.id, 1))
    written = []
    for each in storage.list_objects(f"jobs/{job.id}/"):
        with suppress(ObjectMissing):  # a checkpoint, which the cleanup removes meanwhile
            written.append(storage.get_bytes(each.key))
    folders = (Path(str(local_ray._session)), installation.settings.data_dir)
    names = {path.name for path in files_with(job.id, *folders)}
    assert f"job-driver-{job.id}-1.log" in names
    assert names & {"eigenpress.db", "eigenpress.db-wal"}
    assert files_with(RIGHT, *folders) == []
    assert not [text for text in written if RIGHT.encode() in text]


def test_a_job_reads_with_nothing_else_where_its_tenant_has_some(
    running_installation: Installation, tenant: str, bucket: str
) -> None:
    """The installation's own keys would open the bucket, too."""
    job = run(running_installation, tenant, bucket, "canarywrongsecret")
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert job.failure.code == "storage_credentials_invalid"
    assert "refuses the credential 'mine'" in job.failure.detail
    events = running_installation.store.records.events(job.id)
    assert "canarywrongsecret" not in f"{job} {events}"


def files_with(text: str, *folders: Path) -> list[Path]:
    """The files below the folders that contain the text, except those that go meanwhile.

    Another process reads them. This one has the database open, and closing any file descriptor of
    a database drops SQLite's locks on it: the next process that closes the database would then
    take itself for the last one and remove the journal, which this one goes on to write.
    """
    command = ["grep", "--recursive", "--files-with-matches", "--text", "--fixed-strings"]
    command += ["--no-messages", "-e", text, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines()]


def records(ray: LocalRay) -> Iterator[tuple[str, bytes]]:
    with httpx.Client(
        base_url=ray.dashboard_url, headers=authorization(), trust_env=False, timeout=30
    ) as client:
        for path in RECORDS:
            response = client.get(path)
            assert response.is_success, path
            yield path, response.content

"""Denies writes to a worker's disk, to the disk of the bucket's server, and to the bucket.

A small tmpfs serves as a full disk, so the user needs the right to mount file systems.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.domain.job import Job
from service.domain.states import JobState, Step
from service.standalone.s3_server import LocalS3
from tests.chaos.checker import bucket_problems, read_history, violations
from tests.chaos.installation import Installation
from tests.chaos.kills import JOB_SECONDS, Undisturbed, current_step, finish, weights_of
from tests.fixtures.storage import grant, revoke
from tests.fixtures.waiting import wait_until

BLOCK_BYTES = 4096

S3_KEYS = {"s3_access_key_id": "service", "s3_secret_access_key": "service-secret"}
"""The keys of the account whose write access is revoked."""


@dataclass(frozen=True)
class Refused:
    """The results of a job that could not write, and of its retry after the repair."""

    where: str
    state: str
    code: str | None
    detail: str | None
    attempts: int
    seconds: float
    problems: list[str]


def may_mount(folder: Path) -> bool:
    """Whether this user may mount a file system here."""
    try:
        with mounted(folder, 10 * BLOCK_BYTES):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


@contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[None]:
    """A tmpfs of that size at `folder` until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def run_full_scratch(installation: Installation, undisturbed: Undisturbed) -> Refused:
    """Fill the worker's disk: the job fails with a clear error, and a retry succeeds."""
    start = time.monotonic()
    scratch = installation.settings.scratch_dir
    with mounted(scratch, 16 * BLOCK_BYTES):
        job_id = installation.submit(undisturbed.spec)
        failed = finish(installation, job_id)
    return _retried(installation, undisturbed, "worker's disk, full", failed, start)


def run_full_bucket(installation: Installation, undisturbed: Undisturbed) -> Refused:
    """Fill the bucket's disk: the job fails with a clear error, and a retry succeeds."""
    start = time.monotonic()
    filler = installation.s3.directory / "data" / "filler"
    job_id = _submit_and_assemble(installation, undisturbed)
    _fill(filler)
    failed = finish(installation, job_id)
    filler.unlink()
    installation.restart("s3")  # a server that ran out of disk may stay read-only until then
    return _retried(installation, undisturbed, "bucket's disk, full", failed, start)


def run_read_only_bucket(installation: Installation, undisturbed: Undisturbed) -> Refused:
    """Revoke write access to the bucket: the job fails with a clear error, and a retry succeeds."""
    start = time.monotonic()
    job_id = _submit_and_assemble(installation, undisturbed)
    revoke(installation.s3, S3_KEYS["s3_access_key_id"], "Write")
    failed = finish(installation, job_id)
    allow_writing(installation.s3)
    return _retried(installation, undisturbed, "bucket, read-only", failed, start)


def allow_writing(s3: LocalS3) -> None:
    """Grant the account of `S3_KEYS` all rights that the service needs on the bucket."""
    key, secret = S3_KEYS.values()
    grant(s3, key, secret, "Read,List,Write")


def _fill(path: Path) -> None:
    """Fill the rest of the disk of `path`."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(BLOCK_BYTES))
        except OSError:
            return


def _submit_and_assemble(installation: Installation, undisturbed: Undisturbed) -> str:
    job_id = installation.submit(undisturbed.spec)
    wait_until(lambda: current_step(installation, job_id) == Step.ASSEMBLE, JOB_SECONDS)
    return job_id


def _retried(
    installation: Installation, undisturbed: Undisturbed, where: str, failed: Job, start: float
) -> Refused:
    """Retry the failed job, which can now write."""
    problems = _problems_of_failed(installation, failed)
    with httpx.Client(trust_env=False, timeout=30) as http:
        http.post(f"{installation.api_url}/v1/jobs/{failed.id}/retry").raise_for_status()
    job = finish(installation, failed.id)
    problems += _problems_of_ended(installation, undisturbed, job)
    code, detail = (failed.failure.code, failed.failure.detail) if failed.failure else (None, None)
    seconds = round(time.monotonic() - start, 1)
    return Refused(where, failed.state.value, code, detail, job.attempt, seconds, problems)


def _problems_of_failed(installation: Installation, job: Job) -> list[str]:
    problems = violations(read_history(installation.store, job.id))
    if job.state is not JobState.FAILED or job.failure is None:
        return [*problems, f"{job.id} is {job.state}, not failed"]
    if job.failure.code == "internal_error":
        problems.append(f"the failure is not clear: {job.failure.detail}")
    return problems


def _problems_of_ended(installation: Installation, undisturbed: Undisturbed, job: Job) -> list[str]:
    if job.state is not JobState.SUCCEEDED:
        return [f"{job.id} is {job.state}: {job.failure}"]
    store = installation.store
    wait_until(lambda: all(other.id != job.id for other in store.claims.to_clean()), 60)
    history = read_history(store, job.id)
    problems = violations(history) + bucket_problems(installation.storage, history)
    if weights_of(installation, job.id) != undisturbed.hashes:
        problems.append(f"{job.id} has other weights than the undisturbed run")
    return problems

"""The driver of one attempt: ``python -m workers.attempt.driver JOB ATTEMPT``, as a Ray job.

It runs the pipeline and records its outcome in the database. Every write carries the attempt's
number; a driver whose attempt is no longer current stops and writes nothing. If the database has
another schema than the driver, it neither reads nor writes; its exit status makes the dispatcher
fail the job. It repeats its writes during an outage of the database, and ends within seconds of
SIGTERM.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import ray

from service.cluster.diagnosis import EXIT_SCHEMA_MISMATCH
from service.credentials import open_credentials
from service.domain.job import Job
from service.errors import AttemptStale, ClusterUnavailable, DatabaseUnavailable, SchemaMismatch
from service.log_lines import bound_everywhere, configure_logging
from service.retrying import retry
from service.settings import Settings
from service.store.store import Store
from service.tracing import span, start_tracing
from workers.actors.failures import named
from workers.attempt.heartbeat import Heartbeat
from workers.attempt.pipeline import run_attempt, worker_pids
from workers.attempt.progress import Progress

log = logging.getLogger("eigenpress.driver")

EXIT_FAILED = 1
EXIT_STALE = 3
EXIT_STOPPED = 4

STOPPING_SECONDS = 2.0
"""How long the cleanup after SIGTERM may take; Ray kills the driver a second later."""

Result = TypeVar("Result")


def main(job_id: str, attempt: int) -> int:
    """Run the attempt to its end; the exit status tells Ray whether it succeeded."""
    settings = Settings()
    store = Store(settings.database)
    scratch = settings.scratch_dir / f"{job_id}-{attempt}"
    try:
        _retry(settings, store.check_schema)
        job = _retry(settings, lambda: store.records.get(job_id))
        if job.attempt != attempt:
            raise AttemptStale
        end_stale = partial(_end, EXIT_STALE, scratch)
        origin = _retry(settings, lambda: store.records.origin(job_id))
        with (
            bound_everywhere(request_id=origin.get("request_id")),
            Heartbeat(store, job_id, attempt, settings.lease_seconds, end_stale),
        ):
            return _run(job, store, settings, scratch, origin)
    except SchemaMismatch as error:
        log.error("%s", error)
        return EXIT_SCHEMA_MISMATCH
    except AttemptStale as error:
        log.warning("%s", error)
        return EXIT_STALE
    finally:
        store.close()


def _run(
    job: Job, store: Store, settings: Settings, scratch: Path, origin: Mapping[str, str]
) -> int:
    about = {"eigenpress.job": job.id, "eigenpress.attempt": job.attempt}
    progress = Progress(store, job.id, job.attempt, patience_seconds=settings.retry_timeout_seconds)
    log.info("The attempt begins")
    try:
        _join_cluster(scratch.name)
        _stop_on_sigterm(scratch)
        reach = _retry(settings, store.users(job.tenant).reach)
        credentials = open_credentials(reach.sealed, settings)
        needed = credentials.needed_by(job.spec, settings.hub_endpoint)
        with span("attempt", origin, about):
            report = run_attempt(job, progress, settings, reach.places, needed)
        _retry(settings, lambda: store.attempts.succeed(job.id, job.attempt, report))
    except AttemptStale:
        raise
    except Exception as error:
        log.exception("The attempt failed")
        failure = named(error, worker_pids(progress)).failure()
        _retry(
            settings,
            lambda: store.attempts.fail(job.id, job.attempt, failure, settings.retry_policy),
        )
        return EXIT_FAILED
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    log.info("The attempt succeeded")
    return 0


def _join_cluster(namespace: str) -> None:
    try:
        ray.init(namespace=namespace, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ClusterUnavailable(f"The driver cannot join the Ray cluster: {error}") from error


def _retry(settings: Settings, act: Callable[[], Result]) -> Result:
    """Repeat a call while the database is unavailable."""
    return retry(act, on=DatabaseUnavailable, seconds=settings.retry_timeout_seconds)


def _end(status: int, scratch: Path) -> None:
    """End the process whatever its other threads are doing; its actors end with it."""
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(status)


def _stop_on_sigterm(scratch: Path) -> None:
    """On SIGTERM, clean up and end within STOPPING_SECONDS. Replaces Ray's handler."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        watchdog = threading.Timer(STOPPING_SECONDS, _end, (EXIT_STOPPED, scratch))
        watchdog.daemon = True
        watchdog.start()
        sys.exit(EXIT_STOPPED)

    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    job_id, number = sys.argv[1], int(sys.argv[2])
    configure_logging(Settings().log_format, job=job_id, attempt=number, actor="driver")
    start_tracing("eigenpress-driver")
    sys.exit(main(job_id, number))

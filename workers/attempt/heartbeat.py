"""Renews the lease of an attempt, and ends the attempt when it is no longer current.

A separate thread renews the lease, independent of the driver's work. When the attempt is no longer
current, the driver's process ends at once, and its actors with it. During an outage of the database
the attempt continues.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from service.errors import AttemptStale, EigenpressError, JobNotFound
from service.store.store import Store

RENEWALS_PER_LEASE = 3

JOINING_SECONDS = 5.0
"""How long the end of an attempt waits for a renewal that hangs."""

log = logging.getLogger("eigenpress.driver")


class Heartbeat:
    """Renews the lease of an attempt until it is stopped. A context manager."""

    def __init__(
        self,
        store: Store,
        job_id: str,
        attempt: int,
        lease_seconds: float,
        on_stale: Callable[[], object],
    ) -> None:
        """The heartbeat's thread calls `on_stale` when the attempt is no longer current."""
        self._renew = partial(store.attempts.renew, job_id, attempt, lease_seconds)
        self._pause_seconds = lease_seconds / RENEWALS_PER_LEASE
        self._on_stale = on_stale
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(JOINING_SECONDS)

    def _run(self) -> None:
        while True:
            try:
                self._renew()
            except (AttemptStale, JobNotFound) as error:
                if not self._stop.is_set():  # else the attempt has just ended itself
                    log.warning("the attempt is over: %s", error)
                    self._on_stale()
                return
            except EigenpressError as error:
                log.warning("the lease was not renewed: %s", error)
            if self._stop.wait(self._pause_seconds):
                return

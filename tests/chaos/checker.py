"""Proves from a job's event log that the service kept its guarantees.

`violations` replays the log of one job against the table of `service.domain.states`, independently
of the store's code. A history without violations proves the following:

- the states follow each other only along allowed transitions, and the job ends at most once
  (again only after its user's retry);
- attempts are numbered from 1 without a gap; the number of a released claim is reused;
- one attempt runs at a time: nothing is claimed before the previous attempt has ended;
- an attempt's events (submission, progress, publications, its own notes) lie between its claim
  and its end or its cancellation: none is by a stale attempt;
- no attempt was ended for a lapsed lease before the lease in its row had expired;
- every artifact of a job that succeeded was published once, by one attempt, and its row is that
  publication; a job that ended otherwise has none;
- the job's row agrees with its log.

`bucket_problems` does the same for the objects in the bucket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.domain.job import Artifact, Event, EventType, Job
from service.domain.manifest import MANIFEST_NAME, logs_prefix
from service.domain.states import TERMINAL, JobState, may_become
from service.storage.s3 import ObjectStorage
from service.store.store import Store

LEASE_LAPSED = "lease_lapsed"

_ARRIVES_AT = {
    EventType.QUEUED: JobState.QUEUED,
    EventType.CLAIMED: JobState.RUNNING,
    EventType.RELEASED: JobState.QUEUED,
    EventType.RETRIED: JobState.QUEUED,
    EventType.REQUEUED: JobState.QUEUED,
    EventType.SUCCEEDED: JobState.SUCCEEDED,
    EventType.FAILED: JobState.FAILED,
    EventType.CANCELLING: JobState.CANCELLING,
    EventType.CANCELLED: JobState.CANCELLED,
}
"""The state that each transition's event leads to; no other event changes the state."""

_DEPARTS_FROM = {
    EventType.RELEASED: {JobState.RUNNING},
    EventType.RETRIED: {JobState.RUNNING},
    EventType.REQUEUED: {JobState.FAILED},
}
"""The allowed previous states of events that lead to the same state."""

_EVENTS_AT_ONCE = 1000


@dataclass(frozen=True)
class History:
    """All records of one job in the database."""

    job: Job
    events: Sequence[Event]
    artifacts: Sequence[Artifact]


def read_history(store: Store, job_id: str) -> History:
    """Read a job's history from the store."""
    events: list[Event] = []
    while True:
        after = events[-1].id if events else 0
        more = store.records.events(job_id, after=after, limit=_EVENTS_AT_ONCE)
        events += more
        if len(more) < _EVENTS_AT_ONCE:
            return History(store.records.get(job_id), events, store.records.artifacts(job_id))


def violations(history: History) -> list[str]:
    """Describe every broken guarantee, with the job and the event; empty if there is none."""
    replay = _Replay(history.job.id)
    for event in history.events:
        replay.take(event)
    replay.compare(history)
    return replay.found


class _Replay:
    """The state of the job after the events so far, from the log alone."""

    def __init__(self, job_id: str) -> None:
        self.found: list[str] = []
        self._job_id = job_id
        self._state: JobState | None = None
        self._attempt = 0
        self._owned = 0  # the attempt whose claim has not ended; 0 between attempts
        self._published: dict[str, str] = {}  # artifact -> its prefix
        self._last: Event | None = None

    def take(self, event: Event) -> None:
        """Replay one more event."""
        self._check_order(event)
        if event.type in _ARRIVES_AT:
            self._arrive(event, _ARRIVES_AT[EventType(event.type)])
        else:
            self._act(event)
        self._last = event

    def compare(self, history: History) -> None:
        """Compare the rows with the log."""
        job = history.job
        if job.state != self._state:
            self._report(f"its row has state {job.state}, its log {self._state}")
        if job.attempt != self._attempt:
            self._report(f"its row has attempt {job.attempt}, its log {self._attempt}")
        rows = {artifact.name: artifact.prefix for artifact in history.artifacts}
        if len(rows) != len(history.artifacts):
            self._report("an artifact has two rows")
        if rows != self._published:
            self._report(f"artifacts: its rows have {rows}, its log {self._published}")
        wanted = {target.name for target in job.spec.targets}
        if self._state is JobState.SUCCEEDED and set(rows) != wanted:
            self._report(f"succeeded with {sorted(rows)} of {sorted(wanted)}")

    def _check_order(self, event: Event) -> None:
        if event.job_id != self._job_id:
            self._report("is an event of another job", event)
        if self._last is not None and event.id <= self._last.id:
            self._report("is out of order", event)
        if self._last is not None and event.at < self._last.at:
            self._report(f"is older than the event before it ({self._last.at})", event)

    def _arrive(self, event: Event, target: JobState) -> None:
        if self._state is None:
            if event.type != EventType.QUEUED:
                self._report("comes before the job was queued", event)
        elif event.type == EventType.QUEUED:
            self._report("accepts the job a second time", event)
        elif not may_become(self._state, target):
            self._report(f"is no way from {self._state} to {target}", event)
        elif self._state not in _DEPARTS_FROM.get(EventType(event.type), {self._state}):
            self._report(f"does not leave {self._state}", event)
        if event.type == EventType.CLAIMED:
            self._claim(event)
        elif self._owned:
            self._leave(event, target)
        if target in (JobState.FAILED, JobState.CANCELLED):
            self._published.clear()
        self._state = target

    def _claim(self, event: Event) -> None:
        if self._owned:
            self._report(f"begins while attempt {self._owned} has not ended", event)
        if event.attempt != self._attempt + 1:
            self._report(f"does not follow attempt {self._attempt}", event)
        self._attempt = self._owned = event.attempt or 0

    def _leave(self, event: Event, target: JobState) -> None:
        """End an attempt, unless its cancellation was only requested."""
        if event.attempt != self._owned:
            self._report(f"ends attempt {self._owned} in the name of another", event)
        if event.data.get("code") == LEASE_LAPSED:
            self._check_lapse(event)
        if event.type == EventType.RELEASED:
            self._attempt -= 1
        if target is not JobState.CANCELLING:
            self._owned = 0

    def _check_lapse(self, event: Event) -> None:
        until = event.data.get("lease_until")
        if until is None:
            self._report("lacks the time when the lapsed lease expired", event)
        elif event.at < datetime.fromisoformat(until):
            self._report(f"ends an attempt whose lease ran until {until}", event)

    def _act(self, event: Event) -> None:
        """Replay an event of a running attempt."""
        if event.attempt is None:
            return  # a note about the job, without an attempt
        if self._state is not JobState.RUNNING or event.attempt != self._owned:
            self._report(f"is by a stale attempt: {self._state}, attempt {self._owned}", event)
        if event.type == EventType.PUBLISHED:
            name = str(event.data["name"])
            if name in self._published:
                self._report(f"publishes {name} a second time", event)
            self._published[name] = str(event.data["prefix"])
        if event.type == EventType.WITHDRAWN:
            self._published.clear()

    def _report(self, problem: str, event: Event | None = None) -> None:
        which = f" {event.type} (event {event.id}, attempt {event.attempt})" if event else ""
        self.found.append(f"{self._job_id}:{which} {problem}")


def bucket_problems(storage: ObjectStorage, history: History) -> list[str]:
    """Describe every missing, damaged or superfluous object of a job after its cleanup.

    A job that succeeded has the manifest and the files of each artifact and nothing else; a job
    that ended otherwise has nothing at all. Either may have logs.
    """
    job = history.job
    assert job.state in TERMINAL, f"{job.id} is {job.state}"
    wanted: dict[str, str | None] = {}
    for artifact in history.artifacts:
        wanted[f"jobs/{job.id}/artifacts/{artifact.name}/{MANIFEST_NAME}"] = None
        wanted |= {artifact.prefix + file.path: file.sha256 for file in artifact.files}
    keys = [stored.key for stored in storage.list_objects(f"jobs/{job.id}/")]
    present = [key for key in keys if not key.startswith(logs_prefix(job.id))]
    return [
        *(f"{key} is missing" for key in wanted if key not in present),
        *(f"{key} is left over" for key in present if key not in wanted),
        *_damaged(storage, {key: wanted[key] for key in present if wanted.get(key)}),
    ]


def _damaged(storage: ObjectStorage, hashes: dict[str, str | None]) -> Iterator[str]:
    for key, sha256 in hashes.items():
        if hashlib.sha256(storage.get_bytes(key)).hexdigest() != sha256:
            yield f"{key} has another sha256 than in its row"

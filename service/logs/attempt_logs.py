"""Reads the logs of attempts, page by page, and keeps their ends when an attempt has ended.

While an attempt runs, its logs are Ray's. Once it has ended, the dispatcher keeps the last
`KEPT_BYTES` of each in the bucket, before it deletes Ray's records, and from then on they are read
there. What Ray lost before that, with a machine or in a restart, is missing; the answer says so.
Secrets are masked on both ways. No log is ever in memory as a whole.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

from service.cluster.ray_jobs import Active, Cluster, Unknown
from service.cluster.ray_logs import LogReader
from service.domain.job import Job
from service.domain.states import JobState
from service.errors import ClusterUnavailable, LogNotFound
from service.logs.kept import Kept, KeptLog, index_key, log_key, read_index
from service.logs.mask import REACH_BYTES, Mask
from service.storage.s3 import ObjectStorage

KEPT_BYTES = 2**20
READ_SECONDS = 20.0
"""Ray sends a log from its beginning; one that takes longer is refused."""

MAX_READERS = 8
"""Requests that read a log from Ray at a time: if Ray hangs, the others still get a thread."""

DRIVER = "driver"
LOST = "Ray does not know the attempt: it was restarted, or lost the machine with the logs."


@dataclass(frozen=True)
class LogPage:
    """A part of a log. Offsets count bytes from the beginning of the whole log."""

    attempt: int
    source: str
    sources: tuple[str, ...]
    """The logs of the attempt that can be read now."""
    start: int = 0
    """Where `text` begins: after the offset asked for if what lies between was not kept."""
    text: str = ""
    next_after: int = 0
    complete: bool = False
    """Whether the text reaches the end of the log, to which nothing will be added."""
    missing: str | None = None
    """Why there is no text, if the log is lost."""


@dataclass(frozen=True)
class _From:
    """At most `limit` bytes beyond the offset `after`."""

    after: int
    limit: int

    def of(self, start: int, end: int) -> tuple[int, int]:
        """Its part of what was kept from `start` to `end`."""
        first = max(self.after, start)
        return first, min(first + self.limit, end)

    def read(self, read: LogReader, mask: Mask) -> tuple[int, bytes, bool]:
        """Where the bytes begin, these, and whether they reach the end of the log."""
        begin = max(0, self.after - REACH_BYTES)
        data, whole = _window(read, begin, self.after - begin + self.limit + REACH_BYTES)
        rest = mask(data)[self.after - begin :]
        return self.after, rest[: self.limit], whole and len(rest) <= self.limit

    def in_lines(self, data: bytes, *, is_first: bool, is_last: bool) -> tuple[int, bytes]:  # noqa: ARG002
        """The bytes in whole lines if they have any, and how many are left out before these.

        `is_first` and `is_last` say whether the bytes reach the beginning and the end of the log.
        """
        return 0, data if is_last else _up_to_last_line(data, self.limit)


@dataclass(frozen=True)
class _Last:
    """The last bytes, at most `limit`, below the offset `before`; or of all, if it is None."""

    before: int | None
    limit: int
    after = 0

    def of(self, start: int, end: int) -> tuple[int, int]:
        last = end if self.before is None else max(start, min(self.before, end))
        return max(start, last - self.limit), last

    def read(self, read: LogReader, mask: Mask) -> tuple[int, bytes, bool]:
        # Beyond its end, too, or a secret across it would not be recognized.
        data, end = bytearray(), 0
        stop = None if self.before is None else self.before + REACH_BYTES
        for chunk in _within(READ_SECONDS, read):
            end += len(chunk)
            data += chunk
            del data[: -(self.limit + 2 * REACH_BYTES + len(chunk))]
            if stop is not None and end >= stop:
                break
        begin, masked = end - len(data), mask(bytes(data))
        last = end if self.before is None else min(self.before, end)
        start = max(begin, last - self.limit)
        return start, masked[start - begin : last - begin], last == end

    def in_lines(self, data: bytes, *, is_first: bool, is_last: bool) -> tuple[int, bytes]:
        if not is_last and self.before is None:
            data = _up_to_last_line(data, self.limit)
        rest = data
        if not is_first:
            rest = data[data.find(b"\n") + 1 :] or data
            rest = rest.lstrip(bytes(range(0x80, 0xC0)))  # of a character that began before
        return len(data) - len(rest), rest


class AttemptLogs:
    """The logs of all attempts. Threads may share it."""

    def __init__(self, cluster: Cluster, storage: ObjectStorage, mask: Mask) -> None:
        self._cluster = cluster
        self._storage = storage
        self._mask = mask
        self._readers = threading.BoundedSemaphore(MAX_READERS)

    def page(self, job: Job, attempt: int, source: str, after: int, limit: int) -> LogPage:
        """At most `limit` bytes of a log beyond the offset `after`, in whole lines if they fit.

        Raises LogNotFound if there is no such attempt or source, and ClusterUnavailable or the
        storage's errors if it cannot be read now.
        """
        return self._part(job, attempt, source, _From(after, limit))

    def last(
        self, job: Job, attempt: int, source: str, limit: int, before: int | None = None
    ) -> LogPage:
        """The last lines of a log, at most `limit` bytes; below the offset `before` if it is given.

        Raises as `page` does.
        """
        return self._part(job, attempt, source, _Last(before, limit))

    def _part(self, job: Job, attempt: int, source: str, part: _From | _Last) -> LogPage:
        if not 0 < attempt <= job.attempt:
            count = f"attempts 1 to {job.attempt}" if job.attempt else "no attempt yet"
            raise LogNotFound(f"Job {job.id} has {count}, not {attempt}.", param="attempt")
        ended = attempt < job.attempt or job.state not in (JobState.RUNNING, JobState.CANCELLING)
        if ended and (kept := read_index(self._storage, job.id, attempt)) is not None:
            return self._kept_page(kept, job.id, attempt, source, part)
        if not self._readers.acquire(blocking=False):
            raise ClusterUnavailable(f"{MAX_READERS} requests read logs from Ray already.")
        try:
            page = self._ray_page(job.id, attempt, source, part, ended=ended)
        finally:
            self._readers.release()
        if page.missing and (kept := read_index(self._storage, job.id, attempt)) is not None:
            # A dispatcher has kept it, and had Ray forget it, since the first look.
            return self._kept_page(kept, job.id, attempt, source, part)
        return page

    def keep(self, job_id: str, attempt: int) -> None:
        """Keep the ends of the logs of an attempt that has ended; a repeated call changes nothing.

        No effect while its driver runs. Raises ClusterUnavailable and the storage's errors.
        """
        if read_index(self._storage, job_id, attempt) is not None:
            return
        status = self._cluster.status(job_id, attempt)
        if isinstance(status, Active):
            return
        known = {} if status == Unknown() else self._cluster.logs(job_id, attempt)
        logs: dict[str, KeptLog] = {}
        missing = {} if known else {DRIVER: LOST}
        for source, read in known.items():
            try:
                log, end = self._end_of(read)
            except LogNotFound as error:
                missing[source] = error.detail
                continue
            self._storage.put_bytes(log_key(job_id, attempt, source), end)
            logs[source] = log
        index = Kept(logs=logs, missing=missing).model_dump_json().encode()
        self._storage.put_bytes(index_key(job_id, attempt), index)

    def _end_of(self, read: LogReader) -> tuple[KeptLog, bytes]:
        size, end = 0, bytearray()
        for chunk in _within(READ_SECONDS, read):
            size += len(chunk)
            end += chunk
            del end[: -(KEPT_BYTES + REACH_BYTES)]
        masked = self._mask(bytes(end))[-KEPT_BYTES:]
        return KeptLog(start=size - len(masked), size=len(masked)), masked

    def _kept_page(
        self, kept: Kept, job_id: str, attempt: int, source: str, part: _From | _Last
    ) -> LogPage:
        sources, after = tuple(sorted(kept.logs)), part.after
        log = kept.logs.get(source)
        if log is None:
            of_all = None if sources else kept.missing.get(DRIVER)
            reason = kept.missing.get(source, of_all)
            if reason is None:
                raise _no_source(source, sources)
            return LogPage(attempt, source, sources, after, "", after, True, reason)
        start, end = part.of(log.start, log.end)
        if start >= end:
            return LogPage(attempt, source, sources, after, "", after, complete=True)
        key = log_key(job_id, attempt, source)
        data = self._storage.get_range(key, start - log.start, end - start)
        return _page(attempt, source, sources, start, data, part, last=end >= log.end)

    def _ray_page(
        self, job_id: str, attempt: int, source: str, part: _From | _Last, *, ended: bool
    ) -> LogPage:
        after = part.after
        status = self._cluster.status(job_id, attempt)
        if status == Unknown():  # not submitted yet, or lost
            lost = LOST if ended else None
            return LogPage(attempt, source, (), after, "", after, ended, lost)
        known = self._cluster.logs(job_id, attempt)
        sources = tuple(sorted(known))
        final = ended and not isinstance(status, Active)
        if source not in known:
            if ended or len(sources) > 1:
                raise _no_source(source, sources)
            return LogPage(attempt, source, sources, after, "", after)  # no workers yet
        try:
            start, data, whole = part.read(known[source], self._mask)
        except LogNotFound as error:
            return LogPage(attempt, source, sources, after, "", after, final, error.detail)
        return _page(attempt, source, sources, start, data, part, last=final and whole)


def _page(
    attempt: int,
    source: str,
    sources: tuple[str, ...],
    start: int,
    data: bytes,
    part: _From | _Last,
    *,
    last: bool,
) -> LogPage:
    """The page of these bytes, in whole lines unless they are the end or one line."""
    cut, data = part.in_lines(data, is_first=start == 0, is_last=last)
    start += cut
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=last)
    half_character = len(decoder.getstate()[0])
    end = start + len(data) - half_character
    return LogPage(attempt, source, sources, start, text, end, last)


def _up_to_last_line(data: bytes, limit: int) -> bytes:
    """Without the line that is still to be ended, unless it fills the page."""
    line_end = data.rfind(b"\n") + 1
    return data[:line_end] if line_end or len(data) < limit else data


def _window(read: LogReader, start: int, length: int) -> tuple[bytes, bool]:
    """At most `length` bytes of the log from `start` on, and whether they reach its end."""
    window, position = bytearray(), 0
    for chunk in _within(READ_SECONDS, read):
        window += chunk[max(0, start - position) :]
        position += len(chunk)
        if len(window) > length:
            return bytes(window[:length]), False
    return bytes(window), True


def _within(seconds: float, read: LogReader) -> Iterable[bytes]:
    """The chunks of a log. Raises ClusterUnavailable if they take longer."""
    deadline = time.monotonic() + seconds
    with closing(read()) as chunks:
        for chunk in chunks:
            yield chunk
            if time.monotonic() > deadline:
                raise ClusterUnavailable(f"Ray took longer than {seconds:.0f} s to send a log.")


def _no_source(source: str, sources: Iterable[str]) -> LogNotFound:
    found = ", ".join(sources) or "none"
    return LogNotFound(f"The attempt has no log {source}; it has {found}.", param="source")

"""Logs are read in pages from Ray, and from the bucket once an attempt has ended."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from service.cluster.ray_jobs import AttemptStatus, Unknown
from service.cluster.ray_logs import LogReader
from service.domain.job import DEFAULT_TENANT, Job
from service.errors import ClusterUnavailable, LogNotFound, StorageUnavailable
from service.logs import attempt_logs
from service.logs.attempt_logs import LOST, AttemptLogs, LogPage
from service.logs.kept import index_key, log_key, read_index
from service.logs.mask import Mask
from service.store.store import Store
from tests.fixtures.cluster import FakeCluster
from tests.fixtures.jobs import at_once, small_spec
from tests.fixtures.storage import MemoryStorage

SECRET = "QZQZQZQZ"
CODE = "\nThe driver's exit code: 1"


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def bucket() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def logs(cluster: FakeCluster, bucket: MemoryStorage) -> AttemptLogs:
    return AttemptLogs(cluster, bucket, Mask([SECRET]))


class Attempt:
    """The first attempt of a job, whose driver prints what a test gives it."""

    def __init__(self, store: Store, cluster: FakeCluster) -> None:
        self._store = store
        self._cluster = cluster
        self.id = store.users(DEFAULT_TENANT).create(small_spec()).id
        assert store.claims.claim() is not None
        cluster.submit(self.id, 1)

    @property
    def job(self) -> Job:
        return self._store.records.get(self.id)

    def print(self, text: str) -> None:
        self._cluster._logs[f"{self.id}-1"] += text

    def end(self, *, attempts: int = 1) -> None:
        printed = self._cluster._logs[f"{self.id}-1"]
        self._cluster.end(self.id, 1, printed=printed, code=1)
        failure = StorageUnavailable().failure()
        self._store.attempts.fail(self.id, 1, failure, at_once(attempts))


@pytest.fixture
def attempt(job_store: Store, cluster: FakeCluster) -> Attempt:
    return Attempt(job_store, cluster)


def printing(text: bytes, chunk: int = 1000) -> LogReader:
    def read() -> Generator[bytes, None, None]:
        for start in range(0, len(text), chunk):
            yield text[start : start + chunk]

    return read


def read_all(logs: AttemptLogs, job: Job, source: str = "driver", limit: int = 20) -> list[LogPage]:
    pages = [logs.page(job, 1, source, 0, limit)]
    while not pages[-1].complete:
        pages.append(logs.page(job, 1, source, pages[-1].next_after, limit))
    return pages


def test_a_running_attempt_is_followed_in_whole_lines(logs: AttemptLogs, attempt: Attempt) -> None:
    attempt.print("first\nseco")
    page = logs.page(attempt.job, 1, "driver", 0, 1000)
    assert page == LogPage(1, "driver", ("driver",), 0, "first\n", 6, complete=False)
    assert logs.page(attempt.job, 1, "driver", 6, 1000).text == ""
    attempt.print("nd\n")
    page = logs.page(attempt.job, 1, "driver", 6, 1000)
    assert (page.start, page.text, page.next_after) == (6, "second\n", 13)
    attempt.end()
    page = logs.page(attempt.job, 1, "driver", 13, 1000)
    assert (page.text, page.complete) == (CODE, True)


@pytest.mark.parametrize("kept", [False, True])
def test_pages_together_are_the_log(
    logs: AttemptLogs, attempt: Attempt, bucket: MemoryStorage, kept: bool
) -> None:
    text = "".join(f"line {number} äöü€\n" for number in range(50)) + 100 * "€" + "\nlast"
    attempt.print(text)
    attempt.end()
    if kept:
        logs.keep(attempt.id, 1)
        assert bucket.objects
    pages = read_all(logs, attempt.job)
    assert "".join(page.text for page in pages) == text + CODE
    assert max(len(page.text.encode()) for page in pages) <= 20
    assert pages[-1].next_after == len((text + CODE).encode())
    assert all(page.text.endswith("\n") for page in pages if "line" in page.text)
    beyond = logs.page(attempt.job, 1, "driver", 10**9, 1000)
    assert (beyond.text, beyond.next_after, beyond.complete) == ("", 10**9, True)


@pytest.mark.parametrize("kept", [False, True])
def test_a_log_is_read_from_its_end_on(logs: AttemptLogs, attempt: Attempt, kept: bool) -> None:
    text = 30 * "€" + "\n" + "".join(f"line {number} äöü€\n" for number in range(50)) + "last"
    attempt.print(text)
    attempt.end()
    if kept:
        logs.keep(attempt.id, 1)
    pages = [logs.last(attempt.job, 1, "driver", 20 + len(CODE))]
    assert pages[0].complete
    while pages[-1].start:
        pages.append(logs.last(attempt.job, 1, "driver", 20, pages[-1].start))
        assert pages[-1].next_after == pages[-2].start
    assert "".join(page.text for page in reversed(pages)) == text + CODE
    assert pages[0].text == "last" + CODE
    assert len(pages) > 50


def test_the_end_of_a_running_attempt_s_log_is_whole_lines(
    logs: AttemptLogs, attempt: Attempt
) -> None:
    attempt.print(f"first {SECRET}\nsecond\nthi")
    page = logs.last(attempt.job, 1, "driver", 12)
    assert (page.text, page.complete) == ("second\n", False)
    assert logs.last(attempt.job, 1, "driver", 100, 9).text == "first ***"


def test_what_is_kept_is_read_when_ray_has_forgotten_the_attempt_or_is_away(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster
) -> None:
    cluster.workers_logs = {"worker-0": printing(b"of the worker\n")}
    attempt.print("of the driver\n")
    attempt.end()
    before = read_all(logs, attempt.job, limit=1000)
    logs.keep(attempt.id, 1)
    cluster.restart()
    cluster.down = True
    assert read_all(logs, attempt.job, limit=1000) == before
    (page,) = read_all(logs, attempt.job, "worker-0", limit=1000)
    assert (page.text, page.sources) == ("of the worker\n", ("driver", "worker-0"))


def test_the_end_of_a_long_log_is_kept_at_its_offsets(
    logs: AttemptLogs,
    attempt: Attempt,
    bucket: MemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_logs, "KEPT_BYTES", 100)
    text = "".join(f"{number:09d}\n" for number in range(2000))
    attempt.print(text)
    attempt.end()
    whole = (text + CODE).encode()
    follower = logs.page(attempt.job, 1, "driver", len(whole) - 50, 1000)
    logs.keep(attempt.id, 1)
    assert bucket.objects[log_key(attempt.id, 1, "driver")] == whole[-100:]
    page = logs.page(attempt.job, 1, "driver", 0, 1000)
    assert (page.start, page.text.encode()) == (len(whole) - 100, whole[-100:])
    assert logs.page(attempt.job, 1, "driver", len(whole) - 50, 1000) == follower


@pytest.mark.parametrize("kept", [False, True])
def test_secrets_are_masked_however_the_log_is_cut(
    logs: AttemptLogs, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setattr(attempt_logs, "KEPT_BYTES", len(CODE) + 5)
    attempt.print(f"{SECRET}\n{SECRET}\n")
    attempt.end()
    if kept:
        logs.keep(attempt.id, 1)
    found = "".join(
        logs.page(attempt.job, 1, "driver", after, limit).text
        for after in range(40)
        for limit in (1, 3, 20)
    )
    assert "*" in found
    assert not {*SECRET} & {*found}


def test_the_kept_end_is_masked_where_it_cuts_a_secret(
    logs: AttemptLogs,
    attempt: Attempt,
    bucket: MemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_logs, "KEPT_BYTES", len(CODE) + 4)
    attempt.print(SECRET)
    attempt.end()
    logs.keep(attempt.id, 1)
    assert bucket.objects[log_key(attempt.id, 1, "driver")] == f"****{CODE}".encode()


def test_an_attempt_that_ray_does_not_know_any_more_is_lost_and_says_so(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster
) -> None:
    attempt.print("gone\n")
    running = logs.page(attempt.job, 1, "driver", 0, 1000)
    cluster.restart()
    waiting = logs.page(attempt.job, 1, "driver", running.next_after, 1000)
    assert (waiting.text, waiting.complete, waiting.missing) == ("", False, None)
    attempt._store.attempts.fail(
        attempt.id, 1, StorageUnavailable().failure(), at_once(max_attempts=1)
    )
    for _ in range(2):
        for source in ("driver", "worker-0"):
            page = logs.page(attempt.job, 1, source, 0, 1000)
            assert (page.text, page.complete, page.missing) == ("", True, LOST)
            assert page.sources == ()
        logs.keep(attempt.id, 1)


def test_a_log_that_is_kept_between_two_looks_is_not_lost(
    logs: AttemptLogs,
    attempt: Attempt,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt.print("printed\n")
    attempt.end()
    job = attempt.job
    status = cluster.status

    def kept_meanwhile(job_id: str, number: int) -> AttemptStatus:
        monkeypatch.setattr(cluster, "status", status)
        AttemptLogs(cluster, bucket, Mask(())).keep(job_id, number)
        cluster.restart()
        return status(job_id, number)

    monkeypatch.setattr(cluster, "status", kept_meanwhile)
    page = logs.page(job, 1, "driver", 0, 1000)
    assert (page.text, page.missing) == (f"printed\n{CODE}", None)


def test_a_log_that_was_lost_with_its_machine_leaves_the_others(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster
) -> None:
    def lost() -> Generator[bytes, None, None]:
        raise LogNotFound("Its machine is gone.")
        yield b""

    cluster.workers_logs = {"worker-0": lost, "worker-1": printing(b"1\n")}
    attempt.end()
    for kept in (False, True):
        if kept:
            logs.keep(attempt.id, 1)
        page = logs.page(attempt.job, 1, "worker-0", 0, 1000)
        assert (page.text, page.complete, page.missing) == ("", True, "Its machine is gone.")
        assert logs.page(attempt.job, 1, "worker-1", 0, 1000).text == "1\n"


@pytest.mark.parametrize("number", [0, 2, 10**6])
def test_an_unknown_attempt_is_named(logs: AttemptLogs, attempt: Attempt, number: int) -> None:
    with pytest.raises(LogNotFound, match=f"attempts 1 to 1, not {number}") as caught:
        logs.page(attempt.job, number, "driver", 0, 1000)
    assert caught.value.param == "attempt"


def test_an_unknown_worker_is_named_once_the_workers_are_known(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster
) -> None:
    assert not logs.page(attempt.job, 1, "worker-7", 0, 1000).complete  # it may yet come
    cluster.workers_logs = {"worker-0": printing(b"")}

    def refused() -> None:
        with pytest.raises(LogNotFound, match="no log worker-7; it has driver, worker-0") as caught:
            logs.page(attempt.job, 1, "worker-7", 0, 1000)
        assert caught.value.param == "source"

    refused()
    attempt.end()
    refused()
    logs.keep(attempt.id, 1)
    refused()


def test_a_cluster_that_is_away_hides_the_log_of_a_running_attempt(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster
) -> None:
    cluster.down = True
    with pytest.raises(ClusterUnavailable):
        logs.page(attempt.job, 1, "driver", 0, 1000)


class TestKeep:
    def test_leaves_an_attempt_that_runs(
        self, logs: AttemptLogs, attempt: Attempt, bucket: MemoryStorage
    ) -> None:
        logs.keep(attempt.id, 1)
        assert bucket.objects == {}

    def test_does_not_replace_what_is_kept(
        self, logs: AttemptLogs, attempt: Attempt, bucket: MemoryStorage, cluster: FakeCluster
    ) -> None:
        attempt.end()
        logs.keep(attempt.id, 1)
        before = dict(bucket.objects)
        cluster.restart()
        logs.keep(attempt.id, 1)
        assert cluster.status(attempt.id, 1) == Unknown()
        assert bucket.objects == before

    def test_begins_again_where_it_was_interrupted(
        self, logs: AttemptLogs, attempt: Attempt, bucket: MemoryStorage
    ) -> None:
        attempt.end()
        bucket.trouble, bucket.refused = StorageUnavailable(), index_key(attempt.id, 1)
        bucket.objects[index_key(attempt.id, 1)] = b"damaged"
        with pytest.raises(StorageUnavailable):
            logs.keep(attempt.id, 1)
        bucket.trouble = None
        logs.keep(attempt.id, 1)
        kept = read_index(bucket, attempt.id, 1)
        assert kept is not None
        assert list(kept.logs) == ["driver"]


def test_a_log_takes_no_more_memory_than_its_page(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster
) -> None:
    """The reader is closed after the page: an endless log would not end otherwise."""
    closed = []

    def endless() -> Generator[bytes, None, None]:
        try:
            while True:
                yield b"again\n" * 1000
        finally:
            closed.append(True)

    cluster.workers_logs = {"worker-0": endless}
    page = logs.page(attempt.job, 1, "worker-0", 10**6, 6000)
    assert page.text.count("again\n") >= 999
    assert closed == [True]


def test_a_log_that_takes_too_long_is_refused(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_logs, "READ_SECONDS", -1.0)
    cluster.workers_logs = {"worker-0": printing(b"slow\n")}
    with pytest.raises(ClusterUnavailable, match="to send a log"):
        logs.page(attempt.job, 1, "worker-0", 0, 1000)


def test_only_so_many_requests_wait_for_ray(
    logs: AttemptLogs, attempt: Attempt, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[Callable[[], LogPage]] = []

    def read() -> Generator[bytes, None, None]:
        with pytest.raises(ClusterUnavailable, match="1 requests read logs"):
            inner[0]()
        yield b"outer\n"

    monkeypatch.setattr(attempt_logs, "MAX_READERS", 1)
    logs = AttemptLogs(cluster, MemoryStorage(), Mask(()))
    cluster.workers_logs = {"worker-0": read}
    inner.append(lambda: logs.page(attempt.job, 1, "driver", 0, 1000))
    assert logs.page(attempt.job, 1, "worker-0", 0, 1000).text == "outer\n"
    assert logs.page(attempt.job, 1, "driver", 0, 1000).text == ""

"""An upload arrives whole or leaves nothing, whatever breaks."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as arrow
import pytest
from pyarrow import parquet

from service.datasets import receiver, uploads
from service.datasets.receiver import Receiver
from service.datasets.removal import remove_dataset
from service.datasets.uploads import Upload, Wanted
from service.domain.datasets import Dataset, Format
from service.domain.job import DEFAULT_TENANT
from service.domain.tenant import Limits, Places
from service.errors import (
    DataInvalid,
    DatasetTooLarge,
    EigenpressError,
    QuotaExceeded,
    StorageUnavailable,
    UploadAbandoned,
    UploadsBusy,
)
from service.settings import Settings
from service.store.store import Store
from tests.fixtures.storage import MemoryStorage

ROWS = b'{"text": "One."}\n{"text": ""}\n{"text": "Two."}\n'
MAX_BYTES = 1000


@pytest.fixture
def bucket() -> MemoryStorage:
    return MemoryStorage()


def start(store: Store, bucket: MemoryStorage, kind: Format, text_field: str = "text") -> Upload:
    wanted = Wanted("texts", kind, text_field)
    return Upload(wanted, DEFAULT_TENANT, MAX_BYTES, store, bucket)


def upload(
    store: Store,
    bucket: MemoryStorage,
    kind: Format,
    *pieces: bytes,
    text_field: str = "text",
) -> Dataset:
    started = start(store, bucket, kind, text_field)
    try:
        for piece in pieces:
            started.write(piece)
        return started.finish()
    except EigenpressError:
        started.abort()
        raise


def nothing_is_left(store: Store, bucket: MemoryStorage) -> bool:
    seen = store.datasets(DEFAULT_TENANT).page(limit=9)
    left = store.stored_datasets.to_remove(limit=9)
    return not (seen or left or bucket.objects or bucket.uploads)


def described(bucket: MemoryStorage, made: Dataset) -> dict[str, object]:
    content: dict[str, object] = json.loads(bucket.objects[f"datasets/{made.id}/dataset.json"])
    return content


def test_what_arrives_is_stored_and_described(job_store: Store, bucket: MemoryStorage) -> None:
    made = upload(job_store, bucket, "jsonl", ROWS[:20], ROWS[20:])
    assert bucket.objects[f"datasets/{made.id}/data.jsonl"] == ROWS
    digest = hashlib.sha256(ROWS).hexdigest()
    assert (made.bytes, made.documents, made.empty_rows, made.sha256) == (len(ROWS), 2, 1, digest)
    assert described(bucket, made) == {
        "file": "data.jsonl",
        "bytes": len(ROWS),
        "sha256": digest,
        "text_field": "text",
    }
    assert job_store.datasets(DEFAULT_TENANT).get(made.id) == made


def test_parts_are_as_large_as_s3_wants_them(
    job_store: Store, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 16)
    sizes: list[int] = []
    put = bucket.put_part

    def noticed(key: str, upload_id: str, number: int, data: bytes) -> str:
        sizes.append(len(data))
        return put(key, upload_id, number, data)

    monkeypatch.setattr(bucket, "put_part", noticed)
    made = upload(job_store, bucket, "jsonl", ROWS[:3], ROWS[3:])
    assert sizes == [16, 16, len(ROWS) - 32]
    assert bucket.objects[f"datasets/{made.id}/data.jsonl"] == ROWS


def test_rows_in_gzip_stay_compressed_and_text_does_not(
    job_store: Store, bucket: MemoryStorage
) -> None:
    rows = gzip.compress(ROWS)
    made = upload(job_store, bucket, "jsonl", rows)
    assert bucket.objects[f"datasets/{made.id}/data.jsonl.gz"] == rows
    assert (made.bytes, made.documents, made.empty_rows) == (len(rows), 2, 1)
    made = upload(job_store, bucket, "text", gzip.compress(b"A text."))
    assert bucket.objects[f"datasets/{made.id}/data.txt"] == b"A text."
    assert (made.bytes, made.documents, made.empty_rows) == (7, 1, 0)


def table(path: Path, **columns: Sequence[object]) -> bytes:
    parquet.write_table(arrow.table(dict(columns)), path)
    return path.read_bytes()


def test_parquet_is_checked_by_its_footer(
    job_store: Store, bucket: MemoryStorage, tmp_path: Path
) -> None:
    data = table(tmp_path / "a", body=["One.", None], n=[1, 2])
    made = upload(job_store, bucket, "parquet", data[:9], data[9:], text_field="body")
    assert bucket.objects[f"datasets/{made.id}/data.parquet"] == data
    assert (made.documents, made.empty_rows) == (2, None)


@pytest.mark.parametrize(
    ("text_field", "said", "param"),
    [
        ("text", "has no field 'text'; it has: 'body', 'n'. Name the right one", "text_field"),
        ("n", "'n' of 'data.parquet' is int64, not text.", "text_field"),
    ],
)
def test_parquet_without_the_text(
    job_store: Store,
    bucket: MemoryStorage,
    tmp_path: Path,
    text_field: str,
    said: str,
    param: str,
) -> None:
    data = table(tmp_path / "a", body=["One."], n=[1])
    with pytest.raises(DataInvalid) as caught:
        upload(job_store, bucket, "parquet", data, text_field=text_field)
    assert said in caught.value.detail
    assert caught.value.param == param
    assert nothing_is_left(job_store, bucket)


@pytest.mark.parametrize("cut", [True, False])
def test_parquet_that_is_damaged_or_empty(
    job_store: Store, bucket: MemoryStorage, tmp_path: Path, cut: bool
) -> None:
    data = table(tmp_path / "a", text=arrow.array([], arrow.string()))
    said = "The file cannot be read" if cut else "There is no text"
    with pytest.raises(DataInvalid, match=said):
        upload(job_store, bucket, "parquet", data[:-10] if cut else data)
    assert nothing_is_left(job_store, bucket)


@pytest.mark.parametrize(
    ("kind", "pieces", "error"),
    [
        ("jsonl", [], DataInvalid),
        ("jsonl", [ROWS, b"nonsense\n"], DataInvalid),
        ("jsonl", [ROWS, b'{"text": "cut'], DataInvalid),
        ("jsonl", [gzip.compress(ROWS)[:-5]], DataInvalid),
        ("text", [b"text", b"\xff"], DataInvalid),
        ("parquet", [gzip.compress(b"PAR1")], DataInvalid),
        ("text", [b"x" * MAX_BYTES, b"x"], DatasetTooLarge),
        ("text", [gzip.compress(b"x" * (MAX_BYTES + 1))], DatasetTooLarge),
    ],
    ids=["empty", "row", "cut", "gzip", "text", "parquet", "large", "expanded"],
)
def test_what_is_refused_leaves_nothing(
    job_store: Store,
    bucket: MemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
    kind: Format,
    pieces: list[bytes],
    error: type[EigenpressError],
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 16)
    with pytest.raises(error):
        upload(job_store, bucket, kind, *pieces)
    assert nothing_is_left(job_store, bucket)


def test_what_cannot_be_removed_is_left_to_the_cleaner(
    job_store: Store, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 16)
    started = start(job_store, bucket, "jsonl")
    started.write(ROWS)
    bucket.trouble = StorageUnavailable("S3 is away")
    with pytest.raises(StorageUnavailable):
        started.write(ROWS)
    started.abort()
    (left,) = job_store.stored_datasets.to_remove(limit=9)
    assert [key.split("/")[1] for key in bucket.uploads] == [left]
    bucket.trouble = None
    remove_dataset(left, job_store.stored_datasets, bucket)
    assert nothing_is_left(job_store, bucket)


def test_an_upload_renews_its_lease_and_stops_without_it(
    job_store: Store, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "RENEWAL_SECONDS", 0)
    started = start(job_store, bucket, "jsonl")
    started.write(ROWS)
    monkeypatch.setattr(uploads, "LEASE_SECONDS", 0.0)
    started.write(ROWS)
    assert len(job_store.stored_datasets.to_remove(limit=9)) == 1
    with pytest.raises(UploadAbandoned):
        started.finish()
    started.abort()
    assert nothing_is_left(job_store, bucket)


def test_an_upload_stops_as_it_outgrows_its_tenant(
    job_store: Store, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "RENEWAL_BYTES", len(ROWS))
    job_store.tenants.change(DEFAULT_TENANT, Limits(max_stored_bytes=2 * len(ROWS)), Places())
    started = start(job_store, bucket, "jsonl")
    started.write(ROWS)
    started.write(ROWS)
    with pytest.raises(QuotaExceeded):
        started.write(ROWS)
    started.abort()
    assert nothing_is_left(job_store, bucket)


def test_of_two_uploads_at_once_only_one_fits(
    job_store: Store, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "RENEWAL_BYTES", len(ROWS))
    job_store.tenants.change(DEFAULT_TENANT, Limits(max_stored_bytes=3 * len(ROWS)), Places())
    first, second = (start(job_store, bucket, "jsonl") for _ in range(2))
    for each in (first, second, first):
        each.write(ROWS)
    assert job_store.tenants.usage(DEFAULT_TENANT).stored_bytes == 3 * len(ROWS)
    with pytest.raises(QuotaExceeded, match=f"take {2 * len(ROWS)} bytes"):
        second.write(ROWS)
    second.abort()
    first.write(ROWS)
    assert first.finish().bytes == 3 * len(ROWS)
    assert job_store.tenants.usage(DEFAULT_TENANT).stored_bytes == 3 * len(ROWS)


def test_an_upload_beyond_the_limit_of_its_tenant_ends_refused(
    job_store: Store, bucket: MemoryStorage
) -> None:
    job_store.tenants.change(DEFAULT_TENANT, Limits(max_stored_bytes=len(ROWS)), Places())
    with pytest.raises(QuotaExceeded):
        upload(job_store, bucket, "jsonl", ROWS, ROWS)
    assert nothing_is_left(job_store, bucket)
    upload(job_store, bucket, "jsonl", ROWS)


async def body(*pieces: bytes, error: BaseException | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if error is not None:
        raise error


WANTED = Wanted(None, "jsonl", "text")


def test_a_body_that_breaks_leaves_nothing(job_store: Store, bucket: MemoryStorage) -> None:
    with Receiver(Settings(), job_store, bucket) as receiving, suppress(ConnectionError):
        broken = body(ROWS, error=ConnectionError())
        asyncio.run(receiving.receive(WANTED, DEFAULT_TENANT, broken))
    assert nothing_is_left(job_store, bucket)


def test_a_cancelled_upload_leaves_nothing(job_store: Store, bucket: MemoryStorage) -> None:
    async def cancel() -> None:
        began = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield ROWS
            began.set()
            await asyncio.Event().wait()

        with Receiver(Settings(), job_store, bucket) as receiving:
            task = asyncio.create_task(receiving.receive(WANTED, DEFAULT_TENANT, endless()))
            await began.wait()
            assert bucket.uploads
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            receiving._executor.shutdown()  # waits for the threads

    asyncio.run(cancel())
    assert nothing_is_left(job_store, bucket)


def test_there_are_only_so_many_uploads(
    job_store: Store, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "MAX_UPLOADS", 2)

    async def fill() -> None:
        go = asyncio.Event()

        async def waiting() -> AsyncIterator[bytes]:
            yield ROWS
            await go.wait()

        with Receiver(Settings(), job_store, bucket) as receiving:

            def start() -> asyncio.Task[Dataset]:
                return asyncio.create_task(receiving.receive(WANTED, DEFAULT_TENANT, waiting()))

            open_uploads = [start(), start()]
            await asyncio.sleep(0)  # lets them begin
            with pytest.raises(UploadsBusy):
                await start()
            go.set()
            await asyncio.gather(*open_uploads)
            await start()

    asyncio.run(fill())
    assert len(job_store.datasets(DEFAULT_TENANT).page(limit=9)) == 3

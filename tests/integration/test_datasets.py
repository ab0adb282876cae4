"""Datasets with a real bucket and a real HTTP server, and jobs that use them."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as arrow
import pytest
import uvicorn
from pyarrow import parquet
from sqlalchemy import text as sql

from api.app import create_app
from service.cli import main
from service.cluster.ray_jobs import RayCluster
from service.datasets import uploads
from service.datasets.removal import remove_dataset
from service.datasets.uploads import Upload, Wanted
from service.dispatch.dispatcher import Dispatcher
from service.domain.datasets import Dataset, Format
from service.domain.job import DEFAULT_TENANT, new_job_id
from service.domain.spec.sources import DatasetData
from service.errors import DataInvalid, DataNotFound, DatasetInUse
from service.inputs.texts.sources import fetch_data
from service.settings import Settings
from service.standalone.ports import LOOPBACK
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.fixtures.in_process import LocalInstallation
from tests.fixtures.waiting import wait_until
from tests.unit.service.store.test_datasets import uploaded, using

ROWS = b'{"text": "One."}\n{"text": ""}\n{"text": "Two."}\n'
QUERY = {"format": "jsonl"}
MAX_BYTES = 2**30
PARAM = "calibration.data"


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The API on a real socket."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        config = uvicorn.Config(create_app(settings), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://{LOOPBACK}:{listening.getsockname()[1]}/v1/datasets"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def url(s3_settings: Settings) -> Iterator[str]:
    with served(s3_settings) as url:
        yield url


@pytest.fixture
def store(s3_settings: Settings) -> Iterator[Store]:
    store = Store(s3_settings.database)
    store.migrate()
    yield store
    store.close()


def unfinished(storage: ObjectStorage) -> list[str]:
    """The keys of the uploads to the bucket that have not ended."""
    answer = storage._client.list_multipart_uploads(Bucket=storage.bucket, Prefix="datasets/")
    return [upload["Key"] for upload in answer.get("Uploads", ())]


def objects(storage: ObjectStorage) -> list[str]:
    return [stored.key for stored in storage.list_objects("datasets/")]


@pytest.fixture(autouse=True)
def empty_bucket(storage: ObjectStorage) -> None:
    storage.abort_uploads("datasets/")
    storage.delete(objects(storage))


@pytest.mark.parametrize(
    "how",
    [
        "curl -sS --data-binary @{file} {url}",
        "curl -sS -X POST -T {file} {url}",
        "curl -sS -X POST -T - {url} < {file}",  # sends no Content-Length
    ],
)
def test_curl_uploads_a_file(url: str, storage: ObjectStorage, tmp_path: Path, how: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROWS * 5000)
    command = how.format(file=file, url=f"{url}?format=jsonl")
    made = json.loads(subprocess.check_output(command, shell=True))
    assert (made["documents"], made["empty_rows"]) == (10_000, 5000)
    key = f"datasets/{made['id']}/data.jsonl"
    assert storage.get_bytes(key) == file.read_bytes()
    assert unfinished(storage) == []


def test_an_upload_of_several_parts(url: str, storage: ObjectStorage) -> None:
    rows = json.dumps({"text": "x" * 2**20}).encode() + b"\n"
    made = httpx.post(url, params=QUERY, content=rows * 20, timeout=60).json()
    (stored,) = storage.list_objects(f"datasets/{made['id']}/data.jsonl")
    assert (stored.size, made["bytes"]) == (20 * len(rows), 20 * len(rows))
    assert stored.etag.endswith("-3")


def test_memory_stays_flat(url: str) -> None:
    row = json.dumps({"text": "x" * 10_000}).encode() + b"\n"
    piece = row * 100
    sizes = []

    def body(pieces: int) -> Iterator[bytes]:
        process = psutil.Process()
        for _ in range(pieces):
            yield piece
            sizes.append(process.memory_info().rss)

    first = httpx.post(url, params=QUERY, content=body(60), timeout=120)  # fills what is kept
    assert first.status_code == 201
    sizes.clear()
    made = httpx.post(url, params=QUERY, content=body(200), timeout=120).json()
    assert made["documents"] == 20_000
    assert made["bytes"] == 200 * len(piece) > 200 * 10**6
    assert max(sizes) - sizes[0] < 64 * 2**20


def test_a_refusal_reaches_a_client_that_still_sends(
    url: str, storage: ObjectStorage, tmp_path: Path
) -> None:
    """Also one that reads no answer before it has sent everything."""
    good = json.dumps({"text": "x" * 2**20}).encode() + b"\n"

    def body() -> Iterator[bytes]:
        for number in range(40):
            yield b"nonsense\n" if number == 10 else good

    answer = httpx.post(url, params=QUERY, content=body(), timeout=60)
    assert answer.status_code == 422
    assert "'line 11' is not JSON" in answer.json()["detail"]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(body()))
    command = ["curl", "-sS", "--data-binary", f"@{file}", f"{url}?format=jsonl"]
    assert json.loads(subprocess.check_output(command))["code"] == "data_invalid"
    assert httpx.get(url).json()["datasets"] == []
    assert (objects(storage), unfinished(storage)) == ([], [])


def test_a_connection_that_breaks_leaves_nothing(
    url: str, storage: ObjectStorage, store: Store
) -> None:
    host, port = url.removeprefix("http://").split("/")[0].split(":")
    row = json.dumps({"text": "x" * 2**20}).encode() + b"\n"
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/datasets?format=jsonl HTTP/1.1\r\nHost: {host}:{port}\r\n"
        connection.sendall(f"{head}Content-Length: {100 * len(row)}\r\n\r\n".encode())
        connection.sendall(row * 12)
        wait_until(lambda: unfinished(storage) != [])
    wait_until(lambda: unfinished(storage) == [])
    wait_until(lambda: store.stored_datasets.to_remove(limit=9) == [])
    assert objects(storage) == []
    assert store.datasets(DEFAULT_TENANT).page(limit=9) == []


def upload(
    store: Store,
    storage: ObjectStorage,
    data: bytes,
    kind: Format = "jsonl",
    text_field: str = "text",
) -> Dataset:
    wanted = Wanted(None, kind, text_field)
    started = Upload(wanted, DEFAULT_TENANT, MAX_BYTES, store, storage)
    started.write(data)
    return started.finish()


def test_the_dispatcher_removes_what_a_killed_api_and_users_have_left(
    s3_settings: Settings,
    storage: ObjectStorage,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deleted, kept = upload(store, storage, ROWS), upload(store, storage, ROWS)
    store.datasets(DEFAULT_TENANT).delete(deleted.id)
    monkeypatch.setattr(uploads, "LEASE_SECONDS", 0.0)
    monkeypatch.setattr(uploads, "PART_BYTES", 5 * 2**20)
    killed = Upload(Wanted(None, "text", "text"), DEFAULT_TENANT, MAX_BYTES, store, storage)
    killed.write(b"x" * (6 * 2**20))
    assert len(unfinished(storage)) == 1
    with RayCluster("http://127.0.0.1:9", "none") as cluster:
        dispatcher = Dispatcher(store, cluster, storage, s3_settings)
        dispatcher.tick()
        dispatcher.close()
    assert unfinished(storage) == []
    assert {key.split("/")[1] for key in objects(storage)} == {kept.id}
    assert store.stored_datasets.to_remove(limit=9) == []
    assert fetch_data(DatasetData(source="dataset", id=kept.id), s3_settings, PARAM)


def test_a_finished_upload_may_be_finished_again(storage: ObjectStorage) -> None:
    """As when the answer to the first try was lost."""
    key = "datasets/ds-x/data.txt"
    upload_id = storage.begin_upload(key)
    etags = [storage.put_part(key, upload_id, 1, b"text")]
    storage.finish_upload(key, upload_id, etags)
    storage.finish_upload(key, upload_id, etags)
    assert storage.get_bytes(key) == b"text"


@pytest.mark.parametrize("kind", ["text", "jsonl", "jsonl.gz", "parquet"])
def test_a_worker_fetches_what_was_uploaded(
    s3_settings: Settings, storage: ObjectStorage, store: Store, tmp_path: Path, kind: str
) -> None:
    parquet.write_table(arrow.table({"body": ["One."]}), tmp_path / "a.parquet")
    data = {
        "text": b"One.",
        "jsonl": ROWS,
        "jsonl.gz": gzip.compress(ROWS),
        "parquet": (tmp_path / "a.parquet").read_bytes(),
    }[kind]
    of_kind: Any = kind.removesuffix(".gz")
    text_field = "body" if kind == "parquet" else "text"
    made = upload(store, storage, data, of_kind, text_field)
    source = DatasetData(source="dataset", id=made.id)
    text = fetch_data(source, s3_settings, PARAM)
    assert text.root.read_bytes() == data
    assert text.root.name == f"data.{kind.replace('text', 'txt')}"
    assert text.text_field == text_field
    assert fetch_data(source, s3_settings, PARAM) == text


def test_a_dataset_that_is_gone(
    s3_settings: Settings, storage: ObjectStorage, store: Store
) -> None:
    made = upload(store, storage, ROWS)
    store.datasets(DEFAULT_TENANT).delete(made.id)
    remove_dataset(made.id, store.stored_datasets, storage)
    with pytest.raises(DataNotFound, match=made.id) as caught:
        fetch_data(DatasetData(source="dataset", id=made.id), s3_settings, PARAM)
    assert caught.value.param == f"{PARAM}.id"


def test_the_command_line(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EIGENPRESS_URL", url.removesuffix("/v1/datasets"))
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(ROWS))

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["eigenpress", "datasets", *arguments])
        with suppress(SystemExit):
            main.main()
        captured = capsys.readouterr()
        return captured.out, captured.err

    made, said = run("upload", str(file), "--name", "first")
    assert "2 documents, 1 rows without text." in said
    assert f"eigenpress submit --data dataset:{made.strip()}" in said
    listed, _ = run("list")
    size = str(file.stat().st_size)
    assert listed.split("\n")[1].split()[:6] == [made.strip(), "first", "jsonl", size, "B", "2"]
    assert run("delete", made.strip())[0] == f"{made.strip()} deleted\n"
    assert "No datasets. Upload one" in run("list")[1]
    assert "dataset_not_found" in run("delete", made.strip())[1]
    assert "data_invalid" in run("upload", str(file), "--format", "parquet")[1]
    assert "'rows.csv'" not in run("upload", str(tmp_path / "rows.csv"))[0]
    (tmp_path / "rows.csv").touch()
    assert "say what it is" in " ".join(run("upload", str(tmp_path / "rows.csv"))[1].split())


def rows_of(field: str, texts: list[object]) -> bytes:
    return b"".join(json.dumps({field: text}).encode() + b"\n" for text in texts)


def run_job(installation: LocalInstallation, data: bytes, text_field: str = "text") -> Any:
    """The id of the dataset, and the job that calibrates on it, which has ended."""
    storage = ObjectStorage.from_settings(installation.settings)
    made = upload(installation.store, storage, data, text_field=text_field)
    source = {"source": "dataset", "id": made.id}
    job = installation.create(
        calibration={"data": source, "sequences": 16, "sequence_length": 32, "batch_size": 4},
        targets=[{"keep": 0.7}],
        evaluation={"sequences": 50, "decode_tokens": 0},
    )
    installation.attempt(workers=1)
    return made.id, job


def test_a_job_calibrates_on_a_dataset(local_installation: LocalInstallation) -> None:
    texts: list[object] = [f"The number is {number}. " * 10 for number in range(30)]
    dataset_id, job = run_job(local_installation, rows_of("text", [*texts, "", texts[0]]))
    ((used,),) = (each["texts"][:1] for each in local_installation.events(job, "texts.used"))
    assert (used["text"], used["sequences"], used["tokens"]) == ("calibration", 16, 16 * 32)
    assert used["skipped"] == {"rows without text": 1, "repeated documents": 1}
    (short,) = local_installation.events(job, "texts.short")
    assert (short["text"], short["asked"]) == ("held-out", 50)
    assert short["sequences"] < 50
    ended = local_installation.store.records.get(job.id)
    assert [warning.type for warning in ended.warnings] == ["texts.short"]
    report = local_installation.store.records.report(job.id)
    assert report is not None
    assert report["texts"][0] == used
    assert report["warnings"] == [warning.message for warning in ended.warnings]
    dataset = local_installation.store.datasets(DEFAULT_TENANT).get(dataset_id)
    assert dataset.tokens == len("".join(map(str, texts))) + len(str(texts[0]))


TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)
CHATS: list[object] = [
    [
        {"role": "user", "content": f"Which number comes after {number}?"},
        {"role": "assistant", "content": f"The number {number + 1} comes after it."},
    ]
    for number in range(40)
]


def test_a_job_calibrates_on_chats(local_installation: LocalInstallation) -> None:
    (local_installation.inputs / "llama" / "chat_template.jinja").write_text(TEMPLATE)
    _, job = run_job(local_installation, rows_of("messages", CHATS), "messages")
    ended = local_installation.store.records.get(job.id)
    assert (ended.state, ended.failure) == ("succeeded", None)
    (event,) = local_installation.events(job, "texts.used")
    assert event["texts"][0]["documents"] + event["texts"][1]["documents"] == 40


def test_chats_need_a_template(local_installation: LocalInstallation) -> None:
    with pytest.raises(DataInvalid, match="has no chat template") as caught:
        run_job(local_installation, rows_of("messages", CHATS), "messages")
    assert caught.value.param == "calibration.data.id"


def test_a_task_reads_a_dataset(local_installation: LocalInstallation) -> None:
    storage = ObjectStorage.from_settings(local_installation.settings)
    question = {"question": "Which?", "choices": ["this", "that"], "answer": 0}
    data = json.dumps(question).encode() + b"\n"
    made = upload(local_installation.store, storage, data, text_field="question")
    task = {"kind": "multiple_choice", "name": "which"}
    source = {"source": "dataset", "id": made.id}
    job = local_installation.create(
        targets=[{"keep": 0.7}],
        evaluation={"sequences": 2, "decode_tokens": 0, "tasks": [task | {"data": source}]},
    )
    local_installation.attempt(workers=1)
    report = local_installation.store.records.report(job.id)
    assert report is not None
    assert report["evaluation"]["dense"]["tasks"]["which"]["problems"] == 1


def test_a_deletion_waits_for_the_job_that_is_being_created(postgres_url: str) -> None:
    with closing(Store(postgres_url)) as shared:
        shared.migrate()
        made = uploaded(shared)
        spec = using(calibration=made.id)
        with ThreadPoolExecutor(1) as pool, shared._database.writing() as connection:
            shared.users(DEFAULT_TENANT)._create(connection, spec, new_job_id())
            deletion = pool.submit(shared.datasets(DEFAULT_TENANT).delete, made.id)
            wait_until(lambda: is_waiting_for_a_lock(shared))
            connection.commit()
            with pytest.raises(DatasetInUse):
                deletion.result()


def is_waiting_for_a_lock(store: Store) -> bool:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with store._database.reading() as connection:
        return bool(connection.execute(sql(waiting)).scalar_one())

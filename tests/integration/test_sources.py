"""Models and texts come from local paths, a real bucket and a hub over real HTTP."""

from __future__ import annotations

import gzip
import io
import os
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet
from s3transfer.utils import OSUtils

import service.inputs.s3
import service.inputs.texts.sources
import service.storage.s3
from service.domain.spec.sources import (
    HubData,
    HubModel,
    LocalData,
    LocalPath,
    ModelSource,
    S3Data,
    S3Prefix,
)
from service.errors import (
    BucketMissing,
    DataInvalid,
    DataNotFound,
    DiskFull,
    EigenpressError,
    HubUnavailable,
    InvalidParameter,
    ModelConfigMissing,
    ModelInvalid,
    ModelNotFound,
    NotACausalLM,
    PathNotAllowed,
    StorageUnavailable,
    UnsafeWeights,
)
from service.inputs.models import sources
from service.inputs.models.files import ModelHeaders
from service.inputs.models.sources import check_model, fetch_model
from service.inputs.opening import HeldFiles
from service.inputs.texts.documents import CHECKED_FILES, read_documents
from service.inputs.texts.parquet_files import FOOTER_BYTES
from service.inputs.texts.sources import check_data, fetch_data
from service.inputs.texts.text_files import CHECKED_BYTES
from service.settings import Settings
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage, StoredObject
from tests.fixtures.gguf_files import header
from tests.fixtures.hub import REVISION, HubServer
from tests.fixtures.storage import s3_settings_for

PARAM = "calibration.data"


@pytest.fixture
def settings(
    with_settings: Callable[..., Settings], allowed_root: Path, hub: HubServer
) -> Settings:
    return with_settings(allowed_roots=(allowed_root,), hub_endpoint=hub.endpoint)


def refused(
    kind: type[EigenpressError], param: str | None, act: Callable[..., object], *args: object
) -> str:
    with pytest.raises(kind) as caught:
        act(*args)
    assert caught.value.param == param
    return caught.value.detail


def fetch(source: ModelSource, settings: Settings) -> Path:
    return fetch_model(source, settings, HeldFiles(settings.scratch_dir))


def table(columns: dict[str, list[Any]]) -> bytes:
    """A Parquet file."""
    file = io.BytesIO()
    parquet.write_table(arrow.table(columns), file)
    return file.getvalue()


TEMPLATE = "additional_chat_templates/tool_use.jinja"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def cached(settings: Settings, kind: str) -> list[Path]:
    """What the cache holds, locks aside."""
    folder = settings.cache_dir / kind
    return [path for path in folder.iterdir() if path.suffix != ".lock"] if folder.is_dir() else []


class TestLocalModel:
    def test_a_folder_is_read_in_place(self, settings: Settings, model_folder: Path) -> None:
        source = LocalPath(source="local", path=str(model_folder))
        headers = check_model(source, settings)
        assert isinstance(headers, ModelHeaders)
        assert headers.tokenizer == {"tokenizer.json": contents(model_folder)["tokenizer.json"]}
        held = HeldFiles(settings.scratch_dir)
        assert contents(fetch_model(source, settings, held)) == contents(model_folder)

    def test_a_gguf_file_is_read_in_place(self, settings: Settings, allowed_root: Path) -> None:
        path = allowed_root / "model.gguf"
        path.write_bytes(header())
        source, held = LocalPath(source="local", path=str(path)), HeldFiles(settings.scratch_dir)
        assert fetch_model(source, settings, held).samefile(path)

    @pytest.mark.parametrize("act", [check_model, fetch])
    def test_faults(
        self, settings: Settings, model_folder: Path, act: Callable[..., object], tmp_path: Path
    ) -> None:
        def fault(kind: type[EigenpressError], path: Path) -> str:
            return refused(
                kind, "model.path", act, LocalPath(source="local", path=str(path)), settings
            )

        fault(ModelNotFound, model_folder / "absent")
        fault(ModelInvalid, model_folder / "config.json")
        fault(PathNotAllowed, tmp_path)
        (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
        fault(UnsafeWeights, model_folder)
        (model_folder / "config.json").write_text('{"architectures": ["BertModel"]}')
        fault(NotACausalLM, model_folder)
        (model_folder / "config.json").unlink()
        fault(ModelConfigMissing, model_folder)

    @pytest.mark.parametrize("name", ["tokenizer.json", TEMPLATE])
    def test_no_file_of_the_folder_may_be_a_link_out(
        self, settings: Settings, model_folder: Path, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "secret").write_text("secret")
        (model_folder / name).parent.mkdir(exist_ok=True)
        (model_folder / name).unlink(missing_ok=True)
        (model_folder / name).symlink_to(tmp_path / "secret")
        source = LocalPath(source="local", path=str(model_folder))
        refused(PathNotAllowed, "model.path", check_model, source, settings)

    @pytest.mark.parametrize("name", ["loop", "config.json"])
    def test_a_loop_of_links_cannot_be_read(
        self, settings: Settings, model_folder: Path, name: str
    ) -> None:
        (model_folder / name).unlink(missing_ok=True)
        (model_folder / name).symlink_to(model_folder / name)
        source = LocalPath(source="local", path=str(model_folder))
        refused(ModelInvalid, "model.path", check_model, source, settings)


class TestS3Model:
    @pytest.fixture
    def uri(self, storage: ObjectStorage, prefix: str, model_folder: Path) -> str:
        """A model in the bucket, with company that is not wanted."""
        for name, content in contents(model_folder).items():
            storage.put_bytes(prefix + "model/" + name, content)
        strangers = ("modeling_evil.py", "optimizer.bin", "trainer_state.json", "deep/other.json")
        for name in ("tokenizer.json", TEMPLATE, *strangers):
            storage.put_bytes(prefix + "model/" + name, b"{}")
        storage.put_bytes(prefix + "model/", b"")
        storage.put_bytes(prefix + "model-old/config.json", b"{}")
        return f"s3://{storage.bucket}/{prefix}model"

    def test_only_what_is_needed_is_fetched(
        self, settings: Settings, uri: str, model_folder: Path
    ) -> None:
        source = S3Prefix(source="s3", uri=uri)
        headers = check_model(source, settings)
        assert isinstance(headers, ModelHeaders)
        assert headers.tokenizer == {"tokenizer.json": b"{}"}
        assert not cached(settings, "models")
        expected = contents(model_folder) | {"tokenizer.json": b"{}", TEMPLATE: b"{}"}
        assert contents(fetch(source, settings)) == expected
        assert contents(fetch(S3Prefix(source="s3", uri=uri + "/"), settings)) == expected

    def test_it_is_fetched_once_until_it_changes(
        self, settings: Settings, uri: str, storage: ObjectStorage, prefix: str
    ) -> None:
        source = S3Prefix(source="s3", uri=uri)
        first = fetch(source, settings)
        assert fetch(source, settings) == first
        storage.put_bytes(prefix + "model/tokenizer.json", b'{"new": 1}')
        second = fetch(source, settings)
        assert second != first
        assert (second / "tokenizer.json").read_bytes() == b'{"new": 1}'

    def test_an_object_that_is_replaced_meanwhile_is_named(
        self,
        settings: Settings,
        uri: str,
        storage: ObjectStorage,
        prefix: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        get_files = ObjectStorage.get_files

        def replace_first(reader: ObjectStorage, wanted: Mapping[Path, StoredObject]) -> None:
            storage.put_bytes(prefix + "model/tokenizer.json", b'{"new": 1}')
            get_files(reader, wanted)

        monkeypatch.setattr(service.storage.s3, "DOWNLOADS", 1)
        monkeypatch.setattr(ObjectStorage, "get_files", replace_first)
        source = S3Prefix(source="s3", uri=uri)
        detail = refused(ModelInvalid, "model.uri", fetch, source, settings)
        assert "tokenizer.json' in bucket 'eigenpress' was replaced while it was read" in detail
        assert not cached(settings, "models")

    def test_a_full_disk_leaves_nothing(
        self, settings: Settings, uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service.storage.s3, "DOWNLOADS", 1)
        monkeypatch.setattr(OSUtils, "open", lambda *_: Path("/dev/full").open("wb", 0))  # noqa: SIM115
        refused(DiskFull, None, fetch, S3Prefix(source="s3", uri=uri), settings)
        assert not cached(settings, "models")

    def test_a_gguf_object(self, settings: Settings, storage: ObjectStorage, prefix: str) -> None:
        content = header()
        storage.put_bytes(prefix + "model.gguf", content)
        source = S3Prefix(source="s3", uri=f"s3://{storage.bucket}/{prefix}model.gguf")
        check_model(source, settings)
        path = fetch(source, settings)
        assert (path.name, path.read_bytes()) == ("model.gguf", content)

    @pytest.mark.parametrize("act", [check_model, fetch])
    def test_faults(
        self,
        settings: Settings,
        uri: str,
        storage: ObjectStorage,
        prefix: str,
        act: Callable[..., object],
    ) -> None:
        def fault(kind: type[EigenpressError], where: str) -> str:
            return refused(kind, "model.uri", act, S3Prefix(source="s3", uri=where), settings)

        fault(ModelNotFound, uri + "-absent")
        fault(ModelNotFound, "s3://no-such-bucket/model")
        fault(ModelInvalid, uri + "/config.json")
        storage.delete([prefix + "model/model.safetensors"])
        assert "optimizer.bin" in fault(UnsafeWeights, uri)
        storage.delete([prefix + "model/optimizer.bin"])
        fault(ModelInvalid, uri)
        storage.put_bytes(prefix + "model/config.json", b"{}")
        fault(NotACausalLM, uri)
        storage.delete([prefix + "model/config.json"])
        fault(ModelConfigMissing, uri)
        assert not cached(settings, "models")

    def test_truncated_weights_are_refused(
        self, settings: Settings, uri: str, storage: ObjectStorage, prefix: str
    ) -> None:
        key = prefix + "model/model.safetensors"
        storage.put_bytes(key, storage.get_bytes(key)[:-1])
        source = S3Prefix(source="s3", uri=uri)
        for act in (check_model, fetch):
            assert "truncated" in refused(ModelInvalid, "model.uri", act, source, settings)
        assert not cached(settings, "models")

    def test_too_many_objects(
        self, settings: Settings, uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service.inputs.s3, "MAX_LISTED_OBJECTS", 3)
        refused(
            InvalidParameter, "model.uri", check_model, S3Prefix(source="s3", uri=uri), settings
        )

    def test_a_dead_server(self, tmp_path: Path) -> None:
        server = LocalS3(tmp_path / "s3")
        server.start()
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        settings = s3_settings_for(server, tmp_path, retry_timeout_seconds=0.5)
        source = S3Prefix(source="s3", uri="s3://eigenpress/model")
        data = S3Data(source="s3", uri="s3://eigenpress/texts")
        for act in (check_model, fetch):
            refused(StorageUnavailable, None, act, source, settings)
        for act_on_data in (check_data, fetch_data):
            refused(StorageUnavailable, None, act_on_data, data, settings, PARAM)

    def test_our_own_missing_bucket_is_not_the_users_fault(self, s3_settings: Settings) -> None:
        with pytest.raises(BucketMissing):
            ObjectStorage.from_settings(s3_settings, "no-such-bucket").check()


class TestHubModel:
    SOURCE = HubModel(source="hub", id="org/model", revision=REVISION)

    @pytest.fixture
    def files(self, hub: HubServer, model_folder: Path) -> dict[str, bytes]:
        files = contents(model_folder) | {
            "tokenizer.json": b'{"a": 1}',
            TEMPLATE: b"{{ messages }}",
            "modeling_evil.py": b"raise SystemExit",
            "pytorch_model.bin": b"\x80\x04.",
            "trainer_state.json": b"{}",
            "original/params.json": b"{}",
            "README.md": b"# read",
        }
        hub.add("model", "org/model", files)
        return files

    def test_only_what_is_needed_is_fetched_and_once(
        self, settings: Settings, hub: HubServer, files: dict[str, bytes]
    ) -> None:
        folder = fetch(self.SOURCE, settings)
        wanted = ("README.md", "config.json", "model.safetensors", "tokenizer.json", TEMPLATE)
        assert contents(folder) == {name: files[name] for name in wanted}
        assert sorted(hub.requests) == sorted(wanted)
        assert fetch(self.SOURCE, settings) == folder
        assert len(hub.requests) == len(wanted)

    def test_nothing_is_left_elsewhere(
        self,
        settings: Settings,
        files: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        home = tmp_path / "hub-home"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
        assert files
        fetch(self.SOURCE, settings)
        assert not home.exists()

    @pytest.mark.parametrize(
        "source",
        [
            HubModel(source="hub", id="org/absent", revision=REVISION),
            HubModel(source="hub", id="org/model", revision="f" * 40),
            HubModel(source="hub", id="org/two--dashes", revision=REVISION),
        ],
    )
    def test_what_is_not_there(
        self, settings: Settings, files: dict[str, bytes], source: HubModel
    ) -> None:
        assert files
        detail = refused(ModelNotFound, "model.id", fetch, source, settings)
        assert source.id in detail
        assert not cached(settings, "models")

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_closed_repository_hints_at_the_token(
        self, settings: Settings, hub: HubServer, status: int
    ) -> None:
        hub.status = status
        assert "token" in refused(ModelNotFound, "model.id", fetch, self.SOURCE, settings)

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_hub_in_trouble(self, settings: Settings, hub: HubServer, status: int) -> None:
        hub.status = status
        refused(HubUnavailable, None, fetch, self.SOURCE, settings)

    def test_a_hub_that_is_not_there(self, with_settings: Callable[..., Settings]) -> None:
        settings = with_settings(hub_endpoint="http://127.0.0.1:9")
        refused(HubUnavailable, None, fetch, self.SOURCE, settings)

    def test_a_silent_hub(
        self, with_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        patient = sources._hub_model
        monkeypatch.setattr(sources, "_hub_model", partial(patient, answer_seconds=0.2))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            settings = with_settings(hub_endpoint=f"http://127.0.0.1:{port}")
            refused(HubUnavailable, None, fetch, self.SOURCE, settings)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_damage_on_the_way_is_found(
        self, settings: Settings, hub: HubServer, files: dict[str, bytes], name: str
    ) -> None:
        assert name in files
        hub.damaged.add(name)
        detail = refused(HubUnavailable, None, fetch, self.SOURCE, settings)
        assert f"'{name}'" in detail
        assert not cached(settings, "models")

    def test_pickled_weights(
        self, settings: Settings, hub: HubServer, files: dict[str, bytes]
    ) -> None:
        del files["model.safetensors"]
        refused(UnsafeWeights, "model.id", fetch, self.SOURCE, settings)
        assert "pytorch_model.bin" not in hub.requests

    def test_a_file_path_that_leads_out(self, settings: Settings, files: dict[str, bytes]) -> None:
        files["../evil.json"] = b"{}"
        refused(HubUnavailable, None, fetch, self.SOURCE, settings)


class TestLocalData:
    def test_a_folder_and_a_file_are_used_in_place(
        self, settings: Settings, text_folder: Path
    ) -> None:
        for path in (text_folder, text_folder / "text.txt"):
            source = LocalData(source="local", path=str(path))
            check_data(source, settings, PARAM)
            assert fetch_data(source, settings, PARAM).root == path

    def test_faults(self, settings: Settings, text_folder: Path, tmp_path: Path) -> None:
        def fault(
            kind: type[EigenpressError], param: str, path: Path, pattern: str = "**/*"
        ) -> None:
            source = LocalData(source="local", path=str(path), pattern=pattern)
            for act in (check_data, fetch_data):
                refused(kind, f"{PARAM}.{param}", act, source, settings, PARAM)

        fault(DataNotFound, "path", text_folder / "absent")
        fault(PathNotAllowed, "path", tmp_path)
        fault(DataNotFound, "pattern", text_folder, "*.md")
        fault(DataNotFound, "pattern", text_folder, "../**/*.txt")


class TestS3Data:
    @pytest.fixture
    def uri(self, storage: ObjectStorage, prefix: str) -> str:
        storage.put_bytes(prefix + "texts/a.txt", b"a")
        storage.put_bytes(prefix + "texts/deep/b.jsonl.gz", gzip.compress(b'{"text": "b"}'))
        storage.put_bytes(prefix + "texts/.hidden", b"x")
        storage.put_bytes(prefix + "texts-old/c.txt", b"c")
        return f"s3://{storage.bucket}/{prefix}texts"

    def test_a_prefix_becomes_a_folder(self, settings: Settings, uri: str) -> None:
        source = S3Data(source="s3", uri=uri)
        check_data(source, settings, PARAM)
        folder = fetch_data(source, settings, PARAM)
        assert fetch_data(source, settings, PARAM) == folder
        documents = list(read_documents(folder.root, folder.pattern, folder.text_field, PARAM))
        assert [(d.id, d.text) for d in documents] == [("a.txt", "a"), ("deep/b.jsonl.gz:1", "b")]

    def test_a_pattern_selects_among_the_objects(self, settings: Settings, uri: str) -> None:
        source = S3Data(source="s3", uri=uri, pattern="*.txt")
        assert contents(fetch_data(source, settings, PARAM).root) == {"a.txt": b"a"}

    def test_one_object_becomes_a_file(self, settings: Settings, uri: str) -> None:
        source = S3Data(source="s3", uri=f"{uri}/a.txt", pattern="*.md")
        path = fetch_data(source, settings, PARAM).root
        assert (path.name, path.read_bytes()) == ("a.txt", b"a")

    def test_faults(self, settings: Settings, uri: str) -> None:
        def fault(param: str, where: str, pattern: str = "**/*") -> None:
            source = S3Data(source="s3", uri=where, pattern=pattern)
            for act in (check_data, fetch_data):
                refused(DataNotFound, f"{PARAM}.{param}", act, source, settings, PARAM)

        fault("uri", "s3://no-such-bucket/texts")
        fault("pattern", uri, "*.md")
        fault("pattern", uri + "/absent")

    @pytest.mark.parametrize(("bound", "value"), [("MAX_DATA_FILES", 1), ("MAX_DATA_BYTES", 5)])
    def test_bounds(
        self,
        settings: Settings,
        uri: str,
        bound: str,
        value: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(service.inputs.texts.sources, bound, value)
        source = S3Data(source="s3", uri=uri)
        detail = refused(DataInvalid, f"{PARAM}.pattern", check_data, source, settings, PARAM)
        assert f"more than {value}" in detail

    @pytest.mark.parametrize(
        ("name", "content", "param", "said"),
        [
            ("a.txt", b"caf\xe9", PARAM, "'a.txt' cannot be read as text: it is not UTF-8"),
            ("a.jsonl", b'{"body": 1}\n', f"{PARAM}.text_field", "'a.jsonl:1' has no field"),
            ("a.parquet", table({"body": ["x"]}), f"{PARAM}.text_field", "it has: 'body'"),
            ("a.parquet", table({"text": [1]}), f"{PARAM}.text_field", "is int64, not text"),
            ("a.parquet", b"", PARAM, "'a.parquet' cannot be read"),
            ("a.txt", b"", PARAM, "There is no text in 'a.txt'."),
            ("a.txt", b" \n", PARAM, "There is no text in 'a.txt'."),
        ],
        ids=["latin-1", "no field", "no column", "not text", "no Parquet", "empty", "blank"],
    )
    def test_what_the_beginning_shows(
        self,
        settings: Settings,
        storage: ObjectStorage,
        prefix: str,
        name: str,
        content: bytes,
        param: str,
        said: str,
    ) -> None:
        storage.put_bytes(f"{prefix}odd/{name}", content)
        source = S3Data(source="s3", uri=f"s3://{storage.bucket}/{prefix}odd/{name}")
        assert said in refused(DataInvalid, param, check_data, source, settings, PARAM)
        assert not cached(settings, "data")

    def test_only_the_beginning_is_read(
        self,
        settings: Settings,
        storage: ObjectStorage,
        prefix: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rows = [f"{number} {os.urandom(500).hex()}" for number in range(1000)]
        large = {
            "a.txt": b"x" * 2**20 + b"\xff",
            "b.jsonl": b'{"text": "x"}\n' * 2**16 + b"broken",
            "c.parquet": table({"text": rows}),
        }
        for path, content in large.items():
            storage.put_bytes(f"{prefix}large/{path}", content)
        lengths: list[int] = []
        get_range = ObjectStorage.get_range

        def read(storage: ObjectStorage, key: str, start: int, length: int) -> bytes:
            data = get_range(storage, key, start, length)
            lengths.append(len(data))
            return data

        monkeypatch.setattr(ObjectStorage, "get_range", read)
        source = S3Data(source="s3", uri=f"s3://{storage.bucket}/{prefix}large")
        check_data(source, settings, PARAM)
        assert lengths == [CHECKED_BYTES, CHECKED_BYTES, FOOTER_BYTES]

    def test_texts_after_many_empty_objects(
        self, settings: Settings, storage: ObjectStorage, prefix: str
    ) -> None:
        for number in range(CHECKED_FILES):
            storage.put_bytes(f"{prefix}many/{number}.txt", b"")
        source = S3Data(source="s3", uri=f"s3://{storage.bucket}/{prefix}many")
        refused(DataInvalid, PARAM, check_data, source, settings, PARAM)
        storage.put_bytes(f"{prefix}many/z.txt", b"text")
        check_data(source, settings, PARAM)

    def test_keys_that_cannot_be_files_beside_each_other(
        self,
        settings: Settings,
        storage: ObjectStorage,
        prefix: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The local server will not store such keys; other servers do."""
        listing = [StoredObject(f"{prefix}texts/{path}", 0, "etag") for path in ("a", "a/b.txt")]
        monkeypatch.setattr(ObjectStorage, "list_objects", lambda *_: iter(listing))
        source = S3Data(source="s3", uri=f"s3://{storage.bucket}/{prefix}texts")
        refused(InvalidParameter, f"{PARAM}.uri", check_data, source, settings, PARAM)

    def test_keys_that_cannot_be_files(
        self,
        settings: Settings,
        storage: ObjectStorage,
        prefix: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The local server will not store such a key; other servers do."""
        listing = [StoredObject(f"{prefix}texts/a//b.txt", 1, "etag")]
        monkeypatch.setattr(ObjectStorage, "list_objects", lambda *_: iter(listing))
        source = S3Data(source="s3", uri=f"s3://{storage.bucket}/{prefix}texts")
        refused(InvalidParameter, f"{PARAM}.uri", check_data, source, settings, PARAM)


class TestHubData:
    SOURCE = HubData(source="hub", id="texts", revision=REVISION, pattern="data/*")

    @pytest.fixture
    def files(self, hub: HubServer) -> dict[str, bytes]:
        files = {"data/a.txt": b"a", "data/deep/b.txt": b"b", "README.md": b"# read"}
        hub.add("dataset", "texts", files)
        return files

    def test_what_the_pattern_selects_is_fetched_once(
        self, settings: Settings, hub: HubServer, files: dict[str, bytes]
    ) -> None:
        check_data(self.SOURCE, settings, PARAM)
        folder = fetch_data(self.SOURCE, settings, PARAM).root
        assert contents(folder) == {"data/a.txt": files["data/a.txt"]}
        assert fetch_data(self.SOURCE, settings, PARAM).root == folder
        assert hub.requests == ["data/a.txt"]

    def test_faults(
        self, settings: Settings, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fault(kind: type[EigenpressError], param: str, **changes: str) -> None:
            source = self.SOURCE.model_copy(update=changes)
            refused(kind, f"{PARAM}.{param}", fetch_data, source, settings, PARAM)

        assert files
        fault(DataNotFound, "id", id="absent")
        fault(DataNotFound, "id", revision="f" * 40)
        fault(DataNotFound, "pattern", pattern="*.parquet")
        monkeypatch.setattr(service.inputs.texts.sources, "MAX_DATA_BYTES", 0)
        fault(DataInvalid, "pattern")

    @pytest.mark.timeout(60)
    def test_a_download_that_stops_short(
        self, settings: Settings, hub: HubServer, files: dict[str, bytes]
    ) -> None:
        assert files
        hub.cut_short.add("data/a.txt")
        refused(HubUnavailable, None, fetch_data, self.SOURCE, settings, PARAM)
        assert not cached(settings, "data")

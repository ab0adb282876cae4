"""Models in S3 and on the hub are estimated, and refused, by their headers: no weight is read.

The S3 server is real, the hub one on loopback; a test takes some seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.schemas.estimates import Estimate
from service.cluster.ray_jobs import RayCluster
from service.domain.job import DEFAULT_TENANT
from service.domain.spec.job import JobSpec
from service.errors import EigenpressError
from service.estimates.estimate import Estimates
from service.inputs.checks import SubmissionChecks
from service.inputs.models.files import is_tokenizer_file
from service.inputs.ranged import BUFFER_BYTES
from service.settings import Settings
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.fixtures.hub import REVISION, HubServer
from tests.fixtures.models import byte_tokenizer, tiny_llama_config, tiny_model

Files = dict[str, bytes]
Publish = Callable[[Files], dict[str, Any]]
"""Puts a model's files where a job can name them; returns what the job says."""


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A Llama of 14 MB in bfloat16, in four files, with its tokenizer."""
    folder = tmp_path_factory.mktemp("sharded")
    config = tiny_llama_config(hidden_size=256, intermediate_size=1536, num_hidden_layers=5)
    tiny_model(config).bfloat16().save_pretrained(folder, max_shard_size="4MB")
    byte_tokenizer(adds_bos=False).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(weights(files)) >= 4
    return files


def weights(files: Files) -> Files:
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


@pytest.fixture
def settings(
    with_settings: Callable[..., Settings], allowed_root: Path, hub: HubServer
) -> Settings:
    return with_settings(allowed_roots=(allowed_root,), hub_endpoint=hub.endpoint)


@pytest.fixture(params=["s3", "hub"])
def publish(
    request: pytest.FixtureRequest, storage: ObjectStorage, prefix: str, hub: HubServer
) -> Publish:
    def to_bucket(files: Files) -> dict[str, Any]:
        for name, data in files.items():
            storage.put_bytes(f"{prefix}model/{name}", data)
        return {"source": "s3", "uri": f"s3://{storage.bucket}/{prefix}model"}

    def to_hub(files: Files) -> dict[str, Any]:
        hub.add("model", "org/model", files)
        return {"source": "hub", "id": "org/model", "revision": REVISION}

    return to_bucket if request.param == "s3" else to_hub


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> Counter[str]:
    """How many bytes of each object the S3 server has sent; of files of the hub see `hub.sent`."""
    get_range = ObjectStorage.get_range

    def counting(self: ObjectStorage, key: str, start: int, length: int) -> bytes:
        data = get_range(self, key, start, length)
        hub.sent[key.rpartition("/")[2]] += len(data)
        return data

    monkeypatch.setattr(ObjectStorage, "get_range", counting)
    for whole in ("get_bytes", "get_files"):
        monkeypatch.delattr(ObjectStorage, whole)  # nothing may be read whole
    return hub.sent


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    settings.data_dir.mkdir(exist_ok=True)
    made = Store(settings.database)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def body(text_folder: Path) -> dict[str, Any]:
    return {
        "calibration": {
            "data": {"source": "local", "path": str(text_folder)},
            "sequences": 32,
            "sequence_length": 32,
        },
        "targets": [{"keep": 0.8}, {"bytes_fraction": 0.5, "precisions": "transformers"}],
        "workers": 2,
    }


@pytest.fixture
def ask(settings: Settings, store: Store) -> Callable[[dict[str, Any]], dict[str, Any]]:
    machine = {"raylet": {"state": "ALIVE", "labels": {}, "resourcesTotal": {"CPU": 2}}}
    answer = httpx.Response(200, json={"data": {"summary": [machine]}})
    transport = httpx.MockTransport(lambda _: answer)

    def estimated(body: dict[str, Any]) -> dict[str, Any]:
        spec, users = JobSpec.model_validate(body), store.users(DEFAULT_TENANT)
        with (
            RayCluster(settings.ray_address, "driver", transport) as cluster,
            SubmissionChecks(settings, ObjectStorage.from_settings(settings)) as checks,
        ):
            found = asyncio.run(Estimates(settings, store, cluster, checks).of(spec, users))
        return Estimate.of(found).model_dump(mode="json")

    return estimated


Ask = Callable[[dict[str, Any]], dict[str, Any]]


def test_the_estimate_is_that_of_the_same_local_model_and_reads_headers_alone(
    publish: Publish,
    read: Counter[str],
    model_files: Files,
    body: dict[str, Any],
    ask: Ask,
    allowed_root: Path,
) -> None:
    local = allowed_root / "local"
    local.mkdir()
    for name, data in model_files.items():
        (local / name).write_bytes(data)
    expected = ask(body | {"model": {"source": "local", "path": str(local)}})
    assert expected["problems"] == []
    source = publish(model_files)
    read.clear()
    found = ask(body | {"model": source})
    for field in ("model", "targets", "workers", "memory", "driver_memory", "problems"):
        assert found[field] == expected[field], field
    assert found["seconds"]["sum"] == pytest.approx(expected["seconds"]["sum"], rel=0.5)
    assert {each["field"] for each in found["unknown"]} == {
        each["field"] for each in expected["unknown"]
    }
    whole = {"config.json", "model.safetensors.index.json", *filter(is_tokenizer_file, model_files)}
    parts = weights(model_files)
    assert set(read) <= whole | parts.keys()
    for name in parts:  # the header, as far as one request brings it
        assert 0 < read[name] <= BUFFER_BYTES < len(model_files[name]) / 4
    for name in read.keys() - parts:
        assert read[name] <= len(model_files[name])


def spoiled(files: Files, spoil: Callable[[Files], object]) -> Files:
    found = dict(files)
    spoil(found)
    return found


def config(files: Files, **changes: Any) -> None:
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | changes).encode()


def pickled(files: Files) -> None:
    for name in (*weights(files), "model.safetensors.index.json"):
        del files[name]
    files["pytorch_model.bin"] = b"\x80\x04."


def truncated(files: Files) -> None:
    name = max(weights(files))
    files[name] = files[name][:7]


def without_a_tensor(files: Files) -> None:
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["model.layers.9.extra"] = max(weights(files))
    files["model.safetensors.index.json"] = json.dumps(index).encode()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda files: files.pop("config.json"), "model_config_missing"),
        (lambda files: config(files, architectures=["LlamaModel"]), "not_a_causal_lm"),
        (lambda files: config(files, quantization_config={"bits": 4}), "model_invalid"),
        (lambda files: config(files, hidden_act="sheep"), "model_invalid"),
        (lambda files: files.pop(max(weights(files))), "model_invalid"),
        (pickled, "unsafe_weights"),
        (truncated, "model_invalid"),
        (without_a_tensor, "model_invalid"),
        (lambda files: files.clear(), "model_not_found"),
    ],
    ids=["config", "kind", "quantised", "activation", "file", "pickle", "cut", "tensor", "nothing"],
)
def test_refusals_are_those_of_the_submission(
    publish: Publish,
    model_files: Files,
    body: dict[str, Any],
    ask: Ask,
    settings: Settings,
    store: Store,
    spoil: Callable[[Files], object],
    code: str,
) -> None:
    source = publish(spoiled(model_files, spoil))
    if source["source"] == "hub" and code == "model_not_found":
        source["revision"] = "f" * 40
    spec = JobSpec.model_validate(body | {"model": source})
    with (
        SubmissionChecks(settings, ObjectStorage.from_settings(settings)) as checks,
        pytest.raises(EigenpressError) as refused,
    ):
        asyncio.run(checks.run(spec, store.users(DEFAULT_TENANT)))
    found = ask(body | {"model": source})
    (problem,) = found["problems"]
    failure = refused.value.failure()
    assert (problem["code"], problem["param"]) == (code, failure.param)
    assert (failure.code, failure.detail) == (code, problem["detail"])
    assert (failure.param or "").startswith("model")


def test_a_hub_that_fails_leaves_the_model_unknown(
    body: dict[str, Any], ask: Ask, hub: HubServer
) -> None:
    hub.status = 503
    found = ask(body | {"model": {"source": "hub", "id": "org/model", "revision": REVISION}})
    assert (found["model"], found["problems"]) == (None, [])
    assert {"field": "model", "reason": "The hub does not answer."} in found["unknown"]

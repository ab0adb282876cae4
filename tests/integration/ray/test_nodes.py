"""A job whose workers are on different nodes, one of which is lost and replaced.

The nodes share nothing but the database, the bucket and Ray: see tests/fixtures/nodes.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.domain.job import DEFAULT_TENANT, EventType, Job
from service.domain.states import Step
from service.standalone.ray_head import LocalRay
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from tests.fixtures.installation import Installation, ended
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.nodes import Node
from tests.fixtures.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and more")

BLOCKS, WORKERS = 4, 2
PATIENCE_SECONDS = 240

QUICK_DETECTION = {"RAY_health_check_period_ms": "200"}
"""Ray finds a node dead when it has refused five connections."""


@pytest.fixture
def installation(tmp_path: Path, local_s3: LocalS3, postgres_url: str) -> Iterator[Installation]:
    made = Installation(
        tmp_path,
        local_s3,
        database_url=postgres_url,
        max_attempts=3,
        retry_first_seconds=0,
        retry_timeout_seconds=PATIENCE_SECONDS,
        checkpoint_blocks=1,
        checkpoint_share_of_time=1.0,
    )
    yield made
    made.store.close()


@pytest.fixture
def head(installation: Installation) -> Iterator[LocalRay]:
    with installation.ray(QUICK_DETECTION, num_cpus=0) as head:
        yield head


@pytest.fixture
def new_node(installation: Installation, head: LocalRay) -> Iterator[Callable[[int], Node]]:
    """A function that starts the node of a number."""
    with ExitStack() as started:
        yield lambda number: started.enter_context(
            Node(number, head, installation.settings.data_dir, installation.environment)
        )


@pytest.fixture
def inputs(installation: Installation) -> dict[str, Any]:
    """A model and texts in the bucket."""
    storage = ObjectStorage.from_settings(installation.settings)
    prefix = f"inputs/{installation.ray_port}"
    config = tiny_llama_config(hidden_size=256, intermediate_size=512, num_hidden_layers=BLOCKS)
    for file in save_tiny_model(installation.inputs / "model", config).iterdir():
        storage.put_file(f"{prefix}/model/{file.name}", file)
    for number in range(30):
        text = f"The number is {number}.\n" * 40
        storage.put_bytes(f"{prefix}/texts/{number}.txt", text.encode())
    place = f"s3://{installation.settings.s3_bucket}/{prefix}"
    return {
        "model": {"source": "s3", "uri": f"{place}/model"},
        "calibration": {
            "data": {"source": "s3", "uri": f"{place}/texts"},
            "sequences": 64,
            "sequence_length": 32,
            "batch_size": 2,
        },
    }


def test_a_lost_node_is_replaced_and_no_bit_changes(
    installation: Installation, inputs: dict[str, Any], new_node: Callable[[int], Node]
) -> None:
    targets = [{"keep": 0.7}, {"keep": 0.5}]  # one for each worker to write and measure
    spec = installation.spec(**inputs, targets=targets, workers=WORKERS)
    kept, lost = new_node(2), new_node(3)
    both = {kept.wait_until_joined(), lost.wait_until_joined()}
    with installation.dispatching():
        undisturbed = installation.wait_for(
            installation.store.users(DEFAULT_TENANT).create(spec), ended
        )
        assert node_ids(installation, undisturbed) == [both]

        job = installation.store.users(DEFAULT_TENANT).create(spec)
        passes = WORKERS * (BLOCKS + 1 + 2)  # there, the loss, and two blocks back
        wait_until(lambda: installation.done(job, Step.CALIBRATE) >= passes, PATIENCE_SECONDS)
        lost.kill()
        replacement = new_node(4)
        finished = installation.wait_for(job, ended)
    assert installation.weights(finished) == installation.weights(undisturbed)
    after = {kept.wait_until_joined(), replacement.wait_until_joined()}
    assert node_ids(installation, finished) == [both, after]
    events = {event.type: event.data for event in installation.store.records.events(job.id)}
    for node in (kept, lost, replacement):
        assert list((node.disk / "cache").rglob("*.safetensors"))  # each has fetched its own
    assert left_in_scratch(lost)
    assert not left_in_scratch(kept)
    assert not left_in_scratch(replacement)
    # The driver loses the connection first, and may not learn in time that the node is dead.
    assert events[EventType.RETRIED]["code"] in ("node_lost", "worker_lost")


def left_in_scratch(node: Node) -> list[Path]:
    return list((node.disk / "scratch").iterdir())


def node_ids(installation: Installation, job: Job) -> list[set[str]]:
    """Ray's ids of the nodes of each attempt's workers."""
    placements = installation.placements(job)
    assert all(len(placed) == WORKERS for placed in placements)
    return [{worker["node"] for worker in placed} for placed in placements]

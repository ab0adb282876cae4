"""What is estimated of a job is what its report says: a whole attempt takes about 15 seconds."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from api.schemas.estimates import Estimate
from service.cluster.ray_jobs import RayCluster
from service.domain.job import DEFAULT_TENANT
from service.domain.states import JobState, Step
from service.estimates.estimate import Estimates
from service.inputs.checks import SubmissionChecks
from service.storage.s3 import ObjectStorage
from tests.fixtures.in_process import LocalInstallation
from tests.fixtures.models import save_tiny_model, tiny_llama_config

TARGETS: list[dict[str, Any]] = [
    {"keep": 0.7},
    {"keep": 0.8, "scope": "model"},
    {"bytes_fraction": 0.4},
    {"bytes_fraction": 0.5, "precisions": "transformers", "embedding_bits": 8},
    {"bytes_fraction": 0.6, "scope": "model", "precisions": "transformers"},
]
WORKERS = 2


def estimated(installation: LocalInstallation, body: Any) -> dict[str, Any]:
    """The API's answer, with a cluster of one CPU for each worker, as an attempt here has."""
    machine = {"raylet": {"state": "ALIVE", "labels": {}, "resourcesTotal": {"CPU": WORKERS}}}
    answer = httpx.Response(200, json={"data": {"summary": [machine]}})
    settings, store = installation.settings, installation.store
    transport = httpx.MockTransport(lambda _: answer)
    with (
        RayCluster(settings.ray_address, settings.driver_command, transport) as cluster,
        SubmissionChecks(settings, ObjectStorage.from_settings(settings)) as checks,
    ):
        found = asyncio.run(
            Estimates(settings, store, cluster, checks).of(
                body, store.users(DEFAULT_TENANT), store.datasets(DEFAULT_TENANT)
            )
        )
    return Estimate.of(found).model_dump(mode="json")


def test_sizes_are_those_of_the_artifacts_and_times_those_that_jobs_took(
    local_installation: LocalInstallation,
) -> None:
    model = local_installation.inputs / "wide-llama"
    config = tiny_llama_config(hidden_size=128, intermediate_size=384, num_hidden_layers=4)
    save_tiny_model(model, config)
    source = {"source": "local", "path": str(model)}
    job = local_installation.create(
        model=source, targets=TARGETS, dtype="bfloat16", workers=WORKERS
    )
    before = estimated(local_installation, job.spec)
    local_installation.attempt(workers=WORKERS)
    done = local_installation.store.records.get(job.id)
    assert done.state is JobState.SUCCEEDED, done.failure
    report = local_installation.store.records.report(job.id)
    assert report is not None

    assert before["problems"] == []
    for key in ("parameters", "linear_parameters", "dense_bytes"):
        assert before["model"][key] == report["model"][key]
    assert before["tokens"] == report["calibration"]["tokens"]
    for target, artifact in zip(before["targets"], report["targets"], strict=True):
        assert target["name"] == artifact["name"]
        said, size = target["size"], artifact["size"]
        assert said["bytes"] == pytest.approx(size["bytes"], rel=0.02)
        if "keep" in artifact:  # as near as ranks allow
            step = max(each["out_features"] + each["in_features"] for each in artifact["layers"])
            assert said["parameters"] - step < size["parameters"] <= said["parameters"]
        else:
            assert said["parameters"] == size["parameters"]

    assert before["seconds"]["measured_jobs"] == 0
    after = estimated(local_installation, job.spec)["seconds"]
    assert after["measured_jobs"] == 1
    took = {
        step.step: (step.finished_at - step.started_at).total_seconds()
        for step in done.steps
        if step.finished_at is not None
    }
    said = {each["step"]: each["seconds"] for each in after["steps"]}
    assert said["assemble"] == pytest.approx(took[Step.ASSEMBLE])
    assert after["sum"] == pytest.approx(sum(took.values()), rel=0.01)

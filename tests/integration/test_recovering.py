"""Jobs that recover what the cut has lost: real workers and a real bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from service.domain.job import Job
from service.domain.states import JobState
from tests.fixtures.in_process import LocalInstallation, Moment
from tests.fixtures.models import save_model_of_numbers
from tests.fixtures.storage import download
from workers.attempt.recovery import CHECKED, GAINED_NOTHING

KEEP = "keep-0.5"
RECOVERY = {"epochs": 2, "sequences": 32}
IN_BITS = "bytes-0.35"
MIXED = [{"keep": 0.5}, {"bytes_fraction": 0.35}]
STEPS = [
    Moment("teach", 1),
    Moment("train", 30),
    Moment("divergence", 11),
    Moment("end_recovery", 2),
]
"""When the attempts of one job are killed, one after the other."""


def create(installation: LocalInstallation, targets: Any = None, recovery: Any = RECOVERY) -> Job:
    folder = installation.inputs / "of-numbers"
    if not folder.exists():
        save_model_of_numbers(folder)
    return installation.create(
        model={"source": "local", "path": str(folder)},
        evaluation={"sequences": 6, "decode_tokens": 0},
        recovery=recovery,
        targets=targets or [{"keep": 0.7}, {"keep": 0.5}],
    )


def run(
    installation: LocalInstallation, *, workers: int = 2, targets: Any = None, **recovery: Any
) -> Job:
    job = create(installation, targets, RECOVERY | recovery)
    installation.attempt(workers=workers)
    assert installation.store.records.get(job.id).state is JobState.SUCCEEDED
    return job


def target(installation: LocalInstallation, job: Job, name: str = KEEP) -> dict[str, Any]:
    report = installation.store.records.report(job.id)
    assert report is not None
    found: dict[str, Any] = next(each for each in report["targets"] if each["name"] == name)
    return found


def cut(installation: LocalInstallation, job: Job, name: str = KEEP) -> float:
    """The perplexity of a target's size before its recovery."""
    report = installation.store.records.report(job.id)
    assert report is not None
    size = target(installation, job, name)["size"]["linear_fraction"]
    (point,) = [
        each
        for each in report["curve"]
        if each["kind"] == "probe" and each["linear_fraction"] == size
    ]
    return float(point["perplexity"]["held-out"])


def perplexity(installation: LocalInstallation, job: Job, name: str = KEEP) -> float:
    return float(target(installation, job, name)["perplexity"]["held-out"]["perplexity"])


def test_recovery_regains_some_of_what_the_cut_has_lost(
    local_installation: LocalInstallation,
) -> None:
    job = run(local_installation)
    for name in ("keep-0.7", KEEP):
        recovery = target(local_installation, job, name)["recovery"]
        assert recovery["steps"] == recovery["step"] == 2 * 7  # 32 sequences, of which 4 are aside
        assert recovery["divergence_after"] < recovery["divergence_before"]
        assert perplexity(local_installation, job, name) < cut(local_installation, job, name)
    checked = local_installation.events(job, CHECKED)
    assert len(checked) == 2 * (1 + 4)
    assert checked[-1]["step"] == checked[-1]["steps"] == 14


def test_recovery_in_few_bits_trains_the_scales_alone(
    local_installation: LocalInstallation, tmp_path: Path
) -> None:
    job = run(local_installation, targets=[MIXED[1]])
    recovery = target(local_installation, job, IN_BITS)["recovery"]
    assert recovery["divergence_after"] < recovery["divergence_before"]
    plain = create(local_installation, [MIXED[1]], None)
    local_installation.attempt()
    tensors = []
    for each in (job, plain):
        settings, store = local_installation.settings, local_installation.store
        folder = download(settings, store, each, IN_BITS, tmp_path / each.id)
        tensors.append(load_file(folder / "model.safetensors"))
    changed = {name for name, each in tensors[0].items() if not each.equal(tensors[1][name])}
    assert changed
    assert all(name.endswith(".weight_scale") for name in changed)


def test_a_job_killed_while_it_recovers_ends_with_the_same_bytes(
    local_installation: LocalInstallation,
) -> None:
    undisturbed = local_installation.weights(run(local_installation, targets=MIXED))
    job = create(local_installation, MIXED)
    calls = [local_installation.attempt(end) for end in STEPS]
    assert local_installation.store.records.get(job.id).state is JobState.QUEUED
    calls.append(local_installation.attempt())
    assert local_installation.store.records.get(job.id).state is JobState.SUCCEEDED
    assert local_installation.weights(job) == undisturbed
    assert local_installation.events(job, "checkpoint.refused") == []
    # The last attempt found both targets recovered.
    assert calls[-1]["train"] == calls[-1]["backward"] == 0


def test_one_worker_recovers_as_two_do(
    local_installation: LocalInstallation, tmp_path: Path
) -> None:
    tokens = torch.arange(2, 34)[None]
    logits = []
    for workers in (1, 2):
        job = run(local_installation, workers=workers)
        store = local_installation.store
        folder = download(local_installation.settings, store, job, KEEP, tmp_path / str(workers))
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert (logits[0] - logits[1]).abs().max() <= 1e-4 * logits[0].abs().max()


def test_steps_that_are_ten_times_too_large_do_not_make_an_artifact_worse(
    local_installation: LocalInstallation,
) -> None:
    job = run(local_installation, step_size=10.0)
    assert perplexity(local_installation, job) <= cut(local_installation, job)
    assert target(local_installation, job)["recovery"]["factor"] <= 1


def test_a_recovery_that_gains_nothing_says_so_and_changes_nothing(
    local_installation: LocalInstallation,
) -> None:
    job = run(local_installation, epochs=1, batch_size=16, step_size=100.0)
    (said, _) = local_installation.events(job, GAINED_NOTHING)
    assert said["target"] == "keep-0.7"
    assert target(local_installation, job)["recovery"]["kept_step"] == 0
    assert local_installation.store.records.get(job.id).warnings
    plain = create(local_installation, recovery=None)
    local_installation.attempt()
    assert local_installation.weights(job) == local_installation.weights(plain)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"recovery": {"sequences": 32, "batch_size": 17}}, "recovery"),
        ({"recovery": {"epochs": 0}}, "recovery.epochs"),
    ],
)
def test_what_cannot_be_recovered_is_refused_by_name(
    local_installation: LocalInstallation, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        local_installation.create(**body)

"""A mixture of versions is refused, and named."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import pytest

from service.errors import VersionMismatch
from workers.actors.versions import MAX_LISTED, check_versions, own_versions

DRIVER = {"code": "a" * 64, "python": "3.12.1", "torch": "2.9.1+cpu", "transformers": "5.23.0"}
GPU = DRIVER | {"torch": "2.9.1+cu130"}


def refusal(driver: dict[str, str], *workers: dict[str, str]) -> str:
    """What is said of workers on the nodes n0, n1 and so on."""
    actors = {f"worker {i} on n{i}": versions for i, versions in enumerate(workers)}
    with pytest.raises(VersionMismatch) as refused:
        check_versions(driver, actors)
    assert not refused.value.failure().retryable
    return refused.value.detail


def test_equal_versions_are_accepted() -> None:
    check_versions(own_versions(), {"worker 0 on n0": own_versions()})


def test_the_driver_may_have_another_build_of_torch_than_the_workers() -> None:
    check_versions(DRIVER, {"worker 0 on n0": GPU, "worker 1 on n1": GPU})
    check_versions(DRIVER | {"torch": "2.9.1"}, {"worker 0 on n0": GPU})


def test_workers_with_different_builds_of_torch_are_refused() -> None:
    said = refusal(DRIVER, GPU, GPU, DRIVER)
    assert "worker 2 on n2 has torch 2.9.1+cpu, worker 0 on n0 2.9.1+cu130. Install" in said
    assert "worker 1" not in said


@pytest.mark.parametrize(
    ("name", "other", "shown"),
    [
        ("code", "b" * 64, f"code {'b' * 20}..., the driver on Ray's head node {'a' * 20}..."),
        ("python", "3.12.2", "python 3.12.2, the driver on Ray's head node 3.12.1"),
        ("torch", "2.9.0+cpu", "torch 2.9.0+cpu, the driver on Ray's head node 2.9.1+cpu"),
        (
            "transformers",
            "5.23.0+ours",
            "transformers 5.23.0+ours, the driver on Ray's head node 5",
        ),
        ("later", "1.0", "later 1.0, the driver on Ray's head node missing"),
    ],
)
def test_what_differs_is_named_with_its_node_and_both_values(
    name: str, other: str, shown: str
) -> None:
    said = refusal(DRIVER, DRIVER, DRIVER | {name: other})
    assert f"different versions: worker 1 on n1 has {shown}" in said
    assert "worker 0" not in said
    assert "on every node of Ray, then retry the job" in said


def test_a_version_that_an_actor_does_not_state_is_a_difference() -> None:
    older = {name: value for name, value in DRIVER.items() if name != "code"}
    assert "worker 0 on n0 has code missing, the driver" in refusal(DRIVER, older)


def test_a_long_list_is_cut() -> None:
    said = refusal(DRIVER, *(DRIVER | {"python": "3.13.0"} for _ in range(MAX_LISTED + 2)))
    assert said.count(" has python 3.13.0") == MAX_LISTED
    assert "; and 2 more. Install" in said


def test_a_process_states_what_is_installed() -> None:
    versions = own_versions()
    assert versions["python"] == platform.python_version()
    for library in ("torch", "transformers", "safetensors", "gguf", "numpy"):
        assert versions[library] == version(library)
    assert len(versions["code"]) == 64
    assert json.loads(json.dumps(versions)) == versions  # the job's history has them

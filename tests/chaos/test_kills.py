"""A killed part of a real installation, and a full disk.

Drivers and workers are killed in tests/integration/ray/test_killed.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.domain.states import Step
from tests.chaos.installation import Installation, running_installation, tiny_spec
from tests.chaos.kills import RAYLET, Kill, Undisturbed, random_moments, run_kills
from tests.chaos.unwritable import may_mount, run_full_scratch

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    # The path is short for Ray's sockets.
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        running_installation(Path(folder), max_attempts=2) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def undisturbed(installation: Installation) -> Undisturbed:
    return Undisturbed(installation, tiny_spec(installation.inputs))


def test_a_killed_ray_changes_nothing(installation: Installation, undisturbed: Undisturbed) -> None:
    (killed,) = run_kills(installation, undisturbed, [Kill(RAYLET, Step.EVALUATE)])
    assert killed.problems == []
    assert killed.attempts == 2


def test_a_full_disk_fails_a_job_by_name(
    installation: Installation, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    if not may_mount(tmp_path / "mount"):
        pytest.skip("this user may not mount a file system")
    done = run_full_scratch(installation, undisturbed)
    assert done.problems == []
    assert done.code == "disk_full"


def test_moments_follow_from_their_seed() -> None:
    assert random_moments(4, 5, 20.0) == random_moments(4, 5, 20.0)
    assert random_moments(4, 5, 20.0) != random_moments(5, 5, 20.0)

"""The memory of a worker does not depend on the depth of the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKS, HIDDEN, INTERMEDIATE = 16, 256, 768
MOST = 160_000_000
"""With the whole model in float32 and the statistics of all its layers it would be 220 MB."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_attempt_takes_less_memory_than_the_model(tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    command = [sys.executable, "-m", "tests.integration.peak_memory", str(tmp_path)]
    command += ["--blocks", str(BLOCKS), "--hidden", str(HIDDEN)]
    command += ["--intermediate", str(INTERMEDIATE)]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["grown"] < MOST
    assert found["grown"] < 1.25 * found["predicted"]

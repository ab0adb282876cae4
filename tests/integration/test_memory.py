"""The memory of a job's worker and driver in the real service, beside the prediction: a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOLERANCE = 0.25
"""Of a small model's peak, most of which is what libraries take. It varies by a tenth and more."""

SHAPE = {"--blocks": 16, "--hidden": 256, "--intermediate": 768}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_job_takes_the_memory_that_is_predicted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.memory", "--scratch", str(tmp_path), "--curve"]
    command += [str(word) for option in SHAPE.items() for word in option]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    processes = json.loads(ended.stdout.splitlines()[-1])["processes"]
    for name in ("worker", "driver"):
        found = processes[name]
        assert found["grown"] == pytest.approx(found["predicted"], rel=TOLERANCE), (name, found)

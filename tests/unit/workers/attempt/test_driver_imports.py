"""A driver starts without torch and transformers, which take seconds to import."""

from __future__ import annotations

import subprocess
import sys

WHAT_IS_IMPORTED = "import sys, workers.attempt.driver; print(*sys.modules)"


def test_a_driver_imports_neither_torch_nor_transformers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IS_IMPORTED], check=True, capture_output=True, text=True
    )
    imported = set(done.stdout.split())
    assert "workers.attempt.pipeline" in imported
    assert imported.isdisjoint({"torch", "transformers", "safetensors.torch"})

"""vLLM, in a process and an environment of its own: `make test-serving` makes `.venv-serving`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-serving" / "bin" / "python"


class Engine:
    """Starts with the first request, which takes some ten seconds more than the others."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "vllm.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [PYTHON, Path(__file__).with_name("engine.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"HF_HOME": str(folder / "hf"), "PYTHONPATH": ""},
            )

    def generate(
        self, folder: Path, prompts: Sequence[Sequence[int]], count: int, implementation: str
    ) -> dict[str, Any]:
        """The `tokens` after each prompt and their `log_likelihoods`, or the engine's `error`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "folder": str(folder),
            "implementation": implementation,
            "prompts": prompts,
            "generate": count,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text()[-4000:]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if not PYTHON.exists():
        pytest.fail("there is no .venv-serving: run `make test-serving`")
    engine = Engine(tmp_path_factory.mktemp("engine"))
    yield engine
    engine.stop()

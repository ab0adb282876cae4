"""Steps that load artifacts keep transformers' copies of their code in a folder of the tests."""

from __future__ import annotations

from tests.unit.workers.conftest import modules_cache

__all__ = ["modules_cache"]

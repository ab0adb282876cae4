"""transformers copies the code of loaded artifacts into a folder of the tests."""

from __future__ import annotations

from tests.unit.workers.conftest import modules_cache

__all__ = ["modules_cache"]

"""Job ids."""

from __future__ import annotations

import re
import time

import pytest

from service.domain.job import JOB_ID_PATTERN, new_job_id


def test_ids_have_the_published_form_and_differ() -> None:
    ids = [new_job_id() for _ in range(1000)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(JOB_ID_PATTERN, job_id) for job_id in ids)


def test_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [0, 1, 10**9, 1_800_000_000_000_000_000, 2**63, 2**64 - 1]
    clock = iter(moments)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    ids = [new_job_id() for _ in moments]
    assert ids == sorted(ids)

"""Liveness and readiness."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.errors import ClusterUnavailable, StorageUnavailable
from service.settings import Settings
from service.store.store import Store

REQUEST_THREADS = 40
"""What starlette has for plain functions."""

GUARD_SECONDS = 60
"""A request that has no answer by then hangs."""


def test_ready(client: TestClient) -> None:
    response = client.get("/readyz")
    fine = {"ok": True, "detail": None}
    assert response.status_code == 200
    assert response.json() == {"ready": True, "database": fine, "storage": fine, "cluster": fine}


def test_each_check_says_what_is_wrong(client: TestClient, storage: Any, cluster: Any) -> None:
    storage.trouble = StorageUnavailable("nobody at port 9")
    cluster.trouble = ClusterUnavailable("nobody at port 10")
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "ready": False,
        "database": {"ok": True, "detail": None},
        "storage": {"ok": False, "detail": "nobody at port 9"},
        "cluster": {"ok": False, "detail": "nobody at port 10"},
    }


def test_a_lost_database_is_noticed(client: TestClient, store: Store, settings: Settings) -> None:
    store.close()  # the next connection has to open the file again
    shutil.rmtree(settings.data_dir)
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["database"]["ok"] is False


def test_alive_whatever_else_is_down(client: TestClient, storage: Any) -> None:
    storage.trouble = StorageUnavailable()
    assert client.get("/healthz").json() == {"status": "ok"}


def test_alive_while_every_thread_for_requests_is_busy(
    monkeypatch: pytest.MonkeyPatch, client: TestClient, storage: Any
) -> None:
    asked, answers = Semaphore(0), Event()

    def check() -> None:
        asked.release()
        answers.wait()

    monkeypatch.setattr(storage, "check", check)
    with ThreadPoolExecutor(REQUEST_THREADS + 1) as pool:
        try:
            slow = [pool.submit(client.get, "/readyz") for _ in range(REQUEST_THREADS)]
            for _ in slow:
                assert asked.acquire(timeout=GUARD_SECONDS)
            alive = pool.submit(client.get, "/healthz").result(GUARD_SECONDS)
        finally:
            answers.set()
        assert alive.json() == {"status": "ok"}
        assert [each.result().status_code for each in slow] == REQUEST_THREADS * [200]

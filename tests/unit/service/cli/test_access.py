"""`eigenpress keys`, `tenants` and `audit`, and the key of commands; an HTTP server is the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.client.credentials import ADDRESS_FILE, ADMIN_KEY_FILE, held
from tests.fixtures.command_line import TIME, Api, Eigenpress

KEY: dict[str, Any] = {
    "id": "k3x9v0qd27sp",
    "tenant": "default",
    "scope": "submitter",
    "name": "laptop[red]",
    "created_at": TIME,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
}
TENANT: dict[str, Any] = {
    "name": "team-a",
    "created_at": TIME,
    "max_running_jobs": None,
    "max_queued_jobs": 3,
    "max_stored_bytes": 2 * 10**11,
    "allowed_roots": ["/data/team-a"],
    "allowed_s3_prefixes": [],
}


class TestKeys:
    def test_create_prints_the_key_alone(self, api: Api, eigenpress: Eigenpress) -> None:
        api.answers["POST /v1/keys"] = (201, {**KEY, "key": "ep_secret"})
        command = ("keys", "create", "--scope", "submitter", "--name", "laptop")
        assert eigenpress(*command, "--expires-in", "90d", "--tenant", "t") == 0
        assert eigenpress.out == "ep_secret\n"
        assert "eigenpress keys revoke k3x9v0qd27sp" in eigenpress.err
        sent = {"scope": "submitter", "tenant": "t", "name": "laptop"}
        assert api.bodies == [{**sent, "expires_in_seconds": 90 * 86_400}]

    @pytest.mark.parametrize("time", ["90", "d", "-1d", "1.5d", "90 d", "0d"])
    def test_a_time_has_a_unit(self, eigenpress: Eigenpress, time: str) -> None:
        assert eigenpress("keys", "create", "--scope", "reader", "--expires-in", time) == 2
        assert "is not a time such as 90d" in eigenpress.err

    def test_list_shows_every_page(self, api: Api, eigenpress: Eigenpress) -> None:
        states = [KEY, {**KEY, "expires_at": TIME}, {**KEY, "revoked_at": TIME}]
        api.answers["GET /v1/keys"] = (200, {"keys": states, "next_cursor": None})
        assert eigenpress("keys", "list") == 0
        lines = eigenpress.out.splitlines()
        assert "laptop[red]" in lines[1]
        assert ["valid" in lines[1], "until 2026-11-21" in lines[2]] == [True, True]
        assert "revoked 2026-11-21" in lines[3]
        assert eigenpress("keys", "list", "--json", "--tenant", "t") == 0
        assert json.loads(eigenpress.out) == states
        assert api.queries[-1] == {"limit": ["200"], "tenant": ["t"]}

    def test_revoke(self, api: Api, eigenpress: Eigenpress) -> None:
        api.answers["DELETE /v1/keys/k3x9v0qd27sp"] = (200, {**KEY, "revoked_at": TIME})
        assert eigenpress("keys", "revoke", "k3x9v0qd27sp") == 0
        assert eigenpress.out == "k3x9v0qd27sp revoked\n"


class TestTenants:
    def test_create_sends_the_limits(self, api: Api, eigenpress: Eigenpress) -> None:
        api.answers["POST /v1/tenants"] = (201, TENANT)
        limits = ("--max-queued", "3", "--max-stored", "200GB", "--allow", "/data/team-a")
        assert eigenpress("tenants", "create", "team-a", *limits) == 0
        assert api.bodies == [
            {
                "name": "team-a",
                "max_queued_jobs": 3,
                "max_stored_bytes": 2 * 10**11,
                "allowed_roots": ["/data/team-a"],
            }
        ]
        columns = eigenpress.out.splitlines()[1].split()
        assert columns == ["team-a", "-", "3", "200", "GB", "/data/team-a", "none"]
        assert "keys create --scope submitter --tenant team-a" in eigenpress.err

    def test_change_replaces_all(self, api: Api, eigenpress: Eigenpress) -> None:
        api.answers["PUT /v1/tenants/team-a"] = (200, TENANT)
        assert eigenpress("tenants", "change", "team-a", "--max-running", "2") == 0
        assert api.bodies == [{"max_running_jobs": 2}]

    @pytest.mark.parametrize("size", ["GB", "1.5GB", "200 GB", "-1", "1gb"])
    def test_a_size_is_a_number_and_a_unit(self, eigenpress: Eigenpress, size: str) -> None:
        assert eigenpress("tenants", "change", "team-a", f"--max-stored={size}") == 2
        assert "is not a size such as 200GB" in eigenpress.err

    def test_list_and_usage(self, api: Api, eigenpress: Eigenpress) -> None:
        api.answers["GET /v1/tenants"] = (200, {"tenants": [TENANT], "next_cursor": None})
        assert eigenpress("tenants", "list", "--json") == 0
        assert json.loads(eigenpress.out) == [TENANT]
        used = {"running_jobs": 1, "queued_jobs": 2, "stored_bytes": 3 * 10**9}
        api.answers["GET /v1/tenants/team-a/usage"] = (200, used)
        assert eigenpress("tenants", "usage", "team-a") == 0
        assert eigenpress.out == "1 running, 2 queued, 3.0 GB stored\n"


RECORD: dict[str, Any] = {
    "id": 7,
    "at": TIME,
    "tenant": "team-a",
    "key_id": "k3x9v0qd27sp",
    "action": "submit",
    "subject": "/v1/jobs/[job]",
    "address": "192.0.2.1",
}


class TestAudit:
    def test_shows_who_changed_what(self, api: Api, eigenpress: Eigenpress) -> None:
        records = [RECORD, {**RECORD, "id": 6, "key_id": "none", "address": None}]
        api.answers["GET /v1/audit"] = (200, {"records": records, "next_cursor": None})
        assert eigenpress("audit") == 0
        heading, *lines = eigenpress.out.splitlines()
        assert heading.split() == ["when", "tenant", "key", "action", "subject", "address"]
        columns = [line.split() for line in lines]
        assert columns[0][2:] == [*map(RECORD.get, ("tenant", "key_id", "action", "subject")),
                                  "192.0.2.1"]  # fmt: skip
        assert columns[1][2:] == ["team-a", "none", "submit", "/v1/jobs/[job]"]
        assert eigenpress.err == ""

    def test_follows_pages_up_to_the_limit(
        self, api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.cli.access.PAGE", 2)
        api.answers["GET /v1/audit"] = (200, {"records": [RECORD] * 2, "next_cursor": "more"})
        assert eigenpress("audit", "--json", "--limit", "4", "--tenant", "team-a") == 0
        assert json.loads(eigenpress.out) == [RECORD] * 4
        query = {"limit": ["2"], "tenant": ["team-a"]}
        assert api.queries == [query, {**query, "cursor": ["more"]}]
        assert eigenpress("audit", "--limit", "2") == 0
        assert "--limit" in eigenpress.err


class TestTheKeyOfRequests:
    def test_is_the_users(
        self, api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EIGENPRESS_KEY", "ep_mine")
        assert eigenpress("jobs") == 0
        assert api.keys == ["Bearer ep_mine"]

    def test_is_else_that_of_the_users_own_server(
        self, api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("EIGENPRESS_KEY", raising=False)
        monkeypatch.setenv("EIGENPRESS_DATA_DIR", str(tmp_path))
        (tmp_path / ADMIN_KEY_FILE).write_text("ep_admin\n")
        assert eigenpress("jobs") == 0  # no server of this folder runs
        port = api.server_address[1]
        address = tmp_path / ADDRESS_FILE
        address.write_text(f"http://127.0.0.1:{port + 1}\n")
        with held(address):
            assert eigenpress("jobs") == 0  # another one does
            address.write_text(f"http://127.0.0.1:{port}\n")
            assert eigenpress("jobs") == 0
        assert api.keys == [None, None, "Bearer ep_admin"]

    def test_is_asked_for(self, api: Api, eigenpress: Eigenpress) -> None:
        problem = {"code": "key_missing", "detail": "The request has no key."}
        api.answers["GET /v1/jobs"] = (401, problem)
        assert eigenpress("jobs") == 1
        assert "EIGENPRESS_KEY" in eigenpress.err

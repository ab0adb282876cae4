"""Every route of /v1 refuses query parameters that it does not know, and says which it takes."""

from __future__ import annotations

from fastapi.testclient import TestClient

from tests.unit.api.conftest import ADMIN_KEY
from tests.unit.api.test_access import bearer, is_page, request, routes


def test_every_route_refuses_a_query_parameter_that_it_does_not_know(keyed: TestClient) -> None:
    """Whoever has no key learns nothing of it."""
    refused = 0
    for method, path, _ in routes(keyed):
        if is_page(path):
            continue
        answer = request(keyed, method, f"{path}?surprise=1&limit=1&hub=&=2", {}, ADMIN_KEY)
        assert answer.status_code == 422, path
        found = {(each["code"], each["param"]) for each in answer.json()["errors"]}
        refusals = {("invalid_parameter", name) for name in ("surprise", "hub", None)}
        assert found - {("invalid_parameter", "limit")} == refusals, path
        stranger = request(keyed, method, f"{path}?surprise=1", {}, "ep_guess")
        assert stranger.status_code == 401, path
        refused += 1
    assert refused > 40
    answer = keyed.get("/v1/jobs?status=failed", headers=bearer(ADMIN_KEY)).json()
    assert answer["detail"] == (
        "status: There is no such query parameter; this request takes created_after, "
        "created_before, cursor, label, limit, method, name, state"
    )
    answer = keyed.get("/v1/keys/current?=x", headers=bearer(ADMIN_KEY)).json()
    assert answer["detail"] == "query: There is no such query parameter; this request takes none"

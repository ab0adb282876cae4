"""Who may do what: every route has a rule, and tenants see nothing of one another."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.testclient import TestClient

from api.access import ADMIN_KEY_ID, COOKIE, PUBLIC, needs
from api.app import create_app
from api.pages.route import SIGN_IN
from api.rates import Rates
from api.services import Services
from service.domain.job import DEFAULT_TENANT
from service.domain.keys import ApiKey
from service.domain.principal import Scope
from service.domain.sign_in import sign_in_code
from service.domain.spec.job import JobSpec
from service.domain.tenant import Limits, Places
from service.errors import StorageUnavailable
from service.store import keys as store_keys
from service.store.database import clock
from service.store.store import Store
from tests.fixtures.webhooks import URL
from tests.unit.api.conftest import ADMIN_KEY
from tests.unit.service.store.test_datasets import uploaded

OTHER = "other"
NO_RULES = Dependant()


@pytest.fixture
def client(keyed: TestClient) -> TestClient:
    return keyed


@pytest.fixture
def other_tenant(store: Store) -> None:
    store.tenants.create(OTHER, Limits(), Places())


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def key(store: Store, scope: Scope, tenant: str = DEFAULT_TENANT, **options: Any) -> str:
    return store.keys.create(tenant, scope, **options)[1]


def a_webhook(store: Store) -> dict[str, str]:
    """The parameters of a path to a webhook of the other tenant, and to its delivery."""
    webhooks = store.webhooks(OTHER)
    made = webhooks.create(URL, "encrypted")
    return {"webhook_id": made.id, "delivery_id": webhooks.test(made.id).id}


def routes(client: TestClient) -> list[tuple[str, str, RouteContext]]:
    """Every operation of the application: its method, its path and its route."""
    app: Any = client.app
    found = [
        (method, str(route.path), route)
        for route in iter_route_contexts(app.routes)
        for method in sorted((route.methods or {"GET"}) - {"HEAD"})
    ]
    assert len(found) > 20
    return found


def scope_of(route: Any) -> Scope | None:
    """The scope that the route needs; None if it has no rule."""
    calls: list[Any] = [each.call for each in getattr(route, "dependant", NO_RULES).dependencies]
    rules = [
        call.__closure__[0].cell_contents
        for call in calls
        if getattr(call, "__qualname__", "") == "needs.<locals>.caller"
    ]
    return rules[0] if rules else None


def request(client: TestClient, method: str, path: str, ids: dict[str, str], text: str) -> Any:
    filled = re.sub(r"{(\w+)(:path)?}", lambda field: ids.get(field[1], "x"), path)
    return client.request(
        method, filled, headers=bearer(text), json={} if method != "GET" else None
    )


def is_page(path: str) -> bool:
    """Whether a browser shows what is at the path."""
    return not path.startswith("/v1/")


def code_of(response: Any, path: str) -> str:
    """The code of a refusal, which a page shows to people."""
    if not is_page(path):
        return str(response.json()["code"])
    (code,) = re.findall(r"Code <code>(\w+)</code>", response.text)
    return str(code)


def test_the_rule_is_read_from_a_route_as_it_is_written() -> None:
    assert needs(Scope.ADMIN).__qualname__ == "needs.<locals>.caller"


def test_every_route_has_a_rule_or_is_public(client: TestClient) -> None:
    without = {
        path for _, path, route in routes(client) if path not in PUBLIC and not scope_of(route)
    }
    assert without == set()
    assert {path for _, path, _ in routes(client)} >= PUBLIC


@pytest.mark.usefixtures("other_tenant")
def test_no_route_answers_a_key_that_is_wrong_revoked_expired_or_absent(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    created, revoked = store.keys.create(DEFAULT_TENANT, Scope.ADMIN)
    store.keys.revoke(created.id)
    expired = key(store, Scope.ADMIN, lifetime=timedelta(hours=1))
    right = key(store, Scope.ADMIN)
    wrong = right[:-1] + ("a" if right[-1] != "a" else "b")
    later = timedelta(hours=2)
    monkeypatch.setattr(store_keys, "clock", lambda connection: clock(connection) + later)
    for method, path, route in routes(client):
        if scope_of(route) is None:
            continue
        if is_page(path):
            for text in (revoked, expired, wrong, "ep_"):
                assert request(client, method, path, {}, text).url.path == SIGN_IN, path
            assert client.request(method, path).url.path == SIGN_IN, path
            continue
        for text in (revoked, expired, wrong, "ep_"):
            response = request(client, method, path, {}, text)
            assert (response.status_code, response.json()["code"]) == (401, "key_invalid"), path
            assert response.headers["WWW-Authenticate"] == "Bearer"
        response = client.request(method, path)
        assert (response.status_code, response.json()["code"]) == (401, "key_missing"), path


def test_a_key_may_be_any_bytes(client: TestClient) -> None:
    response = client.get("/v1/jobs", headers={b"Authorization": b"Bearer \xe9\xff"})
    assert (response.status_code, response.json()["code"]) == (401, "key_invalid")


@pytest.mark.usefixtures("other_tenant")
def test_a_key_that_is_too_weak_is_refused_before_anything_else(
    client: TestClient, store: Store, job_spec: JobSpec
) -> None:
    job = store.users(DEFAULT_TENANT).create(job_spec)
    weak = {Scope.SUBMITTER: key(store, Scope.READER), Scope.ADMIN: key(store, Scope.SUBMITTER)}
    refused = 0
    for method, path, route in routes(client):
        scope = scope_of(route)
        if scope in weak:
            for ids in ({"job_id": job.id}, {"job_id": "job-none"}):
                response = request(client, method, path, ids, weak[scope])
                refusal = response.status_code, code_of(response, path)
                assert refusal == (403, "scope_insufficient")
                assert job.id not in response.text.replace(response.request.url.path, "")
                refused += 1
    assert refused > 10
    assert store.records.get(job.id) == job


@pytest.mark.usefixtures("other_tenant")
def test_what_is_another_tenants_is_as_what_does_not_exist(
    client: TestClient, store: Store, job_spec: JobSpec
) -> None:
    theirs = {
        "job_id": store.users(OTHER).create(job_spec).id,
        "dataset_id": uploaded(store, OTHER).id,
        **a_webhook(store),
    }
    text = key(store, Scope.SUBMITTER)
    compared = set()
    for method, path, _ in routes(client):
        named = theirs.keys() & set(re.findall(r"{(\w+)", path))
        if not named:
            continue
        answers = []
        for change in (str, lambda id_: f"{id_[:-4]}0000"):
            ids = {name: change(theirs[name]) for name in named}
            answer = request(client, method, path, ids, text)
            shown = answer.text
            for name, value in ids.items():
                shown = shown.replace(value, name)
            answers.append((answer.status_code, shown))
        assert answers[0] == answers[1], path
        assert answers[0][0] in (404, 422), path
        compared |= named
    assert compared == theirs.keys()
    for path in ("jobs", "datasets", "webhooks"):
        assert client.get(f"/v1/{path}", headers=bearer(text)).json()[path] == []
    job_id = theirs["job_id"]
    assert store.records.get(job_id) == store.users(OTHER).get(job_id)


@pytest.mark.usefixtures("other_tenant")
def test_an_idempotency_key_of_another_tenant_is_another_key(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    ids = set()
    for tenant in (DEFAULT_TENANT, OTHER):
        headers = bearer(key(store, Scope.SUBMITTER, tenant)) | {"Idempotency-Key": "one"}
        response = client.post("/v1/jobs", json=job_body, headers=headers)
        assert response.status_code == 201
        ids.add(response.json()["id"])
    assert len(ids) == 2


def test_only_a_key_learns_why_a_dependency_does_not_answer(
    client: TestClient, storage: Any
) -> None:
    storage.trouble = StorageUnavailable("s3.internal:8333 refuses the key of eigenpress")
    stranger = client.get("/readyz", headers=bearer("ep_guess")).json()
    assert stranger["storage"] == {"ok": False, "detail": None}
    owner = client.get("/readyz", headers=bearer(ADMIN_KEY)).json()
    assert "s3.internal" in owner["storage"]["detail"]


class TestKeys:
    def test_the_admin_key_of_the_settings_makes_the_first_ones(self, client: TestClient) -> None:
        assert client.post("/v1/tenants", json={"name": "t"}, headers=bearer(ADMIN_KEY)).is_success
        made = client.post(
            "/v1/keys",
            json={"scope": "reader", "tenant": "t", "name": "laptop", "expires_in_seconds": 60},
            headers=bearer(ADMIN_KEY),
        )
        assert made.status_code == 201
        text = made.json()["key"]
        shown = client.get("/v1/keys/current", headers=bearer(text)).json()
        assert shown == {"id": made.json()["id"], "tenant": "t", "scope": "reader"}
        (listed,) = client.get("/v1/keys", headers=bearer(ADMIN_KEY)).json()["keys"]
        assert (listed["name"], listed["tenant"]) == ("laptop", "t")
        assert listed["last_used_at"] is not None
        assert text not in str(listed)

    def test_a_revoked_key_is_refused_at_once(self, client: TestClient, store: Store) -> None:
        made, text = store.keys.create(DEFAULT_TENANT, Scope.READER)
        assert client.get("/v1/jobs", headers=bearer(text)).is_success
        for _ in range(2):  # a repeated request changes nothing
            revoked = client.delete(f"/v1/keys/{made.id}", headers=bearer(ADMIN_KEY))
            assert revoked.json()["revoked_at"] is not None
        assert client.get("/v1/jobs", headers=bearer(text)).status_code == 401

    def test_the_database_keeps_no_key(
        self, client: TestClient, guarded: Services, store: Store
    ) -> None:
        text = key(store, Scope.READER)
        client.get("/v1/jobs", headers=bearer(text))
        folder = guarded.settings.data_dir
        kept = b"".join(path.read_bytes() for path in folder.glob("eigenpress.db*"))
        assert text.split("_")[1].encode() in kept  # the id
        assert text.split("_")[2].encode() not in kept

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"scope": "root"}, 422, "invalid_parameter"),
            ({"scope": "reader", "tenant": "none"}, 404, "tenant_not_found"),
            ({"scope": "reader", "expires_in_seconds": 1}, 422, "invalid_parameter"),
        ],
    )
    def test_a_wrong_request(
        self, client: TestClient, body: dict[str, Any], status: int, code: str
    ) -> None:
        response = client.post("/v1/keys", json=body, headers=bearer(ADMIN_KEY))
        assert (response.status_code, response.json()["code"]) == (status, code)

    def test_an_unknown_key_is_not_found(self, client: TestClient) -> None:
        response = client.delete("/v1/keys/none", headers=bearer(ADMIN_KEY))
        assert (response.status_code, response.json()["code"]) == (404, "key_not_found")

    def test_pages(self, client: TestClient, store: Store) -> None:
        made = {store.keys.create(DEFAULT_TENANT, Scope.READER)[0].id for _ in range(5)}
        found, cursor = [], None
        while True:
            query: dict[str, Any] = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = client.get("/v1/keys", params=query, headers=bearer(ADMIN_KEY)).json()
            found += [each["id"] for each in page["keys"]]
            if not (cursor := page["next_cursor"]):
                break
        assert found == sorted(made)


class TestTenants:
    def test_settings_are_replaced_as_a_whole(self, client: TestClient) -> None:
        headers = bearer(ADMIN_KEY)
        body = {"name": "t", "max_queued_jobs": 3, "allowed_s3_prefixes": ["s3://team/x"]}
        made = client.post("/v1/tenants", json=body, headers=headers)
        assert made.status_code == 201
        assert made.json()["allowed_s3_prefixes"] == ["s3://team/x/"]
        again = client.post("/v1/tenants", json=body, headers=headers)
        assert (again.status_code, again.json()["code"]) == (409, "tenant_exists")
        client.put("/v1/tenants/t", json={"max_running_jobs": 1}, headers=headers)
        shown = client.get("/v1/tenants/t", headers=headers).json()
        assert (shown["max_running_jobs"], shown["max_queued_jobs"]) == (1, None)
        assert client.get("/v1/tenants", headers=headers).json()["tenants"][1:] == [shown]

    def test_an_unknown_tenant(self, client: TestClient) -> None:
        for method, path in (("GET", ""), ("GET", "/usage"), ("PUT", "")):
            response = client.request(
                method, f"/v1/tenants/none{path}", headers=bearer(ADMIN_KEY), json={}
            )
            assert (response.status_code, response.json()["code"]) == (404, "tenant_not_found")

    def test_a_limit_of_queued_jobs(
        self, client: TestClient, store: Store, job_body: dict[str, Any]
    ) -> None:
        store.tenants.create("t", Limits(max_queued_jobs=1), Places())
        headers = bearer(key(store, Scope.SUBMITTER, "t"))
        assert client.post("/v1/jobs", json=job_body, headers=headers).status_code == 201
        refused = client.post("/v1/jobs", json=job_body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        usage = client.get("/v1/tenants/t/usage", headers=bearer(ADMIN_KEY)).json()
        assert usage == {"running_jobs": 0, "queued_jobs": 1, "stored_bytes": 0}
        store.claims.claim()
        assert client.post("/v1/jobs", json=job_body, headers=headers).status_code == 201

    def test_jobs_read_only_the_tenants_places(
        self, client: TestClient, store: Store, job_body: dict[str, Any], guarded: Services
    ) -> None:
        (root,) = guarded.settings.allowed_roots
        (root / "mine").mkdir()
        store.tenants.create("t", Limits(), Places(allowed_roots=(str(root / "mine"),)))
        headers = bearer(key(store, Scope.SUBMITTER, "t"))
        refused = client.post("/v1/jobs", json=job_body, headers=headers).json()
        assert (refused["code"], refused["param"]) == ("path_not_allowed", "model.path")
        estimate = client.post("/v1/estimates", json=job_body, headers=headers).json()
        assert {"path_not_allowed"} == {each["code"] for each in estimate["problems"]}

    def test_artifacts_of_others_are_no_inputs(
        self, client: TestClient, store: Store, job_body: dict[str, Any], job_spec: JobSpec
    ) -> None:
        store.tenants.create("t", Limits(), Places())
        headers = bearer(key(store, Scope.SUBMITTER, "t"))
        theirs = store.users(OTHER).create(job_spec).id
        shown = set()
        for job_id in (theirs, "job-none"):
            uri = f"s3://eigenpress/jobs/{job_id}/artifacts/a/keep-0.8/"
            body = job_body | {"model": {"source": "s3", "uri": uri}}
            refused = client.post("/v1/jobs", json=body, headers=headers).json()
            assert (refused["code"], refused["param"]) == ("path_not_allowed", "model")
            shown.add(refused["detail"].replace(job_id, "ID"))
        assert len(shown) == 1


def test_changes_are_audited_and_reads_are_not(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    store.tenants.create("t", Limits(), Places())
    submitter: ApiKey
    submitter, text = store.keys.create("t", Scope.SUBMITTER)
    job = client.post("/v1/jobs", json=job_body, headers=bearer(text)).json()["id"]
    client.get(f"/v1/jobs/{job}", headers=bearer(text))
    client.post("/v1/estimates", json=job_body, headers=bearer(text))
    client.post(f"/v1/jobs/{job}/cancel", headers=bearer(text))
    client.post(f"/v1/jobs/{job}/retry", headers=bearer(text))  # refused: it was cancelled
    client.delete(f"/v1/keys/{submitter.id}", headers=bearer(ADMIN_KEY))
    records = client.get("/v1/audit", headers=bearer(ADMIN_KEY)).json()["records"]
    assert [(each["key_id"], each["action"], each["subject"]) for each in records] == [
        (ADMIN_KEY_ID, "revoke_key", f"/v1/keys/{submitter.id}"),
        (submitter.id, "cancel", f"/v1/jobs/{job}/cancel"),
        (submitter.id, "submit", f"/v1/jobs/{job}"),
    ]
    assert {each["address"] for each in records} == {"testclient"}
    page = client.get("/v1/audit", params={"limit": 2}, headers=bearer(ADMIN_KEY)).json()
    rest = client.get(
        "/v1/audit", params={"cursor": page["next_cursor"]}, headers=bearer(ADMIN_KEY)
    ).json()
    assert page["records"] + rest["records"] == records


class TestRates:
    def test_each_key_has_its_own_bound(self, guarded: Services, store: Store) -> None:
        strict = replace(guarded, rates=Rates(2))
        with TestClient(create_app(guarded.settings, lambda _: nullcontext(strict))) as client:
            first, second = (bearer(key(store, Scope.READER)) for _ in range(2))
            statuses = [client.get("/v1/jobs", headers=first).status_code for _ in range(3)]
            assert statuses == [200, 200, 429]
            refused = client.get("/v1/jobs", headers=first)
            assert refused.json()["code"] == "too_many_requests"
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert client.get("/v1/jobs", headers=second).status_code == 200

    def test_guesses_are_bounded_by_address(self, guarded: Services) -> None:
        strict = replace(guarded, rates=Rates(2))
        with TestClient(create_app(guarded.settings, lambda _: nullcontext(strict))) as client:
            guesses = [client.get("/v1/jobs", headers=bearer(f"ep_{n}")) for n in range(3)]
            assert [guess.status_code for guess in guesses] == [401, 401, 429]
            assert client.get("/v1/jobs", headers=bearer(ADMIN_KEY)).status_code == 200

    def test_an_ipv6_network_counts_as_one_address(self, guarded: Services) -> None:
        strict = replace(guarded, rates=Rates(2))
        app = create_app(guarded.settings, lambda _: nullcontext(strict))

        def guess(address: str) -> int:
            with TestClient(app, client=(address, 1)) as client:
                return client.get("/v1/jobs", headers=bearer("ep_1")).status_code

        network = ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"]
        assert [guess(address) for address in network] == [401, 401, 429]
        assert guess("2001:db8:0:1::1") == 401
        mapped = ["::ffff:192.0.2.1", "::ffff:192.0.2.2", "::ffff:192.0.2.3"]
        assert [guess(address) for address in mapped] == [401, 401, 401]


class TestBrowser:
    def test_the_link_signs_in(self, client: TestClient) -> None:
        answer = client.get(
            "/sign-in", params={"code": sign_in_code(ADMIN_KEY)}, follow_redirects=False
        )
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert client.get("/v1/jobs").status_code == 200  # the client kept the cookie

    def test_a_wrong_code_does_not(self, client: TestClient) -> None:
        answer = client.get("/sign-in", params={"code": "guess"}, follow_redirects=False)
        assert answer.status_code == 401
        assert "The link is not valid any more" in answer.text
        assert "Set-Cookie" not in answer.headers

    def test_a_key_signs_in_and_goes_where_one_wanted(self, client: TestClient) -> None:
        asked = client.get("/?state=running", follow_redirects=False)
        assert asked.headers["Location"] == "/sign-in?next=%2F%3Fstate%3Drunning"
        form = {"key": f" {ADMIN_KEY}\n", "next": "/?state=running"}
        answer = client.post("/sign-in", data=form, follow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/?state=running")
        assert client.get("/").status_code == 200
        client.post("/sign-out")
        assert client.get("/", follow_redirects=False).status_code == 303

    @pytest.mark.parametrize(
        "place", ["//evil.test", "/\\evil.test", "http://evil.test", "", "/a\nb", "/\tb"]
    )
    def test_a_sign_in_goes_nowhere_else(self, client: TestClient, place: str) -> None:
        form = {"key": ADMIN_KEY, "next": place}
        answer = client.post("/sign-in", data=form, follow_redirects=False)
        assert answer.headers["Location"] == "/"

    def test_a_wrong_key_is_refused_on_the_page(self, client: TestClient) -> None:
        answer = client.post("/sign-in", data={"key": "<b>"}, follow_redirects=False)
        assert answer.status_code == 401
        assert "Set-Cookie" not in answer.headers
        assert "<b>" not in answer.text

    @pytest.mark.parametrize("path", ["/sign-in", "/sign-in/", "/press/sign-in", "//sign-in"])
    def test_the_code_stays_out_of_the_access_log(
        self, caplog: pytest.LogCaptureFixture, path: str
    ) -> None:
        arguments = ("127.0.0.1:5", "GET", f"{path}?code=secret", "1.1", 303)
        with caplog.at_level(logging.INFO, "uvicorn.access"):
            logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', *arguments)
        assert caplog.messages == [f'127.0.0.1:5 - "GET {path} HTTP/1.1" 303']

    def test_another_sites_page_changes_nothing_with_the_cookie(
        self, client: TestClient, job_body: dict[str, Any], store: Store
    ) -> None:
        client.cookies.set(COOKIE, ADMIN_KEY)
        answer = client.post("/v1/jobs", json=job_body, headers={"Origin": "http://evil.test"})
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_forbidden")
        assert store.records.list_jobs(limit=1) == []


@pytest.mark.parametrize(
    ("server", "status"),
    [("127.0.0.1", 200), ("::1", 200), ("/run/api.sock", 200), ("10.0.0.7", 401), ("::", 401)],
)
def test_without_keys_only_loopback_is_served(services: Services, server: str, status: int) -> None:
    app = create_app(services.settings, lambda _: nullcontext(services))

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        await app(
            scope | ({"server": (server, 80)} if scope["type"] == "http" else {}), receive, send
        )

    with TestClient(reached) as client:
        assert client.get("/v1/jobs").status_code == status

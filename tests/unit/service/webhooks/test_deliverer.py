"""Events of jobs reach receivers on loopback, whatever other receivers do."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from service.domain.job import DEFAULT_TENANT
from service.domain.webhook import DELIVERY_RETENTION_SECONDS, Webhook, new_secret
from service.egress.connections import resolver
from service.encryption import Encryption, new_key
from service.errors import DatabaseUnavailable
from service.settings import Settings
from service.store import tables
from service.store.database import clock
from service.store.store import Store
from service.webhooks import deliverer
from service.webhooks.deliverer import Deliverer, delivering, running
from service.webhooks.sender import Sender
from tests.fixtures.jobs import small_spec
from tests.fixtures.receivers import RULES, Receiver, Request, receiving, silent
from tests.fixtures.waiting import wait_until
from tests.fixtures.webhooks import claim_due, deliveries_of, let_pauses_pass, let_time_pass

PAGE = (Path(__file__).parents[4] / "docs" / "api.md").read_text()


def _documented() -> Callable[[Mapping[str, str], bytes, str], bool]:
    (code,) = re.findall(r"```python\n(import base64.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    function: Callable[[Mapping[str, str], bytes, str], bool] = names["is_genuine"]
    return function


IS_GENUINE = _documented()
KEY = SecretStr(new_key())
SECRET = new_secret()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(deliverer, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(deliverer, "CLOSING_SECONDS", 0.1)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def made(job_store: Store, threads: ThreadPoolExecutor) -> Deliverer:
    return Deliverer(job_store, Encryption(KEY), Sender(RULES, resolver(threads)))


def subscribe(store: Store, receiver: Receiver, *, failing: bool = False) -> Webhook:
    webhook = store.webhooks(DEFAULT_TENANT).create(receiver.url, Encryption(KEY).encrypt(SECRET))
    if failing:
        with store._database.writing() as connection:
            mine = update(tables.webhooks).where(tables.webhooks.c.id == webhook.id)
            connection.execute(mine.values(failing_since=clock(connection)))
    return webhook


def end_a_job(store: Store) -> str:
    users = store.users(DEFAULT_TENANT)
    job = users.create(small_spec())
    users.cancel(job.id)
    return job.id


def verify(request: Request, secret: str = SECRET) -> str:
    """Check the message as docs/api.md tells a receiver to; its id."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert IS_GENUINE(headers, request.body, secret)
    assert not IS_GENUINE(headers, request.body + b" ", secret)
    assert not IS_GENUINE(headers, request.body, new_secret())
    return headers["webhook-id"]


def test_the_end_of_a_job_arrives_signed(job_store: Store, made: Deliverer) -> None:
    with receiving() as receiver, running(made):
        webhook = subscribe(job_store, receiver)
        job_id = end_a_job(job_store)
        request = receiver.next_request()
        wait_until(lambda: deliveries_of(job_store, webhook)[0].finished_at)
    message = json.loads(request.body)
    assert (message["type"], message["data"]["job"]["id"]) == ("job.cancelled", job_id)
    (delivery,) = deliveries_of(job_store, webhook)
    assert verify(request) == delivery.id
    assert (delivery.state, delivery.attempts) == ("delivered", 1)


def test_a_failed_message_comes_again_with_its_id(job_store: Store, made: Deliverer) -> None:
    with receiving(500, 200) as receiver, running(made):
        webhook = subscribe(job_store, receiver)
        end_a_job(job_store)
        first = receiver.next_request()
        wait_until(lambda: deliveries_of(job_store, webhook)[0].error)
        assert job_store.webhooks(DEFAULT_TENANT).get(webhook.id).failing_since
        let_pauses_pass(job_store)
        second = receiver.next_request()
        wait_until(lambda: deliveries_of(job_store, webhook)[0].finished_at)
    assert verify(first) == verify(second)
    assert first.body == second.body
    assert job_store.webhooks(DEFAULT_TENANT).get(webhook.id).failing_since is None


def test_messages_are_signed_with_the_old_secret_for_a_day(
    job_store: Store, made: Deliverer
) -> None:
    newer = new_secret()
    with receiving() as receiver, running(made):
        webhook = subscribe(job_store, receiver)
        mine = job_store.webhooks(DEFAULT_TENANT)
        mine.change_secret(webhook.id, Encryption(KEY).encrypt(newer))
        mine.test(webhook.id)
        request = receiver.next_request()
    assert verify(request, SECRET) == verify(request, newer)


class TestDeadReceivers:
    def test_they_delay_no_job_and_no_other_webhook(
        self, job_store: Store, made: Deliverer
    ) -> None:
        with ExitStack() as stack:
            dead = [stack.enter_context(silent()) for _ in range(3)]
            alive = stack.enter_context(receiving())
            stack.enter_context(running(made))
            webhooks = [subscribe(job_store, receiver) for receiver in dead]
            subscribe(job_store, alive)
            ended = []
            for _ in range(3):
                ended.append(end_a_job(job_store))
                message = json.loads(alive.next_request().body)
                assert message["data"]["job"]["id"] == ended[-1]
            for receiver in dead:  # their requests hang meanwhile
                receiver.next_request()
            states = [deliveries_of(job_store, webhook)[-1].state for webhook in webhooks]
            assert states == ["waiting"] * 3

    def test_many_that_fail_leave_room(
        self, job_store: Store, made: Deliverer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deliverer, "MAX_REQUESTS", 3)
        monkeypatch.setattr(deliverer, "MAX_FAILING_REQUESTS", 2)
        with silent() as dead, receiving() as alive:
            for _ in range(6):
                subscribe(job_store, dead, failing=True)
            end_a_job(job_store)
            with running(made):
                dead.next_request()
                dead.next_request()
                subscribe(job_store, alive)
                end_a_job(job_store)
                alive.next_request()
                assert dead.requests.empty()

    def test_one_has_few_requests_at_a_time(self, job_store: Store, made: Deliverer) -> None:
        with silent() as dead, receiving() as alive:
            subscribe(job_store, dead)
            for _ in range(3 * deliverer.MAX_REQUESTS_OF_WEBHOOK):
                end_a_job(job_store)
            with running(made):
                for _ in range(deliverer.MAX_REQUESTS_OF_WEBHOOK):
                    dead.next_request()
                subscribe(job_store, alive)
                end_a_job(job_store)
                alive.next_request()
                assert dead.requests.empty()


def test_the_message_of_a_killed_deliverer_is_sent_by_another(
    job_store: Store, made: Deliverer
) -> None:
    with receiving() as receiver:
        webhook = subscribe(job_store, receiver)
        end_a_job(job_store)
        (lost,) = claim_due(job_store, webhook.id)
        with running(made):
            let_pauses_pass(job_store)
            assert verify(receiver.next_request()) == lost.id
            wait_until(lambda: deliveries_of(job_store, webhook)[0].finished_at)
    assert deliveries_of(job_store, webhook)[0].attempts == 2


def test_two_deliverers_send_each_message_once(
    job_store: Store, made: Deliverer, threads: ThreadPoolExecutor
) -> None:
    other = Deliverer(job_store, Encryption(KEY), Sender(RULES, resolver(threads)))
    with receiving() as receiver:
        webhook = subscribe(job_store, receiver)
        for _ in range(20):
            end_a_job(job_store)
        with running(made), running(other):
            got = {verify(receiver.next_request()) for _ in range(20)}
            wait_until(lambda: all(each.finished_at for each in deliveries_of(job_store, webhook)))
        assert receiver.requests.empty()
    assert got == {each.id for each in deliveries_of(job_store, webhook)}


def test_a_secret_of_another_key_is_an_error_of_its_webhook_alone(
    job_store: Store, made: Deliverer
) -> None:
    with receiving() as receiver, running(made):
        stored = Encryption(SecretStr(new_key())).encrypt(SECRET)
        lost = job_store.webhooks(DEFAULT_TENANT).create(receiver.url, stored)
        subscribe(job_store, receiver)
        end_a_job(job_store)
        verify(receiver.next_request())
        wait_until(lambda: deliveries_of(job_store, lost)[0].error)
        assert receiver.requests.empty()
    error = deliveries_of(job_store, lost)[0].error
    assert error is not None
    assert "EIGENPRESS_ENCRYPTION_KEY" in error
    assert SECRET not in error


def test_an_outage_of_the_database_is_logged_once_and_survived(
    job_store: Store,
    made: Deliverer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    look, looks = job_store.deliveries.due, []

    def away(**options: object) -> list[str]:
        looks.append(options)
        if len(looks) < 5:
            raise DatabaseUnavailable
        return look(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(job_store.deliveries, "due", away)
    with receiving() as receiver, running(made):
        subscribe(job_store, receiver)
        end_a_job(job_store)
        receiver.next_request()
        wait_until(lambda: "work again" in caplog.text)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_neither_secrets_nor_urls_are_logged(
    job_store: Store, made: Deliverer, caplog: pytest.LogCaptureFixture
) -> None:
    """A URL may have a token in its path."""
    caplog.set_level(logging.INFO)
    with receiving(500) as receiver, running(made):
        webhook = subscribe(job_store, receiver)
        end_a_job(job_store)
        receiver.next_request()
        wait_until(lambda: "status 500" in caplog.text)
    assert webhook.id in caplog.text
    assert SECRET not in caplog.text
    assert "/hook" not in caplog.text


def test_old_deliveries_are_removed(job_store: Store, made: Deliverer) -> None:
    with receiving() as receiver:
        webhook = subscribe(job_store, receiver)
        end_a_job(job_store)
        (message,) = claim_due(job_store, webhook.id)
        job_store.webhooks(DEFAULT_TENANT).change(webhook.id, enabled=False)
        let_time_pass(job_store, DELIVERY_RETENTION_SECONDS + 1)
        assert message
        with running(made):
            wait_until(lambda: not deliveries_of(job_store, webhook))


def test_the_settings_choose_receivers(job_store: Store) -> None:
    settings = Settings(
        encryption_key=KEY, webhook_allowed_networks=("127.0.0.0/8",), webhook_allow_http=True
    )
    with receiving() as receiver, delivering(job_store, settings):
        subscribe(job_store, receiver)
        end_a_job(job_store)
        verify(receiver.next_request())


def test_without_a_key_nothing_is_sent(job_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with receiving() as receiver:
        webhook = subscribe(job_store, receiver)
        with delivering(job_store, Settings()):
            end_a_job(job_store)
    assert "EIGENPRESS_ENCRYPTION_KEY is not set" in caplog.text
    assert deliveries_of(job_store, webhook)[0].attempts == 0

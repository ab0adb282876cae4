"""Webhooks in the store: whose they are, which events they get, and how messages are claimed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, select

from service.domain.job import DEFAULT_TENANT, EventType
from service.domain.states import JobState
from service.domain.webhook import (
    ENDS,
    MAX_WEBHOOKS,
    SCHEDULE_SECONDS,
    DisabledReason,
    Outcome,
    Webhook,
    WebhookEvent,
)
from service.errors import (
    AttemptStale,
    DeliveryNotFound,
    InvalidParameter,
    StorageUnavailable,
    WebhookDisabled,
    WebhookLimitReached,
    WebhookNotFound,
)
from service.store import tables
from service.store.outbox import enqueue
from service.store.store import Store
from service.store.webhooks import Webhooks
from tests.fixtures.jobs import at_once, small_spec
from tests.fixtures.webhooks import URL, claim_due, deliveries_of, let_pauses_pass, let_time_pass

FATAL = InvalidParameter("no such thing", param="model.path").failure()
RETRYABLE = StorageUnavailable("S3 is away").failure()
FAILED = Outcome(500, "The receiver answered with status 500.")


@pytest.fixture
def mine(job_store: Store) -> Webhooks:
    return job_store.webhooks(DEFAULT_TENANT)


@pytest.fixture
def webhook(mine: Webhooks) -> Webhook:
    return mine.create(URL, "encrypted")


def fail_a_job(store: Store, tenant: str = DEFAULT_TENANT) -> str:
    job = store.users(tenant).create(small_spec())
    assert store.claims.claim() is not None
    store.attempts.fail(job.id, 1, FATAL, at_once(1))
    return job.id


class TestWebhooks:
    def test_a_webhook_reads_back(self, mine: Webhooks) -> None:
        made = mine.create(URL, "encrypted", (WebhookEvent.FAILED,), "ours\x1b")
        assert mine.get(made.id) == made
        assert (made.url, made.events, made.description) == (URL, ("job.failed",), "ours\\x1b")
        assert (made.enabled, made.failing_since) == (True, None)
        assert abs(datetime.now(UTC) - made.created_at) < timedelta(minutes=1)

    def test_newest_first_in_pages(self, mine: Webhooks) -> None:
        made = [mine.create(f"{URL}/{number}", "encrypted") for number in range(3)][::-1]
        assert mine.list_webhooks(limit=2) == made[:2]
        assert mine.list_webhooks(limit=2, before=made[1].id) == made[2:]

    def test_another_tenants_webhook_does_not_exist(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        message = mine.test(webhook.id)
        other = job_store.webhooks("other")
        attempts: list[Callable[[], object]] = [
            lambda: other.get(webhook.id),
            lambda: other.change(webhook.id, url="https://evil.example"),
            lambda: other.change_secret(webhook.id, "theirs"),
            lambda: other.delete(webhook.id),
            lambda: other.test(webhook.id),
            lambda: other.list_deliveries(webhook.id, limit=9),
            lambda: other.redeliver(webhook.id, message.id),
        ]
        for attempt in attempts:
            with pytest.raises(WebhookNotFound, match=f"There is no webhook {webhook.id}"):
                attempt()
        assert other.list_webhooks(limit=9) == []
        theirs = other.create(URL, "theirs")
        with pytest.raises(DeliveryNotFound):
            other.redeliver(theirs.id, message.id)
        assert mine.get(webhook.id) == webhook

    def test_an_odd_id_is_not_found(self, mine: Webhooks, webhook: Webhook) -> None:
        for odd in ("whk-none", "whk-\0", ""):
            with pytest.raises(WebhookNotFound):
                mine.get(odd)
            with pytest.raises(DeliveryNotFound):
                mine.redeliver(webhook.id, odd)

    def test_a_tenant_has_so_many_and_no_more(self, job_store: Store, mine: Webhooks) -> None:
        for _ in range(MAX_WEBHOOKS):
            mine.create(URL, "encrypted")
        with pytest.raises(WebhookLimitReached, match=str(MAX_WEBHOOKS)):
            mine.create(URL, "encrypted")
        job_store.webhooks("other").create(URL, "encrypted")

    def test_what_is_left_out_stays(self, mine: Webhooks, webhook: Webhook) -> None:
        changed = mine.change(webhook.id, url=f"{URL}/2")
        assert (changed.url, changed.events, changed.enabled) == (f"{URL}/2", ENDS, True)
        assert mine.change(webhook.id, events=[WebhookEvent.QUEUED]).events == ("job.queued",)
        assert mine.change(webhook.id, description="ours").description == "ours"
        assert mine.change(webhook.id) == mine.get(webhook.id)

    def test_a_webhook_takes_its_deliveries_along(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        message = mine.test(webhook.id)
        (claimed,) = claim_due(job_store, webhook.id)
        mine.delete(webhook.id)
        job_store.deliveries.record(claimed, Outcome(200), 0)
        assert claim_due(job_store, webhook.id) == []
        with pytest.raises(WebhookNotFound):
            mine.redeliver(webhook.id, message.id)


class TestOutbox:
    def test_the_end_of_a_job_is_queued_for_those_who_want_it(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        every = mine.create(URL, "encrypted", tuple(WebhookEvent))
        other = job_store.webhooks("other").create(URL, "encrypted", tuple(WebhookEvent))
        job_id = fail_a_job(job_store)
        (end,) = deliveries_of(job_store, webhook)
        assert (end.type, end.job_id, end.state) == ("job.failed", job_id, "waiting")
        assert [each.type for each in deliveries_of(job_store, every)][::-1] == [
            EventType.QUEUED,
            EventType.CLAIMED,
            EventType.FAILED,
        ]
        assert deliveries_of(job_store, other, "other") == []

    def test_each_way_to_end_is_told_once(self, job_store: Store, webhook: Webhook) -> None:
        users = job_store.users(DEFAULT_TENANT)
        cancelled = users.create(small_spec())
        users.cancel(cancelled.id)
        users.cancel(cancelled.id)
        succeeded = users.create(small_spec())
        job_store.claims.claim()
        job_store.attempts.fail(succeeded.id, 1, RETRYABLE, at_once(2))
        job_store.claims.claim()
        job_store.attempts.succeed(succeeded.id, 2, {})
        with pytest.raises(AttemptStale):
            job_store.attempts.succeed(succeeded.id, 1, {})
        assert [(each.type, each.job_id) for each in deliveries_of(job_store, webhook)][::-1] == [
            ("job.cancelled", cancelled.id),
            ("job.succeeded", succeeded.id),
        ]

    def test_a_message_has_the_job_as_it_was(self, job_store: Store, webhook: Webhook) -> None:
        job_id = fail_a_job(job_store)
        job_store.users(DEFAULT_TENANT).retry(job_id)
        (message,) = claim_due(job_store, webhook.id)
        job = json.loads(message.body)["data"]["job"]
        assert (job["id"], job["name"], job["state"]) == (job_id, "small", "failed")
        assert job["error"]["param"] == "model.path"

    def test_no_event_no_message(
        self, job_store: Store, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a rolled-back transaction queued was never queued."""
        job = job_store.users(DEFAULT_TENANT).create(small_spec())

        def queue_and_break(connection: Connection, job_id: str, kind: str) -> None:
            enqueue(connection, job_id, kind)
            assert connection.execute(select(tables.deliveries.c.id)).all()
            raise RuntimeError

        monkeypatch.setattr("service.store.transitions.enqueue", queue_and_break)
        with pytest.raises(RuntimeError):
            job_store.users(DEFAULT_TENANT).cancel(job.id)
        assert deliveries_of(job_store, webhook) == []
        assert job_store.records.get(job.id).state is JobState.QUEUED

    def test_a_webhook_that_is_deleted_at_this_moment_breaks_no_event(
        self, job_store: Store, mine: Webhooks
    ) -> None:
        users = job_store.users(DEFAULT_TENANT)
        jobs = [users.create(small_spec()).id for _ in range(40)]
        ended = threading.Event()

        def come_and_go() -> None:
            while not ended.is_set():
                mine.delete(mine.create(URL, "encrypted").id)

        with ThreadPoolExecutor(5) as pool:
            churn = [pool.submit(come_and_go) for _ in range(3)]
            try:
                states = [job.state for job in pool.map(users.cancel, jobs)]
            finally:
                ended.set()
            for each in churn:
                each.result()
        assert states == [JobState.CANCELLED] * len(jobs)

    def test_a_disabled_webhook_gets_nothing(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        disabled = mine.change(webhook.id, enabled=False)
        assert disabled.disabled is DisabledReason.USER
        fail_a_job(job_store)
        (before,) = deliveries_of(job_store, webhook)
        assert (before.state, before.error) == ("given_up", "The webhook was disabled.")
        for act in (mine.test, lambda id: mine.redeliver(id, before.id)):  # noqa: A006
            with pytest.raises(WebhookDisabled):
                act(webhook.id)
        mine.change(webhook.id, enabled=True)
        mine.redeliver(webhook.id, before.id)
        assert len(claim_due(job_store, webhook.id)) == 1

    def test_messages_go_with_their_job(self, job_store: Store, webhook: Webhook) -> None:
        job_id = fail_a_job(job_store)
        job_store.users(DEFAULT_TENANT).delete(job_id)
        assert len(deliveries_of(job_store, webhook)) == 1
        job_store.claims.remove(job_id)
        assert deliveries_of(job_store, webhook) == []


class TestClaims:
    def test_a_message_is_claimed_once_until_its_lease_is_over(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        made = mine.test(webhook.id)
        (first,) = claim_due(job_store, webhook.id)
        assert (first.id, first.attempt, first.url) == (made.id, 1, URL)
        assert first.encrypted_secrets == ("encrypted",)
        assert claim_due(job_store, webhook.id) == []
        let_pauses_pass(job_store)  # its claimer was killed
        (second,) = claim_due(job_store, webhook.id)
        assert (second.id, second.attempt, second.body) == (first.id, 2, first.body)

    def test_several_dispatchers_claim_each_message_once(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        made = {mine.test(webhook.id).id for _ in range(24)}
        with ThreadPoolExecutor(8) as pool:
            claims = pool.map(lambda _: claim_due(job_store, webhook.id, limit=6), range(8))
        claimed = [message.id for claim in claims for message in claim]
        assert len(claimed) == len(set(claimed))
        claimed += [message.id for message in claim_due(job_store, webhook.id)]
        assert sorted(claimed) == sorted(made)

    def test_a_message_that_arrived_has_ended(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        (message,) = claim_due(job_store, webhook.id)
        job_store.deliveries.record(message, Outcome(204), 0)
        (ended,) = deliveries_of(job_store, webhook)
        assert (ended.state, ended.status_code, ended.error) == ("delivered", 204, None)
        assert ended.next_attempt_at is None
        let_pauses_pass(job_store)
        assert claim_due(job_store, webhook.id) == []

    def test_a_failed_attempt_is_repeated_after_a_pause(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        (message,) = claim_due(job_store, webhook.id)
        job_store.deliveries.record(message, FAILED, 0.5)
        (waiting,) = deliveries_of(job_store, webhook)
        assert (waiting.state, waiting.status_code) == ("waiting", 500)
        assert waiting.next_attempt_at is not None
        left = waiting.next_attempt_at - datetime.now(UTC)
        assert timedelta(seconds=1) < left < timedelta(seconds=6)
        assert mine.get(webhook.id).failing_since is not None
        let_pauses_pass(job_store)
        (again,) = claim_due(job_store, webhook.id)
        job_store.deliveries.record(again, Outcome(200), 0)
        assert mine.get(webhook.id).failing_since is None

    def test_only_the_last_attempt_is_recorded(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        (slow,) = claim_due(job_store, webhook.id)
        let_pauses_pass(job_store)
        (quick,) = claim_due(job_store, webhook.id)
        job_store.deliveries.record(slow, FAILED, 0)
        (waiting,) = deliveries_of(job_store, webhook)
        assert (waiting.attempts, waiting.error) == (2, None)
        job_store.deliveries.record(quick, Outcome(200), 0)
        job_store.deliveries.record(quick, FAILED, 0)
        assert deliveries_of(job_store, webhook)[0].state == "delivered"
        assert mine.get(webhook.id).failing_since is None

    def test_a_message_is_given_up_after_the_schedule(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        for _ in range(len(SCHEDULE_SECONDS) + 1):
            assert deliveries_of(job_store, webhook)[0].state == "waiting"
            let_pauses_pass(job_store)
            (message,) = claim_due(job_store, webhook.id)
            job_store.deliveries.record(message, FAILED, 1)
        (ended,) = deliveries_of(job_store, webhook)
        assert (ended.state, ended.attempts) == ("given_up", 10)
        assert mine.get(webhook.id).enabled  # it has not failed for days

    def test_a_webhook_that_fails_for_days_is_disabled(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        for days in (1, 2, 3):
            assert mine.get(webhook.id).enabled
            let_pauses_pass(job_store)
            (message,) = claim_due(job_store, webhook.id)
            let_time_pass(job_store, days * 86_400)
            job_store.deliveries.record(message, FAILED, 1)
        assert mine.get(webhook.id).disabled is DisabledReason.FAILING
        again = mine.change(webhook.id, enabled=True)
        assert (again.enabled, again.failing_since) == (True, None)

    def test_a_receiver_that_is_gone_gets_no_more(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        mine.test(webhook.id)
        (message,) = claim_due(job_store, webhook.id, limit=1)
        job_store.deliveries.record(message, Outcome(410, "gone"), 0)
        assert mine.get(webhook.id).disabled is DisabledReason.GONE
        states = {(each.state, each.error) for each in deliveries_of(job_store, webhook)}
        assert states == {("given_up", "gone"), ("given_up", "The webhook was disabled.")}
        let_pauses_pass(job_store)
        assert claim_due(job_store, webhook.id) == []

    def test_a_message_sent_again_keeps_its_id(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        (first,) = claim_due(job_store, webhook.id)
        job_store.deliveries.record(first, Outcome(200), 0)
        assert mine.redeliver(webhook.id, first.id).state == "waiting"
        (again,) = claim_due(job_store, webhook.id)
        assert (again.id, again.body, again.attempt) == (first.id, first.body, 1)

    def test_for_a_day_there_are_two_secrets(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.change_secret(webhook.id, "newer")
        mine.test(webhook.id)
        (message,) = claim_due(job_store, webhook.id)
        assert message.encrypted_secrets == ("newer", "encrypted")
        let_time_pass(job_store, 1)
        let_pauses_pass(job_store)
        (message,) = claim_due(job_store, webhook.id)
        assert message.encrypted_secrets == ("newer",)

    def test_the_longest_due_come_first_and_failing_ones_apart(
        self, job_store: Store, mine: Webhooks
    ) -> None:
        first, second, third = (mine.create(URL, "encrypted") for _ in range(3))
        for each in (second, first, third):
            mine.test(each.id)
        (message,) = claim_due(job_store, third.id)
        job_store.deliveries.record(message, FAILED, 0)
        due = job_store.deliveries.due
        assert due(limit=9, failing=False) == [second.id, first.id]
        assert due(limit=1, failing=False) == [second.id]
        assert due(limit=9, failing=False, busy=[second.id]) == [first.id]
        assert due(limit=9, failing=True) == []
        let_pauses_pass(job_store)
        assert due(limit=9, failing=True) == [third.id]

    def test_old_deliveries_are_deleted_and_waiting_ones_kept(
        self, job_store: Store, mine: Webhooks, webhook: Webhook
    ) -> None:
        mine.test(webhook.id)
        (message,) = claim_due(job_store, webhook.id)
        job_store.deliveries.record(message, Outcome(200), 0)
        waiting = mine.test(webhook.id)
        assert job_store.deliveries.delete_old(60) == 0
        let_time_pass(job_store, 61)
        assert job_store.deliveries.delete_old(60) == 1
        assert [each.id for each in deliveries_of(job_store, webhook)] == [waiting.id]

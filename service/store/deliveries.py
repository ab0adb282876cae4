"""The dispatchers' side of the webhooks: claims messages that are due, and records what came of it.

A claim numbers the attempt and puts the message off for as long as a lease. So two dispatchers do
not send it at once, and if the claimer is killed, another one sends it after the lease. Only the
claimer's own attempt is recorded.

Transactions lock a webhook before its deliveries, if they lock both.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from service.domain.webhook import (
    DISABLED_AFTER_SECONDS,
    DisabledReason,
    Message,
    Outcome,
    pause_seconds,
)
from service.store import tables
from service.store.database import Database, clock
from service.store.webhooks import disable

GONE = 410

webhooks, deliveries = tables.webhooks, tables.deliveries


class Deliveries:
    """The messages of all tenants' webhooks. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, *, limit: int, failing: bool, busy: Collection[str] = ()) -> list[str]:
        """At most `limit` webhooks with a message that is due, the longest due first.

        Those that fail and those that do not are asked for apart; `busy` ones are left out.
        """
        first = (
            select(func.min(deliveries.c.due_at))
            .where(deliveries.c.webhook_id == webhooks.c.id)
            .scalar_subquery()
        )
        fails = webhooks.c.failing_since.is_not(None)
        with self._database.reading() as connection:
            query = (
                select(webhooks.c.id)
                .where(
                    fails if failing else ~fails,
                    webhooks.c.id.not_in(busy),
                    first <= clock(connection),
                )
                .order_by(first)
                .limit(limit)
            )
            return list(connection.execute(query).scalars())

    def claim(self, webhook_id: str, *, limit: int, lease_seconds: float) -> list[Message]:
        """Claim at most `limit` messages of the webhook, the longest due first.

        Those that another transaction has locked are skipped.
        """
        with self._database.writing() as connection:
            now = clock(connection)
            webhook = connection.execute(
                select(webhooks).where(webhooks.c.id == webhook_id)
            ).one_or_none()
            if webhook is None:
                return []
            due = (
                select(deliveries.c.id)
                .where(deliveries.c.webhook_id == webhook_id, deliveries.c.due_at <= now)
                .order_by(deliveries.c.due_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            ids = connection.execute(due).scalars().all()
            claimed = connection.execute(
                update(deliveries)
                .where(deliveries.c.id.in_(ids))
                .values(_claimed(webhook, now, lease_seconds))
                .returning(deliveries)
            ).all()
            return [_message(row, webhook, now) for row in claimed if row.due_at is not None]

    def record(self, message: Message, outcome: Outcome, share: float) -> None:
        """Record what came of an attempt, unless it is no longer the message's last one.

        `share` (from 0 to 1) is how much of the jitter the next pause gets.
        """
        with self._database.writing() as connection:
            query = select(webhooks).where(webhooks.c.id == message.webhook_id)
            webhook = connection.execute(query.with_for_update(key_share=True)).one_or_none()
            if webhook is None:
                return
            now = clock(connection)
            pause = None if outcome.error is None else pause_seconds(message.attempt, share)
            recorded = connection.execute(
                update(deliveries)
                .where(
                    deliveries.c.id == message.id,
                    deliveries.c.attempts == message.attempt,
                    deliveries.c.finished_at.is_(None),
                )
                .values(
                    status_code=outcome.status_code,
                    error=outcome.error,
                    due_at=None if pause is None else now + timedelta(seconds=pause),
                    finished_at=now if pause is None else None,
                )
                .returning(deliveries.c.id)
            ).one_or_none()
            if recorded is not None:
                _note(connection, webhook, outcome, now)

    def delete_old(self, seconds: float, *, limit: int = 1000) -> int:
        """Delete at most `limit` deliveries that ended at least `seconds` ago; return how many."""
        with self._database.writing() as connection:
            old = (
                select(deliveries.c.id)
                .where(deliveries.c.finished_at <= clock(connection) - timedelta(seconds=seconds))
                .order_by(deliveries.c.finished_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            ids = connection.execute(old).scalars().all()
            connection.execute(delete(deliveries).where(deliveries.c.id.in_(ids)))
            return len(ids)


def _claimed(webhook: Row[Any], now: datetime, lease_seconds: float) -> dict[str, Any]:
    if webhook.disabled is not None:  # at the moment at which the event was queued
        return {"due_at": None, "finished_at": now, "error": "The webhook was disabled."}
    return {
        "attempts": deliveries.c.attempts + 1,
        "due_at": now + timedelta(seconds=lease_seconds),
    }


def _note(connection: Connection, webhook: Row[Any], outcome: Outcome, now: datetime) -> None:
    """Record on the webhook's side whether it fails; disable one that receives nothing."""
    mine = update(webhooks).where(webhooks.c.id == webhook.id)
    if outcome.error is None:
        if webhook.failing_since is not None:
            connection.execute(mine.values(failing_since=None))
        return
    since = webhook.failing_since or now
    connection.execute(mine.values(failing_since=since))
    if outcome.status_code == GONE:
        disable(connection, webhook.id, DisabledReason.GONE)
    elif now - since >= timedelta(seconds=DISABLED_AFTER_SECONDS):
        disable(connection, webhook.id, DisabledReason.FAILING)


def _message(row: Row[Any], webhook: Row[Any], now: datetime) -> Message:
    secrets = [webhook.secret]
    if webhook.old_secret is not None and webhook.old_secret_until > now:
        secrets.append(webhook.old_secret)
    return Message(row.id, row.attempts, row.webhook_id, webhook.url, tuple(secrets), row.body)

"""The side of a tenant's users of its webhooks and of what they have sent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from service.domain.job import new_id
from service.domain.webhook import (
    ENDS,
    MAX_WEBHOOKS,
    OLD_SECRET_SECONDS,
    TEST_EVENT,
    Delivery,
    DisabledReason,
    Webhook,
    WebhookEvent,
    trial_message,
)
from service.errors import (
    DeliveryNotFound,
    WebhookDisabled,
    WebhookLimitReached,
    WebhookNotFound,
)
from service.printable import shortened
from service.store import tables
from service.store.database import Database, clock
from service.store.outbox import delivery_row

webhooks, deliveries = tables.webhooks, tables.deliveries


class Webhooks:
    """The reads and writes of one tenant's users. Threads may share it.

    Secrets come encrypted. All methods that take an id raise WebhookNotFound if the tenant has no
    such webhook, and DeliveryNotFound likewise.
    """

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def create(
        self,
        url: str,
        encrypted_secret: str,
        events: Sequence[WebhookEvent] = ENDS,
        description: str | None = None,
    ) -> Webhook:
        """Raises WebhookLimitReached (two calls at once may exceed the limit by one)."""
        with self._database.writing() as connection:
            mine = select(func.count()).where(webhooks.c.tenant == self._tenant)
            if connection.execute(mine).scalar_one() >= MAX_WEBHOOKS:
                raise WebhookLimitReached(
                    f"This tenant has {MAX_WEBHOOKS} webhooks, which is the most: delete one first."
                )
            row = {
                "id": new_id("whk"),
                "tenant": self._tenant,
                "url": url,
                "description": description,
                "events": [str(event) for event in events],
                "secret": encrypted_secret,
                "created_at": clock(connection),
            }
            return _webhook(
                connection.execute(insert(webhooks).values(row).returning(webhooks)).one()
            )

    def list_webhooks(self, *, limit: int, before: str | None = None) -> list[Webhook]:
        """At most `limit` webhooks, newest first, older than the webhook `before`."""
        query = select(webhooks).where(webhooks.c.tenant == self._tenant)
        if before is not None:
            query = query.where(webhooks.c.id < before)
        query = query.order_by(webhooks.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [_webhook(row) for row in connection.execute(query)]

    def get(self, webhook_id: str) -> Webhook:
        with self._database.reading() as connection:
            return _webhook(self._row(connection, webhook_id))

    def change(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[WebhookEvent] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Change the given fields. A webhook that is enabled again begins without failures."""
        values: dict[str, Any] = {"url": url, "description": description}
        values["events"] = None if events is None else [str(event) for event in events]
        values = {name: value for name, value in values.items() if value is not None}
        with self._database.writing() as connection:
            row = self._row(connection, webhook_id, lock=True)
            if enabled and row.disabled is not None:
                values |= {"disabled": None, "failing_since": None}
            if values:
                connection.execute(
                    update(webhooks).where(webhooks.c.id == webhook_id).values(values)
                )
            if enabled is False and row.disabled is None:
                disable(connection, webhook_id, DisabledReason.USER)
            return _webhook(self._row(connection, webhook_id))

    def change_secret(self, webhook_id: str, encrypted_secret: str) -> Webhook:
        """Sign with this secret, and for a day with the one before, too."""
        with self._database.writing() as connection:
            row = self._row(connection, webhook_id, lock=True)
            until = clock(connection) + timedelta(seconds=OLD_SECRET_SECONDS)
            connection.execute(
                update(webhooks)
                .where(webhooks.c.id == webhook_id)
                .values(secret=encrypted_secret, old_secret=row.secret, old_secret_until=until)
            )
            return _webhook(row)

    def delete(self, webhook_id: str) -> None:
        """Delete the webhook with its deliveries."""
        with self._database.writing() as connection:
            self._row(connection, webhook_id, lock=True)
            connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id))

    def test(self, webhook_id: str) -> Delivery:
        """Queue a test message. Raises WebhookDisabled."""
        with self._database.writing() as connection:
            self._enabled(connection, webhook_id)
            now = clock(connection)
            row = delivery_row(webhook_id, TEST_EVENT, trial_message(now, webhook_id), now)
            return _delivery(
                connection.execute(insert(deliveries).values(row).returning(deliveries)).one()
            )

    def list_deliveries(
        self, webhook_id: str, *, limit: int, before: str | None = None
    ) -> list[Delivery]:
        """At most `limit` deliveries, newest first, older than the delivery `before`."""
        query = select(deliveries).where(deliveries.c.webhook_id == webhook_id)
        if before is not None:
            query = query.where(deliveries.c.id < before)
        query = query.order_by(deliveries.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            self._row(connection, webhook_id)
            return [_delivery(row) for row in connection.execute(query)]

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, with its id, on a schedule that begins anew.

        Raises WebhookDisabled.
        """
        with self._database.writing() as connection:
            self._enabled(connection, webhook_id)
            row = None
            if "\0" not in delivery_id:
                row = connection.execute(
                    update(deliveries)
                    .where(deliveries.c.id == delivery_id, deliveries.c.webhook_id == webhook_id)
                    .values(attempts=0, due_at=clock(connection), finished_at=None)
                    .returning(deliveries)
                ).one_or_none()
            if row is None:
                raise DeliveryNotFound(
                    f"Webhook {webhook_id} has no delivery {shortened(delivery_id)}."
                )
            return _delivery(row)

    def _enabled(self, connection: Connection, webhook_id: str) -> None:
        row = self._row(connection, webhook_id, lock=True)
        if row.disabled is not None:
            raise WebhookDisabled(f"Webhook {webhook_id} is disabled: enable it first.")

    def _row(self, connection: Connection, webhook_id: str, *, lock: bool = False) -> Row[Any]:
        """The webhook's row, locked until the transaction ends if asked."""
        query = select(webhooks).where(
            webhooks.c.id == webhook_id, webhooks.c.tenant == self._tenant
        )
        row = None
        if "\0" not in webhook_id:  # PostgreSQL refuses NULs in a query
            row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise WebhookNotFound(f"There is no webhook {shortened(webhook_id)}.")
        return row


def disable(connection: Connection, webhook_id: str, reason: DisabledReason) -> None:
    """Disable the webhook, and end what it has not delivered; its user may send it again."""
    connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(disabled=reason))
    connection.execute(
        update(deliveries)
        .where(deliveries.c.webhook_id == webhook_id, deliveries.c.due_at.is_not(None))
        .values(
            due_at=None,
            finished_at=clock(connection),
            error=func.coalesce(deliveries.c.error, "The webhook was disabled."),
        )
    )


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(
        id=row.id,
        url=row.url,
        description=row.description,
        events=tuple(WebhookEvent(event) for event in row.events),
        created_at=row.created_at,
        disabled=None if row.disabled is None else DisabledReason(row.disabled),
        failing_since=row.failing_since,
    )


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        webhook_id=row.webhook_id,
        job_id=row.job_id,
        type=row.type,
        created_at=row.created_at,
        attempts=row.attempts,
        status_code=row.status_code,
        error=row.error,
        next_attempt_at=row.due_at,
        finished_at=row.finished_at,
    )

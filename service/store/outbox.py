"""Puts events of jobs into the deliveries of the tenant's webhooks, in the event's transaction.

So no event is lost, and none is sent that did not happen.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, insert, select

from service.domain.job import new_id
from service.domain.webhook import WebhookEvent, job_message
from service.store import tables
from service.store.database import clock
from service.store.rows import read_job

_SENT = frozenset(WebhookEvent)


def enqueue(connection: Connection, job_id: str, type: str) -> None:  # noqa: A002
    """Queue the message about this event, for every webhook that sends its type."""
    if type not in _SENT:
        return
    webhooks, jobs = tables.webhooks, tables.jobs
    mine = and_(webhooks.c.tenant == jobs.c.tenant, webhooks.c.disabled.is_(None))
    query = (
        select(webhooks.c.id, webhooks.c.events)
        .join(jobs, mine)
        .where(jobs.c.id == job_id)
        # Otherwise a webhook that is deleted at this moment would make the event fail.
        .with_for_update(read=True, key_share=True, of=webhooks)
    )
    wanted = [row.id for row in connection.execute(query) if type in row.events]
    if wanted:
        now = clock(connection)
        body = job_message(type, now, read_job(connection, job_id))
        rows = [delivery_row(each, type, body, now, job_id) for each in wanted]
        connection.execute(insert(tables.deliveries), rows)


def delivery_row(
    webhook_id: str,
    type: str,  # noqa: A002  (the column's name)
    body: str,
    now: datetime,
    job_id: str | None = None,
) -> dict[str, Any]:
    """A new delivery, due at once."""
    return {
        "id": new_id("msg"),
        "webhook_id": webhook_id,
        "job_id": job_id,
        "type": type,
        "body": body,
        "created_at": now,
        "due_at": now,
    }

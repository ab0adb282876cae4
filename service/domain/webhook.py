"""Webhooks: the messages that they send, and when a message that failed is sent again.

    waiting ──> delivered
     │ ▲  │
     │ └──┘ (failed, and sent again after a pause)
     └────> given up: the schedule is over, or the webhook was disabled

A message is what the Standard Webhooks (https://www.standardwebhooks.com) say: signed, with an id
that stays the same over all attempts. A receiver may get it twice, and messages in any order.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from service.domain.job import EventType, Job
from service.printable import shortened

WEBHOOK_ID_PATTERN = r"^whk-[0-9a-z]{26}$"
MESSAGE_ID_PATTERN = r"^msg-[0-9a-z]{26}$"

MAX_WEBHOOKS = 20
"""Of a tenant. Each event of a job makes a delivery for each of them."""

MAX_DETAIL_CHARACTERS = 1000
"""Of a job's error in a message; the job itself has it in full."""

TEST_EVENT = "webhook.test"

SECRET_PREFIX = "whsec_"  # noqa: S105 - the standard's
SECRET_BYTES = 32


class WebhookEvent(StrEnum):
    """The events of jobs that a webhook can send."""

    QUEUED = EventType.QUEUED
    REQUEUED = EventType.REQUEUED
    CLAIMED = EventType.CLAIMED
    RELEASED = EventType.RELEASED
    RETRIED = EventType.RETRIED
    SUCCEEDED = EventType.SUCCEEDED
    FAILED = EventType.FAILED
    CANCELLING = EventType.CANCELLING
    CANCELLED = EventType.CANCELLED


ENDS = (WebhookEvent.SUCCEEDED, WebhookEvent.FAILED, WebhookEvent.CANCELLED)
"""What a webhook sends by default."""


class DisabledReason(StrEnum):
    """Why a webhook sends nothing."""

    USER = "user"
    """Its user disabled it."""
    GONE = "gone"
    """The receiver answered 410, by which it asks for no more messages."""
    FAILING = "failing"
    """All attempts of three days have failed."""


@dataclass(frozen=True)
class Webhook:
    """A receiver of a tenant's events. Its secret is not here."""

    id: str
    url: str
    description: str | None
    events: tuple[WebhookEvent, ...]
    created_at: datetime
    disabled: DisabledReason | None
    failing_since: datetime | None
    """The first failure since the last message that was delivered."""

    @property
    def enabled(self) -> bool:
        return self.disabled is None


@dataclass(frozen=True)
class Delivery:
    """A message to a webhook, and how far it has come."""

    id: str
    """The message's id, too: `webhook-id`."""
    webhook_id: str
    job_id: str | None
    type: str
    created_at: datetime
    attempts: int
    status_code: int | None
    """The receiver's answer to the last attempt; None if there was none."""
    error: str | None
    """Why the last attempt failed; None before the first, and after one that succeeded."""
    next_attempt_at: datetime | None
    """None once it has ended."""
    finished_at: datetime | None

    @property
    def state(self) -> str:
        if self.finished_at is None:
            return "waiting"
        return "delivered" if self.error is None else "given_up"


@dataclass(frozen=True)
class Message:
    """An attempt to deliver, as a dispatcher has claimed it."""

    id: str
    attempt: int
    webhook_id: str
    url: str
    encrypted_secrets: tuple[str, ...]
    """One, or two for a day after the secret was changed."""
    body: str


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt: a status, or the error for which there is none, or both."""

    status_code: int | None = None
    error: str | None = None


SCHEDULE_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The pauses after the first attempt, the second one and so on: the standard's, three days."""

JITTER = 0.2
"""By how much of itself a pause may be longer, so that receivers are not hit all at once."""

DISABLED_AFTER_SECONDS = 3 * 86_400.0
"""A webhook whose attempts have all failed for so long is disabled: about a whole schedule."""

OLD_SECRET_SECONDS = 86_400.0
"""How long messages are also signed with the secret before the last one."""

DELIVERY_RETENTION_SECONDS = 30 * 86_400.0
"""How long an ended delivery is kept."""


def pause_seconds(attempts: int, share: float) -> float | None:
    """How long to wait after so many failed attempts; None: no more. `share` is from 0 to 1."""
    if attempts > len(SCHEDULE_SECONDS):
        return None
    return SCHEDULE_SECONDS[attempts - 1] * (1 + JITTER * share)


def new_secret() -> str:
    """A secret to sign with, in the standard's form."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")


def job_message(type: str, at: datetime, job: Job) -> str:  # noqa: A002  (the field's name)
    """The body about an event: the job as it stands, without its specification and results."""
    error = job.failure and {
        "code": job.failure.code,
        "detail": shortened(job.failure.detail, MAX_DETAIL_CHARACTERS),
        "param": job.failure.param,
    }
    shown = {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "attempt": job.attempt,
        "created_at": _time(job.created_at),
        "finished_at": job.finished_at and _time(job.finished_at),
        "error": error,
    }
    return _message(type, at, {"job": shown})


def trial_message(at: datetime, webhook_id: str) -> str:
    """The body of a test."""
    return _message(TEST_EVENT, at, {"webhook": {"id": webhook_id}})


def _message(type: str, at: datetime, data: Mapping[str, Any]) -> str:  # noqa: A002
    return json.dumps({"type": type, "timestamp": _time(at), "data": data})


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")

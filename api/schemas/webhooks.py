"""The bodies of requests and responses about webhooks and what they have sent."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.jobs import JOB_ID_EXAMPLE
from api.schemas.schema import Schema
from service.domain.webhook import ENDS, DisabledReason, WebhookEvent
from service.egress.urls import MAX_URL_CHARACTERS

WEBHOOK_ID_EXAMPLE = "whk-01kah7m0q8v5n2c4x6z9b3d1fg"
MESSAGE_ID_EXAMPLE = "msg-01kah7m1t2w3x4y5z6a7b8c9de"
MAX_DESCRIPTION_CHARACTERS = 500

Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARACTERS,
        description="Where messages go: https, and a host of the internet.",
        examples=["https://ci.example.com/eigenpress"],
    ),
]
Events = Annotated[
    tuple[Annotated[WebhookEvent, Field(strict=False)], ...],
    Field(
        strict=False,
        min_length=1,
        max_length=len(WebhookEvent),
        description="The events that it sends.",
    ),
]
Description = Annotated[
    str, Field(max_length=MAX_DESCRIPTION_CHARACTERS, description="For people.")
]


class NewWebhook(BaseModel):
    """A webhook to create."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: Url
    events: Events = ENDS
    description: Description | None = None


class WebhookChange(BaseModel):
    """What to change of a webhook; fields that are left out or null stay as they are."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: bool | None = Field(
        default=None, description="True also enables a webhook that the server disabled."
    )


class Webhook(Schema):
    """A receiver of messages."""

    id: str = Field(examples=[WEBHOOK_ID_EXAMPLE])
    url: str
    description: str | None
    events: list[WebhookEvent]
    created_at: datetime
    enabled: bool
    disabled: DisabledReason | None = Field(
        description="Why it sends nothing: its `user` disabled it, the receiver answered 410 "
        "(`gone`), or all attempts of three days have failed (`failing`)."
    )
    failing_since: datetime | None = Field(
        description="The first failure since the last message that was delivered."
    )


class WebhookWithSecret(Webhook):
    """A webhook with its secret, which no later answer shows."""

    secret: str = Field(
        description="Verifies messages.",
        examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDazfWIAK3ksI="],
    )


class WebhookPage(Schema):
    """Webhooks, newest first."""

    webhooks: list[Webhook]
    next_cursor: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; null on the last one."
    )


class Delivery(Schema):
    """A message, and how far it has come."""

    id: str = Field(
        description="Of the message, in all attempts: its `webhook-id`.",
        examples=[MESSAGE_ID_EXAMPLE],
    )
    type: str = Field(examples=["job.succeeded"])
    job_id: str | None = Field(description="Null of a test.", examples=[JOB_ID_EXAMPLE])
    state: Literal["waiting", "delivered", "given_up"]
    created_at: datetime
    attempts: int
    status_code: int | None = Field(description="Of the answer to the last attempt, if one came.")
    error: str | None = Field(description="Why the last attempt failed.")
    next_attempt_at: datetime | None = Field(
        description="While it waits; during an attempt, when it is repeated if no result comes."
    )
    finished_at: datetime | None


class DeliveryPage(Schema):
    """Deliveries, newest first."""

    deliveries: list[Delivery]
    next_cursor: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; null on the last one."
    )

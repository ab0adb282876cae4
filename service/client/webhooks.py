"""The operations on webhooks, for `Client.send` and `AsyncClient.send`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from service.client.answers import (
    Delivery,
    DeliveryPage,
    Webhook,
    WebhookPage,
    WebhookWithSecret,
)
from service.client.calls import Call, as_object, sending


def create(
    url: str, events: Sequence[str] = (), description: str | None = None
) -> Call[WebhookWithSecret]:
    """A new webhook. Its answer alone has the secret. By default it sends the ends of jobs."""
    body: dict[str, Any] = {"url": url, "description": description}
    if events:
        body["events"] = [str(event) for event in events]
    return sending("POST", _path(), body)


def webhooks(limit: int, cursor: str | None = None) -> Call[WebhookPage]:
    """One page, newest first."""
    return Call("GET", _path(), as_object, _page(limit, cursor))


def webhook(webhook_id: str) -> Call[Webhook]:
    return Call("GET", _path(webhook_id), as_object)


def change(webhook_id: str, **fields: Any) -> Call[Webhook]:
    """Change its `url`, `events`, `description`, or whether it is `enabled`."""
    return sending("PATCH", _path(webhook_id), fields)


def delete(webhook_id: str) -> Call[None]:
    """Delete the webhook and the log of its deliveries."""
    return Call("DELETE", _path(webhook_id), lambda _reply: None)


def rotate(webhook_id: str) -> Call[WebhookWithSecret]:
    """The webhook with a new secret; for a day the old one signs, too."""
    return Call("POST", _path(webhook_id, "rotate"), as_object)


def test(webhook_id: str) -> Call[Delivery]:
    """Send a test message; the answer is its delivery."""
    return Call("POST", _path(webhook_id, "test"), as_object)


def deliveries(webhook_id: str, limit: int, cursor: str | None = None) -> Call[DeliveryPage]:
    """One page, newest first."""
    return Call("GET", _path(webhook_id, "deliveries"), as_object, _page(limit, cursor))


def redeliver(webhook_id: str, delivery_id: str) -> Call[Delivery]:
    """Send a message again."""
    return Call("POST", _path(webhook_id, "deliveries", delivery_id, "redeliver"), as_object)


def _page(limit: int, cursor: str | None) -> dict[str, Any]:
    return {"limit": limit} | ({"cursor": cursor} if cursor else {})


def _path(*parts: str) -> str:
    return "/".join(["/v1/webhooks", *(quote(each, safe="", errors="replace") for each in parts)])

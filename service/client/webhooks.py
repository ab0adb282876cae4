"""The part of the client that is about webhooks, one method for each operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]


class Webhooks:
    """The webhooks of the client's tenant."""

    def __init__(self, request: Callable[..., Json], remove: Callable[..., None]) -> None:
        """Both take a method, a path and httpx's options; `request` returns the body."""
        self._request = request
        self._remove = remove

    def create(self, url: str, events: Sequence[str] = (), description: str | None = None) -> Json:
        """The webhook with its `secret`, which no later answer has. By default it sends ends."""
        body: Json = {"url": url, "description": description}
        if events:
            body["events"] = [str(event) for event in events]
        return self._request("POST", _path(), json=body)

    def list(self, limit: int = 50, cursor: str | None = None) -> Json:
        """One page, newest first: ``{"webhooks": [...], "next_cursor": ... or None}``."""
        return self._request("GET", _path(), params=_page(limit, cursor))

    def get(self, webhook_id: str) -> Json:
        return self._request("GET", _path(webhook_id))

    def change(self, webhook_id: str, **fields: Any) -> Json:
        """Change its `url`, `events`, `description`, or whether it is `enabled`."""
        return self._request("PATCH", _path(webhook_id), json=fields)

    def delete(self, webhook_id: str) -> None:
        """Delete the webhook and the log of its deliveries."""
        self._remove("DELETE", _path(webhook_id))

    def rotate(self, webhook_id: str) -> Json:
        """The webhook with a new `secret`; for a day the old one signs, too."""
        return self._request("POST", _path(webhook_id, "rotate"))

    def test(self, webhook_id: str) -> Json:
        """Send a test message; the answer is its delivery."""
        return self._request("POST", _path(webhook_id, "test"))

    def deliveries(self, webhook_id: str, limit: int = 50, cursor: str | None = None) -> Json:
        """One page, newest first: ``{"deliveries": [...], "next_cursor": ... or None}``."""
        path = _path(webhook_id, "deliveries")
        return self._request("GET", path, params=_page(limit, cursor))

    def redeliver(self, webhook_id: str, delivery_id: str) -> Json:
        return self._request("POST", _path(webhook_id, "deliveries", delivery_id, "redeliver"))


def _page(limit: int, cursor: str | None) -> Json:
    return {"limit": limit} | ({"cursor": cursor} if cursor else {})


def _path(*parts: str) -> str:
    return "/".join(["/v1/webhooks", *(quote(each, safe="", errors="replace") for each in parts)])

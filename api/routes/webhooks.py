"""Create, change and delete webhooks; look at their deliveries, and send one again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Request, Response

from api.access import Caller, ReaderDep, SubmitterDep
from api.cursors import decode_cursor, encode_cursor
from api.routes import guarded, makes, problems
from api.schemas.webhooks import (
    MESSAGE_ID_EXAMPLE,
    WEBHOOK_ID_EXAMPLE,
    Delivery,
    DeliveryPage,
    NewWebhook,
    Webhook,
    WebhookChange,
    WebhookPage,
    WebhookWithSecret,
)
from api.services import Services, ServicesDep
from service.domain import webhook as webhooks
from service.encryption import Encryption
from service.errors import WebhookUrlForbidden
from service.settings import Settings
from service.store.webhooks import Webhooks
from service.webhooks.deliverer import url_rules

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], responses=guarded())

BODY = problems(400, 408, 413, 415)
MAX_PAGE = 200

WebhookId = Annotated[
    str,
    Path(
        description="The webhook's id.",
        openapi_examples={"a webhook": {"value": WEBHOOK_ID_EXAMPLE}},
    ),
]
DeliveryId = Annotated[
    str,
    Path(
        description="The message's id.",
        openapi_examples={"a message": {"value": MESSAGE_ID_EXAMPLE}},
    ),
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Per page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]

NEW = {
    "ends": {
        "summary": "The ends of jobs",
        "value": {"url": "https://ci.example.com/eigenpress"},
    },
    "failures": {
        "summary": "Failures alone",
        "value": {"url": "https://ci.example.com/eigenpress", "events": ["job.failed"]},
    },
}
CHANGE = {"enable": {"summary": "Enable it again", "value": {"enabled": True}}}


@router.post(
    "",
    status_code=201,
    summary="Create a webhook",
    responses=problems(409)
    | BODY
    | makes(
        "webhook_id",
        "get_webhook",
        "change_webhook",
        "delete_webhook",
        "rotate_webhook",
        "test_webhook",
        "list_deliveries",
    ),
)
def create_webhook(
    new: Annotated[NewWebhook, Body(openapi_examples=NEW)],
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: SubmitterDep,
) -> WebhookWithSecret:
    """The answer has the secret that verifies its messages; no later one shows it.

    Whether the URL's host is public is checked again each time that a message is sent.
    """
    encryption = Encryption(services.settings.encryption_key)
    _check_url(new.url, services.settings)
    secret = webhooks.new_secret()
    created = _of(caller, services).create(
        new.url,
        encryption.encrypt(secret),
        tuple(dict.fromkeys(new.events)),
        new.description,
    )
    root_path: str = request.scope.get("root_path", "")
    response.headers["Location"] = f"{root_path}/v1/webhooks/{created.id}"
    return WebhookWithSecret(**_shown(created).model_dump(), secret=secret)


@router.get("", summary="List webhooks")
def list_webhooks(
    services: ServicesDep, caller: ReaderDep, limit: Limit = 50, cursor: Cursor = None
) -> WebhookPage:
    """Newest first."""
    before = decode_cursor(cursor, webhooks.WEBHOOK_ID_PATTERN)
    found = _of(caller, services).list_webhooks(limit=limit + 1, before=before)
    page = found[:limit]
    return WebhookPage(
        webhooks=[_shown(each) for each in page],
        next_cursor=encode_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get("/{webhook_id}", summary="Get a webhook", responses=problems(404))
def get_webhook(webhook_id: WebhookId, services: ServicesDep, caller: ReaderDep) -> Webhook:
    """Without its secret."""
    return _shown(_of(caller, services).get(webhook_id))


@router.patch("/{webhook_id}", summary="Change a webhook", responses=problems(404) | BODY)
def change_webhook(
    webhook_id: WebhookId,
    change: Annotated[WebhookChange, Body(openapi_examples=CHANGE)],
    services: ServicesDep,
    caller: SubmitterDep,
) -> Webhook:
    """Disabling a webhook gives up what it has not delivered; events do not wait for it."""
    if change.url is not None:
        _check_url(change.url, services.settings)
    changed = _of(caller, services).change(
        webhook_id,
        url=change.url,
        events=None if change.events is None else tuple(dict.fromkeys(change.events)),
        description=change.description,
        enabled=change.enabled,
    )
    return _shown(changed)


@router.delete(
    "/{webhook_id}", status_code=204, summary="Delete a webhook", responses=problems(404)
)
def delete_webhook(webhook_id: WebhookId, services: ServicesDep, caller: SubmitterDep) -> None:
    """Its deliveries go with it."""
    _of(caller, services).delete(webhook_id)


@router.post("/{webhook_id}/rotate", summary="Change the secret", responses=problems(404))
def rotate_webhook(
    webhook_id: WebhookId, services: ServicesDep, caller: SubmitterDep
) -> WebhookWithSecret:
    """For a day, messages are signed with the old secret, too."""
    encryption = Encryption(services.settings.encryption_key)
    secret = webhooks.new_secret()
    changed = _of(caller, services).change_secret(webhook_id, encryption.encrypt(secret))
    return WebhookWithSecret(**_shown(changed).model_dump(), secret=secret)


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    summary="Send a test message",
    responses=problems(404, 409),
)
def test_webhook(webhook_id: WebhookId, services: ServicesDep, caller: SubmitterDep) -> Delivery:
    """Its type is `webhook.test`; what came of it is among the deliveries."""
    return Delivery.model_validate(_of(caller, services).test(webhook_id))


@router.get("/{webhook_id}/deliveries", summary="List deliveries", responses=problems(404))
def list_deliveries(
    webhook_id: WebhookId,
    services: ServicesDep,
    caller: ReaderDep,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> DeliveryPage:
    """Newest first. Those that ended are kept for 30 days."""
    before = decode_cursor(cursor, webhooks.MESSAGE_ID_PATTERN)
    mine = _of(caller, services)
    found = mine.list_deliveries(webhook_id, limit=limit + 1, before=before)
    page = found[:limit]
    return DeliveryPage(
        deliveries=[Delivery.model_validate(each) for each in page],
        next_cursor=encode_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    summary="Send a message again",
    responses=problems(404, 409),
)
def redeliver(
    webhook_id: WebhookId, delivery_id: DeliveryId, services: ServicesDep, caller: SubmitterDep
) -> Delivery:
    """With the same id and body, on a schedule that begins anew."""
    return Delivery.model_validate(_of(caller, services).redeliver(webhook_id, delivery_id))


def _of(caller: Caller, services: Services) -> Webhooks:
    return services.store.webhooks(caller.tenant)


def _check_url(url: str, settings: Settings) -> None:
    if objection := url_rules(settings).objection(url):
        raise WebhookUrlForbidden(f"url: {objection}", param="url")


def _shown(webhook: webhooks.Webhook) -> Webhook:
    return Webhook.model_validate(webhook)

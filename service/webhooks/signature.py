"""Signs messages as the Standard Webhooks say, with the symmetric scheme `v1`."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from service.domain.webhook import SECRET_PREFIX


def signed_headers(
    secrets: Sequence[str], message_id: str, timestamp: int, body: str
) -> dict[str, str]:
    """The headers of a message, signed with each of the secrets (`whsec_...`).

    `timestamp` is the attempt's, in seconds since 1970; receivers refuse old ones.
    """
    content = f"{message_id}.{timestamp}.{body}".encode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(secret, content) for secret in secrets),
    }


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode("ascii")

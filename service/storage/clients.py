"""Makes the clients of an S3 server."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from boto3.session import Session
from botocore.config import Config

from service.domain.credentials import S3Keys
from service.errors import StorageUnavailable
from service.settings import Settings

CONNECT_SECONDS = 3
ATTEMPTS = 3
DOWNLOADS = 10
"""Objects, and parts of objects, that are downloaded at the same time."""


class Connector:
    """Makes clients that share credentials and differ in endpoint and timeout.

    The credentials are `keys`, if there are any, else those of the settings.
    """

    def __init__(self, settings: Settings, keys: S3Keys | None) -> None:
        key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
        token = None
        if keys is not None:
            key_id, secret = keys.access_key_id, keys.secret_access_key
            token = keys.session_token
        self.region = (keys and keys.region) or settings.s3_region
        self._session = Session(
            aws_access_key_id=key_id.get_secret_value() if key_id else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            aws_session_token=token.get_secret_value() if token else None,
            region_name=self.region,
        )

    def __call__(self, endpoint_url: str | None, read_seconds: int) -> Any:
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=read_seconds,
            max_pool_connections=2 * DOWNLOADS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            signature_version="s3v4",
            s3={"addressing_style": "path" if endpoint_url else "auto"},
            # boto's own default sends trailing checksums, which many S3 servers do not support.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A server on this machine is never reached through the environment's proxy.
            proxies={} if _is_loopback(endpoint_url) else None,
        )
        try:
            return self._session.client("s3", endpoint_url=endpoint_url, config=config)
        except ValueError as error:
            raise StorageUnavailable(f"{endpoint_url!r} is not an S3 endpoint: {error}") from error


def _is_loopback(endpoint_url: str | None) -> bool:
    host = urlsplit(endpoint_url or "").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")

"""The credentials with which a tenant's jobs read models and texts that are not everyone's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from pydantic import SecretStr

from service.domain.datasets import sources_of
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import HubModel, S3Prefix

MAX_CREDENTIALS = 100
"""Of a tenant."""
MAX_SECRET_CHARACTERS = 4096
"""Logs are masked as far as this: see `service.logs.mask`."""
SECRET_PATTERN = r"^[\x21-\x7e]+$"  # noqa: S105
"""Of what goes into a header of HTTP: libraries repeat in their errors what may not."""
ENDPOINT_PATTERN = r"^https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~/-]*)?$"
"""Of an address without a user, a password and a query, which could be secrets."""


class CredentialKind(StrEnum):
    """What a credential opens."""

    HUB = "hub"
    S3 = "s3"


@dataclass(frozen=True)
class HubToken:
    """A token of the hub at `endpoint`, for all repositories there."""

    kind: ClassVar[CredentialKind] = CredentialKind.HUB

    tenant: str
    name: str
    endpoint: str
    token: SecretStr

    @property
    def places(self) -> tuple[str, ...]:
        return (self.endpoint,)

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.token.get_secret_value(),)


@dataclass(frozen=True)
class S3Keys:
    """Keys of an S3 server, for what lies below `prefixes`, which end with a slash."""

    kind: ClassVar[CredentialKind] = CredentialKind.S3

    tenant: str
    name: str
    prefixes: tuple[str, ...]
    access_key_id: SecretStr
    secret_access_key: SecretStr
    session_token: SecretStr | None = None
    endpoint: str | None = None
    """None: the server of the installation."""
    region: str | None = None
    """None: that of the installation."""

    @property
    def places(self) -> tuple[str, ...]:
        return self.prefixes

    @property
    def secrets(self) -> tuple[str, ...]:
        all_ = (self.access_key_id, self.secret_access_key, self.session_token)
        return tuple(each.get_secret_value() for each in all_ if each is not None)


Credential = HubToken | S3Keys


@dataclass(frozen=True)
class Credentials:
    """Those of a tenant. Where none is for a place, the installation's are used there."""

    held: tuple[Credential, ...] = ()

    def for_hub(self, endpoint: str) -> HubToken | None:
        """The token of this hub; no other hub gets it."""
        tokens = (each for each in self.held if isinstance(each, HubToken))
        return next((each for each in tokens if each.endpoint == endpoint.rstrip("/")), None)

    def for_s3(self, uri: str) -> S3Keys | None:
        """The keys with the longest prefix around an object or a prefix."""
        below = f"{uri.rstrip('/')}/"
        around = [
            (len(prefix), each)
            for each in self.held
            if isinstance(each, S3Keys)
            for prefix in each.prefixes
            if below.startswith(prefix)
        ]
        return max(around, key=lambda found: found[0])[1] if around else None

    def needed_by(self, spec: JobSpec, hub_endpoint: str) -> Credentials:
        """Those with which this job reads anything."""
        used: list[Credential | None] = []
        for source in (spec.model, *(source for _, source in sources_of(spec))):
            if isinstance(source, S3Prefix):
                used.append(self.for_s3(source.uri))
            elif isinstance(source, HubModel):
                used.append(self.for_hub(hub_endpoint))
        return Credentials(tuple(each for each in self.held if each in used))


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True)
class StoredCredential:
    """What is shown of a credential that is kept: for which places it is, and no secret."""

    name: str
    kind: CredentialKind
    endpoint: str | None
    prefixes: tuple[str, ...]
    region: str | None
    key_id_end: str | None
    """The last four characters of an access key id, for people to tell which it is."""
    created_at: datetime

    @property
    def places(self) -> tuple[str, ...]:
        """No two credentials of a kind are for the same one."""
        return (self.endpoint or "",) if self.kind is CredentialKind.HUB else self.prefixes

"""The bodies about tenants' credentials. Secrets come in, and none goes out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.config import JsonDict

from api.schemas.schema import Schema
from api.schemas.tenants import PrefixList
from service.domain import credentials
from service.domain.credentials import (
    ENDPOINT_PATTERN,
    MAX_SECRET_CHARACTERS,
    SECRET_PATTERN,
    CredentialKind,
    HubToken,
    S3Keys,
)

MIN_SECRET_CHARACTERS = 8
"""Logs are masked: a shorter secret would be in too many words."""
WRITE_ONLY: JsonDict = {"writeOnly": True, "format": "password"}

Endpoint = Annotated[str, Field(pattern=ENDPOINT_PATTERN, max_length=1024)]
Secret = Annotated[
    str,
    Field(
        min_length=MIN_SECRET_CHARACTERS,
        max_length=MAX_SECRET_CHARACTERS,
        pattern=SECRET_PATTERN,
        json_schema_extra=WRITE_ONLY,
    ),
]


class NewHubToken(BaseModel):
    """A token of a hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["hub"]
    endpoint: Endpoint | None = Field(
        default=None, description="The hub; null: the one that this server reads now."
    )
    token: Secret = Field(repr=False)

    def of(self, tenant: str, name: str, hub_endpoint: str) -> HubToken:
        endpoint = (self.endpoint or hub_endpoint).rstrip("/")
        return HubToken(tenant, name, endpoint, SecretStr(self.token))


class NewS3Keys(BaseModel):
    """Keys of an S3 server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["s3"]
    prefixes: Annotated[PrefixList, Field(min_length=1)] = Field(
        description="The places that they are for.", examples=[["s3://team-a/models"]]
    )
    access_key_id: str = Field(
        min_length=1,
        max_length=256,
        pattern=SECRET_PATTERN,
        repr=False,
        json_schema_extra=WRITE_ONLY,
    )
    secret_access_key: Secret = Field(repr=False)
    session_token: Secret | None = Field(default=None, repr=False)
    endpoint: Endpoint | None = Field(
        default=None, description="The S3 server; null: the one of this installation."
    )
    region: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9-]{1,64}$", description="Null: the installation's."
    )

    def of(self, tenant: str, name: str, _hub_endpoint: str) -> S3Keys:
        return S3Keys(
            tenant,
            name,
            tuple(dict.fromkeys(f"{prefix.rstrip('/')}/" for prefix in self.prefixes)),
            SecretStr(self.access_key_id),
            SecretStr(self.secret_access_key),
            None if self.session_token is None else SecretStr(self.session_token),
            self.endpoint,
            self.region,
        )


NewCredential = Annotated[NewHubToken | NewS3Keys, Field(discriminator="kind")]


class Credential(Schema):
    """A credential, without its secrets."""

    name: str
    kind: CredentialKind
    endpoint: str | None = Field(
        description="Of the hub, or of the S3 server; null: the installation's."
    )
    prefixes: list[str] | None = Field(description="The places in S3 that it is for.")
    region: str | None
    key_id_end: str | None = Field(description="The last characters of the access key id.")
    created_at: datetime = Field(description="When it was last put.")

    @classmethod
    def shown(cls, stored: credentials.StoredCredential) -> Self:
        return cls(
            name=stored.name,
            kind=stored.kind,
            endpoint=stored.endpoint,
            prefixes=[*stored.prefixes] or None,
            region=stored.region,
            key_id_end=stored.key_id_end,
            created_at=stored.created_at,
        )


class CredentialList(Schema):
    """The credentials of a tenant, by name."""

    credentials: list[Credential]

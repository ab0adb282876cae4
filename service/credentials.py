"""Seals the tenants' credentials for the database, and opens them where jobs are checked and run.

A credential is encrypted as a whole, with its tenant and its places: whoever can write the database
but does not have the key can neither read it, nor turn it to another place or another tenant.

Who has the key, `EIGENPRESS_CREDENTIALS_KEY`, reads all of them together with the database: the
API, which checks what jobs name; the dispatchers, which mask them in logs; and the drivers on Ray's
head, each of which opens its tenant's and hands those that the job needs to its workers. Workers
elsewhere have no key. It is not the key of the webhooks' secrets, which no process of Ray reads.

What this protects: copies and backups of the database, Ray's records (submissions, actors, tasks,
their environment), which never hold a credential, and tenants from one another's users. What it
does not: who runs processes as Ray's user on the head has the key as well as the database's
password, and who does on another node can read the memory of the workers there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict

from pydantic import SecretStr, TypeAdapter, ValidationError

from service.domain.credentials import NO_CREDENTIALS, Credential, Credentials
from service.encryption import Encryption
from service.errors import EncryptionKeyWrong
from service.settings import Settings
from service.store.credentials import SealedCredential
from service.store.store import Store

SETTING = "EIGENPRESS_CREDENTIALS_KEY"

_CREDENTIAL: TypeAdapter[Credential] = TypeAdapter(Credential)


def seal(credential: Credential, settings: Settings) -> str:
    """The text to keep. Raises EncryptionKeyMissing."""
    return _encryption(settings).encrypt(json.dumps(asdict(credential), default=_revealed))


def open_credentials(sealed: Collection[SealedCredential], settings: Settings) -> Credentials:
    """All that a tenant has. Raises EncryptionKeyMissing and EncryptionKeyWrong if it has any."""
    return Credentials(tuple(_opened(sealed, settings))) if sealed else NO_CREDENTIALS


def all_secrets(store: Store, settings: Settings) -> frozenset[str]:
    """The secrets of all tenants, to hide in logs. Raises as `open_credentials`."""
    sealed = store.credentials.sealed()
    found = _opened(sealed, settings) if sealed else ()
    return frozenset(secret for each in found for secret in each.secrets)


def _opened(sealed: Iterable[SealedCredential], settings: Settings) -> Iterable[Credential]:
    encryption = _encryption(settings)
    for each in sealed:
        try:
            credential = _CREDENTIAL.validate_json(encryption.decrypt(each.sealed))
        except (EncryptionKeyWrong, ValidationError):
            raise _unreadable(each) from None  # the latter repeats what it read
        if (credential.tenant, credential.name) != (each.tenant, each.name):
            raise _unreadable(each)
        yield credential


def _unreadable(each: SealedCredential) -> EncryptionKeyWrong:
    return EncryptionKeyWrong(
        f"The credential '{each.name}' of the tenant {each.tenant} cannot be read with {SETTING}: "
        "an administrator must add the key that it was stored with, store it again, or delete it."
    )


def _encryption(settings: Settings) -> Encryption:
    return Encryption(settings.credentials_key, SETTING)


def _revealed(value: object) -> str:
    assert isinstance(value, SecretStr)  # noqa: S101 - all else is plain JSON
    return value.get_secret_value()

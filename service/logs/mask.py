"""Hides the secrets of an installation, and those of its tenants, in text that users read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from json import dumps
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from service.cluster.ray_jobs import authorization
from service.credentials import all_secrets
from service.settings import Settings
from service.store.store import Store

REACH_BYTES = 4096
"""No secret is longer. Who cuts a part out of a log masks so much more on either side of it."""
MIN_CHARACTERS = 4
"""Shorter secrets are left: they are in half of all words."""

SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
"""Variables of the environment that the libraries for S3 and the hub read."""

_FORMS = (
    rb"(?<=X-Amz-Signature=)[0-9A-Fa-f]+",  # what makes a presigned URL valid
    rb"(?<=X-Amz-Security-Token=)[^&\s\"']+",
    rb"(?<=Bearer )[^\s\"']+",
    rb"(?<=://)[^\s/:@\"']*:[^\s/@\"']+(?=@)",  # the user and the password in a URL
)


def _none() -> frozenset[str]:
    return frozenset()


class Mask:
    """Puts as many asterisks in the place of each secret, so that offsets stay the same."""

    def __init__(
        self, secrets: Iterable[str], of_tenants: Callable[[], frozenset[str]] = _none
    ) -> None:
        """`of_tenants` returns further secrets, which may change; a mask raises what it raises."""
        self._secrets = frozenset(secrets)
        self._of_tenants = of_tenants

    @classmethod
    def of(
        cls,
        settings: Settings,
        environment: Mapping[str, str] = os.environ,
        *,
        store: Store | None = None,
    ) -> Mask:
        """The secrets in the settings, and those that this process has from its environment.

        With a store also the credentials that tenants have when a text is masked. The mask then
        raises what `service.credentials.all_secrets` raises.
        """
        found = {value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)}
        found |= {environment[name] for name in SECRET_VARIABLES if environment.get(name)}
        if password := urlsplit(settings.database_url or "").password:
            found.add(password)
        if header := authorization(environment).get("Authorization"):
            found.add(header.removeprefix("Bearer "))
        return cls(found) if store is None else cls(found, partial(all_secrets, store, settings))

    def __call__(self, text: bytes) -> bytes:
        secrets = _pattern(self._secrets | self._of_tenants())
        return secrets.sub(lambda secret: b"*" * len(secret[0]), text)


@lru_cache(maxsize=4)
def _pattern(secrets: frozenset[str]) -> re.Pattern[bytes]:
    long = {each for each in secrets if MIN_CHARACTERS <= len(each) <= REACH_BYTES}
    in_urls, in_json = {quote(each, safe="") for each in long}, {dumps(each)[1:-1] for each in long}
    known = sorted(long | in_urls | in_json, key=len, reverse=True)
    forms = (*(re.escape(each.encode()) for each in known), *_FORMS)
    return re.compile(b"|".join(forms))

"""Hides the secrets of an installation in text that users read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from service.cluster.ray_jobs import authorization
from service.settings import Settings

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


class Mask:
    """Puts as many asterisks in the place of each secret, so that offsets stay the same."""

    def __init__(self, secrets: Iterable[str]) -> None:
        long = {each for each in secrets if MIN_CHARACTERS <= len(each) <= REACH_BYTES}
        known = sorted(long | {quote(each, safe="") for each in long}, key=len, reverse=True)
        forms = (*(re.escape(each.encode()) for each in known), *_FORMS)
        self._secrets = re.compile(b"|".join(forms))

    @classmethod
    def of(cls, settings: Settings, environment: Mapping[str, str] = os.environ) -> Mask:
        """The secrets in the settings, and those that this process has from its environment."""
        found = {value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)}
        found |= {environment[name] for name in SECRET_VARIABLES if environment.get(name)}
        if password := urlsplit(settings.database_url or "").password:
            found.add(password)
        if header := authorization(environment).get("Authorization"):
            found.add(header.removeprefix("Bearer "))
        return cls(found)

    def __call__(self, text: bytes) -> bytes:
        return self._secrets.sub(lambda secret: b"*" * len(secret[0]), text)

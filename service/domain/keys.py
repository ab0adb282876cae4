"""API keys: their text, and what is kept of them.

A key is ``ep_ID_SECRET``. The id is no secret: it names the key in lists and in the audit log. The
secret has 256 random bits, so a plain SHA-256 of the whole text is kept, which no guess reverses.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from dataclasses import dataclass
from datetime import datetime

from service.domain.principal import Scope

_ID_CHARACTERS = 12
_SECRET_CHARACTERS = 43  # of 62 letters and digits: 256 bits
_LETTERS = string.ascii_letters + string.digits

KEY_ID_PATTERN = rf"^[a-z0-9]{{{_ID_CHARACTERS}}}$"
_KEY = re.compile(rf"ep_([a-z0-9]{{{_ID_CHARACTERS}}})_[A-Za-z0-9]{{{_SECRET_CHARACTERS}}}")


@dataclass(frozen=True)
class ApiKey:
    """A key as users see it after its creation: without its secret."""

    id: str
    tenant: str
    scope: Scope
    name: str | None
    """Who or what has it, for people."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""

    def is_valid(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_key() -> str:
    """The text of a new key."""
    return f"ep_{_random(_ID_CHARACTERS).lower()}_{_random(_SECRET_CHARACTERS)}"


def key_id(text: str) -> str | None:
    """The id in the text of a key; None if the text is no key."""
    match = _KEY.fullmatch(text)
    return None if match is None else match[1]


def key_sha256(text: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))

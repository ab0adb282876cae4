"""Checks the URL of a request that a user chooses, as far as its text tells.

A name may resolve to any address, and to another one a moment later: what counts is the check of
the address when the connection is made (`service.egress.connections`). This one tells a user early.
It resolves no name, so a URL costs no time and tells nothing about the server's network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from service.egress.addresses import AllowedNetworks, parsed

MAX_URL_CHARACTERS = 2048
MAX_NAME_CHARACTERS = 253

_PRINTABLE = re.compile(r"[!-~]+")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
"""A last label that makes resolvers read the whole name as an IPv4 address."""

_PRIVATE_NAMES = (
    "localhost",
    "localdomain",
    "local",
    "internal",  # metadata.google.internal, among others
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
)
"""Names, and ends of names, that are private by a standard or by custom."""


@dataclass(frozen=True)
class UrlRules:
    """What a user's URL may be."""

    networks: AllowedNetworks
    allow_http: bool = False

    def objection(self, url: str) -> str | None:
        """Why the URL is not allowed, if its text alone shows that; None if it does not."""
        if len(url) > MAX_URL_CHARACTERS:
            return f"The URL has more than {MAX_URL_CHARACTERS} characters."
        if not _PRINTABLE.fullmatch(url) or "\\" in url:
            return "A URL has printable ASCII characters only; write the host's name as xn--..."
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return "This is not a URL with a host and a port from 1 to 65535."
        if parts.scheme not in (("http", "https") if self.allow_http else ("https",)):
            return "The URL must begin with https://."
        if "@" in parts.netloc or "#" in url:
            return "The URL may have no user, no password and no fragment."
        if port == 0 or parts.netloc.endswith(":"):
            return "This is not a URL with a host and a port from 1 to 65535."
        return self._objection_to_host(parts)

    def _objection_to_host(self, parts: SplitResult) -> str | None:
        host = parts.hostname or ""
        if "[" in parts.netloc or _NUMBER.fullmatch(host.rpartition(".")[2]):
            address = parsed(host)
            if address is None:
                return "The host is not an address in its usual spelling."
            return None if address in self.networks else f"{host} is not a public address."
        if len(host) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(host):
            return "The host is not a name of letters, digits, hyphens and dots between them."
        if self.networks.only_public and _is_private(host):
            return f"{host} is not a public name."
        return None


def _is_private(host: str) -> bool:
    return any(host == name or host.endswith(f".{name}") for name in _PRIVATE_NAMES)

"""The code in the link that signs a browser in, as Jupyter's has one."""

from __future__ import annotations

import hashlib
import hmac


def sign_in_code(admin_key: str) -> str:
    """A code that only the key's owner can compute, and that does not give the key away."""
    return hmac.new(admin_key.encode(), b"eigenpress sign-in", hashlib.sha256).hexdigest()

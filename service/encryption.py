"""Encrypts secrets that the database keeps but that the service must read again, such as keys to
sign with. What it need only compare, such as API keys, is hashed instead.

The key is a setting: one or several of Fernet's keys, separated by commas. The first encrypts, all
decrypt; so a new key is put in front of the old one.
"""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from service.errors import EncryptionKeyMissing, EncryptionKeyWrong


class Encryption:
    """Encrypts and decrypts text. Threads may share it."""

    def __init__(self, key: SecretStr | None, setting: str = "EIGENPRESS_ENCRYPTION_KEY") -> None:
        """Takes the value of the setting. Raises EncryptionKeyMissing, which names it."""
        self._setting = setting
        if key is None:
            raise EncryptionKeyMissing(
                f"This server keeps no such secrets: an administrator must set {setting}."
            )
        keys = key.get_secret_value().split(",")
        self._fernet = MultiFernet([Fernet(each.strip()) for each in keys])

    def encrypt(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode("ascii")

    def decrypt(self, encrypted: str) -> str:
        """Raises EncryptionKeyWrong if none of the keys has encrypted it."""
        try:
            return self._fernet.decrypt(encrypted).decode()
        except InvalidToken as error:
            raise EncryptionKeyWrong(
                f"A stored secret was encrypted with a key that is not in {self._setting}."
            ) from error


def new_key() -> str:
    """A key for the setting."""
    return Fernet.generate_key().decode("ascii")

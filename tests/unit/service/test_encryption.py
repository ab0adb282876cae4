"""Secrets at rest: what the database has of them, and how their key is replaced."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr, ValidationError

from service.encryption import Encryption, new_key
from service.errors import EncryptionKeyMissing, EncryptionKeyWrong
from service.settings import Settings


def test_a_secret_is_read_back_and_is_not_what_is_stored() -> None:
    key = new_key()
    stored = Encryption(SecretStr(key)).encrypt("whsec_secret")
    assert "secret" not in stored
    assert Fernet(key).decrypt(stored) == b"whsec_secret"
    assert Encryption(SecretStr(key)).decrypt(stored) == "whsec_secret"


def test_a_new_key_in_front_of_the_old_one() -> None:
    old, new = new_key(), new_key()
    stored = Encryption(SecretStr(old)).encrypt("secret")
    both = Encryption(SecretStr(f"{new}, {old}"))
    assert both.decrypt(stored) == "secret"
    assert Encryption(SecretStr(new)).decrypt(both.encrypt("secret")) == "secret"


def test_another_key_and_no_key_are_named() -> None:
    stored = Encryption(SecretStr(new_key())).encrypt("secret")
    with pytest.raises(EncryptionKeyWrong, match="EIGENPRESS_ENCRYPTION_KEY"):
        Encryption(SecretStr(new_key())).decrypt(stored)
    with pytest.raises(EncryptionKeyMissing, match="EIGENPRESS_ENCRYPTION_KEY"):
        Encryption(None)


def test_the_setting_takes_what_fernet_takes() -> None:
    for _ in range(20):
        key = f"{new_key()},{new_key()}"
        assert Settings(encryption_key=SecretStr(key)).encryption_key == SecretStr(key)


@pytest.mark.parametrize(
    "wrong",
    ["", "password", f"{new_key()},", new_key()[:-1], "+" * 43 + "="],
    ids=["empty", "password", "comma", "short", "alphabet"],
)
def test_a_wrong_key_is_explained_and_not_repeated(wrong: str) -> None:
    with pytest.raises(ValidationError, match="32 random bytes in URL-safe base64") as caught:
        Settings(encryption_key=SecretStr(wrong))
    assert not wrong or wrong not in str(caught.value)

"""ETags as S3 computes them."""

from __future__ import annotations

from hashlib import md5
from pathlib import Path

import pytest

from service.storage.etags import equal_parts, etag_of, is_digest, parts_of

WHOLE = "9e107d9d372bb6826bd81d3542a419d6"
"""RFC 1321's algorithm on the sentence about the fox, as published."""


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    path = tmp_path / "fox"
    path.write_bytes(b"The quick brown fox jumps over the lazy dog")
    return path


def test_of_an_upload_at_once(fox: Path) -> None:
    assert etag_of(fox) == WHOLE


def test_of_an_upload_in_parts(fox: Path) -> None:
    parts = b"The quick brown fox", b" jumps over the lazy", b" dog"
    digest = md5(b"".join(md5(part).digest() for part in parts)).hexdigest()
    assert etag_of(fox, [len(part) for part in parts]) == f"{digest}-3"


def test_parts_are_equal_but_the_last() -> None:
    assert equal_parts(20, 8) == [8, 8, 4]
    assert equal_parts(16, 8) == [8, 8]


@pytest.mark.parametrize(
    ("etag", "parts"), [(f"{WHOLE}-12", 12), (WHOLE, None), ("x-1", None), (f"{WHOLE}-", None)]
)
def test_the_number_of_parts(etag: str, parts: int | None) -> None:
    assert parts_of(etag) == parts


@pytest.mark.parametrize(
    ("etag", "description", "expected"),
    [
        (WHOLE, {}, True),
        (WHOLE.upper(), {"ServerSideEncryption": "AES256"}, True),
        (f"{WHOLE}-2", {"StorageClass": "STANDARD_IA"}, True),
        (WHOLE, {"ServerSideEncryption": "aws:kms"}, False),
        (WHOLE, {"SSECustomerAlgorithm": "AES256"}, False),
        (WHOLE, {"StorageClass": "EXPRESS_ONEZONE"}, False),
        ("CJjbqfHa", {}, False),
    ],
)
def test_which_etags_are_digests(etag: str, description: dict[str, str], expected: bool) -> None:
    assert is_digest(etag, description) is expected

"""What the ETag of an object in S3 says about its bytes.

It is the MD5 of an object that was uploaded at once. Of one that was uploaded in parts it is the
MD5 of the parts' MD5s, with their number: ``{32 hex}-{parts}``. Of objects that the server encrypts
with a key of its users, and of those in Amazon's directory buckets, it is no digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DIGEST = re.compile(r"[0-9a-f]{32}(?:-([1-9][0-9]{0,4}))?", re.IGNORECASE)
USERS_KEYS = ("aws:kms", "aws:kms:dsse")
READ_BYTES = 2**20


def parts_of(etag: str) -> int | None:
    """The number of parts in an ETag; None if it names none."""
    found = DIGEST.fullmatch(etag)
    return int(found[1]) if found and found[1] else None


def is_digest(etag: str, description: Mapping[str, Any]) -> bool:
    """Whether an ETag is a digest, by the object's description in the answer to HeadObject."""
    return (
        DIGEST.fullmatch(etag) is not None
        and description.get("ServerSideEncryption") not in USERS_KEYS
        and "SSECustomerAlgorithm" not in description
        and description.get("StorageClass") != "EXPRESS_ONEZONE"
    )


def equal_parts(size: int, part_bytes: int) -> list[int]:
    """The sizes of parts of which all but the last are equally large."""
    return [min(part_bytes, size - start) for start in range(0, size, part_bytes)]


def etag_of(path: Path, part_sizes: Sequence[int] | None = None) -> str:
    """The ETag of a file that is uploaded at once, or in parts of these sizes."""
    with path.open("rb") as file:
        if part_sizes is None:
            return hashlib.file_digest(file, _md5).hexdigest()
        whole = _md5()
        for size in part_sizes:
            part, left = _md5(), size
            while left and (data := file.read(min(left, READ_BYTES))):
                part.update(data)
                left -= len(data)
            whole.update(part.digest())
    return f"{whole.hexdigest()}-{len(part_sizes)}"


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)

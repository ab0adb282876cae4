"""Scripts and style sheets of the web page and of reports.

`vendor/` holds files of npm packages, unchanged; `vendor/vendored.json` says of which, in which
version and under which licence, and `vendor/licences/` has the licences' texts. Nothing is fetched
from elsewhere when a page is shown, so that it works without a network.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

DIGEST_CHARACTERS = 12


@cache
def read_asset(name: str) -> bytes:
    """The file's bytes. Raises KeyError if there is none of this name."""
    if name not in asset_names():
        raise KeyError(name)
    return files(__name__).joinpath(name).read_bytes()


@cache
def asset_names() -> frozenset[str]:
    """The files that pages use: `pages.css`, `vendor/htmx.min.js`, ..."""
    found = (
        PurePosixPath(folder, entry.name)
        for folder in ("", "vendor")
        for entry in files(__name__).joinpath(folder).iterdir()
    )
    return frozenset(str(path) for path in found if path.suffix in (".css", ".js"))


@cache
def hashed_name(name: str) -> str:
    """The name with a digest of the content, which a browser may keep for ever.

    Raises KeyError as `read_asset` does.
    """
    path = PurePosixPath(name)
    digest = hashlib.sha256(read_asset(name)).hexdigest()[:DIGEST_CHARACTERS]
    return str(path.with_name(f"{path.stem}.{digest}{path.suffix}"))


@cache
def by_hashed_name() -> dict[str, str]:
    """The names of all files by those with digests."""
    return {hashed_name(name): name for name in asset_names()}

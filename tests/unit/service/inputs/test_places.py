"""A tenant's places narrow those of the installation, and never widen them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.domain.tenant import EVERY_PLACE, Places
from service.inputs.places import within
from service.settings import Settings

ROOTS = (Path("/data"), Path("/models/public"))


@pytest.mark.parametrize(
    ("theirs", "common"),
    [
        (None, ("/data", "/models/public")),
        ((), ()),
        (("/data/a",), ("/data/a",)),
        (("/data/a", "/data/b", "/etc"), ("/data/a", "/data/b")),
        (("/",), ("/data", "/models/public")),
        (("/models",), ("/models/public",)),
        (("/database",), ()),
    ],
)
def test_folders(theirs: tuple[str, ...] | None, common: tuple[str, ...]) -> None:
    settings = within(Settings(allowed_roots=ROOTS), Places(allowed_roots=theirs))
    assert settings.allowed_roots == tuple(map(Path, common))


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        (None, None, None),
        (None, ("s3://team-a/",), ("s3://team-a/",)),
        (("s3://team-a/",), None, ("s3://team-a/",)),
        (("s3://team-a/",), ("s3://team-a/x/", "s3://team-b/"), ("s3://team-a/x/",)),
        (("s3://team-a/x/",), ("s3://team-a/",), ("s3://team-a/x/",)),
        (("s3://team-a/",), ("s3://team-ab/",), ()),
        (("s3://team-a/",), (), ()),
    ],
)
def test_places_in_s3(
    ours: tuple[str, ...] | None,
    theirs: tuple[str, ...] | None,
    common: tuple[str, ...] | None,
) -> None:
    settings = Settings(allowed_s3_prefixes=ours)
    assert within(settings, Places(None, theirs)).allowed_s3_prefixes == common


def test_nothing_else_changes() -> None:
    settings = Settings(allowed_roots=ROOTS)
    assert within(settings, EVERY_PLACE) == settings

"""Manifests: what they say, and what is refused when one is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import service.artifacts
from service.artifacts import Manifest, ManifestFile, artifact_prefix
from service.errors import ArtifactCorrupt

FILE: dict[str, Any] = {"path": "model.safetensors", "size": 3, "sha256": "0" * 64}


def encoded(**changes: object) -> bytes:
    return json.dumps({"format": 1, "files": [{**FILE, **changes}]}).encode()


def test_the_prefix() -> None:
    assert artifact_prefix("job-1", "keep-0.8") == "jobs/job-1/artifacts/keep-0.8/"


@given(st.lists(st.integers(0, 2**60), min_size=1, max_size=5))
def test_a_manifest_reads_back_as_it_was(sizes: list[int]) -> None:
    files = (
        ManifestFile(path=f"a/{n}", size=size, sha256="f" * 64) for n, size in enumerate(sizes)
    )
    manifest = Manifest(files=tuple(files))
    assert Manifest.parse(manifest.to_json()) == manifest
    assert Manifest.parse(manifest.to_json()).to_json() == manifest.to_json()


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../x", "a//b", "./a", "a/", "a\\b", "a\0b", "manifest.json"],
)
def test_a_path_must_stay_inside(path: str) -> None:
    with pytest.raises(ArtifactCorrupt):
        Manifest.parse(encoded(path=path))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"format": 1, "files": []}',
        b'{"format": 2, "files": [%s]}' % json.dumps(FILE).encode(),
        json.dumps({"format": 1, "files": [FILE, FILE]}).encode(),
        encoded(size=-1),
        encoded(sha256="0" * 63),
        encoded(sha256="X" * 64),
        encoded(mode=0o777),
    ],
)
def test_a_bad_manifest_is_corrupt(data: bytes) -> None:
    with pytest.raises(ArtifactCorrupt, match="cannot be read"):
        Manifest.parse(data)


def test_a_manifest_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.artifacts, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(ArtifactCorrupt, match="larger than 10 bytes"):
        Manifest.parse(encoded())

"""Manifests: their content, and which ones are refused on reading."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import service.domain.manifest
from service.domain.job import FileEntry
from service.domain.manifest import (
    Manifest,
    artifact_prefix,
    check_manifest,
    checkpoints_prefix,
    manifest_key,
    new_folder,
)
from service.errors import ArtifactCorrupt

FILE: dict[str, Any] = {"path": "model.safetensors", "size": 3, "sha256": "0" * 64}
MANIFEST = {"format": 2, "attempt": 3, "folder": "3-00c0ffee/", "files": [FILE]}

STORED = b"""{
  "format": 2,
  "attempt": 3,
  "folder": "3-00c0ffee/",
  "files": [
    {
      "path": "model.safetensors",
      "size": 3,
      "sha256": "0000000000000000000000000000000000000000000000000000000000000000"
    }
  ]
}
"""
STORED_BEFORE = b"""{
  "format": 1,
  "files": [
    {
      "path": "model.safetensors",
      "size": 3,
      "sha256": "0000000000000000000000000000000000000000000000000000000000000000"
    }
  ]
}
"""
"""The first format."""


def encoded(**changes: object) -> bytes:
    return json.dumps(MANIFEST | {"files": [{**FILE, **changes}]}).encode()


def test_where_things_lie() -> None:
    assert artifact_prefix("job-1", "keep-0.8") == "jobs/job-1/artifacts/keep-0.8/"
    assert manifest_key("job-1", "keep-0.8") == "jobs/job-1/artifacts/keep-0.8/manifest.json"
    assert checkpoints_prefix("job-1") == "jobs/job-1/checkpoints/"


def test_no_two_publications_share_a_folder() -> None:
    assert len({new_folder(1) for _ in range(100)}) == 100


@given(
    st.lists(st.integers(0, 2**60), min_size=1, max_size=5), st.integers(0, 999_999_999), st.text()
)
def test_a_manifest_reads_back_as_it_was(sizes: list[int], attempt: int, name: str) -> None:
    files = [FileEntry(f"a/{n}", size, "f" * 64) for n, size in enumerate(sizes)]
    manifest = Manifest.of(files, new_folder(attempt) if attempt else "")
    assert Manifest.parse(manifest.to_json()) == manifest
    assert Manifest.parse(manifest.to_json()).to_json() == manifest.to_json()
    artifact = manifest.artifact("job-1", name)
    assert list(artifact.files) == files
    check_manifest(manifest.to_json(), artifact, "job-1")


@pytest.mark.parametrize(("stored", "folder"), [(STORED, "3-00c0ffee/"), (STORED_BEFORE, "")])
def test_the_bytes_of_a_manifest_stay_the_same(stored: bytes, folder: str) -> None:
    """Those in buckets are compared with what this version would write."""
    assert Manifest.of([FileEntry(**FILE)], folder).to_json() == stored
    assert Manifest.parse(stored).artifact("j", "a").prefix == f"jobs/j/artifacts/a/{folder}"


@pytest.mark.parametrize("place", range(len(STORED)))
def test_a_manifest_with_a_wrong_byte_is_not_taken(place: int) -> None:
    artifact = Manifest.parse(STORED).artifact("job-1", "keep-0.8")
    damaged = STORED[:place] + bytes([STORED[place] ^ 1]) + STORED[place + 1 :]
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json of 'keep-0\.8'"):
        check_manifest(damaged, artifact, "job-1")
    with pytest.raises(ArtifactCorrupt):
        check_manifest(STORED[:place], artifact, "job-1")


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
        json.dumps(MANIFEST | {"format": 3}).encode(),
        json.dumps(MANIFEST | {"files": []}).encode(),
        json.dumps(MANIFEST | {"files": [FILE, FILE]}).encode(),
        json.dumps({"format": 2, "files": [FILE]}).encode(),
        json.dumps(MANIFEST | {"format": 1}).encode(),
        json.dumps(MANIFEST | {"attempt": 2}).encode(),
        *(
            json.dumps(MANIFEST | {"folder": folder}).encode()
            for folder in ("", "3-00c0ffee", "../", "3-00c0ffee/../", "x-00c0ffee/", "3-00C0FFEE/")
        ),
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
    monkeypatch.setattr(service.domain.manifest, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(ArtifactCorrupt, match="larger than 10 bytes"):
        Manifest.parse(encoded())

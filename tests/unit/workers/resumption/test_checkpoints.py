"""Checkpoints in memory are whole or refused by name, and attempts do not disturb each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from service.errors import ObjectMissing, StorageUnavailable
from service.storage.s3 import StoredObject
from workers.resumption.checkpoints import TRANSFERS, Checkpoints, Place, Refusal, Refused

FINGERPRINT = "0123456789abcdef" * 4
PREFIX = f"jobs/job-1/checkpoints/{FINGERPRINT[:16]}/"
FILES = {"a.bin": lambda: b"first", "b.bin": lambda: b"second"}


class Memory:
    """A bucket in memory, which may refuse to take more."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.room = 1000

    def put_bytes(self, key: str, data: bytes) -> None:
        if len(self.objects) >= self.room:
            raise StorageUnavailable("no room")
        self.objects[key] = data

    def get_bytes(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing
        return self.objects[key]

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield StoredObject(key, len(self.objects[key]), "")

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


@pytest.fixture
def bucket() -> Memory:
    return Memory()


def of_attempt(bucket: Memory, attempt: int, fingerprint: str = FINGERPRINT) -> Checkpoints:
    return Checkpoints(Place("job-1", attempt, fingerprint), bucket, bucket)


def read(checkpoints: Checkpoints, manifest: Any) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    checkpoints.read(manifest, found.__setitem__)
    return found


def test_what_one_attempt_writes_another_reads(bucket: Memory) -> None:
    written = of_attempt(bucket, 1).write("solved/1", FILES, {"group": "q"})
    (found,), refused = of_attempt(bucket, 2).find("solved")
    assert found == written
    assert refused == []
    assert found.content == {"group": "q"}
    assert read(of_attempt(bucket, 2), found) == {"a.bin": b"first", "b.bin": b"second"}
    assert all(key.startswith(f"{PREFIX}solved/1/1-") for key in bucket.objects)


def test_only_those_that_are_asked_for_are_opened(bucket: Memory) -> None:
    checkpoints = of_attempt(bucket, 1)
    for name in ("solved/1", "solved/10", "calibration/1"):
        checkpoints.write(name, FILES, {"name": name})
    found, _ = checkpoints.find("solved", only={"solved/1"})
    assert [each.content["name"] for each in found] == ["solved/1"]
    found, _ = checkpoints.find("calibration/1")
    assert [each.content["name"] for each in found] == ["calibration/1"]


@pytest.mark.parametrize("room", range(3))
def test_one_that_was_not_finished_is_none(bucket: Memory, room: int) -> None:
    bucket.room = room
    with pytest.raises(StorageUnavailable):
        of_attempt(bucket, 1).write("solved/1", FILES, {})
    assert of_attempt(bucket, 2).find("solved") == ([], [])


def test_a_write_that_fails_makes_no_more_files(bucket: Memory) -> None:
    made = []

    def file(number: int) -> bytes:
        made.append(number)
        return b""

    bucket.room = 0
    files = {str(number): lambda number=number: file(number) for number in range(100)}
    with pytest.raises(StorageUnavailable):
        of_attempt(bucket, 1).write("calibration/0", files, {})
    assert len(made) <= TRANSFERS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data + b"!", "it has 6 bytes, not 5"),
        (lambda data: data[:-1], "it has 4 bytes, not 5"),
        (lambda data: b"worse"[: len(data)], "its sha256 differs from the manifest's"),
        (None, "it is missing"),
    ],
)
def test_a_damaged_file_is_refused_by_name(bucket: Memory, change: Any, reason: str) -> None:
    checkpoints = of_attempt(bucket, 1)
    written = checkpoints.write("solved/1", FILES, {})
    key = f"{written.folder}a.bin"
    if change is None:
        del bucket.objects[key]
    else:
        bucket.objects[key] = change(bucket.objects[key])
    (found,), _ = checkpoints.find("solved")
    with pytest.raises(Refused) as error:
        read(checkpoints, found)
    assert error.value.refusal == Refusal(key, reason)


def test_a_damaged_manifest_is_refused_by_name(bucket: Memory) -> None:
    checkpoints = of_attempt(bucket, 1)
    checkpoints.write("solved/1", FILES, {"sequences": 4})
    (key,) = [key for key in bucket.objects if "manifest" in key]
    bucket.objects[key] = bucket.objects[key].replace(b'"sequences": 4', b'"sequences": 8')
    reason = "its sha256 differs from the one in its name"
    assert checkpoints.find("solved") == ([], [Refusal(key, reason)])


def test_one_of_another_computation_is_refused(bucket: Memory) -> None:
    """Fingerprints that begin alike have one folder."""
    of_attempt(bucket, 1, FINGERPRINT[:16] + "f" * 48).write("solved/1", FILES, {})
    found, (refused,) = of_attempt(bucket, 2).find("solved")
    assert found == []
    assert "for another computation" in refused.reason


def test_earlier_ones_go_and_those_of_later_attempts_stay(bucket: Memory) -> None:
    dead, ours, later = (of_attempt(bucket, attempt) for attempt in (1, 2, 3))
    dead.write("calibration/0", FILES, {})
    bucket.objects[f"{PREFIX}calibration/0/1-00000000/a.bin"] = b"never finished"
    ours.write("calibration/0", FILES, {})
    of_others = later.write("calibration/0", FILES, {})
    neighbour = dead.write("calibration/00", FILES, {})
    kept = ours.write("calibration/0", FILES, {})
    ours.delete_earlier(kept)
    folders = {key.rpartition("/")[0] + "/" for key in bucket.objects}
    assert folders == {kept.folder, of_others.folder, neighbour.folder}


def test_sealed_documents_tell_if_they_are_damaged(bucket: Memory) -> None:
    checkpoints = of_attempt(bucket, 1)
    checkpoints.put_sealed(f"{PREFIX}journal/1-000000", {"one": 1})
    checkpoints.put_sealed(f"{PREFIX}journal/1-000001", {"two": [float("inf"), 0.1]})
    first, second = sorted(bucket.objects)
    bucket.objects[first] = bucket.objects[first].replace(b"1", b"2")
    refused, whole = checkpoints.sealed("journal")
    assert isinstance(refused, Refusal)
    assert refused.key == first
    assert whole == (second, {"two": [float("inf"), 0.1]})

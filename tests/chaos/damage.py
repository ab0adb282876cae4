"""Damages an artifact, and checks that `download` detects every damage and names the file.

Each damage, a flipped bit or a truncation, affects one object of an otherwise whole publication,
and is repaired afterwards.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from service.client.client import Client
from service.client.download import download_artifact
from service.domain.job import DEFAULT_TENANT, Artifact
from service.domain.manifest import MANIFEST_NAME, manifest_key
from service.errors import EigenpressError
from service.settings import Settings
from service.storage.publication import publish
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.fixtures.jobs import small_spec

FLIP, CUT, EMPTY = "flipped", "cut short", "emptied"
NAME = "keep-0.8"


@dataclass
class Damage:
    """The number of damages, and of those that were detected with the file's name."""

    seed: int
    done: int = 0
    flips: int = 0
    noticed: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def damaged(data: bytes, stream: random.Random) -> tuple[str, bytes]:
    """Flip one bit, or remove the end; return the kind of damage and the result."""
    kind = stream.choice((FLIP, FLIP, CUT, EMPTY))
    if kind == FLIP:
        position = stream.randrange(len(data))
        flipped = data[position] ^ (1 << stream.randrange(8))
        return kind, data[:position] + bytes([flipped]) + data[position + 1 :]
    return kind, data[: stream.randrange(1, len(data))] if kind == CUT else b""


def damage_artifacts(
    settings: Settings, api_url: str, folder: Path, *, seed: int, count: int
) -> Damage:
    """Damage a published artifact `count` times, and download it each time."""
    storage, job_id, artifact = _published(settings, folder)
    keys = {file.path: artifact.prefix + file.path for file in artifact.files}
    keys[MANIFEST_NAME] = manifest_key(job_id, NAME)
    target = folder / "downloaded"

    def notices(path: str) -> str | None:
        shutil.rmtree(target, ignore_errors=True)
        try:
            with Client(api_url) as client:
                download_artifact(client, job_id, NAME, target)
        except EigenpressError as error:
            whole = (target / MANIFEST_NAME).exists() or (target / path).exists()
            return "the damaged file was left in place" if whole else str(error)
        return None

    return _damage_each(storage, keys, notices, seed, count)


def _damage_each(
    storage: ObjectStorage,
    keys: dict[str, str],
    notices: Callable[[str], str | None],
    seed: int,
    count: int,
) -> Damage:
    start, stream, damage = time.monotonic(), random.Random(seed), Damage(seed)
    whole = {key: storage.get_bytes(key) for key in keys.values()}
    for _ in range(count):
        path = stream.choice(sorted(keys))
        kind, data = damaged(whole[keys[path]], stream)
        storage.put_bytes(keys[path], data)
        words = notices(path)
        storage.put_bytes(keys[path], whole[keys[path]])
        damage.done += 1
        damage.flips += kind == FLIP
        if words is not None and path in words:
            damage.noticed += 1
        else:
            damage.problems.append(f"{path} {kind}: {words or 'not noticed'}")
    if (words := notices("")) is not None:
        damage.problems.append(f"after the repair: {words}")
    damage.seconds = round(time.monotonic() - start, 1)
    return damage


def _published(settings: Settings, folder: Path) -> tuple[ObjectStorage, str, Artifact]:
    """Create a job that has succeeded, and its artifact."""
    storage, store = ObjectStorage.from_settings(settings), Store(settings.database)
    stream = random.Random(0)
    source = folder / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (source / name).write_bytes(stream.randbytes(5_000))
    job_id = store.users(DEFAULT_TENANT).create(small_spec()).id
    job = store.claims.claim(lease_seconds=60)
    assert job is not None
    assert job.id == job_id
    artifact = publish(storage, job_id, job.attempt, NAME, source)
    store.attempts.published(job_id, job.attempt, 0, artifact)
    store.attempts.succeed(job_id, job.attempt, {})
    store.close()
    return storage, job_id, artifact

"""A job publishes the model that was checked, though links take its place while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.storage.s3 import ObjectStorage
from tests.fixtures.in_process import LocalInstallation
from workers.actors.replies import ModelSummary
from workers.actors.worker import Worker

SECRET = "the secret of somebody else"


def test_no_secret_is_published(
    local_installation: LocalInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, secret = local_installation.inputs / "llama", tmp_path / "secret"
    secret.write_text(SECRET)
    (model / "LICENSE").write_text("free")
    load = Worker.load

    def load_and_replace(worker: Worker) -> ModelSummary:
        summary = load(worker)
        if worker.number == 1:  # the last one: all have opened the model
            for path in list(model.iterdir()):
                path.unlink()
                path.symlink_to(secret)
        return summary

    monkeypatch.setattr(Worker, "load", load_and_replace)
    job = local_installation.create()
    local_installation.attempt()
    storage = ObjectStorage.from_settings(local_installation.settings)
    artifacts = local_installation.store.records.artifacts(job.id)
    assert len(artifacts) == 2
    for artifact in artifacts:
        assert storage.get_bytes(f"{artifact.prefix}LICENSE") == b"free"
        for file in artifact.files:
            assert SECRET.encode() not in storage.get_bytes(artifact.prefix + file.path)
    assert list(local_installation.settings.scratch_dir.iterdir()) == []

"""What the page says of each artifact: its files, how to get it, load it and serve it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from api.routes.artifacts import read_manifest
from service.domain.job import Artifact, FileEntry
from service.errors import EigenpressError, InfrastructureError
from service.report.loading import Loading
from service.storage.s3 import ObjectStorage


@dataclass(frozen=True)
class ShownArtifact:
    """One artifact of a job that has succeeded."""

    name: str
    uri: str
    files: tuple[FileEntry, ...]
    download: str
    """The command that brings it to the user's machine."""
    loading: Loading | None
    """None if the report does not know the artifact."""
    problem: EigenpressError | None = None
    """Why it cannot be downloaded, as far as the bucket was asked."""

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def is_gone(self) -> bool:
        """Whether it is lost, and not only out of reach."""
        return self.problem is not None and not isinstance(self.problem, InfrastructureError)


def shown_artifacts(
    job_id: str, artifacts: Sequence[Artifact], report: Mapping[str, Any], bucket: str, url: str
) -> list[ShownArtifact]:
    """As the database knows them. `url` is that of this server, for the command."""
    targets = {target.get("name"): target for target in report.get("targets") or ()}
    return [
        ShownArtifact(
            each.name,
            f"s3://{bucket}/{each.prefix}",
            each.files,
            f"eigenpress download --url {shlex.quote(url)} {job_id} {shlex.quote(each.name)}",
            Loading.of(report, target, f"./{each.name}")
            if (target := targets.get(each.name))
            else None,
        )
        for each in artifacts
    ]


def checked(
    job_id: str,
    shown: Sequence[ShownArtifact],
    artifacts: Sequence[Artifact],
    storage: ObjectStorage,
) -> Iterator[ShownArtifact]:
    """The same with their manifests, as the bucket has them, or why they cannot be downloaded.

    A bucket that does not answer is asked once.
    """
    outage: EigenpressError | None = None
    for each, artifact in zip(shown, artifacts, strict=True):
        if outage is None:
            try:
                manifest = read_manifest(job_id, artifact, storage)
            except InfrastructureError as error:
                outage = error
            except EigenpressError as error:
                yield replace(each, problem=error)
                continue
            else:
                yield replace(each, files=(*each.files, manifest))
                continue
        yield replace(each, problem=outage)

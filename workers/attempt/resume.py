"""Decides which checkpoints of earlier attempts a new attempt reuses, and refuses the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import ray

from service.domain.manifest import checkpoints_prefix
from service.errors import EigenpressError
from service.settings import Settings
from workers.attempt.progress import Progress
from workers.compression.candidates import LayerCandidates
from workers.compression.shapes import InputGroup
from workers.resumption.calibrated import Calibrated
from workers.resumption.checkpoints import FINGERPRINT_DIGITS, Checkpoints, Place, Refusal, Refused
from workers.resumption.fingerprint import Fingerprint
from workers.resumption.journal import CALIBRATION_LOSS, Journal

PARTS = "parts"
"""The name of the document with the parts of a fingerprint."""

log = logging.getLogger("eigenpress.checkpoints")


@dataclass(frozen=True)
class Resumption:
    """The work that an attempt reuses; everything is empty if it starts anew."""

    journal: Journal
    solved: Mapping[str, list[LayerCandidates]]  # by group
    calibrated: Sequence[Calibrated]  # by worker

    @property
    def passes(self) -> int:
        """How many passes of the calibration need not be made."""
        return sum(each.all_passes - len(each.passes) for each in self.calibrated)


def resume(
    job_id: str,
    fingerprint: Fingerprint,
    workers: Sequence[Any],
    owned: Sequence[Sequence[InputGroup]],
    sequences: Sequence[Sequence[Any]],
    progress: Progress,
    settings: Settings,
) -> Resumption:
    """Reuse the checkpoints with this fingerprint.

    `owned` has the groups that each worker solves, `sequences` its share of the text. Events record
    what is reused and what is refused. Raises the storage's errors.
    """
    place = Place(job_id, progress.attempt, fingerprint.digest)
    checkpoints = Checkpoints.in_bucket(place, settings)
    _refuse_others(checkpoints, fingerprint, progress)
    journal = Journal(checkpoints)
    refused = journal.restore()
    names = [[group.name for group in groups] for groups in owned]
    taken = ray.get([w.resume.remote(place, own) for w, own in zip(workers, names, strict=True)])
    refused += [refusal for each in taken for refusal in each.refused]
    solved = {group: options for each in taken for group, options in each.solved.items()}
    loss_known = journal.get(CALIBRATION_LOSS) is not None
    calibrated = ray.get(
        [
            worker.begin_calibration.remote(share, list(solved), loss_known)
            for worker, share in zip(workers, sequences, strict=True)
        ]
    )
    refused += [refusal for each in calibrated for refusal in each.refused]
    for refusal in refused:
        refuse(progress, refusal)
    _remove_unused(lambda: journal.remove(refused))
    resumption = Resumption(journal, solved, calibrated)
    _announce(progress, resumption, fingerprint)
    return resumption


def refuse(progress: Progress, refusal: Refusal) -> None:
    """Record that a checkpoint is not used."""
    progress.note(
        "checkpoint.refused",
        f"{refusal.key} is not used: {refusal.reason}.",
        {"key": refusal.key, "reason": refusal.reason},
    )


def _announce(progress: Progress, resumption: Resumption, fingerprint: Fingerprint) -> None:
    published = [artifact.name for artifact in progress.artifacts()]
    groups, measurements = len(resumption.solved), len(resumption.journal)
    if resumption.passes or groups or measurements or published:
        progress.note(
            "attempt.resumed",
            f"The attempt reuses {resumption.passes} passes over blocks, {groups} solved "
            f"groups, {measurements} measurements and {len(published)} published artifacts.",
            {
                "fingerprint": fingerprint.digest,
                "passes": resumption.passes,
                "groups": groups,
                "measurements": measurements,
                "artifacts": published,
            },
        )


def _refuse_others(checkpoints: Checkpoints, fingerprint: Fingerprint, progress: Progress) -> None:
    """Remove checkpoints of other fingerprints, and write the parts of ours."""
    root = checkpoints_prefix(checkpoints.place.job_id)
    keys = checkpoints.keys(root)
    folders = {
        name: list(found)
        for name, found in groupby(keys, lambda key: key.removeprefix(root).partition("/")[0])
    }
    _write_parts(
        checkpoints, folders.pop(fingerprint.digest[:FINGERPRINT_DIGITS], []), fingerprint, progress
    )
    for name, found in folders.items():
        refuse(progress, Refusal(f"{root}{name}/", _difference(checkpoints, found, fingerprint)))
        _remove_unused(partial(checkpoints.delete, f"{root}{name}/"))
    if folders:
        progress.withdraw("Another computation published these; all artifacts are built again.")


def _remove_unused(remove: Callable[[], None]) -> None:
    """Try to remove unused objects; if that fails, the cleanup after the job removes them."""
    try:
        remove()
    except EigenpressError as error:
        log.warning("refused checkpoints were not removed: %s", error)


def _write_parts(
    checkpoints: Checkpoints, keys: Sequence[str], fingerprint: Fingerprint, progress: Progress
) -> None:
    """Write the parts of our fingerprint, unless an undamaged document has them."""
    key = _parts_key(keys)
    try:
        if key is not None:
            checkpoints.read_sealed(key)
            return
    except Refused as error:
        refuse(progress, error.refusal)
    try:
        checkpoints.put_sealed(checkpoints.place.prefix + PARTS, dict(fingerprint.parts))
    except EigenpressError as error:
        log.warning("the parts of the fingerprint were not written: %s", error)


def _difference(checkpoints: Checkpoints, keys: Sequence[str], fingerprint: Fingerprint) -> str:
    """The reason to refuse the checkpoints of another fingerprint: the parts that differ."""
    key = _parts_key(keys)
    try:
        names = fingerprint.differences(checkpoints.read_sealed(key)) if key else []
    except Refused:
        names = []
    changed = ", ".join(names) or "something"
    return f"it belongs to another computation: {changed} has changed since"


def _parts_key(keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key.rpartition("/")[2].startswith(f"{PARTS}-")), None)

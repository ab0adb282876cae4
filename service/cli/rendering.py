"""Jobs at a terminal: progress bars, tables, and one line for a job's outcome.

Pure functions of the API's JSON and the time draw everything. Names that users chose and messages
of errors are never read as markup, nor do they command the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from service.client.answers import Job, JobWarning
from service.client.client import Client
from service.domain.states import TERMINAL, JobState, Step
from service.printable import printable
from service.quantities import duration

STATE_STYLES = {
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.CANCELLING: "magenta",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "dim",
}
BAR_WIDTH = 32

Answer = Mapping[str, Any]
"""A job, or a part of one, as the API shows it."""


class PrintableConsole(Console):
    """A console that shows the invisible characters of any text escaped, in place of obeying them.

    Rich's own codes for colours and for moving the cursor are no text, and work.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def follow(client: Client, job_id: str, console: Console) -> Job:
    """Show the job until it ends and return it: bars at a terminal, lines elsewhere.

    Raises `service.client.client.ClientError`.
    """
    if not console.is_terminal:
        job = client.wait(job_id, _Lines(console))
    else:
        latest: list[Job] = []
        drawn = Live(
            get_renderable=lambda: job_view(latest[-1], datetime.now(UTC)) if latest else "",
            console=console,
            refresh_per_second=4,
        )
        with drawn:
            job = client.wait(job_id, lambda job: latest.__setitem__(slice(None), [job]))
    console.print(outcome(job), soft_wrap=True)
    return job


def job_view(job: Answer, now: datetime) -> RenderableType:
    """A heading and one line per step, those to come included."""
    rows = Table.grid(padding=(0, 2))
    reached = {step["step"]: step for step in job["steps"]}
    to_come = {each["step"]: each["seconds"] for each in _time_left(job).get("to_come", ())}
    left_out = set() if job["spec"].get("recovery") else {Step.RECOVER}
    for name in (step for step in Step if step not in left_out):
        rows.add_row(*_step_row(name, reached.get(name), to_come.get(name), now))
    return Group(_heading(job, now), rows, *map(_warning, _warnings(job)))


def details(job: Answer, now: datetime) -> RenderableType:
    """All that people ask of one job."""
    spec = job["spec"]
    labels = spec.get("labels") or {}
    rows = Table.grid(padding=(0, 2))
    for label, value in (
        ("job", job["id"]),
        ("name", job["name"]),
        ("labels", ", ".join(f"{name}={value}" for name, value in labels.items())),
        ("state", job["state"]),
        ("attempt", str(job["attempt"] or "")),
        ("priority", str(spec.get("priority") or "")),
        ("model", _place(spec.get("model"))),
        ("text", _place((spec.get("calibration") or {}).get("data"))),
        ("method", spec.get("method")),
        ("targets", ", ".join(map(_target, spec["targets"]))),
        ("submitted", f"{job['created_at']}, {duration(_since(job['created_at'], now))} ago"),
        ("by", _submitter(job)),
        ("left", _left(job) or _time_left(job).get("reason")),
        ("took", _took(job)),
    ):
        if value:
            rows.add_row(Text(label, "dim"), Text(str(value)))
    parts: list[RenderableType] = [rows]
    if job["steps"]:
        parts += ["", job_view(job, now)]
    if error := job["error"]:
        parts.append(Text(f"\n{error['detail']}", "red").append(f"\n{_code(error)}", "dim"))
    return Group(*parts)


def _place(source: Answer | None) -> str:
    """Where a model or a text is, as one would type it."""
    if source is None:
        return ""
    if source.get("source") == "hub":
        return f"hub:{source.get('id')}@{source.get('revision')}"
    return str(source.get("path") or source.get("uri") or source.get("id") or "")


def _submitter(job: Answer) -> str:
    """The key that submitted the job; an older server does not say."""
    key = job.get("submitted_by") or {}
    name, key_id = key.get("key_name"), key.get("key_id", "")
    return f"{name} (key {key_id})" if name else key_id and f"key {key_id}"


def outcome(job: Answer) -> Text:
    """The job's final state in one line, and the error if it failed."""
    text = Text(f"{job['id']} ").append(job["state"], STATE_STYLES[JobState(job["state"])])
    if took := _took(job):
        text.append(f" after {took}")
    if error := job.get("error"):
        text.append(f"\n{error['detail']}").append(f"\n{_code(error)}", "dim")
    return text


def _warnings(job: Answer) -> list[JobWarning]:
    return list(job.get("warnings", ()))  # an older server has none


def _warning(warning: JobWarning) -> Text:
    return Text("Warning: ", "yellow").append(warning["message"], "not bold")


def jobs_table(jobs: Sequence[Answer], now: datetime) -> Table:
    """One line per job."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("JOB", "NAME", "STATE", "PROGRESS", "TARGETS", "SUBMITTED", "TOOK"):
        table.add_column(column, no_wrap=column in ("JOB", "STATE"))
    for job in jobs:
        table.add_row(
            Text(job["id"]),
            Text(job["name"] or ""),
            Text(job["state"], STATE_STYLES[JobState(job["state"])]),
            Text(_progress(job, now)),
            ", ".join(_target(target) for target in job["spec"]["targets"]),
            f"{duration(_since(job['created_at'], now))} ago",
            _took(job),
        )
    return table


def _target(target: Answer) -> str:
    """The fraction to keep, the size in bytes, or the growth in perplexity that is allowed."""
    if "keep" in target:
        return f"{target['keep']:g}"
    if target.get("bytes_fraction") is not None:
        return f"{target['bytes_fraction']:g} of the bytes"
    if target.get("bytes") is not None:
        return f"{target['bytes']:,} bytes"
    return f"+{100 * target['max_perplexity_increase']:.3g}% perplexity"


@contextmanager
def transfer_bar(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for bytes; yields a function to call with (bytes so far, bytes in all)."""
    columns = (BarColumn(BAR_WIDTH), DownloadColumn(), SpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=console) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Lines:
    """For logs and pipes: a line whenever the job's state changes or a step begins or ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: set[str] = set()

    def __call__(self, job: Answer) -> None:
        if job["state"] not in TERMINAL:  # `outcome` prints a final state
            self._say(_state_line(job))
            if error := job["last_error"]:
                ended = job["attempt"] - (job["state"] != JobState.QUEUED)
                self._say(f"attempt {ended} failed: {error['detail']} ({_code(error)})")
        for warning in _warnings(job):
            self._say(f"attempt {job['attempt']}: warning: {warning['message']}")
        for step in job["steps"]:
            left = f", {said} left" if (said := _left(job)) else ""
            self._say(f"attempt {job['attempt']}: {step['step']} began", left)
            if step["finished_at"]:
                took = duration(_since(step["started_at"], _time(step["finished_at"])))
                self._say(f"attempt {job['attempt']}: {step['step']} {_amount(step)} in {took}")

    def _say(self, line: str, remark: str = "") -> None:
        """Print a line, with a remark that may change, unless it was printed before."""
        if line not in self._said:
            self._said.add(line)
            self._console.print(Text(line + remark), soft_wrap=True)


def _heading(job: Answer, now: datetime) -> Text:
    text = Text(job["name"] or job["id"], "bold")
    text.append("  ").append(job["state"], STATE_STYLES[JobState(job["state"])])
    if pause := _pause(job, now):
        text.append(f"  {pause}", "yellow")
    elif job["attempt"] > 1:
        text.append(f"  attempt {job['attempt']}", "yellow")
    if left := _left(job):
        text.append(f"  {left} left", "dim not bold")
    if error := job["last_error"]:
        text.append(f"\nThe attempt before failed: {error['detail']}", "dim not bold")
    return text


def _pause(job: Answer, now: datetime) -> str:
    """When the next attempt begins; empty unless the job waits between two attempts."""
    if job["state"] != JobState.QUEUED or not job["attempt"]:
        return ""
    left = _time(job["available_at"]) - now if job["available_at"] else timedelta()
    when = f"in {duration(left)}" if left > timedelta() else "when its turn comes"
    return f"attempt {job['attempt'] + 1} begins {when}"


def _state_line(job: Answer) -> str:
    attempt = f", attempt {job['attempt']}" if job["attempt"] else ""
    return f"{job['id']} {job['state']}{attempt}"


def _step_row(
    name: Step, step: Answer | None, seconds: float | None, now: datetime
) -> tuple[RenderableType, ...]:
    """A step's line; `seconds` are those of one that has not begun, if they are known."""
    if step is None:
        bar = ProgressBar(total=1, completed=0, width=BAR_WIDTH)
        timing = "" if seconds is None else f"takes {_about(seconds)}"
        return Text(name, "dim"), bar, "", Text(timing, "dim")
    end = _time(step["finished_at"]) if step["finished_at"] else now
    elapsed = _since(step["started_at"], end)
    timing = duration(elapsed)
    left = step.get("seconds_left")  # an older server says nothing of it
    if not step["finished_at"] and left is not None:
        timing += f", {_about(left)} left"
    bar = ProgressBar(total=max(1, step["total"]), completed=step["done"], width=BAR_WIDTH)
    return Text(name), bar, Text(_amount(step)), Text(timing, "dim")


def _time_left(job: Answer) -> Answer:
    """What the server says of the time left; an older one says nothing."""
    return job.get("time_left") or {}


def _left(job: Answer) -> str:
    """How long the job still takes; empty if that is not known."""
    seconds = _time_left(job).get("seconds")
    return "" if seconds is None else _about(seconds)


def _about(seconds: float) -> str:
    return duration(timedelta(seconds=round(seconds)))


def _progress(job: Answer, now: datetime) -> str:
    if job.get("error"):
        return str(job["error"]["code"])
    if pause := _pause(job, now):
        return pause
    if job["state"] in (JobState.RUNNING, JobState.CANCELLING) and job["steps"]:
        step = job["steps"][-1]
        left = f", {said} left" if (said := _left(job)) else ""
        return f"{step['step']} {_amount(step)}{left}"
    return ""


def _amount(step: Answer) -> str:
    return f"{step['done']:,}/{step['total']:,} {step['unit']}"


def _code(error: Answer) -> str:
    return f"{error['code']}, {error['param']}" if error.get("param") else str(error["code"])


def _took(job: Answer) -> str:
    if not (job["started_at"] and job["finished_at"]):
        return ""
    return duration(_since(job["started_at"], _time(job["finished_at"])))


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp)


def _since(stamp: str, now: datetime) -> timedelta:
    return now - _time(stamp)

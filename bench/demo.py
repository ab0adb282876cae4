"""The demo: compresses a small language model through the real service, in minutes, on CPUs.

    make demo

It starts `eigenpress serve`, posts one job over REST (SmolLM2-135M-Instruct, the default method,
three sizes from one calibration on the standard library's sources), shows its progress, downloads
all artifacts from the bucket into ``demo-output/``, generates code with each in a separate
process, and prints the cost of the compression. Two artifacts have layers of low rank. One has
integers; its weights are smaller than the GGUF file that the model comes from. On any failure the
exit status is not zero. At the end the demo stops everything that it started.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from bench import demo_data, demo_report
from bench.demo_server import ServerFailed, serving
from service.cli.rendering import follow, transfer_bar
from service.client.answers import Job
from service.client.client import Client, ClientError
from service.client.download import download_artifact
from service.domain.spec.targets import ByteTarget, SizeTarget
from service.errors import EigenpressError
from service.signals import stop_on_signals

TARGETS = (
    SizeTarget(keep=0.8),
    SizeTarget(keep=0.6),
    # Smaller than the GGUF file:
    ByteTarget(bytes_fraction=0.25, precisions="transformers", embedding_bits=8),
)
NAMES = [target.name for target in TARGETS]
EVALUATION_SEQUENCES = 64
"""The number of sequences of each text that every model is measured on."""
GENERATE = Path(__file__).with_name("generate.py")
GENERATE_SECONDS = 300
SIGNAL_SECONDS = 3600.0


class DemoFailed(Exception):
    """The service did not do what the demo shows."""


FAILURES = (DemoFailed, ServerFailed, ClientError, EigenpressError, OSError)


@dataclass(frozen=True)
class Folders:
    """The demo's folders, which every run creates anew."""

    server: Path
    data: Path
    output: Path

    @classmethod
    def below(cls, root: Path) -> Folders:
        state = root / ".eigenpress"
        return cls(server=state / "demo", data=state / "demo-data", output=root / "demo-output")

    def make(self) -> None:
        for folder in (self.server, self.data, self.output):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)


def main() -> int:
    arguments = _parser().parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folders = Folders.below(Path.cwd())
    folders.server.parent.mkdir(exist_ok=True)
    try:
        with FileLock(folders.server.with_suffix(".lock"), timeout=0):
            run(console, folders, arguments)
    except Timeout:
        print_error(console, "Another demo is running in this folder.")
    except FAILURES as error:
        print_error(console, "The demo failed:", str(error), *getattr(error, "__notes__", []))
    except KeyboardInterrupt as error:
        print_error(console, "The demo was stopped.", *getattr(error, "__notes__", []))
    else:
        return 0
    return 1


def print_error(console: Console, heading: str, *lines: str) -> None:
    text = Text.assemble("\n", (heading, "red"), *(f"\n{line}" for line in lines))
    console.print(text, soft_wrap=True)


def run(console: Console, folders: Folders, arguments: argparse.Namespace) -> None:
    """Run the demo from an empty folder to the final table. Raises one of `FAILURES`."""
    folders.make()
    problems = demo_data.PROBLEM_COUNT if arguments.all_problems else EVALUATION_SEQUENCES
    spec = specification(console, folders.data, problems)
    allowed = [folders.data, Path(spec["model"]["path"]).parent]
    console.print("Starting the service ...")
    command = [str(Path(sys.executable).with_name("eigenpress")), "serve"]
    with (
        serving(command, folders.server, allowed) as server,
        Client(server.url, key=server.key) as client,
    ):
        console.print(f"Use it at {server.sign_in_url}", soft_wrap=True)
        console.print(f"Watch it at {server.dashboard_url}", soft_wrap=True)
        console.print(f"The dashboard asks for the token in {server.token_path}", soft_wrap=True)
        job = compress(console, client, spec)
        report = client.report(job["id"])
        (folders.output / "report.json").write_text(json.dumps(report, indent=2))
        artifacts = [download(console, client, job["id"], name, folders.output) for name in NAMES]
        with ThreadPoolExecutor() as pool:
            for name, code in zip(NAMES, pool.map(written_code, artifacts), strict=True):
                text = Syntax(code, "python", background_color="default")
                console.print(Panel(text, title=f"{name} writes", title_align="left"))
        show(console, job, report)
        show_links(console, server.url, job, folders.output)
        if arguments.hold:
            wait_for_leave(console)
        if defects := list(demo_report.defects(report, NAMES)):
            raise DemoFailed("; ".join(defects))


def specification(console: Console, folder: Path, problem_count: int) -> dict[str, Any]:
    """Write the demo's texts below `folder`; return the body of `POST /v1/jobs`.

    The second text that the job measures models on is `problem_count` problems of HumanEval.
    """
    library, problems = folder / "stdlib", folder / "humaneval.jsonl"
    modules = demo_data.copy_standard_library(library)
    demo_data.write_problems(problems, problem_count)
    console.print(f"Calibration text: {modules} modules of the standard library.")
    console.print(f"Second text: {problem_count} problems of HumanEval.")
    return {
        "name": "demo",
        "model": {"source": "local", "path": str(demo_data.model_file())},
        "targets": [target.model_dump(exclude_defaults=True) for target in TARGETS],
        "dtype": "bfloat16",
        "workers": 2,
        "mixed_precision": "auto",
        "calibration": {
            "data": {"source": "local", "path": str(library), "pattern": "**/*.py"},
            "sequences": 96,
            "sequence_length": 256,
            "batch_size": 8,
        },
        "evaluation": {
            "sequences": EVALUATION_SEQUENCES,
            "decode_tokens": 32,
            "prompts": ["def quicksort(items):"],
            "datasets": [
                {
                    "name": f"humaneval-{problem_count}",
                    "data": {"source": "local", "path": str(problems)},
                    "sequences": problem_count,
                }
            ],
        },
    }


def compress(console: Console, client: Client, spec: dict[str, Any]) -> Job:
    """Submit the job and follow it until it ends."""
    job = follow(client, client.submit(spec)["id"], console)
    if job["state"] != "succeeded":
        raise DemoFailed(f"the job {job['state']}; the server's logs are in .eigenpress/demo/logs")
    return job


def download(console: Console, client: Client, job_id: str, name: str, output: Path) -> Path:
    """Download an artifact and check every file's size and sha256 against the manifest."""
    with transfer_bar(console, f"Downloading {name}") as on_progress:
        return download_artifact(client, job_id, name, output / name, on_progress=on_progress)


def written_code(folder: Path) -> str:
    """The code that the checkpoint generates, in a process without Eigenpress and Ray."""
    with tempfile.TemporaryDirectory() as modules:
        threads = max(1, (os.cpu_count() or 1) // len(NAMES))  # they write at the same time
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": modules,
            "OMP_NUM_THREADS": str(threads),
        }
        command = [sys.executable, "-I", str(GENERATE), str(folder)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=GENERATE_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"{folder.name} took more than {error.timeout} s to write") from error
    if done.returncode:
        raise DemoFailed(f"{folder.name} failed to load or to write:\n{done.stderr[-4000:]}")
    return done.stdout.rstrip()


def show(console: Console, job: Job, report: dict[str, Any]) -> None:
    console.print(demo_report.comparison(report))
    console.print(demo_report.durations(job))


def show_links(console: Console, url: str, job: Job, output: Path) -> None:
    links = job["links"]
    console.print(f"Ray dashboard  {links['ray_dashboard']}", soft_wrap=True)
    console.print(f"API            {url}/docs", soft_wrap=True)
    console.print(f"Report         {url}{links['report']}", soft_wrap=True)
    console.print(f"Kept in        {output}", soft_wrap=True)


def wait_for_leave(console: Console) -> None:
    """Wait for Enter or, without a terminal, for a signal."""
    if sys.stdin and sys.stdin.isatty():
        with suppress(EOFError):  # Ctrl-D
            console.input("\nThe service runs until you press Enter. ")
        return
    with stop_on_signals() as stop:
        console.print(f"\nThe service runs until you end the demo: kill {os.getpid()}")
        while not stop.wait(SIGNAL_SECONDS):
            pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compress a small model through the service.")
    parser.add_argument(
        "--hold", action="store_true", help="at the end, wait for Enter, or for a signal"
    )
    parser.add_argument(
        "--all-problems",
        action="store_true",
        help=f"measure on all {demo_data.PROBLEM_COUNT} problems of HumanEval, which takes longer",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

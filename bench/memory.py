"""Measures the memory of each process of a job, beside what the cost model predicts.

    python -m bench.memory --blocks 24 --hidden 256 --intermediate 768

It starts `eigenpress serve`, submits a random Llama in bfloat16 with as many blocks as asked for,
and reads the peaks of resident memory that Linux keeps of each process. A worker's and a driver's
count from the moment at which the workers are placed: all is imported then, and nothing loaded.
With `--files` hidden states and solved layers go to files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from bench.demo_server import serving
from service.client.client import Client
from service.domain.costs.cluster import Cluster
from service.domain.costs.shapes import model_shapes
from service.domain.costs.steps import peak_driver_bytes, peak_worker_bytes
from service.domain.spec.job import JobSpec
from tests.fixtures.models import byte_tokenizer

PLACED = "workers.placed"
FINE_SECONDS, COARSE_SECONDS = 0.02, 0.25
"""The pause between two looks at the processes, before the workers are placed and afterwards."""

KINDS = {"RssAnon": "own", "RssFile": "files", "RssShmem": "shared"}
"""What resident memory consists of: a process's own pages, those of mapped files such as its
libraries, which the system can take back, and those of Ray's object store."""


class JobFailed(Exception):
    """The job did not succeed."""


@dataclass
class Memory:
    """The resident memory of a process, in bytes."""

    before: int = 0  # when the workers were placed
    peaks: dict[str, int] = field(default_factory=dict)  # by step, as Linux counts them
    parts: dict[str, dict[str, int]] = field(default_factory=dict)  # by step, the largest seen

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    def look(self, pid: int, step: str) -> None:
        """Read the process's status; a process that has ended keeps its last values."""
        with suppress(OSError, KeyError):
            status = _status(pid)
            self.peaks[step] = max(self.peaks.get(step, 0), status["VmHWM"])
            if status["VmRSS"] >= sum(self.parts.get(step, {}).values()):
                self.parts[step] = {name: status[key] for key, name in KINDS.items()}

    def as_json(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "peak": self.peak,
            "grown": self.peak - self.before,
            "grown_by_step": {step: peak - self.before for step, peak in self.peaks.items()},
            "parts": self.parts,
        }


class Watch:
    """Looks at all processes below this one, until the block ends."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, int], Memory] = {}  # by name and process id
        self._step = "start"
        self._ended = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def begin(self, step: str) -> None:
        """A step begins; with the first one growth begins."""
        for (_, pid), memory in list(self.of.items()):  # the thread adds to them
            memory.look(pid, self._step)
            with suppress(OSError, KeyError):
                if self._step == "start":
                    memory.before = _status(pid)["VmRSS"]
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak
        self._step = step

    def largest(self, name: str) -> Memory:
        """The process of this name with the highest peak."""
        return max((m for (n, _), m in self.of.items() if n == name), key=lambda m: m.peak)

    def _run(self) -> None:
        while not self._ended.wait(FINE_SECONDS if self._step == "start" else COARSE_SECONDS):
            for name, pid in _processes():
                self.of.setdefault((name, pid), Memory()).look(pid, self._step)


def _processes() -> Iterator[tuple[str, int]]:
    """All processes below this one, with names for those of a job."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            words = process.cmdline()
            yield _name(words), process.pid


def _name(words: Sequence[str]) -> str:
    line = " ".join(words)
    if "workers.attempt.driver" in words:
        return "driver"
    if "clean_process.py" in line and "-I" in words:
        return "proof"
    if line.startswith("ray::"):
        return "worker"
    if "serve" in words:
        return "service"
    return Path(words[0]).name if words else "?"


def _status(pid: int) -> dict[str, int]:
    """The sizes in a process's status, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs if value.endswith(" kB")}


def write_model(folder: Path, *, blocks: int, hidden: int, intermediate: int) -> int:
    """A random Llama in bfloat16, written block by block; returns the bytes of its weights."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    byte_tokenizer(adds_bos=False).save_pretrained(folder)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in LlamaForCausalLM(config).named_parameters()}
    generator, total = torch.Generator().manual_seed(0), 0
    weight_map: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        parts.setdefault(name.split(".")[2] if ".layers." in name else "outside", []).append(name)
    for part, names in parts.items():
        tensors = {
            name: (
                torch.randn(shapes[name], generator=generator) / shapes[name][-1] ** 0.5
                if len(shapes[name]) > 1
                else torch.ones(shapes[name])
            ).bfloat16()
            for name in names
        }
        save_file(tensors, folder / f"{part}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(names, f"{part}.safetensors")
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def measure(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress the model; the memory of each process. Raises JobFailed and ServerFailed."""
    inputs, data = scratch / "inputs", scratch / "data"
    for folder in (inputs / "model", inputs / "texts", data):
        folder.mkdir(parents=True)
    for number in range(30):
        text = f"The number is {number}.\n" * 40
        (inputs / "texts" / f"{number}.txt").write_text(text)
    weights = write_model(
        inputs / "model",
        blocks=arguments.blocks,
        hidden=arguments.hidden,
        intermediate=arguments.intermediate,
    )
    specification = {
        "model": {"source": "local", "path": str(inputs / "model")},
        "workers": 1,
        "calibration": {
            "data": {"source": "local", "path": str(inputs / "texts")},
            "sequences": arguments.sequences,
            "sequence_length": 64,
            "batch_size": 2,
        },
        "targets": [{"keep": 0.6}],
        "evaluation": {"sequences": 4, "decode_tokens": 0, "curve": arguments.curve},
    }
    memory = 0 if arguments.files else arguments.memory_bytes
    os.environ |= {
        "EIGENPRESS_SUBMISSION_CHECK_SECONDS": "600",  # the machine may be busy
        "EIGENPRESS_WORKER_MEMORY_BYTES": str(memory),
        "EIGENPRESS_MODEL_MEMORY_BYTES": str(arguments.model_memory_bytes),
    }
    command = [str(Path(sys.executable).with_name("eigenpress")), "serve"]
    with (
        Watch() as watch,
        serving(command, data, [inputs]) as server,
        Client(server.url, key=server.key) as client,
    ):
        job = follow(client, client.submit(specification), watch)
    if job["state"] != "succeeded":
        raise JobFailed(f"the job is {job['state']}: {job.get('error')}")
    shapes = model_shapes(json.loads((inputs / "model" / "config.json").read_text()))
    spec, here = JobSpec.model_validate(specification), this(memory, arguments.model_memory_bytes)
    predicted = {
        "worker": round(peak_worker_bytes(shapes, spec, here)),
        "driver": round(peak_driver_bytes(shapes)),
    }
    return {
        "weights": weights,
        "seconds": {step["step"]: step_seconds(step) for step in job["steps"]},
        "processes": {
            name: watch.largest(name).as_json() | {"predicted": predicted.get(name)}
            for name in sorted({name for name, _ in watch.of})
        },
    }


def follow(client: Client, job: Mapping[str, Any], watch: Watch) -> Mapping[str, Any]:
    """Wait for the job's end, and tell `watch` when its workers are placed."""
    while not any(event["type"] == PLACED for event in client.events(job["id"])):
        if client.job(job["id"])["state"] not in ("queued", "running"):
            return client.job(job["id"])
        time.sleep(FINE_SECONDS)
    watch.begin(step := "resolve")
    while job["state"] in ("queued", "running"):
        time.sleep(COARSE_SECONDS)
        job = client.job(job["id"])
        if job["steps"] and step != (step := job["steps"][-1]["step"]):
            watch.begin(step)
            print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)
    return job


def step_seconds(step: Mapping[str, Any]) -> float | None:
    ends = step["started_at"], step["finished_at"]
    if None in ends:
        return None
    start, end = map(datetime.fromisoformat, ends)
    return round((end - start).total_seconds(), 1)


def this(memory_bytes: int, model_memory_bytes: int) -> Cluster:
    """This machine with one worker and these settings; its speed is of no account."""
    return Cluster(
        workers=1,
        workers_per_machine=1,
        gpus=False,
        device_memory=0,
        host_memory=psutil.virtual_memory().total,
        disk=shutil.disk_usage(".").total,
        model_flops=1,
        float32_flops=1,
        float64_flops=1,
        products_share=1,
        solving_share=1,
        memory_bandwidth=1,
        loading_bandwidth=1,
        disk_bandwidth=1,
        network_bandwidth=1,
        worker_memory=memory_bytes,
        model_memory=model_memory_bytes,
    )


def main() -> int:
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        found = measure(Path(scratch), arguments)
    print(json.dumps(vars(arguments) | found, default=str))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The memory of each process of a job.")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--curve", type=float, nargs="*", default=[0.8])
    parser.add_argument(
        "--memory-bytes", type=int, default=8 << 20, help="EIGENPRESS_WORKER_MEMORY_BYTES"
    )
    parser.add_argument(
        "--model-memory-bytes", type=int, default=128 << 20, help="EIGENPRESS_MODEL_MEMORY_BYTES"
    )
    parser.add_argument(
        "--files", action="store_true", help="keep hidden states and solved layers in files"
    )
    parser.add_argument("--scratch", type=Path, help="where to make a folder for everything")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.integration.peak_memory``: the memory of an attempt with one worker.

It makes a random Llama with as many blocks as asked for, runs an attempt in this process, as a
worker's process does, and prints as JSON by how many bytes the resident memory grew at most beyond
what the imports take, what the cost model predicts for it, and the bytes of the model's weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from service.domain.costs.cluster import Cluster
from service.domain.costs.shapes import model_shapes
from service.domain.costs.steps import peak_host_bytes
from service.domain.states import JobState
from service.standalone.s3_server import LocalS3
from tests.fixtures.in_process import LocalInstallation, answer_for_ray
from tests.fixtures.models import byte_tokenizer


def write_model(folder: Path, *, blocks: int, hidden: int, intermediate: int) -> int:
    """A random Llama in bfloat16, written block by block; returns the bytes of its weights."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--memory-bytes", type=int, default=8 << 20, help="of the worker, twice")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--curve", type=float, nargs="*", default=[0.8])
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    with pytest.MonkeyPatch.context() as patch, LocalS3(folder / "s3") as s3:
        patch.setenv("EIGENPRESS_WORKER_MEMORY_BYTES", str(arguments.memory_bytes))
        patch.setenv("EIGENPRESS_MODEL_MEMORY_BYTES", str(arguments.memory_bytes))
        answer_for_ray(patch)
        installation = LocalInstallation(folder, s3, patch)
        model = installation.inputs / "model"
        model.mkdir()
        weight_bytes = write_model(
            model,
            blocks=arguments.blocks,
            hidden=arguments.hidden,
            intermediate=arguments.intermediate,
        )
        job = installation.create(
            model={"source": "local", "path": str(model)},
            calibration={
                "data": {"source": "local", "path": str(installation.inputs / "texts")},
                "sequences": arguments.sequences,
                "sequence_length": 64,
                "batch_size": 2,
            },
            targets=[{"keep": 0.6}],
            evaluation={"sequences": 4, "decode_tokens": 0, "curve": arguments.curve},
        )
        before = reset_peak()
        installation.attempt(workers=1)
        assert installation.store.users.get(job.id).state is JobState.SUCCEEDED
        grown = peak() - before
        installation.store.close()
    config = json.loads((model / "config.json").read_text())
    predicted = round(peak_host_bytes(model_shapes(config), job.spec, this(arguments.memory_bytes)))
    found = {"grown": grown, "predicted": predicted, "weights": weight_bytes, "imports": before}
    print(json.dumps(found))


def this(memory_bytes: int) -> Cluster:
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
        model_memory=memory_bytes,
    )


def reset_peak() -> int:
    """Forget the peak so far; the resident memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The most resident memory of this process since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found) * 1024


if __name__ == "__main__":
    main()

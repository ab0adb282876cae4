"""The model and the texts of the benchmarks, which run in this process.

They are the demo's unless another model is named.
"""

from __future__ import annotations

import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from bench import demo_data
from service.inputs.texts.documents import Document, read_documents
from service.settings import Settings
from workers.compression.eigen import solving_dtype
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import Method
from workers.compression.shapes import InputGroup
from workers.compression.solve import Factors, Solution, solve_group
from workers.compression.statistics import GroupStatistics, Observations, accumulation_dtype
from workers.compression.unfuse import unfuse
from workers.model.loading import load_model, prepare_model
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.calibration import CalibrationSweep, Observed
from workers.sweeps.copies import copies
from workers.sweeps.passage import InMemory, Passage
from workers.text.sequences import in_batches

MODEL_NAME = "SmolLM2-135M-Instruct"
SEED = 0
HELD_OUT_FRACTION = 0.1
STATE = Path(".eigenpress/bench")
"""The folder for converted models and measured rows, below the working directory."""


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_folder(path: Path | None, state: Path) -> Path:
    """A Hugging Face folder of the model at `path`, or of the demo's; GGUF is converted once.

    Raises the errors of `workers.model.loading.prepare_model`, and FileNotFoundError.
    """
    path = (path or demo_data.model_file()).resolve()
    return prepare_model(path, Settings(data_dir=state.resolve()))


def library_documents() -> list[Document]:
    """The hand-written modules of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    return [
        Document(str(source.relative_to(library)), source.read_text("utf-8"))
        for source in demo_data.library_sources(library)
    ]


def problem_documents(state: Path) -> list[Document]:
    """The HumanEval problems in order, each as its prompt and its solution."""
    state.mkdir(parents=True, exist_ok=True)
    file = state / "humaneval.jsonl"
    demo_data.write_problems(file)
    return list(read_documents(file.resolve(), "*", "text", "humaneval"))


def load(folder: Path, device: torch.device) -> Any:
    """The unfused model of a folder, whose layers can be compressed."""
    model = load_model(folder, device)
    unfuse(model)
    return model


def groups_of(model: torch.nn.Module) -> tuple[InputGroup, ...]:
    """The compressible layers of a model, grouped by shared input."""
    return input_groups(model, compressible_layers(model))


def calibrated(
    model: Any, groups: Sequence[InputGroup], batches: Sequence[Tensor], observations: Observations
) -> dict[str, GroupStatistics]:
    """The statistics of these batches, computed as on a worker, but with all weights in memory."""
    passage = Passage(model)
    observed = Observed(observations, tuple(groups), accumulation_dtype(passage.device))
    statistics: dict[str, GroupStatistics] = {}
    with tempfile.TemporaryDirectory() as folder:
        boundaries = Boundaries(_free_memory(passage.device), Path(folder), copies(passage.device))
        sweep = CalibrationSweep(passage, InMemory(passage), observed, batches, boundaries)
        for number in range(sweep.blocks):
            statistics |= sweep.forward(number)
        sweep.loss()
        if observed.gradients:
            for number in reversed(range(sweep.blocks)):
                statistics |= sweep.backward(number)
    return statistics


def _free_memory(device: torch.device) -> dict[torch.device, int]:
    """The bytes for hidden states: half of what is free on the device, then on the host."""
    host = {torch.device("cpu"): psutil.virtual_memory().available // 2}
    if device.type == "cpu":
        return host
    free, _ = torch.cuda.mem_get_info(device)
    return {device: free // 2, **host}


def solved(
    model: Any, group: InputGroup, statistics: GroupStatistics, method: Method
) -> dict[str, Solution]:
    """The solutions of a group's layers, with the model's own weights."""
    modules = {layer.name: model.get_submodule(layer.name) for layer in group.layers}
    return solve_group(
        group,
        {name: module.weight for name, module in modules.items()},
        statistics,
        method,
        dtype=solving_dtype(next(iter(modules.values())).weight.device),
    )


def truncated(model: Any, solution: Solution, rank: int) -> Factors:
    """The factors of a layer at this rank, with the model's own weight and bias."""
    module = model.get_submodule(solution.layer.name)
    bias = None if module.bias is None else module.bias.detach()
    return solution.truncate(rank, module.weight.detach(), bias)


def batches(sequences: list[list[int]], size: int, device: torch.device) -> list[Tensor]:
    """Token ids, each (at most `size`, length)."""
    return [torch.tensor(batch, device=device) for batch in in_batches(sequences, size)]

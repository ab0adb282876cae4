"""What the benchmarks run on, in this process: a model as a folder, and text as token sequences.

The model and the text are the demo's unless another model is named.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import torch

from bench import demo_data
from service.documents import Document, read_documents
from service.settings import Settings
from service.spec import LocalPath
from workers.compression.layers import InputGroup, compressible_layers, input_groups
from workers.compression.unfuse import unfuse
from workers.model import load_model, prepare_model

MODEL_NAME = "SmolLM2-135M-Instruct"
SEED = 0
HELD_OUT_FRACTION = 0.1
STATE = Path(".eigenpress/bench")
"""Below the working directory, and ignored by git: converted models and measured rows."""


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def accumulator(device: torch.device) -> torch.dtype:
    """The dtype in which the workers sum over tokens."""
    return torch.float64 if device.type == "cpu" else torch.float32


def model_folder(path: Path | None, state: Path) -> Path:
    """A Hugging Face folder of the model at `path`, or of the demo's; GGUF is converted once.

    Raises the errors of `workers.model.prepare_model`, and FileNotFoundError.
    """
    path = (path or demo_data.model_file()).resolve()
    settings = Settings(data_dir=state.resolve(), allowed_roots=(path.parent,))
    return prepare_model(LocalPath(source="local", path=str(path)), settings)


def library_documents() -> list[Document]:
    """The hand-written modules of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    return [
        Document(str(source.relative_to(library)), source.read_text("utf-8"))
        for source in demo_data.library_sources(library)
    ]


def problem_documents(state: Path) -> list[Document]:
    """The HumanEval problems, each its prompt and its solution, in their order."""
    state.mkdir(parents=True, exist_ok=True)
    file = state / "humaneval.jsonl"
    demo_data.write_problems(file)
    return list(read_documents(file, "*", "text", "humaneval"))


def load(folder: Path, device: torch.device) -> Any:
    """The model of a folder, in the form in which its layers can be compressed."""
    model = load_model(folder, device)
    unfuse(model)
    return model


def groups_of(model: torch.nn.Module) -> tuple[InputGroup, ...]:
    """The compressible layers of a model, by the input that they share."""
    return input_groups(model, compressible_layers(model))


def batches(sequences: list[list[int]], size: int, device: torch.device) -> list[torch.Tensor]:
    """Token ids, each (at most `size`, length)."""
    starts = range(0, len(sequences), size)
    return [torch.tensor(sequences[start : start + size], device=device) for start in starts]

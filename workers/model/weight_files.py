"""Finds the files that hold a model's weights."""

from __future__ import annotations

import json
from pathlib import Path


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint, in name order."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return sorted(folder.glob("*.safetensors"))
